"""Which target meets which reference, and the stream of these pairs.

Sample number n of a run is a pure function of the seed and n: its target is the n-th of a
permutation of the set, with a new permutation for each epoch; its reference is another photograph
of the same person, or the same picture where the set has no other. So any rank and any worker can
make any sample, and a run resumes at the very sample at which it stopped.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fusionlib.errors import FusionError
from fusionlib.support.files import write_text
from fusionlib.training.crops import Crops, Rng, Shown
from fusionlib.training.loop import Batch
from fusionlib.training.shards import MissingShard, SampleSet

logger = logging.getLogger(__name__)

PATIENCE = 100
"""Number of pairs in a row that may fail before the whole set is taken to be unreadable."""


class Pairing:
    """The pure function from a sample's number to its target and reference.

    Args:
        people: Person in each picture. None stands for a person in no other picture.
        photo: Whether each picture is a photograph, like those that users have. Only these are
            references.
        seed: Seed of the run.
        alone: Whether a picture without others of its person is its own reference. Otherwise it is
            no target.

    Raises:
        FusionError: No picture can be a target.
    """

    def __init__(
        self, people: Sequence[Hashable], photo: Sequence[bool], seed: int, *, alone: bool
    ) -> None:
        self._people, self._seed = people, seed
        self._photos: dict[Hashable, list[int]] = defaultdict(list)
        for index, (person, usable) in enumerate(zip(people, photo, strict=True)):
            if usable and person is not None:
                self._photos[person].append(index)
        self.targets = [i for i in range(len(people)) if alone or self.partners(i)]
        if not self.targets:
            raise FusionError(
                "no picture of the training set has another photograph of the same person as its "
                "reference: give each sample's JSON file a 'person', or stream the set with "
                "training.augment: true"
            )
        self._epoch: tuple[int, Any] = (-1, None)

    def partners(self, index: int) -> list[int]:
        """The other photographs of the person in a picture."""
        return [i for i in self._photos.get(self._people[index], ()) if i != index]

    def choose(self, number: int, attempt: int = 0) -> tuple[int, int, Rng]:
        """Target and reference of a sample, and a generator for whatever else is drawn for it.

        Args:
            number: Number of the sample.
            attempt: Number of earlier pairs that could not be read. Each attempt draws another.
        """
        rng = np.random.default_rng([self._seed, number, attempt])
        count = len(self.targets)
        place = self._order(number // count)[number % count]
        if attempt:
            place = rng.integers(count)
        target = self.targets[int(place)]
        partners = self.partners(target)
        reference = partners[int(rng.integers(len(partners)))] if partners else target
        return target, reference, rng

    def _order(self, epoch: int) -> Any:
        if self._epoch[0] != epoch:
            rng = np.random.default_rng([self._seed, epoch, 1 << 32])  # no sample has this attempt
            self._epoch = (epoch, rng.permutation(len(self.targets)))
        return self._epoch[1]


class Skipped:
    """The samples that could not be read, each counted once, across kills and resumptions.

    Args:
        folder: Folder of the run. Each rank has a file of its own in the subfolder ``skipped``.
        rank: Rank of this process.
        fresh: Whether to forget what an earlier session skipped.
    """

    def __init__(self, folder: Path, rank: int = 0, *, fresh: bool = False) -> None:
        self._file = folder / "skipped" / f"{rank}.json"
        self._known: dict[str, str] = {}
        if fresh:
            self._file.unlink(missing_ok=True)
        elif self._file.is_file():
            self._known = json.loads(self._file.read_text(encoding="utf-8"))

    def add(self, reasons: dict[str, str]) -> None:
        """Record why samples were skipped, by place."""
        new = {place: why for place, why in reasons.items() if place not in self._known}
        if new:
            for place, why in new.items():
                logger.warning("skipped %s: %s", place, why)
            self._known |= new
            write_text(self._file, json.dumps(self._known, indent=2))

    @staticmethod
    def all(folder: Path) -> dict[str, str]:
        """Why samples were skipped by any rank of a run, by place."""
        files = sorted((folder / "skipped").glob("[0-9]*.json"))
        kept = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        return {place: why for reasons in kept for place, why in reasons.items()}


@dataclass(frozen=True)
class Pairs:
    """A batch of targets and references.

    Attributes:
        numbers: Numbers of the samples.
        targets: Targets, uint8 ``(batch, size, size, 3)``.
        masks: Face masks of the targets, uint8 0 or 1, ``(batch, size, size)``.
        references: References, uint8 ``(batch, size, size, 3)``.
        captions: One caption for each target.
        reference_captions: One caption for each reference.
    """

    numbers: list[int]
    targets: Tensor
    masks: Tensor
    references: Tensor
    captions: list[str]
    reference_captions: list[str]


@dataclass(frozen=True)
class _Pair:
    number: int
    target: Shown | None
    reference: Any
    caption: str
    skipped: dict[str, str]
    error: str = ""
    reference_caption: str = ""


class _PairData(Dataset[_Pair]):
    """Makes a sample from its number, in a worker process."""

    def __init__(self, samples: SampleSet, pairing: Pairing, crops: Crops) -> None:
        self.samples, self.pairing, self.crops = samples.samples, pairing, crops

    def __getitem__(self, number: int) -> _Pair:
        skipped: dict[str, str] = {}
        for attempt in range(PATIENCE):
            first, second, rng = self.pairing.choose(number, attempt)
            target, reference = self.samples[first], self.samples[second]
            if {target.place, reference.place} & skipped.keys():
                continue
            seen = target
            try:
                shown = self.crops.target(target, rng)
                seen = reference
                face = self.crops.reference(reference, rng)
            except MissingShard as error:  # as text: an exception would bring a worker's traceback
                return _Pair(number, None, None, "", skipped, str(error))
            except FusionError as error:
                skipped[seen.place] = str(error)
                continue
            caption = target.captions[int(rng.integers(len(target.captions)))]
            own = reference.captions[int(rng.integers(len(reference.captions)))]
            return _Pair(number, shown, face, caption, skipped, reference_caption=own)
        why = next(iter(skipped.values()), "")
        text = f"{PATIENCE} pairs in a row could not be read, the first because {why}"
        return _Pair(number, None, None, "", skipped, text)


class PairStream:
    """Batches of pairs, decoded ahead of their use by worker processes.

    Args:
        samples: Training set.
        pairing: Which of its pictures meet.
        crops: How they are cut.
        skipped: Record of the samples that could not be read.
        workers: Number of worker processes; 0 decodes in this one.
    """

    def __init__(
        self,
        samples: SampleSet,
        pairing: Pairing,
        crops: Crops,
        skipped: Skipped,
        workers: int = 0,
    ) -> None:
        self._data = _PairData(samples, pairing, crops)
        self._skipped, self._workers = skipped, workers
        self._batches: Iterator[list[_Pair]] | None = None
        self._expected = range(0)

    def __call__(self, batch: Batch) -> Pairs:
        """The pairs of a batch.

        Raises:
            FusionError: A shard is gone, or nothing in the set can be read.
        """
        if self._batches is None or self._expected != batch.samples:
            loader: DataLoader[_Pair] = DataLoader(
                self._data,
                batch_sampler=_Numbers(batch),
                num_workers=self._workers,
                collate_fn=list,
                generator=torch.Generator(),
            )
            self._batches = iter(loader)
        pairs = next(self._batches)
        first = batch.samples.start + batch.stride
        self._expected = range(first, first + len(batch.samples))
        for pair in pairs:
            self._skipped.add(pair.skipped)
            if pair.error:
                raise FusionError(pair.error)
        return Pairs(
            [pair.number for pair in pairs],
            _stacked([pair.target.pixels for pair in pairs if pair.target]),
            _stacked([pair.target.mask for pair in pairs if pair.target]),
            _stacked([pair.reference for pair in pairs]),
            [pair.caption for pair in pairs],
            [pair.reference_caption for pair in pairs],
        )


class _Numbers:
    """The sample numbers of a process's batches, from a given batch on without end."""

    def __init__(self, batch: Batch) -> None:
        self._first, self._stride = batch.samples, batch.stride

    def __iter__(self) -> Iterator[list[int]]:
        start = self._first.start
        while True:
            yield list(range(start, start + len(self._first)))
            start += self._stride


def _stacked(arrays: Sequence[Any]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))
