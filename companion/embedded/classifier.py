"""The classifier of what a picture shows, with one head for each label of the training records.

In the layout of transformers it is an image classifier whose classes are called ``head/class``, for
example ``expression/laughing``; the probabilities are those of a softmax over each head's classes.
`companion.evaluation.alignment` uses it to decide whether a picture follows its prompt.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoModelForImageClassification

from companion.embedded.augment import augment
from companion.embedded.judges import SEED, build, judge_folder, train_judge
from companion.embedded.losses import heads_loss
from fusionlib.errors import FusionError
from fusionlib.profiles import Profile
from fusionlib.training.checkpoints import start_weights
from fusionlib.training.loop import Batch, Run, generator_on
from fusionlib.training.pictures import as_pixels
from fusionlib.training.runs import DEFAULTS, RunOptions
from fusionlib.training.shards import MissingShard, index_samples

logger = logging.getLogger(__name__)

RAREST = 0.002
"""Smallest share of the pictures with a label that a class of it needs to be learned."""


@dataclass(frozen=True)
class Labelled:
    """Pictures and the labels of their records.

    Attributes:
        pixels: Pictures, uint8 ``(n, size, size, 3)``.
        heads: Classes of each label, by its name.
        targets: Class of each picture under each head, ``(n, heads)``; -1 where the record has
            none, or one that is too rare.
    """

    pixels: NDArray[np.uint8]
    heads: dict[str, list[str]]
    targets: NDArray[np.int64]

    @property
    def names(self) -> list[str]:
        """All classes, as ``head/class``."""
        return [f"{head}/{label}" for head, labels in self.heads.items() for label in labels]

    def batch(self, index: Tensor, device: torch.device | None = None) -> Tensor:
        """Pictures as float32 in [-1, 1], ``(batch, 3, size, size)``."""
        return as_pixels(torch.from_numpy(self.pixels[index.numpy()]).to(device))


def load_labelled(shards: str | Path, size: int, labels: Sequence[str]) -> Labelled:
    """Read a training set with the records of its pictures.

    Args:
        shards: Training set, see `fusionlib.training.shards.index_samples`. Pictures that cannot
            be read are left out.
        size: Side of the pictures; others are resized.
        labels: Text fields of the records to learn; their values are the classes. Fields that no
            record has, or that are the same in all, are left out.

    Raises:
        FusionError: No label is left to learn.
    """
    pixels, records = [], []
    samples = index_samples(shards).samples
    for sample in tqdm(samples, desc="reading pictures", mininterval=2.0):
        try:
            image = sample.picture()
        except MissingShard:
            raise
        except FusionError as error:
            logger.warning("%s: skipped (%s)", sample.place, error)
            continue
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        pixels.append(np.asarray(image))
        records.append(sample.record())
    heads = {label: _classes(label, records) for label in labels}
    heads = {label: classes for label, classes in heads.items() if len(classes) > 1}
    if not heads:
        raise FusionError(
            f"the records in {shards} say nothing about {', '.join(labels)}: name other fields in "
            "`training.labels`"
        )
    targets = np.full((len(records), len(heads)), -1)
    for column, (label, classes) in enumerate(heads.items()):
        number = {name: position for position, name in enumerate(classes)}
        targets[:, column] = [number.get(str(record.get(label)), -1) for record in records]
    return Labelled(np.stack(pixels), heads, targets)


def _classes(label: str, records: Sequence[dict[str, Any]]) -> list[str]:
    """The values of a label in the records, in alphabetical order, without those that are rare."""
    values = [record[label] for record in records if isinstance(record.get(label), str)]
    least = RAREST * len(values)
    return sorted(name for name, count in Counter(values).items() if count >= least)


def train(profile: Profile, options: RunOptions = DEFAULTS) -> Run:
    """Train the profile's classifier on its training set; write ``classifier/``.

    Args:
        profile: Architecture, recipe, shards, labels and the words by which prompts ask for them.
        options: Options of the run, see `train_judge`. It may start from a checkpoint folder's
            ``classifier/``.
    """
    recipe, sizes = profile.recipe("classifier"), profile.architecture["classifier"]
    size = sizes["image_size"]
    judge_folder(profile, "classifier", options)
    data = load_labelled(profile.training.shards, size, profile.training.labels)
    torch.manual_seed(profile.seed + SEED)
    network = build(
        AutoModelForImageClassification,
        sizes,
        id2label=dict(enumerate(data.names)),
        label2id={name: number for number, name in enumerate(data.names)},
        label_words=profile.training.label_words,
    )
    source = options.start_from and options.start_from / "classifier"
    start = start_weights(network, source, "classifier")
    targets = torch.from_numpy(data.targets)
    counts = [len(labels) for labels in data.heads.values()]

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(targets), (recipe.batch_size,), generator=generator)
        pixels = data.batch(index, network.device)
        pixels = augment(pixels, generator_on(network.device, generator))
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return pixels, targets[index].to(network.device)

    def loss(classify: nn.Module, batch: Batch) -> dict[str, Tensor]:
        pixels, wanted = draw(batch.generator)
        logits = classify(pixels).logits
        hits = _hits(logits.detach(), wanted, counts)
        return {"loss": heads_loss(logits, wanted, counts)} | dict(
            zip(data.heads, hits, strict=True)
        )

    return train_judge(network, network, loss, draw, profile, "classifier", options, start)


def _hits(logits: Tensor, targets: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """The share of right answers under each head; NaN where a batch has no target for it."""
    shares = []
    for part, target in zip(logits.split(list(counts), dim=1), targets.T, strict=True):
        known = target >= 0
        shares.append((part.argmax(1) == target)[known].float().mean())
    return shares
