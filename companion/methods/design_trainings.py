"""Several trainings of each design, from seeds of their own and at two lengths.

One training says how good one network is. How good its *design* is takes several of them
(`companion.evaluation.designs`), which `fusionlib train designs` makes one after the other.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from companion.evaluation.designs import Training
from companion.methods.counterpart_training import train_method
from fusionlib.errors import FusionError
from fusionlib.profiles import Profile
from fusionlib.support.files import check_folder, write_text
from fusionlib.support.provenance import sha256_file, sha256_json
from fusionlib.training.checkpoints import checkpoint_folder
from fusionlib.training.runs import DEFAULTS, RunOptions, check_runs, run_folder

DESIGNS = ("fused", "decoupled", "ip-adapter")
"""Methods that are trained several times."""

SEEDS = (1, 2, 3, 4, 5)
"""Seeds of the trainings, none of which is the profile's: those networks have been looked at."""

LENGTHS = (600, 1200)
"""Optimiser steps: a quarter and a half of the adapter's in ``embedded_gpu``."""

UNET = "unet_sha256"
"""Entry of a finished training's record: the hash of the UNet over which it was trained."""

logger = logging.getLogger(__name__)


def planned_trainings(
    design: str | None = None,
    seeds: Sequence[int] = SEEDS,
    lengths: Sequence[int] = LENGTHS,
) -> list[Training]:
    """The trainings to make, in an order in which the short ones of all designs come first.

    Args:
        design: One of `DESIGNS`; by default all.
        seeds: Seeds of the trainings.
        lengths: Numbers of optimiser steps.

    Raises:
        FusionError: There is no such design.
    """
    if design is not None and design not in DESIGNS:
        raise FusionError(
            f"{design!r} is not trained from several seeds: use one of {', '.join(DESIGNS)}."
        )
    designs = DESIGNS if design is None else (design,)
    return [Training(name, steps, seed) for steps in lengths for seed in seeds for name in designs]


def trainings_folder(profile: Profile) -> Path:
    """The folder of their weights, in which data/studies/trainings.yaml looks for them."""
    return Path(profile.training.runs) / "trainings"


def train_designs(
    profile: Profile,
    design: str | None = None,
    options: RunOptions = DEFAULTS,
    *,
    seeds: Sequence[int] = SEEDS,
) -> list[Training]:
    """Train each design from several seeds, and write a folder of weights for each training.

    Trainings that are finished are passed over, one that was cut off goes on: the same command
    brings them all to their end. Several processes may share the work, a design each. All differ in
    nothing but design, seed and length, see `companion.methods.counterpart_training.train_method`;
    so the hidden states of the references, which some designs do not have, are not cached, and no
    sample sheets are made.

    Args:
        profile: Base model, the adapter's recipe, and shards.
        design: One of `DESIGNS`; by default all.
        options: ``out`` is the folder of all trainings, by default `trainings_folder`; ``minutes``
            the time for all of them together; ``steps`` a single length in place of `LENGTHS`.
            Without ``resume`` all begin again.
        seeds: Seeds of the trainings.

    Returns:
        The trainings that are left to do when the time is up.

    Raises:
        FusionError: There is no such design, one was trained over another base model or by another
            recipe, or a model or shard is missing.
    """
    if options.start_from is not None:
        raise FusionError("--start-from is not for designs: all begin with their first weights.")
    planned = planned_trainings(design, seeds, (options.steps,) if options.steps else LENGTHS)
    settings = profile.training.model_copy(update={"cache_references": False, "sample_every": 0})
    profile = profile.model_copy(update={"training": settings})
    folder = check_folder(options.out or trainings_folder(profile), None, whole=False)
    began = time.monotonic()
    check_runs(profile, *(each.folder for each in planned))
    if not options.resume:
        for each in planned:
            (run_folder(profile, each.folder) / "checkpoint.pt").unlink(missing_ok=True)
            _record(folder, each).unlink(missing_ok=True)
    files = sorted((checkpoint_folder(profile.base_model) / "unet").glob("*.safetensors"))
    unet = sha256_json([sha256_file(file) for file in files])
    left = [each for each in planned if not _finished(folder, each, profile, unet)]
    for each in list(left):
        minutes = None
        if options.minutes is not None:
            minutes = options.minutes - (time.monotonic() - began) / 60
            if minutes <= 0:
                break
        asked = RunOptions(folder / each.folder, minutes, each.steps)
        run = train_method(profile, each.design, asked, seed=each.seed, run_name=each.folder)
        if run.finished:
            record = _record(folder, each)
            facts = json.loads(record.read_text("utf-8")) | {UNET: unet}
            write_text(record, json.dumps(facts, indent=2) + "\n")
            left.remove(each)
            logger.info("%s is finished; %d are left.", each.name, len(left))
    return left


def _record(folder: Path, training: Training) -> Path:
    """The record of a run beside its folder, as `fusionlib.training.export.copy_record` writes."""
    return folder / "training" / f"{training.folder}.json"


def _finished(folder: Path, training: Training, profile: Profile, unet: str) -> bool:
    """Whether a training has come to its end, over this UNet and by the profile's recipe.

    Raises:
        FusionError: It has, but was made otherwise: all are to be compared, and must be alike.
    """
    file = _record(folder, training)
    if not (file.is_file() and (folder / training.folder / "config.json").is_file()):
        return False
    try:
        record = json.loads(file.read_text("utf-8"))
        if record["steps"] < training.steps or UNET not in record:
            return False
        recipe = profile.recipe("adapter").model_dump() | {"steps": record["recipe"]["steps"]}
        other = (
            "over another base model"
            if record[UNET] != unet
            else "by another recipe"
            if record["recipe"] != recipe
            else "from another seed"
            if record["seed"] != training.seed
            else None
        )
    except (ValueError, KeyError, TypeError) as error:
        raise FusionError(f"{file} is no record of a training ({error!r}): delete it.") from error
    if other:
        raise FusionError(
            f"{training.name!r} in {folder} was trained {other} than the profile {profile.name!r} "
            "has now: give --out another folder, or start over with --fresh."
        )
    return True
