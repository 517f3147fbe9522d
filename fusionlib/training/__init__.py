"""Training: the embedded models from scratch, and the fusion adapter over a frozen base.

``data`` reads shards, ``objective`` holds the losses, ``loop`` is the one resumable loop that
``vae``, ``clip``, ``base`` and ``adapter`` share.
"""
