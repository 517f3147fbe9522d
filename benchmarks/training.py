"""A training step of the fusion adapter against one of an IP-Adapter, at SD 1.5's size.

    python benchmarks/training.py --device cuda --dtype bfloat16
    python benchmarks/training.py --size tiny --steps 2          # a rehearsal, on any machine

Weights are random: they cost the same. Both train over the same frozen UNet, on one picture and
one reference each, at 512 pixels and with the text encoded in every step. The fusion adapter either
encodes target and reference in every step (`encoded`) or finds their latents and the text on disk
(`cached`); the IP-Adapter encodes the target by the autoencoder and the reference by CLIP's ViT-H,
as in its own training script. Each is built, timed and torn down by itself, in turn over several
rounds. Printed are medians.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from fusionlib import FusionAdapter
from fusionlib.profiles import Recipe, Training
from fusionlib.training.adapter import Conditioned, Task
from fusionlib.training.checkpoints import RANDOM
from fusionlib.training.loop import Batch, step_generator
from fusionlib.training.objective import diffusion_loss, noised
from fusionlib.training.pairs import as_pixels
from fusionlib.training.sources import Inputs

SIZES: dict[str, dict[str, Any]] = {
    "sd15": {
        "resolution": 512,
        "unet": {"sample_size": 64, "cross_attention_dim": 768},
        "vae": {"block_out_channels": (128, 256, 512, 512), "norm_num_groups": 32},
        "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                 "num_attention_heads": 12, "vocab_size": 49408, "max_position_embeddings": 77},
        "vision": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
                   "num_attention_heads": 16, "image_size": 224, "patch_size": 14,
                   "projection_dim": 1024},
    },
    "tiny": {
        "resolution": 128,
        "unet": {"sample_size": 16, "cross_attention_dim": 32, "layers_per_block": 1,
                 "block_out_channels": (32, 32, 32, 32)},
        "vae": {"block_out_channels": (32, 32, 32, 32), "norm_num_groups": 32},
        "text": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
                 "num_attention_heads": 2, "vocab_size": 1000, "max_position_embeddings": 77},
        "vision": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
                   "num_attention_heads": 2, "image_size": 224, "patch_size": 14,
                   "projection_dim": 32},
    },
}  # fmt: skip

Step = Callable[[int], Tensor]
"""The loss of the step of this number."""


class Models:
    """The frozen models of a size, with random weights."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.kind = {"device": options.device, "dtype": getattr(torch, options.dtype)}
        size = SIZES[options.size]
        self.batch, self.side = options.batch, size["resolution"]
        levels = len(size["vae"]["block_out_channels"])
        self.unet = self._frozen(UNet2DConditionModel(**size["unet"]))
        self.vae = self._frozen(
            AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * levels,
                up_block_types=("UpDecoderBlock2D",) * levels,
                latent_channels=4,
                layers_per_block=2,
                **size["vae"],
            )
        )
        self.text_encoder = self._frozen(CLIPTextModel(CLIPTextConfig(**size["text"])))
        self.vision = CLIPVisionConfig(**size["vision"])
        self.scheduler = DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        )
        tokens = (self.batch, size["text"]["max_position_embeddings"])
        self.ids = torch.randint(900, tokens, device=options.device)

    def _frozen(self, model: Any) -> Any:
        return nn.Module.to(model, **self.kind).requires_grad_(False).eval()

    @torch.no_grad()
    def latents(self, number: int, pictures: int) -> Tensor:
        """Of random pictures."""
        generator = step_generator(0, number)
        pixels = torch.randint(
            256, (pictures, self.side, self.side, 3), dtype=torch.uint8, generator=generator
        )
        pixels = as_pixels(pixels.to(self.kind["device"])).to(self.kind["dtype"])
        return self.vae.encode(pixels).latent_dist.mode().float() * 0.18215

    @torch.no_grad()
    def text(self) -> Tensor:
        """Of a random caption."""
        return self.text_encoder(self.ids).last_hidden_state


