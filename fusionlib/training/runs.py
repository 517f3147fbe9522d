"""A training run as it is asked for: the options that all models share, and the call that obeys."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fusionlib.profiles import Profile, Recipe
from fusionlib.support.files import check_writable, locked
from fusionlib.training.checkpoints import RANDOM, Start
from fusionlib.training.log import Row
from fusionlib.training.loop import LossFunction, Monitor, Run, fit


@dataclass(frozen=True)
class RunOptions:
    """The options of one training run, the same for every model.

    Attributes:
        out: Folder of the result. None takes the one that the profile names.
        minutes: Time after which the run stops with a checkpoint. A model with several recipes may
            spend this time in each of them, and stops after the first that is not finished.
        steps: Optimiser steps, in place of those of the recipe, or of each recipe.
        resume: Whether to continue from the checkpoint, if there is one.
        start_from: Folder of trained weights to begin with, in place of the usual first weights.
    """

    out: Path | None = None
    minutes: float | None = None
    steps: int | None = None
    resume: bool = True
    start_from: Path | None = None


DEFAULTS = RunOptions()
"""The options of a run that is left to its profile."""


def run_folder(profile: Profile, name: str = "adapter") -> Path:
    """The folder of a run by name, or of a cache that several runs of a profile share."""
    return Path(profile.training.runs) / profile.name / name


def check_runs(profile: Profile, *names: str) -> None:
    """Make sure that the folders of runs can be written, before models and pictures are loaded.

    Raises:
        FusionError: One cannot be written, or another process trains in it.
    """
    for name in names:
        folder = run_folder(profile, name)
        check_writable(folder / "checkpoint.pt")
        if folder.parent.is_dir():
            with _alone(folder):
                pass


def _alone(folder: Path) -> AbstractContextManager[None]:
    """A lock on the folder of a run, taken by one process for all of a training."""
    return locked(folder) if os.environ.get("RANK", "0") == "0" else nullcontext()


def train_network(
    network: nn.Module,
    loss: LossFunction,
    profile: Profile,
    name: str,
    options: RunOptions,
    *,
    recipe: Recipe | None = None,
    seed: int | None = None,
    start: Start = RANDOM,
    monitor: Monitor | None = None,
    watch: Callable[[list[Row]], None] | None = None,
) -> Run:
    """Train a network in the run folder of its name; see `fusionlib.training.loop.fit`.

    Args:
        network: Network whose parameters that require a gradient are trained.
        loss: Loss of a batch.
        profile: Profile of the run.
        name: Name of the run, and of its recipe unless one is given.
        options: Length, time limit and resumption of the run.
        recipe: Recipe of the run.
        seed: Seed of the run; None takes the profile's.
        start: Record of the weights that the network comes with.
        monitor: Called every ``training.sample_every`` steps of the profile.
        watch: Called with the rows of ``loss.csv`` whenever one is added.
    """
    folder = run_folder(profile, name)
    with _alone(folder):
        return fit(
            network,
            loss,
            recipe or profile.recipe(name),
            folder,
            seed=profile.seed if seed is None else seed,
            steps=options.steps,
            minutes=options.minutes,
            resume=options.resume,
            name=name,
            start=start,
            monitor=monitor,
            monitor_every=profile.training.sample_every if monitor else 0,
            watch=watch,
        )
