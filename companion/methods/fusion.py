"""The paper's method (fused attention), and the same base model without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from companion.methods import Method, Models
from companion.methods.common import as_recorded, paint, pipeline_key
from fusionlib.checks import check_strengths
from fusionlib.errors import FusionError
from fusionlib.support.provenance import sha256_modules

if TYPE_CHECKING:
    from torch.nn import Module

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
        pipeline: Pipeline with the base model; its adapter, if any, is not used.
        name: Name in tables.
        threads: CPU threads for each picture, as in `fused`.
        settings: Arguments of the pipeline's call, such as ``num_inference_steps``.
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
        pipeline: Pipeline with the base model and the adapter.
        name: Name in tables.
        strengths: Lambda of each reference; the method sees as many references.
        threads: CPU threads for every picture, recorded because sums over another number of threads
            are rounded differently; None takes as many as torch uses now.
        reference_prompt: Text that the references are encoded with, for an adapter that was trained
            so.
        settings: Arguments of the pipeline's call, such as ``num_inference_steps``.
    """
    count = len(strengths) if isinstance(strengths, Sequence) else 1
    weights = [float(strength) for strength in check_strengths(strengths, count, None)]
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
        models: Profile, device and what a study's methods share.
        adapter: Folder or hub id of another adapter for the same base model.
        options: Options of `fused`.
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
            return list(references)  # unseen, encoded at every step, or with other LoRA weights
        with as_recorded(threads):
            return pipeline.encode_references(list(references), prompt=reference_prompt)

    def generate(prompt: str, references: Any, noise_seed: int) -> Image.Image:
        given = {"references": references, "strengths": strengths} if strengths else {}
        return paint(pipeline, threads, noise_seed, prompt=prompt, **given, **settings)

    return Method(
        name=name,
        generate=generate,
        settings={
            **settings,
            **({"reference_prompt": reference_prompt} if reference_prompt else {}),
            "strengths": list(strengths),
            **fusion_key(pipeline, threads, with_adapter=bool(strengths)),
        },
        references=len(strengths),
        prepare=prepare,
        citation=citation,
    )


def fusion_key(
    pipeline: FusionPipeline,
    threads: int,
    *,
    with_adapter: bool = True,
    code: Sequence[str] = (),
    **further: Module,
) -> dict[str, Any]:
    """The `pipeline_key` of fused attention, with the base model and the adapter hashed apart.

    Args:
        pipeline: Pipeline with the base model and, `with_adapter`, the adapter.
        threads: CPU threads for each picture.
        with_adapter: Whether the adapter has a part in the pictures.
        code: Further sources of the method.
        further: Further models of the pipeline that have a part in the pictures, by name.

    Raises:
        FusionError: The pipeline has no adapter.
    """
    modules = [pipeline.unet, pipeline.vae, pipeline.text_encoder]
    weights = {"base_model": sha256_modules(modules)}
    if with_adapter:
        if pipeline.adapter is None:
            raise FusionError("The pipeline has no adapter: give one when it is loaded.")
        weights["adapter"] = sha256_modules([pipeline.adapter])
    weights |= {name: sha256_modules([module]) for name, module in further.items()}
    return pipeline_key(pipeline, weights, threads, ("methods/fusion.py", *code))
