"""The paper's method (fused attention), and the same base model without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from companion.methods import Method, Models
from companion.methods.common import as_recorded, described
from fusionlib.errors import FusionError
from fusionlib.support.provenance import sha256_modules

if TYPE_CHECKING:
    from fusionlib.pipeline import FusionPipeline


def text_only(
    pipeline: FusionPipeline,
    *,
    name: str = "text-only",
    threads: int | None = None,
    **settings: Any,
) -> Method:
    """The base model, which sees the prompt and nothing of the person.

    Args:
        pipeline: holds the base model; its adapter, if any, is not used.
        name: in tables.
        threads: see `fused`.
        settings: arguments of the pipeline's call, such as ``num_inference_steps``.
    """
    return _method(name, pipeline, (), threads, "", settings, citation="rombach2022latent")


def fused(
    pipeline: FusionPipeline,
    *,
    name: str = "fused",
    strengths: Sequence[float] = (1.0,),
    threads: int | None = None,
    reference_prompt: str = "",
    **settings: Any,
) -> Method:
    """Fused attention over the person's references (Eq. 4, and Eq. 6 for more than one).

    Args:
        pipeline: holds the base model and the adapter.
        name: in tables.
        strengths: lambda of each reference that the method sees, so its length is their number.
        threads: of the CPU, used for every picture and recorded, since sums over more threads
            round in other places; None takes as many as torch uses now.
        reference_prompt: what the references are shown with, for an adapter that was trained so.
        settings: arguments of the pipeline's call, such as ``num_inference_steps``.
    """
    weights = [float(strength) for strength in strengths]
    return _method(
        name, pipeline, weights, threads, reference_prompt, settings, citation="mohamed2024fusion"
    )


def build_text_only(models: Models, **options: Any) -> Method:
    """`text_only` of a profile's pipeline, for a study's file."""
    settings = {"threads": models.threads, **(models.sampling or {}), **options}
    return replace(text_only(models.pipeline, **settings), needs=(models.profile.base_model,))


def build_fused(models: Models, *, adapter: str | None = None, **options: Any) -> Method:
    """`fused` of a profile's pipeline, for a study's file.

    Args:
        models: the profile, the device and what a study's methods share.
        adapter: folder or hub id of another adapter for the same base model.
        options: of `fused`.
    """
    from fusionlib.profiles.loading import adapter_of, load_pipeline

    settings = {"threads": models.threads, **(models.sampling or {}), **options}
    needs = (models.profile.base_model, adapter or adapter_of(models.profile))
    if adapter is None:
        return replace(fused(models.pipeline, **settings), needs=needs)
    pipeline = load_pipeline(
        models.profile, adapter=adapter, device=models.device, dtype=models.dtype
    )
    return replace(fused(pipeline, **settings), needs=needs)


def _method(
    name: str,
    pipeline: FusionPipeline,
    strengths: Sequence[float],
    threads: int | None,
    reference_prompt: str,
    settings: dict[str, Any],
    citation: str,
) -> Method:
    threads = threads or torch.get_num_threads()

    def prepare(references: Sequence[Image.Image]) -> Any:
        shared = settings.get("timestep_mode") == "shared"
        if not any(strengths) or shared or "cross_attention_kwargs" in settings:
            return list(references)  # not seen, seen anew at every step, or by other LoRA weights
        with as_recorded(threads):
            return pipeline.encode_references(list(references), prompt=reference_prompt)

    def generate(prompt: str, references: Any, noise_seed: int) -> Image.Image:
        # Always drawn on the CPU: the seed alone names the noise, whatever the device.
        generator = torch.Generator("cpu").manual_seed(noise_seed)
        with as_recorded(threads):
            output: Any = pipeline(
                prompt,
                references=references if strengths else None,
                strengths=strengths or None,
                generator=generator,
                **settings,
            )
        image: Image.Image = output.images[0]
        return image

    described = describe(pipeline, with_adapter=bool(strengths))
    if described["device"] == "cpu":
        described["threads"] = threads
    return Method(
        name=name,
        generate=generate,
        settings={
            **settings,
            **({"reference_prompt": reference_prompt} if reference_prompt else {}),
            "strengths": list(strengths),
            **described,
        },
        references=len(strengths),
        prepare=prepare,
        citation=citation,
    )


def describe(
    pipeline: FusionPipeline, *, with_adapter: bool = True, code: Sequence[str] = ()
) -> dict[str, Any]:
    """What determines a pipeline's pictures: hashes of weights and code, scheduler, versions.

    Args:
        pipeline: holds the base model and, `with_adapter`, the adapter.
        with_adapter: whether the adapter has a part in the pictures.
        code: sources besides this method's own.
    """
    modules = [pipeline.unet, pipeline.vae, pipeline.text_encoder]
    weights = {"base_model": sha256_modules(modules)}
    if with_adapter:
        if pipeline.adapter is None:
            raise FusionError("The pipeline has no adapter: give one when it is loaded.")
        weights["adapter"] = sha256_modules([pipeline.adapter])
    return described(pipeline, weights, ("methods/fusion.py", *code))
