"""Stable Diffusion 1.5 and SDXL at their full size, with random weights, on a CPU.

Written in both layouts in which they are published, and loaded and run through the same calls, at
512 x 512 pixels. Loading holds the weights about twice for a moment: 16 GB for SDXL. About 5 and
15 GB on disk, and minutes each: ``pytest -m slow tests/method/test_full_size.py``.
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
from test_pipeline import face, generate, same
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from companion.methods.published_sizes import SDXL_UNET
from fusionlib import FusionAdapter
from fusionlib.pipeline import FusionPipeline
from fusionlib.pipeline_variants import FusionXLPipeline
from fusionlib.profiles import load_profile
from fusionlib.support.provenance import sha256_modules
from fusionlib.training import adapter as training
from tests.helpers.single_file import write_single_file
from tests.helpers.tiny import NOISE, write_tiny_tokenizer
from tests.helpers.training_data import disc, encoded, sample, write_profile, write_tar

pytestmark = pytest.mark.slow


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
        unet=UNet2DConditionModel(**SDXL_UNET),
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
        size = {"height": 512, "width": 512}
        arguments = {"num_inference_steps": 2, **size}
        seen = pipeline.encode_references([face(1), face(2)], **size)
        with_faces = generate(
            pipeline, "a face", references=seen, strengths=[1.0, 0.5], **arguments
        )
        assert with_faces.shape == (1, 512, 512, 3) and np.isfinite(with_faces).all()
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


def test_one_training_step_at_full_size(space: Path) -> None:
    """`train adapter` on SD 1.5 at 512x512, batch 1, in bfloat16: about 10 GB and a minute."""
    folder = space / "checkpoint"
    with half_precision():
        checkpoint = sd15(folder)
    checkpoint.save_pretrained(folder)
    del checkpoint
    gc.collect()
    write_tar(space / "shards" / "00000.tar", {"0": sample(0, encoded(disc(0, side=512)))})
    profile = load_profile(
        write_profile(
            space / "full.yaml", folder, space / "shards", resolution=512,
            training={"both_dropout": 0.0},  # of sample 0, which is all there is
            recipe={
                "steps": 1, "batch_size": 1, "mixed_precision": "bf16",
                "warmup_steps": 1, "learning_rate": 1e-3,  # seen in the float16 of the export
            },
        )
    )  # fmt: skip
    task = training.prepare(profile)
    weights = sum(p.numel() for p in task.network.adapter.parameters())
    assert weights == 24_780_800  # 2 x query_dim x inner_dim over the sixteen layers
    assert task.network.unet.dtype == torch.bfloat16
    before = sha256_modules([task.network.unet])
    del task
    gc.collect()
    run = training.train(profile)
    assert run.samples == 1 and np.isfinite(run.final_loss)
    task = training.prepare(profile, start_from=Path(profile.adapter))
    assert sha256_modules([task.network.unet]) == before
    trained, start = task.network.adapter, FusionAdapter.from_unet(task.network.unet)
    unchanged = [
        name
        for (name, one), other in zip(trained.named_parameters(), start.parameters(), strict=True)
        if torch.equal(one, other.half().float())
    ]
    assert unchanged == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 24 * 2**20  # of all tests here
