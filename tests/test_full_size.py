"""Stable Diffusion 1.5 and SDXL at their full size, with random weights, on a CPU.

Written in both layouts in which they are published, and loaded and run through the same calls.
About 5 and 15 GB on disk, and minutes each: ``pytest -m slow tests/test_full_size.py``.
"""

import gc
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from single_file import write_single_file
from test_pipeline import face, generate, same
from tiny import write_tiny_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from fusionlib import FusionAdapter
from fusionlib.pipeline import FusionPipeline, FusionXLPipeline

pytestmark = pytest.mark.slow

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Path]:
    """A folder that is gone after the test, for pytest would keep it."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@contextmanager
def half_precision() -> Iterator[None]:
    """New weights are float16, as published ones are: a third of the memory and of the time."""
    former = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    torch.manual_seed(0)
    try:
        yield
    finally:
        torch.set_default_dtype(former)


def vae(scaling_factor: float, size: int) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=size,
        scaling_factor=scaling_factor,
    )


def text_config(tokenizer: CLIPTokenizer, **changes: Any) -> CLIPTextConfig:
    """ViT-L/14's text tower: the text encoder of SD 1.5, and the first one of SDXL."""
    config = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "projection_dim": 768,
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPTextConfig(**(config | changes))


def sd15(folder: Path) -> StableDiffusionPipeline:
    tokenizer = write_tiny_tokenizer(folder / "tokenizer", length=77)
    return StableDiffusionPipeline(
        vae=vae(0.18215, 512),
        text_encoder=CLIPTextModel(text_config(tokenizer)),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        scheduler=PNDMScheduler(**NOISE, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(folder: Path) -> StableDiffusionXLPipeline:
    tokenizer = write_tiny_tokenizer(folder / "tokenizer", length=77)
    second = {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
        "hidden_act": "gelu",
    }
    return StableDiffusionXLPipeline(
        vae=vae(0.13025, 1024),
        text_encoder=CLIPTextModel(text_config(tokenizer)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(tokenizer, **second)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=128,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        scheduler=EulerDiscreteScheduler(**NOISE, timestep_spacing="leading", steps_offset=1),
    )


@pytest.mark.parametrize(
    ("make", "cls", "parameters", "dtype"),
    [
        (sd15, FusionPipeline, 859_520_964, torch.float32),
        (sdxl, FusionXLPipeline, 2_567_463_684, torch.bfloat16),
    ],
    ids=["SD1.5", "SDXL"],
)
def test_full_size(make: Any, cls: Any, parameters: int, dtype: torch.dtype, space: Path) -> None:
    folder = space / "folder"
    with half_precision():
        published = make(folder)
    assert sum(weight.numel() for weight in published.unet.parameters()) == parameters
    published.save_pretrained(folder)
    file = write_single_file(published, space / "model.safetensors")
    FusionAdapter.from_unet(published.unet).save_pretrained(folder / "adapter")
    del published
    gc.collect()

    images = []
    for load in (
        lambda: cls.from_pretrained(folder, dtype=dtype),
        lambda: cls.from_single_file(file, config=folder, dtype=dtype),
    ):
        pipeline = load()
        assert pipeline.unet.dtype == pipeline.adapter.dtype == dtype
        arguments = {"num_inference_steps": 2, "height": 128, "width": 128}
        seen = pipeline.encode_references([face(1), face(2)], height=256, width=256)
        with_faces = generate(
            pipeline, "a face", references=seen, strengths=[1.0, 0.5], **arguments
        )
        assert with_faces.shape == (1, 128, 128, 3) and np.isfinite(with_faces).all()
        assert not same(with_faces, generate(pipeline, "a face", **arguments))
        images.append(with_faces)
        if not images[1:]:  # the second copy comes when the first one is gone
            for weights in folder.rglob("*.safetensors"):
                if weights.parent.name != "adapter":
                    weights.unlink()
        del pipeline, seen
        gc.collect()
    assert same(*images) if dtype == torch.float32 else np.abs(images[0] - images[1]).max() < 0.02
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 24 * 2**20  # kilobytes
