"""The paper's method (fused attention), and the same base model without it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

import fusionlib
from fusionlib.errors import FusionError
from fusionlib.manifest import package_versions, sha256_file, sha256_json, sha256_modules
from fusionlib.methods import Method

if TYPE_CHECKING:
    from fusionlib.pipeline import FusionPipeline

_CODE = (
    "attention.py",
    "backends.py",
    "masking.py",
    "reference.py",
    "adapter.py",
    "pipeline.py",
    "guidance.py",
    "images.py",
    "methods/fusion.py",
)
"""Sources that can change a picture: an edit makes new pictures, never stale ones."""


def text_only(pipeline: FusionPipeline, **settings: Any) -> Method:
    """The base model, which sees the prompt and nothing of the person.

    Args:
        pipeline: holds the base model; its adapter, if any, is not used.
        settings: arguments of the pipeline's call, such as ``num_inference_steps``.
    """
    return _method("text-only", pipeline, (), settings)


def fused(
    pipeline: FusionPipeline,
    *,
    name: str = "fused",
    strengths: Sequence[float] = (1.0,),
    **settings: Any,
) -> Method:
    """Fused attention over the person's references (Eq. 4, and Eq. 6 for more than one).

    Args:
        pipeline: holds the base model and the adapter.
        name: in tables.
        strengths: lambda of each reference that the method sees, so its length is their number.
        settings: arguments of the pipeline's call, such as ``num_inference_steps``.
    """
    return _method(name, pipeline, [float(strength) for strength in strengths], settings)


def _method(
    name: str, pipeline: FusionPipeline, strengths: Sequence[float], settings: dict[str, Any]
) -> Method:
    def generate(
        references: Sequence[Sequence[Image.Image]],
        prompts: Sequence[str],
        noise_seeds: Sequence[int],
    ) -> list[Image.Image]:
        # One generator for each picture, always on the CPU: the seed alone names the noise,
        # whatever the batch and the device.
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in noise_seeds]
        output: Any = pipeline(
            list(prompts),
            references=references if strengths else None,
            strengths=strengths or None,
            generator=generators,
            **settings,
        )
        return output.images

    return Method(
        name=name,
        generate=generate,
        settings={
            **settings,
            "strengths": list(strengths),
            **describe(pipeline, with_adapter=bool(strengths)),
        },
        references=len(strengths),
    )


def describe(pipeline: FusionPipeline, *, with_adapter: bool = True) -> dict[str, Any]:
    """What determines a pipeline's pictures: hashes of weights and code, scheduler, versions."""
    modules = [pipeline.unet, pipeline.vae, pipeline.text_encoder]
    weights = {"base_model": sha256_modules(modules)}
    if with_adapter:
        if pipeline.adapter is None:
            raise FusionError("The pipeline has no adapter: give one when it is loaded.")
        weights["adapter"] = sha256_modules([pipeline.adapter])
    scheduler = {k: v for k, v in pipeline.scheduler.config.items() if not k.startswith("_")}
    sources = [Path(fusionlib.__file__).parent / name for name in _CODE]
    return {
        "weights": weights,
        "scheduler": {"class": type(pipeline.scheduler).__name__, **scheduler},
        "code": sha256_json([sha256_file(source) for source in sources]),
        "versions": package_versions(("torch", "diffusers", "transformers")),
        "device": pipeline.device.type,
    }
