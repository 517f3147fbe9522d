"""A ControlNet that follows depth maps, over the frozen base (Zhang 2023).

It is a copy of the UNet's encoder that also sees the depth map, and whose outputs are added to the
UNet's skip connections through convolutions that begin at zero: a new one changes nothing. The
result has diffusers' layout and works in any of its ControlNet pipelines, with faces
(`fusionlib.FusionControlNetPipeline`) or without.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from companion.embedded.unet import CaptionedLatents
from fusionlib.errors import FusionError
from fusionlib.profiles import Profile
from fusionlib.training.checkpoints import load_frozen, start_weights
from fusionlib.training.export import model_files, own_folder, save_model
from fusionlib.training.loop import Batch, Run
from fusionlib.training.runs import DEFAULTS, RunOptions, check_runs, run_folder, train_network

CONTROLNET = model_files('"ControlNetModel"')
"""What the ControlNet's folder holds."""


class Controlled(nn.Module):
    """The frozen UNet with its ControlNet; only the ControlNet is trained.

    Args:
        unet: UNet without gradients.
        controlnet: ControlNet made for that UNet.
    """

    def __init__(self, unet: UNet2DConditionModel, controlnet: ControlNetModel) -> None:
        super().__init__()
        self.unet, self.controlnet = unet, controlnet

    def forward(self, noisy: Tensor, timesteps: Tensor, text: Tensor, control: Tensor) -> Tensor:
        """The UNet's prediction.

        Args:
            noisy: Noisy latents, ``(batch, channels, h, w)``.
            timesteps: Timesteps ``(batch,)``.
            text: Text embeddings, ``(batch, tokens, width)``.
            control: Depth maps from 0 to 1, ``(batch, 3, height, width)`` in pixels.

        Returns:
            The prediction, shaped like ``noisy``.
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
    """Turn depth maps, uint8 ``(batch, h, w)``, into ControlNet's input: 0 to 1, three channels."""
    return depth[:, None].float().div(255).expand(-1, 3, -1, -1)


@torch.no_grad()
def keep_size(embedding: nn.Module) -> None:
    """Draw the weights of the layers that read a condition so that it keeps its size (He 2015).

    PyTorch's initial weights at least halve it at each layer: after the nine layers that a factor
    of 16 takes, depth maps differ by a few millionths, and thousands of steps learn nothing from
    them. The last layer stays at zero: a new ControlNet is silent.

    Args:
        embedding: ``controlnet_cond_embedding`` of a ``ControlNetModel``, changed in place.
    """
    for name, layer in embedding.named_modules():
        if isinstance(layer, nn.Conv2d) and name != "conv_out":
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                layer.bias.zero_()


def new_controlnet(profile: Profile, unet: UNet2DConditionModel, factor: int) -> ControlNetModel:
    """A silent ControlNet: copied from the UNet, with zeros at its outputs.

    Args:
        profile: Profile whose ``architecture.controlnet``, if it is there, holds arguments of
            ``ControlNetModel.from_unet``.
        unet: UNet that it will steer.
        factor: Factor by which the autoencoder reduces a picture's sides.

    Raises:
        FusionError: The embedding of the depth map does not end at the latents' size.
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


def train(profile: Profile, options: RunOptions = DEFAULTS) -> Run:
    """Train a ControlNet on the depth maps of the training set; write its folder.

    Args:
        profile: Base model, recipe and shards, whose samples have ``key.depth.png``.
        options: Options of the run. Its folder is by default ``profile.controlnet``. It may start
            from the folder of a ControlNet, in place of a copy of the UNet.

    Raises:
        FusionError: There is nowhere to write, no base model, or no sample with a depth map.
    """
    profile.recipe("controlnet")  # or there is nothing to train
    if options.out is None and profile.controlnet is None:
        raise FusionError(
            f"the profile '{profile.name}' names no controlnet: say with --out where to write it"
        )
    base = Path(profile.base_model)
    target = own_folder(Path(options.out or profile.controlnet or ""), CONTROLNET, "controlnet")
    check_runs(profile, "controlnet")
    data = CaptionedLatents(profile, base, depth=True)
    depth = torch.from_numpy(data.pictures.depth)
    unet = load_frozen(UNet2DConditionModel, base / "unet")
    scheduler = DDIMScheduler.from_pretrained(base / "scheduler")
    torch.manual_seed(profile.seed)
    controlnet = new_controlnet(profile, unet, profile.resolution // data.latents.shape[-1])
    start = start_weights(controlnet, options.start_from, "controlnet")
    if data.device.type == "cpu":
        for part in (unet, controlnet):
            part.to(memory_format=torch.channels_last)

    def loss(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        def predict(noisy: Tensor, timesteps: Tensor, text: Tensor, index: Tensor) -> Tensor:
            control = as_control(depth[index].to(data.device))
            prediction: Tensor = network(noisy, timesteps, text, control)
            return prediction

        return data.loss(batch, scheduler, predict)

    network = Controlled(unet, controlnet)
    run = train_network(network, loss, profile, "controlnet", options, start=start)
    save_model(controlnet, target, CONTROLNET, run_folder(profile, "controlnet"))
    return run
