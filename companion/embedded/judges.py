"""The common part of the two judges, `identity` and `classifier`: a small transformers network.

They share nothing with generation: they are convolutional networks with weights of their own,
trained on the pictures themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from transformers import AutoConfig, PreTrainedModel, ViTImageProcessorPil

from fusionlib.profiles import Profile
from fusionlib.support.files import Made
from fusionlib.training.checkpoints import Start
from fusionlib.training.export import model_files, own_folder, save_model
from fusionlib.training.loop import LossFunction, Run, step_generator
from fusionlib.training.runs import RunOptions, check_runs, run_folder, train_network

SETTLING = 64
"""Number of batches over which the final statistics of batch normalisation are taken."""

SEED = 1009
"""Number added to the profile's seed, so that judges and generators draw different numbers."""


def judge_files(profile: Profile, name: str) -> Made:
    """What a judge's folder holds."""
    kind = profile.architecture[name]["model_type"]
    return model_files(f'"model_type": "{kind}"', r"preprocessor_config\.json")


def judge_folder(profile: Profile, name: str, options: RunOptions) -> Path:
    """Return the folder of a judge, after a look at whether it may be written.

    Raises:
        FusionError: It holds anything that would be lost, or another process trains the judge.
    """
    folder = Path(options.out or profile.base_model) / name
    check_runs(profile, name)
    return own_folder(folder, judge_files(profile, name), name)


def build(auto: Any, sizes: dict[str, Any], **settings: Any) -> PreTrainedModel:
    """A network with random weights.

    Args:
        auto: ``AutoModel``, or a class like it for a task.
        sizes: Transformers' ``model_type`` (``resnet``), ``image_size``, and arguments of that
            type's configuration.
        settings: Further arguments of the configuration.
    """
    network: PreTrainedModel = auto.from_config(AutoConfig.for_model(**sizes, **settings))
    return network.to(memory_format=torch.channels_last)


def train_judge(
    judge: PreTrainedModel,
    network: nn.Module,
    loss: LossFunction,
    draw: Callable[[torch.Generator], tuple[Tensor, Tensor]],
    profile: Profile,
    name: str,
    options: RunOptions,
    start: Start,
) -> Run:
    """Train a judge and write its folder under its name.

    Args:
        judge: Network that is saved.
        network: Network that is trained: the judge, or the judge with what only its loss needs.
        loss: Loss of a batch.
        draw: Draws a batch of pictures and targets, on the judge's device.
        profile: Profile of the run.
        name: Name of the run, its recipe, its architecture and its folder.
        options: Options of the run. Its folder is by default ``profile.base_model``.
        start: Record of the first weights.
    """
    seed = profile.seed + SEED
    run = train_network(network, loss, profile, name, options, seed=seed, start=start)
    settle(judge, lambda generator: draw(generator)[0], seed)
    size, folder = profile.architecture[name]["image_size"], Path(options.out or profile.base_model)
    made = judge_files(profile, name)
    save_judge(judge, size, folder / name, made, run_folder(profile, name))
    return run


def settle(network: nn.Module, draw: Callable[[torch.Generator], Tensor], seed: int) -> None:
    """Compute the statistics of batch normalisation again, under the averaged weights.

    The running statistics of the training belong to other weights than their average.

    Args:
        network: Network with pictures as its first argument, changed in place.
        draw: Makes a batch of pictures as in training, on the network's device.
        seed: Seed of the run.
    """

    def batches() -> Iterator[Tensor]:
        for number in range(SETTLING):
            yield draw(step_generator(seed, SETTLING, number))

    update_bn(batches(), network)
    network.eval()


def save_judge(
    network: PreTrainedModel, size: int, folder: Path, made: Made, run_folder: Path
) -> None:
    """Write a judge as transformers loads it: weights in float16, configuration, image processor.

    Args:
        network: Judge to save.
        size: Side of the pictures that it takes; others are resized, and values scaled to [-1, 1].
        folder: Folder of the judge, replaced as a whole.
        made: What such a folder holds.
        run_folder: Folder of its run, see `fusionlib.training.export.save_model`.
    """
    processor = ViTImageProcessorPil(size={"height": size, "width": size})
    text = processor.to_json_string()
    save_model(network, folder, made, run_folder, {"preprocessor_config.json": text})
