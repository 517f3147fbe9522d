"""A ControlNet that follows depth maps, over the frozen base (Zhang 2023).

It is a copy of the UNet's encoder that is shown the depth map, too, and whose outputs are added to
the UNet's skip connections through convolutions that begin at zero: a new one changes nothing. The
result has diffusers' layout and works in any of its ControlNet pipelines, with faces
(`fusionlib.FusionControlNetPipeline`) or without.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from companion.embedded.unet import TEXT_DROPOUT
from fusionlib.errors import FusionError
from fusionlib.profiles import Profile
from fusionlib.training.cached import cached_latents, embed_captions
from fusionlib.training.checkpoints import load_frozen, start_weights
from fusionlib.training.denoising import diffusion_loss, noised
from fusionlib.training.encoders import face_weights
from fusionlib.training.export import own_folder, save_model
from fusionlib.training.loop import Batch, Run, fit, generator_on
from fusionlib.training.pictures import load_pictures


class Controlled(nn.Module):
    """The frozen UNet with its ControlNet, which alone is trained.

    Args:
        unet: without gradients.
        controlnet: made for that UNet.
    """

    def __init__(self, unet: UNet2DConditionModel, controlnet: ControlNetModel) -> None:
        super().__init__()
        self.unet, self.controlnet = unet, controlnet

    def forward(self, noisy: Tensor, timesteps: Tensor, text: Tensor, control: Tensor) -> Tensor:
        """The UNet's prediction.

        Args:
            noisy: latents, ``(batch, channels, h, w)``.
            timesteps: ``(batch,)``.
            text: embeddings, ``(batch, tokens, width)``.
            control: depth maps in 0..1, ``(batch, 3, height, width)`` in pixels.

        Returns:
            Shaped like ``noisy``.
        """
        down, mid = self.controlnet(
            noisy, timesteps, text, controlnet_cond=control, return_dict=False
        )
        return self.unet(
            noisy,
            timesteps,
            text,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
            return_dict=False,
        )[0]


def as_control(depth: Tensor) -> Tensor:
    """Depth maps, uint8 ``(batch, h, w)``, as ControlNets take them: 0..1, three equal channels."""
    return depth[:, None].float().div(255).expand(-1, 3, -1, -1)


@torch.no_grad()
def keep_size(embedding: nn.Module) -> None:
    """Draw the weights of the layers that read a condition so that it keeps its size (He 2015).

    Those that PyTorch draws halve it or worse at each layer: after the nine layers that a factor of
    16 takes, what tells one depth map from another is a few millionths, and thousands of steps
    learn nothing from it. The last layer stays at zero: a new ControlNet is silent.

    Args:
        embedding: ``controlnet_cond_embedding`` of a ``ControlNetModel``; changed in place.
    """
    for name, layer in embedding.named_modules():
        if isinstance(layer, nn.Conv2d) and name != "conv_out":
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                layer.bias.zero_()


def new_controlnet(profile: Profile, unet: UNet2DConditionModel, factor: int) -> ControlNetModel:
    """A ControlNet that is silent: copied from the UNet, with zeros at its outputs.

    Args:
        profile: ``architecture.controlnet``, if it is there, holds arguments of
            ``ControlNetModel.from_unet``.
        unet: what it shall steer.
        factor: by which the autoencoder reduces a picture's sides.

    Raises:
        FusionError: when the embedding of the depth map does not end at the latents' size.
    """
    settings: dict[str, Any] = profile.architecture.get("controlnet", {})
    controlnet = ControlNetModel.from_unet(unet, **settings)
    keep_size(controlnet.controlnet_cond_embedding)
    channels = controlnet.config["conditioning_embedding_out_channels"]
    if 2 ** (len(channels) - 1) != factor:
        raise FusionError(
            f"architecture.controlnet of the profile '{profile.name}' reduces the depth map by "
            f"{2 ** (len(channels) - 1)}, and the autoencoder by {factor}: give "
            f"conditioning_embedding_out_channels {factor.bit_length()} numbers"
        )
    return controlnet


def train(
    profile: Profile,
    out: Path | None = None,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    resume: bool = True,
    start_from: Path | None = None,
) -> Run:
    """Train a ControlNet on the depth maps of the training set; write its folder.

    Args:
        profile: base model, recipe and shards, whose samples have ``key.depth.png``.
        out: the ControlNet's folder; default ``profile.controlnet``.
        minutes: stop after this time with a checkpoint.
        steps: overrides the recipe's length.
        resume: go on from the checkpoint if there is one.
        start_from: the folder of a ControlNet to begin with, rather than a copy of the UNet.

    Raises:
        FusionError: when there is nowhere to write, no base model, or no sample with a depth map.
    """
    recipe = profile.recipe("controlnet")
    if out is None and profile.controlnet is None:
        raise FusionError(
            f"the profile '{profile.name}' names no controlnet: say with --out where to write it"
        )
    base = Path(profile.base_model)
    target = own_folder(Path(out or profile.controlnet or ""))
    folder = Path(profile.training.runs) / profile.name / "controlnet"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pictures = load_pictures(profile.training.shards, profile.resolution, depth=True).mirrored()
    depth = torch.from_numpy(pictures.depth)
    captions = embed_captions(base, pictures, device).to(device)
    latents = cached_latents(base, pictures, folder.parent / "latents", device).to(device)
    sides = (latents.shape[2], latents.shape[3])
    weights = face_weights(torch.from_numpy(pictures.masks), sides).to(device)
    unet = load_frozen(UNet2DConditionModel, base / "unet")
    scheduler = DDIMScheduler.from_pretrained(base / "scheduler")
    torch.manual_seed(profile.seed)
    controlnet = new_controlnet(profile, unet, profile.resolution // latents.shape[-1])
    start = start_weights(controlnet, start_from, "controlnet")
    network = Controlled(unet, controlnet)
    if device.type == "cpu":
        for part in (unet, controlnet):
            part.to(memory_format=torch.channels_last)

    def loss(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        generator = batch.generator
        index = torch.randint(len(latents), (recipe.batch_size,), generator=generator)
        noisy, timesteps, goal = noised(scheduler, latents[index], generator_on(device, generator))
        dropped = torch.rand(len(index), generator=generator) < TEXT_DROPOUT
        text = captions.draw(index, dropped, generator)
        control = as_control(depth[index].to(device))
        prediction = network(noisy, timesteps, text, control)
        return diffusion_loss(prediction, goal, weights[index])

    run = fit(
        network,
        loss,
        recipe,
        folder,
        seed=profile.seed,
        steps=steps,
        minutes=minutes,
        resume=resume,
        name="controlnet",
        start=start,
    )
    save_model(controlnet, target, folder)
    return run
