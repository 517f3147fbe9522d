"""What fails in diffusers' own classes with the versions pinned here: it works, or is named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from test_pipeline import face, generate, same
from test_pipeline_family import quiet

from fusionlib import FusionError, FusionPipeline, FusionXLPipeline
from tests.helpers.tiny import write_tiny_xl_checkpoint


@pytest.fixture(scope="module")
def sd(tiny_checkpoint: Path) -> FusionPipeline:
    return quiet(FusionPipeline.from_pretrained(tiny_checkpoint))


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> FusionXLPipeline:
    checkpoint = write_tiny_xl_checkpoint(tmp_path_factory.mktemp("xl"))
    return quiet(FusionXLPipeline.from_pretrained(checkpoint))


def layers(pipeline: Any, text: str) -> tuple[torch.Tensor, ...]:
    """The output of each layer of the text encoder, the embedding of the tokens first."""
    ids = pipeline.tokenizer(
        text, padding="max_length", max_length=pipeline.tokenizer.model_max_length
    ).input_ids
    encoder = pipeline.text_encoder
    with torch.no_grad():
        return encoder(torch.tensor([ids]), output_hidden_states=True).hidden_states


@torch.no_grad()
def test_clip_skip_reads_an_earlier_layer(sd: FusionPipeline) -> None:
    """Diffusers looks for the last normalisation where transformers 5 no longer has it."""
    normalise = sd.text_encoder.final_layer_norm
    for skip in (0, 1, 2):
        expected = normalise(layers(sd, "a face")[-1 - skip])
        text, _ = sd.encode_prompt("a face", "cpu", 1, False, clip_skip=skip)
        assert torch.equal(text, expected)
    assert torch.equal(
        sd.encode_prompt("a face", "cpu", 1, False, clip_skip=0)[0],
        sd.encode_prompt("a face", "cpu", 1, False)[0],
    )
    plain = generate(sd, "a face", references=[face(1)])
    skipped = generate(sd, "a face", references=[face(1)], clip_skip=1)
    assert np.isfinite(skipped).all() and not same(plain, skipped)
    assert not hasattr(sd.text_encoder, "text_model"), "the encoder is as it was"


def test_clip_skip_of_sdxl_is_diffusers_own(xl: FusionXLPipeline) -> None:
    stock = quiet(StableDiffusionXLPipeline.from_pipe(xl))
    for skip in (0, 1):
        expected = generate(stock, "a face", clip_skip=skip)
        assert np.array_equal(generate(xl, "a face", clip_skip=skip), expected)


@pytest.mark.parametrize("skip", [-1, 3, 1.5, "1"])
def test_clip_skip_that_cannot_be_is_named(
    skip: Any, sd: FusionPipeline, xl: FusionXLPipeline
) -> None:
    with pytest.raises(FusionError, match="clip_skip must be a whole number from 0 to 2, not"):
        generate(sd, "a face", clip_skip=skip)
    with pytest.raises(FusionError, match="clip_skip must be a whole number from 0 to 1, not"):
        generate(xl, "a face", clip_skip=skip)


def test_the_signature_of_encode_prompt_is_diffusers_own(sd: FusionPipeline) -> None:
    from inspect import signature

    assert signature(FusionPipeline.encode_prompt) == signature(
        StableDiffusionPipeline.encode_prompt
    )


def test_sequential_offload_to_the_cpu_is_refused(sd: FusionPipeline) -> None:
    """Accelerate's hooks fail there in the midst of a call."""
    for device in ("cpu", torch.device("cpu")):
        with pytest.raises(FusionError, match="needs an accelerator"):
            sd.enable_sequential_cpu_offload(device=device)


@pytest.mark.parametrize("modes", [{}, {"timestep_mode": "shared", "guidance_mode": "separate"}])
def test_faces_are_seen_with_sequential_offload(
    modes: dict[str, str], sd: FusionPipeline, tiny_checkpoint: Path
) -> None:
    """Each layer's weights are there only while it computes, as with an accelerator."""
    offloaded = quiet(FusionPipeline.from_pretrained(tiny_checkpoint))
    for name, model in offloaded.components.items():
        if isinstance(model, torch.nn.Module) and name != "adapter":
            cpu_offload(model, torch.device("cpu"), offload_buffers=len(model._parameters) > 0)
    assert offloaded.unet.conv_in.weight.is_meta
    arguments = {"references": [face(1), face(2)], **modes}
    expected = generate(sd, "a face", **arguments)
    assert same(generate(offloaded, "a face", **arguments), expected)
    assert offloaded.unet.conv_in.weight.is_meta


@pytest.mark.gpu
def test_sequential_offload_on_a_gpu(tiny_checkpoint: Path, sd: FusionPipeline) -> None:
    offloaded = quiet(FusionPipeline.from_pretrained(tiny_checkpoint))
    offloaded.enable_sequential_cpu_offload()
    expected = generate(sd, "a face", references=[face(1)])
    images = generate(offloaded, "a face", references=[face(1)])
    assert np.abs(images - expected).mean() < 0.01
