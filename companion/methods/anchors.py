"""The ends of the scale as pictures: the reference itself, and what the autoencoder leaves of it.

Neither is a way of making pictures. Beside the others in a study, they say what a copy of the
reference would get, and what no system over this autoencoder can exceed by painting faces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageOps

from companion.evaluation.quality import reconstruct
from companion.methods import Method, Models
from companion.methods.common import as_recorded, pipeline_key
from fusionlib.support.provenance import sha256_modules

CODE = ("methods/anchors.py",)


def build_reference(models: Models, *, name: str = "the reference itself") -> Method:
    """The first reference, as it is, whatever the prompt and the noise.

    Args:
        models: Profile, which gives the size of the pictures.
        name: Name in tables.
    """
    side = models.profile.resolution
    key = {"size": side, "weights": {}}

    def generate(prompt: str, prepared: Any, noise_seed: int) -> Image.Image:
        picture: Image.Image = prepared
        return picture

    return Method(name, generate, key, prepare=lambda images: ImageOps.fit(images[0], (side, side)))


def build_restored(models: Models, *, name: str = "the reference, restored") -> Method:
    """The first reference after the autoencoder, which no picture of the base model can better.

    Args:
        models: Profile, and its base model's autoencoder.
        name: Name in tables.
    """
    side, pipeline = models.profile.resolution, models.pipeline
    threads = models.threads or torch.get_num_threads()
    weights = {"autoencoder": sha256_modules([pipeline.vae])}

    def prepare(images: Sequence[Image.Image]) -> Image.Image:
        with as_recorded(threads):
            return reconstruct(pipeline, [ImageOps.fit(images[0], (side, side))])[0]

    def generate(prompt: str, prepared: Any, noise_seed: int) -> Image.Image:
        picture: Image.Image = prepared
        return picture

    key = pipeline_key(pipeline, weights, threads, CODE)
    needs = (models.profile.base_model,)
    return Method(name, generate, key, prepare=prepare, needs=needs)
