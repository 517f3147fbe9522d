"""The autoencoder: pictures to latents of mean 0 and variance 1, and back.

It is diffusers' ``AutoencoderKL``, grown from the inside out: a small network learns the layout of
a face many times faster on small pictures. At a quarter of the side the two outermost samplers are
left out, at half the side one is; the latent grid is the same throughout. The encoder is finished
at half the side: its outermost level is fixed to the mean of 2x2 pixels, so that the latents do not
change while the decoder learns the last doubling.

The loss is L1 with an edge term and a KL term. The mean of the latents is folded into the 1x1
convolutions at the bottleneck, and their spread becomes ``scaling_factor``: the diffusion model
sees centred latents of unit variance, and any pipeline can load the result.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from companion.embedded.losses import gaussian_kl, reconstruction_loss
from fusionlib.profiles import Profile
from fusionlib.training.checkpoints import start_weights
from fusionlib.training.encoders import encode_pictures
from fusionlib.training.export import model_files, own_folder, save_model
from fusionlib.training.loop import Batch, Run
from fusionlib.training.pictures import load_pictures
from fusionlib.training.runs import DEFAULTS, RunOptions, check_runs, run_folder, train_network

KL_WEIGHT = 0.005
"""Weight of the KL divergence, per value of the picture, against L1."""

FACE_WEIGHT = 2.0
"""Weight added to the loss weight 1 of every pixel inside the face mask."""

LOG_VARIANCE = -5.0
"""Initial log variance of the posterior."""

SIDES = {"vae_quarter": 4, "vae_half": 2, "vae": 1}
"""The recipes in the order of growth, and the divisor of the pictures' side in each."""

VAE = model_files('"AutoencoderKL"')
"""What the autoencoder's folder holds."""


class GrowingAutoencoder(nn.Module):
    """An ``AutoencoderKL`` that can run without its outermost samplers.

    Args:
        vae: Autoencoder of about five levels. Its outermost encoder level is fixed to 2x2 means.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae
        self._samplers = [
            (down, up, down.downsamplers, up.upsamplers)
            for down, up in zip(
                list(vae.encoder.down_blocks)[:-1], list(vae.decoder.up_blocks)[-2::-1], strict=True
            )
        ]
        _start_linear(vae)
        vae.encoder.conv_in.requires_grad_(False)
        vae.encoder.down_blocks[0].requires_grad_(False)

    def leave_out(self, levels: int) -> None:
        """Run without the outermost ``levels`` down- and upsamplers."""
        for level, (down, up, downsamplers, upsamplers) in enumerate(self._samplers):
            down.downsamplers = None if level < levels else downsamplers
            up.upsamplers = None if level < levels else upsamplers

    def freeze_encoder(self) -> None:
        """Train only the decoder from now on."""
        self.vae.encoder.requires_grad_(False)
        if self.vae.quant_conv is not None:
            self.vae.quant_conv.requires_grad_(False)

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode, sample, decode; returns the reconstruction, mean and log variance."""
        learns = self.vae.encoder.mid_block.resnets[0].conv1.weight.requires_grad
        # The gradient of the pixels is not needed, but without it torch 2.13 crashes in the
        # backward pass of the first group norms (CPU, channels last).
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            posterior = self.vae.encode(pixels.requires_grad_(learns)).latent_dist
        latents = posterior.mean + posterior.std * noise
        return self.vae.decode(latents).sample, posterior.mean, posterior.logvar


@torch.no_grad()
def _start_linear(vae: AutoencoderKL) -> None:
    """Give an autoencoder the weights of a wavelet transform, so that it starts without losses.

    Residual branches start at zero. Each downsampler splits a channel into its four Haar bands;
    each upsampler joins four channels as the smooth and the odd bands that a convolution after
    nearest-neighbour doubling can make: (1, 2, 1) and (-1, 0, 1) in each direction.
    """
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            module.conv2.weight.zero_()
            module.conv2.bias.zero_()
            if module.conv_shortcut is not None:
                nn.init.orthogonal_(module.conv_shortcut.weight)
                module.conv_shortcut.bias.zero_()
    smooth, odd = torch.tensor([0.25, 0.5, 0.25]), torch.tensor([-0.5, 0.0, 0.5])
    joined = [a[:, None] * b for a in (smooth, odd) for b in (smooth, odd)]
    mean, step = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.5, -0.5, 0.0])
    split = [a[:, None] * b for a in (mean, step) for b in (mean, step)]
    for down in vae.encoder.down_blocks[1:-1]:
        _bands(down.downsamplers[0].conv, split)
    for up in vae.decoder.up_blocks[:-2]:
        _bands(up.upsamplers[0].conv, joined)
    # The bottleneck: latents of about unit variance with little noise, or noise would dominate.
    channels = vae.config["latent_channels"]
    out, before, after = vae.encoder.conv_out, vae.quant_conv, vae.post_quant_conv
    assert before is not None and after is not None
    out.weight[:channels] *= 5
    out.weight[channels:] = 0
    out.bias[:channels] = 0
    out.bias[channels:] = LOG_VARIANCE
    for conv in (before, after):
        assert conv.bias is not None
        conv.weight[:, :, 0, 0] = torch.eye(conv.out_channels)
        conv.bias.zero_()
    # The outermost level: single pixels, means of four pixels, linear interpolation.
    centre = nn.init.orthogonal_(vae.encoder.conv_in.weight[:, :, 1, 1].clone())
    vae.encoder.conv_in.weight.zero_()
    vae.encoder.conv_in.weight[:, :, 1, 1] = centre
    vae.encoder.conv_in.bias.zero_()
    _each(vae.encoder.down_blocks[0].downsamplers[0].conv, split[0])
    _each(vae.decoder.up_blocks[-2].upsamplers[0].conv, joined[0])


