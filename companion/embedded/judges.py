"""What the two judges, `identity` and `classifier`, share: a small network of transformers.

They are no part of generation, and nothing of it is part of them: convolutional networks with
weights of their own, trained on the pictures themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from transformers import AutoConfig, PreTrainedModel, ViTImageProcessorPil

from fusionlib.training.export import save_model
from fusionlib.training.loop import step_generator

SETTLING = 64
"""Batches over which the statistics of batch normalisation are taken in the end."""

SEED = 1009
"""Added to the profile's seed, so that no judge begins with numbers that a generator drew."""


def build(auto: Any, sizes: dict[str, Any], **settings: Any) -> PreTrainedModel:
    """A network with random weights.

    Args:
        auto: ``AutoModel`` or one of its kind.
        sizes: ``model_type`` as transformers calls it (``resnet``), ``image_size``, and arguments
            of that type's configuration.
        settings: further arguments of the configuration.
    """
    network: PreTrainedModel = auto.from_config(AutoConfig.for_model(**sizes, **settings))
    return network.to(memory_format=torch.channels_last)


def settle(network: nn.Module, draw: Callable[[torch.Generator], Tensor], seed: int) -> None:
    """Take the statistics of batch normalisation anew, under the averaged weights.

    Those that were kept during training belong to other weights than the average of them all.

    Args:
        network: takes pictures as its first argument; changed in place.
        draw: makes a batch of pictures as in training, on the network's device.
        seed: of the run.
    """

    def batches() -> Iterator[Tensor]:
        for number in range(SETTLING):
            yield draw(step_generator(seed, SETTLING, number))

    update_bn(batches(), network)
    network.eval()


def save_judge(network: PreTrainedModel, size: int, folder: Path, run_folder: Path) -> None:
    """Write a judge as transformers loads it: weights in float16, configuration, image processor.

    Args:
        network: the judge.
        size: side of the pictures that it looks at; others are resized, their values brought to
            [-1, 1].
        folder: replaced as a whole.
        run_folder: see `fusionlib.training.export.save_model`.
    """
    processor = ViTImageProcessorPil(size={"height": size, "width": size})
    text = processor.to_json_string()
    save_model(network, folder, run_folder, {"preprocessor_config.json": text})
