"""The frozen models that benchmarks measure with: real sizes, random weights, which cost the same.

``embedded`` is the architecture of the profile of that name, ``full`` that of Stable Diffusion 1.5
at 512 x 512 pixels with ViT-L/14's text tower and ViT-H/14 as IP-Adapter's image encoder, and
``tiny`` shows in a second that everything runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.embeddings import ImageProjection
from PIL import Image
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from benchmarks.alternate import Setting
from companion.methods.counterpart_training import DecoupledTokens
from fusionlib.adapter import FusionAdapter
from fusionlib.pipeline import FusionPipeline
from fusionlib.profiles import load_profile

PROMPT = "a photo of a laughing person in the snow"


@dataclass(frozen=True)
class Size:
    """Constructor arguments of the models, and how pictures are made with them."""

    resolution: int
    steps: int
    guidance: float
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: Mapping[str, Any]
    vision: Mapping[str, Any]  # IP-Adapter's image encoder


def _vae(widths: tuple[int, ...], **more: Any) -> dict[str, Any]:
    return {
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "latent_channels": 4,
        **more,
    }


FULL = Size(
    resolution=512,
    steps=20,
    guidance=7.5,
    unet={"sample_size": 64, "cross_attention_dim": 768},
    vae=_vae((128, 256, 512, 512), layers_per_block=2, sample_size=512),
    text={"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
          "num_attention_heads": 12, "vocab_size": 49408, "max_position_embeddings": 77},
    vision={"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
            "num_attention_heads": 16, "image_size": 224, "patch_size": 14,
            "projection_dim": 1024},
)  # fmt: skip

TINY = Size(
    resolution=32,
    steps=2,
    guidance=3.0,
    unet={"sample_size": 8, "cross_attention_dim": 16, "layers_per_block": 1,
          "block_out_channels": (16, 32), "attention_head_dim": 2, "norm_num_groups": 4,
          "down_block_types": ("CrossAttnDownBlock2D",) * 2,
          "up_block_types": ("CrossAttnUpBlock2D",) * 2},
    vae=_vae((8, 8, 16), norm_num_groups=4, sample_size=32),
    text={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
          "num_attention_heads": 2, "vocab_size": 1000, "max_position_embeddings": 16},
    vision={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "projection_dim": 16},
)  # fmt: skip


@cache
def size_of(name: str) -> Size:
    """The size of this name: ``tiny``, ``embedded`` or ``full``."""
    if name != "embedded":
        return {"tiny": TINY, "full": FULL}[name]
    profile = load_profile("embedded")
    made, built = (profile.num_inference_steps, profile.guidance_scale), profile.architecture
    text = built["text"] | {"vocab_size": built["clip"]["vocab_size"]}
    vision = built["vision"] | {"projection_dim": built["clip"]["projection_dim"]}
    return Size(profile.resolution, *made, built["unet"], built["vae"], text, vision)


class Models:
    """The frozen models of a size, with random weights, built when they are asked for."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.size = setting, size_of(setting.size)
        torch.manual_seed(0)

    def frozen(self, model: Any) -> Any:
        """A model in its place, without gradients."""
        return nn.Module.to(model, **self.setting.place).requires_grad_(False).eval()

    def built(self, build: Callable[[], Any]) -> Any:
        """A model built where it will stand, as a GPU draws a billion weights at once, frozen."""
        with torch.device(self.setting.device):
            return self.frozen(build())

    @cached_property
    def unet(self) -> Any:
        """The base model's UNet."""
        return self.built(lambda: UNet2DConditionModel(**self.size.unet))

    @cached_property
    def vae(self) -> Any:
        """The autoencoder."""
        return self.built(lambda: AutoencoderKL(**self.size.vae))

    @cached_property
    def text_encoder(self) -> Any:
        """CLIP's text tower."""
        last = self.size.text["vocab_size"] - 1
        marks = {"bos_token_id": last - 1, "eos_token_id": last}
        return self.built(lambda: CLIPTextModel(CLIPTextConfig(**self.size.text, **marks)))

    @cached_property
    def image_encoder(self) -> Any:
        """CLIP's image tower, which an IP-Adapter reads."""
        config = CLIPVisionConfig(**self.size.vision)
        return self.built(lambda: CLIPVisionModelWithProjection(config))

    @cached_property
    def tokenizer(self) -> Any:
        """The repository's own: any will do, padded to what the text encoder reads."""
        folder = f"{load_profile('embedded').base_model}/tokenizer"
        length = self.size.text["max_position_embeddings"]
        return CLIPTokenizer.from_pretrained(folder, model_max_length=length)

    @cached_property
    def scheduler(self) -> DDIMScheduler:
        """The scheduler of all pipelines, as Stable Diffusion 1.5 has it."""
        betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        more = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
        return DDIMScheduler(**betas, **more)

    @cached_property
    def fused(self) -> Any:
        """A `FusionPipeline`; without references it is the base model bit for bit."""
        adapter = self.frozen(FusionAdapter.from_unet(self.unet))
        return self._pipeline(FusionPipeline, unet=self.unet, adapter=adapter)

    def base(self) -> Any:
        """The stock pipeline of the same models, for pictures without an identity."""
        return self._pipeline(StableDiffusionPipeline, unet=self._copy(), **_UNCHECKED)

    def ip_adapter(self) -> Any:
        """The stock pipeline with an IP-Adapter's layers in a UNet of its own."""
        unet = self._copy()
        DecoupledTokens(unet, *self.projection())
        return self._pipeline(StableDiffusionPipeline, unet=self.frozen(unet), **_UNCHECKED)

    def projection(self) -> tuple[nn.Module, int]:
        """From what IP-Adapter reads of a face to tokens, and their number, as its authors do."""
        sizes = self.size.vision["projection_dim"], self.size.unet["cross_attention_dim"]
        return ImageProjection(*sizes, num_image_text_embeds=4), 4

    def image_embeds(self, references: int) -> Tensor:
        """What an IP-Adapter reads of random pictures, ``(1, references, ...)``."""
        side = self.size.vision["image_size"]
        pixels = torch.rand(references, 3, side, side).to(**self.setting.place)
        with torch.no_grad():
            embeds: Tensor = self.image_encoder(pixels).image_embeds
        return embeds[None]

    def pictures(self, count: int) -> list[Image.Image]:
        """Random pictures of the models' size."""
        side = self.size.resolution
        pixels = torch.randint(256, (count, side, side, 3), dtype=torch.uint8)
        return [Image.fromarray(p.numpy()) for p in pixels]

    @property
    def sampling(self) -> dict[str, Any]:
        """Arguments of every pipeline's call."""
        return {
            "num_inference_steps": self.size.steps,
            "guidance_scale": self.size.guidance,
            "generator": torch.Generator().manual_seed(0),
        }

    def _pipeline(self, kind: Any, **parts: Any) -> Any:
        parts |= {"vae": self.vae, "text_encoder": self.text_encoder}
        pipeline = kind(tokenizer=self.tokenizer, scheduler=self.scheduler, **parts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _copy(self) -> Any:
        """A UNet whose processors are stock: attaching an adapter changes them."""
        unet = self.built(lambda: UNet2DConditionModel(**self.size.unet))
        unet.load_state_dict(self.unet.state_dict())
        return unet


_UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
