"""The autoencoder: pictures to latents of mean 0 and variance 1, and back.

diffusers' ``AutoencoderKL``, trained with L1, an edge term and a KL term. The mean of the latents
is folded into the 1x1 convolutions at the bottleneck, and their spread becomes ``scaling_factor``:
the diffusion model sees centred latents of unit variance, and any pipeline can load the result.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from tqdm.auto import tqdm

from fusionlib.profiles import Profile
from fusionlib.training.data import Pictures, load_pictures
from fusionlib.training.export import save_model
from fusionlib.training.loop import Run, fit
from fusionlib.training.objective import gaussian_kl, reconstruction_loss

KL_WEIGHT = 0.005
"""Of the KL per value of the picture: what a nat in the latents must save in L1."""

FACE_WEIGHT = 2.0
"""Added to the loss weight 1 of every pixel inside the face mask."""


class _Reconstruct(nn.Module):
    """Encode, sample, decode: one forward pass for the loop to wrap."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        posterior = self.vae.encode(pixels).latent_dist
        latents = posterior.mean + posterior.std * noise
        return self.vae.decode(latents).sample, posterior.mean, posterior.logvar


def train(
    profile: Profile,
    out: Path | None = None,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    resume: bool = True,
) -> Run:
    """Train the profile's autoencoder and write ``vae/`` in the layout of Stable Diffusion.

    Args:
        profile: architecture, recipe and shards.
        out: the checkpoint's folder; default ``profile.base_model``.
        minutes: stop after this time with a checkpoint.
        steps: overrides the recipe's length.
        resume: go on from the checkpoint if there is one.
    """
    recipe = profile.recipe("vae")
    pictures = load_pictures(profile.training.shards, profile.resolution)
    torch.manual_seed(profile.seed)
    vae = AutoencoderKL(**profile.architecture["vae"])
    network = _Reconstruct(vae).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    masks = torch.from_numpy(pictures.masks)
    channels = vae.config["latent_channels"]
    grid = profile.resolution // 2 ** (len(vae.config["block_out_channels"]) - 1)

    def loss(network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        device = vae.device
        index = torch.randint(len(pictures), (recipe.batch_size,), generator=generator)
        pixels = pictures.batch(index)
        weight = 1 + FACE_WEIGHT * masks[index][:, None].float()
        flip = torch.rand(recipe.batch_size, generator=generator) < 0.5
        pixels[flip], weight[flip] = pixels[flip].flip(-1), weight[flip].flip(-1)
        noise = torch.randn(recipe.batch_size, channels, grid, grid, generator=generator)
        pixels = pixels.to(device, memory_format=torch.channels_last)
        prediction, mean, log_variance = network(pixels, noise.to(device))
        reconstruction = reconstruction_loss(prediction, pixels, weight.to(device))
        kl = gaussian_kl(mean, log_variance)
        with torch.no_grad():
            mse = (prediction.float().clamp(-1, 1) - pixels).square().mean() / 4
        return {
            "loss": reconstruction + KL_WEIGHT * kl / pixels[0].numel(),
            "reconstruction": reconstruction,
            "kl": kl,
            "psnr": -10 * mse.log10(),
        }

    folder = Path(profile.training.runs) / profile.name / "vae"
    run = fit(
        network,
        loss,
        recipe,
        folder,
        seed=profile.seed,
        steps=steps,
        minutes=minutes,
        resume=resume,
        name="vae",
    )
    centre_latents(vae, encode_pictures(vae, pictures, torch.arange(0, len(pictures), 7)))
    save_model(vae, Path(out or profile.base_model) / "vae", folder)
    return run


@torch.no_grad()
def encode_pictures(
    vae: AutoencoderKL, pictures: Pictures, index: Tensor, *, flip: bool = False
) -> Tensor:
    """Unscaled latents (the posterior's mean) of pictures, ``(len(index), channels, h, w)``."""
    vae.eval()
    parts = []
    with torch.autocast(vae.device.type, torch.bfloat16):
        for chunk in tqdm(index.split(64), desc="encoding pictures", mininterval=2.0):
            pixels = pictures.batch(chunk).to(vae.device)
            latents = vae.encode(pixels.flip(-1) if flip else pixels).latent_dist.mean
            parts.append(latents.float().cpu())
    return torch.cat(parts).contiguous()


@torch.no_grad()
def centre_latents(vae: AutoencoderKL, latents: Tensor) -> None:
    """Fold the mean of the latents into the bottleneck; their spread becomes ``scaling_factor``.

    Reconstructions stay the same: what ``quant_conv`` subtracts, ``post_quant_conv`` adds.

    Args:
        vae: changed in place.
        latents: a sample of its unscaled latents, ``(n, channels, h, w)``.
    """
    mean = latents.mean(dim=(0, 2, 3)).to(vae.device)
    before, after = vae.quant_conv, vae.post_quant_conv
    assert before is not None and before.bias is not None
    assert after is not None and after.bias is not None
    before.bias[: len(mean)] -= mean
    after.bias += after.weight[:, :, 0, 0] @ mean
    spread = (latents - mean.cpu()[:, None, None]).std()
    vae.register_to_config(scaling_factor=round(1 / spread.item(), 6))