def _bands(conv: nn.Conv2d, kernels: list[Tensor]) -> None:
    """Spread four 3x3 kernels over the channels, so that they mix them orthogonally."""
    quarter = conv.out_channels // 4
    conv.weight.zero_()
    for out in range(conv.out_channels):
        for part in range(4):
            conv.weight[out, out // 4 + part * quarter] = kernels[(out + part) % 4]
    assert conv.bias is not None
    conv.bias.zero_()


def _each(conv: nn.Conv2d, kernel: Tensor) -> None:
    """Filter each channel with one 3x3 kernel."""
    conv.weight.zero_()
    for channel in range(conv.out_channels):
        conv.weight[channel, channel] = kernel
    assert conv.bias is not None
    conv.bias.zero_()


def train(profile: Profile, options: RunOptions = DEFAULTS, *, encoder: bool = False) -> Run:
    """Train the profile's autoencoder and write ``vae/`` in the layout of Stable Diffusion.

    The three recipes of ``SIDES`` run one after the other; finished ones are taken from their
    checkpoints. ``vae/`` is written after each; after the second its encoder is final.

    Args:
        profile: Architecture, recipes and shards.
        options: Options of the run. Its folder is by default ``profile.base_model``. If it starts
            from a checkpoint folder with a finished ``vae/``, only the decoder is trained further,
            by the last recipe, and models that were trained on the latents stay valid.
        encoder: Whether such a start also trains the encoder further, by the last two recipes. The
            latents change, and models that were trained on them have to be trained further.
    """
    recipes = {name: profile.recipe(name) for name in SIDES}
    target, start_from = Path(options.out or profile.base_model), options.start_from
    own_folder(target / "vae", VAE, "vae")
    check_runs(profile, *SIDES)
    pictures = load_pictures(profile.training.shards, profile.resolution)
    torch.manual_seed(profile.seed)
    vae = AutoencoderKL(**profile.architecture["vae"])
    network = GrowingAutoencoder(vae)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    start = start_weights(vae, start_from and start_from / "vae", "vae")
    stages = dict(SIDES)
    if start_from:
        stages = {name: SIDES[name] for name in (("vae_half", "vae") if encoder else ("vae",))}
        scale = AutoencoderKL.load_config(start_from / "vae")["scaling_factor"]
        vae.register_to_config(scaling_factor=scale)
    masks = torch.from_numpy(pictures.masks)
    channels = vae.config["latent_channels"]
    grid = profile.resolution // 2 ** (len(vae.config["block_out_channels"]) - 1)
    run = None
    for name, divisor in stages.items():
        recipe = recipes[name]
        network.leave_out(divisor.bit_length() - 1)
        if divisor == 1:
            network.freeze_encoder()

        def loss(
            network: nn.Module,
            batch: Batch,
            size: int = recipe.batch_size,
            divisor: int = divisor,
        ) -> dict[str, Tensor]:
            generator = batch.generator
            index = torch.randint(len(pictures), (size,), generator=generator)
            pixels = pictures.batch(index, vae.device)
            weight = 1 + FACE_WEIGHT * masks[index].to(vae.device)[:, None].float()
            flip = torch.rand(size, generator=generator) < 0.5
            pixels[flip], weight[flip] = pixels[flip].flip(-1), weight[flip].flip(-1)
            pixels, weight = F.avg_pool2d(pixels, divisor), F.avg_pool2d(weight, divisor)
            noise = torch.randn(size, channels, grid, grid, generator=generator)
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            prediction, mean, log_variance = network(pixels, noise.to(vae.device))
            reconstruction = reconstruction_loss(prediction, pixels, weight)
            kl = gaussian_kl(mean, log_variance)
            with torch.no_grad():
                mse = (prediction.float().clamp(-1, 1) - pixels).square().mean() / 4
            return {
                "loss": reconstruction + KL_WEIGHT * kl / pixels[0].numel(),
                "reconstruction": reconstruction,
                "kl": kl,
                "psnr": -10 * mse.log10(),
            }

        run = train_network(network, loss, profile, name, options, start=start)
        network.leave_out(0)
        vae.to(vae.device)  # the samplers that were left out were not moved there
        if not run.finished and divisor > 1:
            return run  # the next recipe starts from what this one ends with
        if divisor == 2:
            centre_latents(vae, encode_pictures(vae, pictures, torch.arange(0, len(pictures), 7)))
        save_model(vae, target / "vae", VAE, run_folder(profile, name))
    assert run is not None
    return run


@torch.no_grad()
def centre_latents(vae: AutoencoderKL, latents: Tensor) -> None:
    """Fold the mean of the latents into the bottleneck; their spread becomes ``scaling_factor``.

    Reconstructions stay the same: ``post_quant_conv`` adds what ``quant_conv`` subtracts.

    Args:
        vae: Autoencoder, changed in place.
        latents: Sample of its unscaled latents, ``(n, channels, h, w)``.
    """
    mean = latents.mean(dim=(0, 2, 3)).to(vae.device)
    before, after = vae.quant_conv, vae.post_quant_conv
    assert before is not None and before.bias is not None
    assert after is not None and after.bias is not None
    before.bias[: len(mean)] -= mean
    after.bias += after.weight[:, :, 0, 0] @ mean
    spread = (latents - mean.cpu()[:, None, None]).std()
    vae.register_to_config(scaling_factor=round(1 / spread.item(), 6))
