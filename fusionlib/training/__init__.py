"""Training of the fusion adapter over a frozen base model.

Read it from the data to the loop. ``sources`` gives the adapter its batches, from memory (the whole
set as ``pictures``) or from disk: ``shards`` finds the samples, ``pairs`` decides which target
meets which reference, ``crops`` cuts both, ``encoders`` turns them into latents and text
embeddings, and ``cached`` stores on disk what has to be computed only once. ``denoising`` is the
loss, ``adapter`` the network and its training, and ``loop`` the resumable loop of every training in
this project. ``runs`` holds the options of a run, ``checkpoints`` the models that it builds upon,
``log`` and ``export`` write its results. ``prepare`` selects a training set from downloaded
photographs.
"""
