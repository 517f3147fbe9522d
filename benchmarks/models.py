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
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.embeddings import (
    ImageProjection,
    IPAdapterFaceIDImageProjection,
    IPAdapterPlusImageProjection,
)
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
from companion.methods.dreambooth import FineTuning
from fusionlib.adapter import FusionAdapter
from fusionlib.errors import FusionError
from fusionlib.pipeline import FusionPipeline
from fusionlib.profiles import load_profile

PROMPT = "a photo of a laughing person in the snow"
FACE = 512
"""Numbers of the recogniser's vector that FaceID and InstantID read."""


@dataclass(frozen=True)
class Size:
    """Constructor arguments of the models, and how pictures are made with them.

    Attributes:
        resolution: pixels.
        steps: of the scheduler.
        guidance: scale of classifier-free guidance.
        unet: of diffusers' class, as are the others.
        vae: likewise.
        text: likewise.
        vision: of IP-Adapter's image encoder.
        resampler: of IP-Adapter-Plus: ``hidden_dims`` and ``heads``.
    """

    resolution: int
    steps: int
    guidance: float
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    resampler: Mapping[str, int]


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
    resampler={"hidden_dims": 768, "heads": 12},
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
    resampler={"hidden_dims": 32, "heads": 1},
)  # fmt: skip


@cache
def size_of(name: str) -> Size:
    """The size of this name.

    Raises:
        FusionError: there is none.
    """
    if name == "embedded":
        profile = load_profile("embedded")
        built = profile.architecture
        words = {"vocab_size": built["clip"]["vocab_size"]}
        width = {"projection_dim": built["clip"]["projection_dim"]}
        return Size(
            profile.resolution,
            profile.num_inference_steps,
            profile.guidance_scale,
            built["unet"],
            built["vae"],
            built["text"] | words,
            built["vision"] | width,
            {"hidden_dims": 64, "heads": 1},
        )
    if name not in ("tiny", "full"):
        raise FusionError(f"--size must be tiny, embedded or full, not {name!r}.")
    return TINY if name == "tiny" else FULL