def fusion(options: argparse.Namespace, *, cached: bool) -> tuple[Step, list[nn.Parameter]]:
    """The step of `fusionlib train adapter`."""
    models = Models(options)
    adapter = FusionAdapter.from_unet(models.unet).float()
    network = Conditioned(models.unet, adapter, checkpointing=options.checkpointing).train()
    empty_prompt = models.text()[:1]
    weights = torch.ones(models.batch, 1, 1, 1, device=options.device)

    def source(batch: Batch) -> Inputs:
        latents, reference = models.latents(batch.samples.start, 2 * models.batch).chunk(2)
        return Inputs(latents, weights, models.text(), reference)

    if cached:
        kept = source(Batch(0, range(models.batch), models.batch, step_generator(0)))
        models.vae = models.text_encoder = None
    task = Task(
        network=network,
        source=(lambda batch: kept) if cached else source,
        scheduler=models.scheduler,
        empty_prompt=empty_prompt,
        settings=Training(
            shards="", adapter=Recipe(steps=1, batch_size=models.batch, learning_rate=1e-4)
        ),
        start=RANDOM,
        damaged={},
        faces=[],
    )

    def step(number: int) -> Tensor:
        first = number * models.batch
        numbers = range(first, first + models.batch)
        batch = Batch(0, numbers, models.batch, step_generator(0, number))
        return task.loss(network, batch)["loss"]

    return step, [p for p in network.parameters() if p.requires_grad]


def ip_adapter(options: argparse.Namespace) -> tuple[Step, list[nn.Parameter]]:
    """The step of tencent-ailab/IP-Adapter's `tutorial_train.py`, in diffusers' own modules."""
    models = Models(options)
    unet, width = models.unet, models.unet.config.cross_attention_dim
    encoder = models._frozen(CLIPVisionModelWithProjection(models.vision))
    projection = ImageProjection(models.vision.projection_dim, width, num_image_text_embeds=4)
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([projection])
    unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    processors = {}
    for name, former in unet.attn_processors.items():
        attention = unet.get_submodule(name.removesuffix(".processor"))
        processors[name] = former
        if name.endswith("attn2.processor"):
            processors[name] = IPAdapterAttnProcessor2_0(
                attention.inner_dim, width, num_tokens=(4,), scale=1.0
            )
    unet.set_attn_processor(processors)
    trained = [*unet.encoder_hid_proj.parameters()]
    trained += [p for q in processors.values() if isinstance(q, nn.Module) for p in q.parameters()]
    for parameter in trained:
        parameter.data = parameter.data.float().to(options.device)
    unet.train()
    if options.checkpointing:
        unet.enable_gradient_checkpointing()

    def step(number: int) -> Tensor:
        latents = models.latents(number, models.batch)
        size = models.vision.image_size
        with torch.no_grad():
            faces = torch.rand(models.batch, 3, size, size).to(**models.kind)
            embeds = encoder(faces).image_embeds[:, None]
        noisy, timesteps, goal = noised(models.scheduler, latents, step_generator(1, number))
        prediction = unet(
            noisy.to(models.kind["dtype"]),
            timesteps,
            models.text(),
            added_cond_kwargs={"image_embeds": [embeds]},
        ).sample
        return diffusion_loss(prediction, goal, torch.ones_like(goal[:, :1]))["loss"]

    return step, trained


def measure(
    build: Callable[[], tuple[Step, list[nn.Parameter]]], options: argparse.Namespace
) -> tuple[list[float], float, int]:
    """Seconds of each step, peak memory in GB (0 where it is not known), trained parameters."""
    cuda = options.device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    step, trained = build()
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    times = []
    for number in range(options.steps + 3):
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.autocast(options.device, getattr(torch, options.dtype)):
            loss = step(number)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.synchronize()
        if number >= 3:  # the first ones allocate, and choose kernels
            times.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0
    count = sum(p.numel() for p in trained)
    del step, trained, optimizer, loss
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
    return times, peak, count


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="sd15")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--checkpointing", action="store_true")
    options = parser.parse_args()
    builders: dict[str, Callable[[], tuple[Step, list[nn.Parameter]]]] = {
        "fusion, encoded": lambda: fusion(options, cached=False),
        "fusion, cached": lambda: fusion(options, cached=True),
        "IP-Adapter": lambda: ip_adapter(options),
    }
    times: dict[str, list[float]] = {name: [] for name in builders}
    rows: dict[str, tuple[float, int]] = {}
    for _ in range(options.rounds):
        for name, build in builders.items():
            found, peak, count = measure(build, options)
            times[name] += found
            rows[name] = (peak, count)
    if options.device == "cuda":
        print(torch.cuda.get_device_name(), torch.version.cuda)
    print("step", "M trained", "ms", "pictures/s", "peak GB", sep="\t")
    for name, measured in times.items():
        median, (peak, count) = statistics.median(measured), rows[name]
        rate = options.batch / median
        print(name, f"{count / 1e6:.1f}", f"{1000 * median:.0f}", f"{rate:.2f}", f"{peak:.1f}",
              sep="\t")  # fmt: skip


if __name__ == "__main__":
    main()
