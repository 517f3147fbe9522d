"""Training: the embedded models from scratch, and the fusion adapter over a frozen base.

``loop`` is the one resumable loop that ``vae``, ``clip``, ``base`` and ``adapter`` share, with the
losses of ``objective`` and the ``log``. Data come whole into memory (``data``), or as they are
needed: ``shards`` finds samples, ``pairs`` says which meet, ``crops`` cuts them, ``encoders`` and
``latent_store`` turn them into latents, and ``sources`` gives the adapter its batches. ``prepare``
makes shards of downloaded photographs, ``monitor`` looks at a running training, ``lesson`` is one
that a notebook can show. ``identity`` and ``classifier`` train what judges the pictures, and share
``judges``, ``augment`` and, for aligned faces, ``faces``.
"""