class Models:
    """The frozen models of a size, with random weights, built when they are asked for.

    Args:
        setting: which size, where, in which type.
        alone: only one system is built, so that the base model needs no copies for others.
    """

    def __init__(self, setting: Setting, *, alone: bool = False) -> None:
        self.setting, self.size, self.alone = setting, size_of(setting.size), alone
        torch.manual_seed(0)

    def frozen(self, model: Any) -> Any:
        """In its place, without gradients."""
        return nn.Module.to(model, **self.setting.place).requires_grad_(False).eval()

    def built(self, build: Callable[[], Any]) -> Any:
        """Built where it will stand, as a GPU draws a billion weights at once, and frozen."""
        with torch.device(self.setting.device):
            return self.frozen(build())

    @cached_property
    def unet(self) -> Any:
        """Of the base model."""
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
    def fused(self) -> Any:
        """A `FusionPipeline`; without references it is the base model bit by bit."""
        adapter = self.frozen(FusionAdapter.from_unet(self.unet))
        return _quiet(FusionPipeline(**self._shared, unet=self.unet, adapter=adapter))

    def base(self) -> Any:
        """The stock pipeline, of the same models, as who wants no identity would use it."""
        return _quiet(_stock(StableDiffusionPipeline, unet=self._copy(), **self._shared))

    def decoupled(self) -> Any:
        """A `FusionPipeline` whose faces have a softmax of their own."""
        adapter = self.frozen(FusionAdapter.from_unet(self.unet, attention="decoupled"))
        return _quiet(FusionPipeline(**self._shared, unet=self.unet, adapter=adapter))

    def lora(self) -> Any:
        """The stock pipeline with a LoRA in the attention of a UNet of its own, as DreamBooth's."""
        pipeline = self.base()
        add_lora(pipeline.unet)
        self.frozen(pipeline.unet)
        return pipeline

    def ip_adapter(self, *, plus: bool = False) -> Any:
        """The stock pipeline with an IP-Adapter's layers in a UNet of its own."""
        unet = self.with_ip_adapter(plus=plus)
        return _quiet(_stock(StableDiffusionPipeline, unet=unet, **self._shared))

    def with_ip_adapter(self, *, plus: bool) -> Any:
        """A UNet with an IP-Adapter's layers."""
        unet = self._copy()
        DecoupledTokens(unet, *self.projection("IP-Adapter-Plus" if plus else "IP-Adapter"))
        return self.frozen(unet)

    def projection(self, system: str) -> tuple[nn.Module, int]:
        """From what a system reads of a face to tokens, and how many, as its authors have it.

        Args:
            system: ``IP-Adapter``, ``IP-Adapter-Plus``, ``FaceID`` or ``InstantID``.
        """
        vision, width = self.size.vision, self.size.unet["cross_attention_dim"]
        if system == "IP-Adapter":
            return ImageProjection(vision["projection_dim"], width, num_image_text_embeds=4), 4
        if system == "FaceID":
            return IPAdapterFaceIDImageProjection(FACE, width, mult=2, num_tokens=4), 4
        read = FACE if system == "InstantID" else vision["hidden_size"]
        sizes = {"embed_dims": read, "output_dims": width, "num_queries": 16}
        return IPAdapterPlusImageProjection(**sizes, **self.size.resampler), 16

    @property
    def factor(self) -> int:
        """Pixels to a side of one position of the latents."""
        return int(2 ** (len(self.size.vae["block_out_channels"]) - 1))

    def image_embeds(self, references: int, *, plus: bool = False) -> Tensor:
        """What an IP-Adapter is told of random pictures, ``(1, references, ...)``."""
        side = self.size.vision["image_size"]
        pixels = torch.rand(references, 3, side, side).to(**self.setting.place)
        with torch.no_grad():
            seen = self.image_encoder(pixels, output_hidden_states=plus)
        return (seen.hidden_states[-2] if plus else seen.image_embeds)[None]

    def controlnet(self, *, plus: bool = False) -> Any:
        """The stock pipeline with a ControlNet, and with an IP-Adapter-Plus, too: InstantID's."""
        network = self.control_network()  # before the UNet gets tokens, which it has to do without
        return _quiet(
            _stock(
                StableDiffusionControlNetPipeline,
                unet=self.with_ip_adapter(plus=True) if plus else self.unet,
                controlnet=self.frozen(network),
                **self._shared,
            )
        )

    def control_network(self) -> Any:
        """A ControlNet of the base model's UNet."""
        widths = (16, 32, 96, 256, 256)[: self.factor.bit_length()]
        return ControlNetModel.from_unet(self.unet, conditioning_embedding_out_channels=widths)

    def pictures(self, count: int) -> list[Image.Image]:
        """Random ones, of the models' size."""
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

    @cached_property
    def scheduler(self) -> DDIMScheduler:
        """The same for all."""
        return DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )

    @property
    def _shared(self) -> dict[str, Any]:
        return {
            "vae": self.vae,
            "text_encoder": self.text_encoder,
            "tokenizer": self.tokenizer,
            "scheduler": self.scheduler,
        }

    def _copy(self) -> Any:
        """A UNet whose processors are stock: attaching an adapter changes them."""
        if self.alone:
            return self.unet
        unet = self.built(lambda: UNet2DConditionModel(**self.size.unet))
        unet.load_state_dict(self.unet.state_dict())
        return unet


def add_lora(unet: Any) -> list[nn.Parameter]:
    """Put DreamBooth's LoRA into a UNet's attention; its weights, in float32."""
    from peft import LoraConfig

    layers = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(
        LoraConfig(r=FineTuning.rank, lora_alpha=FineTuning.rank, target_modules=layers)
    )
    added = [p for p in unet.parameters() if p.requires_grad]
    for weight in added:
        weight.data = weight.data.float()
    return added


def _stock(pipeline: Any, **parts: Any) -> Any:
    return pipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def _quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
