"""A training run of the adapter that is small enough to watch: what `notebooks/training` calls."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import webdataset
from diffusers import UNet2DConditionModel
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler
from PIL import Image

from companion.evaluation.training_monitor import make_sheets
from companion.figures.display import VectorFigure, with_alt_text
from companion.figures.style import MEASURED, QUIET
from companion.figures.tables import marked_table
from companion.person import load_people
from fusionlib.adapter import FusionAdapter
from fusionlib.errors import FusionError
from fusionlib.inputs.images import load_image
from fusionlib.profiles import Profile
from fusionlib.training.adapter import train
from fusionlib.training.checkpoints import load_frozen
from fusionlib.training.loop import Run
from fusionlib.training.runs import RunOptions, run_folder

FIRST_PERSON = 120
"""Index of the first held-out person in the lesson; no other page uses its adapter."""


@dataclass(frozen=True)
class Lesson:
    """A small training run, and the people in it.

    Attributes:
        profile: Base model and recipe.
        learned: A reference of each person on the sample sheets whom the adapter is trained on.
        strangers: References of people that it never sees.
        pictures: Number of pictures that it is trained on.
    """

    profile: Profile
    learned: list[Image.Image]
    strangers: list[Image.Image]
    pictures: int

    @property
    def adapter(self) -> Path:
        """The folder of the trained adapter."""
        return Path(self.profile.adapter)


def make_lesson(
    profile: Profile, out: str | Path, *, people: int, steps: int, shown: int = 2
) -> Lesson:
    """Set up a run on a few of the held-out people, since a fresh clone has no others.

    The trained adapter is stored in a folder of its own and used nowhere else.

    Args:
        profile: Profile with a folder of held-out people.
        out: Folder for shards, checkpoints and the adapter.
        people: Number of people to train on.
        steps: Number of training steps.
        shown: Number of people of either kind on the sample sheets.

    Raises:
        FusionError: The profile has no such people.
    """
    if profile.heldout is None:
        raise FusionError(
            f"the profile '{profile.name}' has no held-out people to take a lesson with: use "
            "--profile embedded"
        )
    everyone = load_people(profile.heldout)
    if not shown <= people <= len(everyone) - FIRST_PERSON:
        raise FusionError(
            f"people must be from {shown} to {len(everyone) - FIRST_PERSON}, not {people}."
        )
    taught = everyone[FIRST_PERSON : FIRST_PERSON + people]
    folder = Path(out) / f"lesson-{people}-{steps}"
    folder.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(folder / "00000.tar"), encoder=False, mtime=0) as archive:
        for person in taught:
            for picture in (*person.references, *person.others):
                files = picture.parent.glob(f"{picture.stem}.*")
                content = {file.name.partition(".")[2]: file.read_bytes() for file in files}
                archive.write({"__key__": picture.stem} | content)
    small = profile.model_copy(deep=True)
    small.heldout = None
    small.adapter = str(folder / "adapter")
    small.training.shards = str(folder)
    small.training.runs = str(folder / "runs")
    small.training.stream = False
    small.training.sample_every = 0
    small.training.sample_prompts = small.training.sample_prompts[:2]  # wide enough to see
    recipe = small.training.adapter
    recipe.steps, recipe.warmup_steps, recipe.batch_size = steps, min(20, steps // 4), 16
    strangers = everyone[FIRST_PERSON - shown : FIRST_PERSON]
    return Lesson(
        small,
        [load_image(person.references[0]) for person in taught[:shown]],
        [load_image(person.references[0]) for person in strangers],
        sum(len(person.references) + len(person.others) for person in taught),
    )


def train_small(lesson: Lesson) -> Run:
    """Train from the first step, and draw the curves as they grow."""
    live = LiveCurves()
    run = train(lesson.profile, RunOptions(resume=False), watch=live)
    live.show(pd.read_csv(run_folder(lesson.profile) / "loss.csv"))
    return run


def sample_sheet(
    lesson: Lesson, faces: Sequence[Image.Image], *, trained: bool
) -> Mapping[str, Any]:
    """A sample sheet of some faces, and what is measured on it: see `SampleSheets`.

    Args:
        lesson: Lesson whose prompts are painted.
        faces: References to paint with.
        trained: Whether to use the adapter after its last training step, or before its first.
    """
    unet = load_frozen(UNet2DConditionModel, Path(lesson.profile.base_model) / "unet")
    adapter = FusionAdapter.from_unet(unet, init="self_attention")
    if trained:
        adapter = FusionAdapter.from_pretrained(lesson.adapter)
    return make_sheets(lesson.profile, unet, adapter.eval(), faces)(0)


def likeness_table(lesson: Lesson, sheets: Mapping[str, Mapping[str, Any]]) -> Styler:
    """Lay out what is measured on sample sheets of a lesson, a row for each sheet."""
    columns = {
        "distance to the reference": "identity_distance",
        "share of pictures with a face": "faces_found",
        "CLIP score": "clip_score",
        "attention on the face's keys": "face_attention",
    }
    rows = {
        name: {title: f"{sheet.get(key, np.nan):.3f}" for title, key in columns.items()}
        for name, sheet in sheets.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return marked_table(table, "Measured here, on the sample sheets of the lesson.")


class LiveCurves:
    """Curves of a running training, drawn into one output of a notebook again and again.

    Args:
        every: Least number of seconds between two drawings.
    """

    def __init__(self, every: float = 5.0) -> None:
        self.every = every
        self._handle: Any = None
        self._next = 0.0

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show the curves up to these rows of ``loss.csv``."""
        if time.monotonic() >= self._next:
            self.show(pd.DataFrame(rows), include=["image/png"])  # no PDF of what is in the making
            self._next = time.monotonic() + self.every

    def show(self, log: pd.DataFrame, **kinds: Any) -> None:
        """Draw these rows, wherever the last ones were drawn; `kinds` as for IPython's display."""
        from IPython.display import display

        picture = curves(log)
        if self._handle is None:
            self._handle = display(picture, display_id=True, **kinds)
        else:
            self._handle.update(picture, **kinds)


def curves(log: pd.DataFrame) -> Image.Image:
    """Loss, its parts by timestep, and the gradient's norm over the steps.

    Args:
        log: Rows of ``loss.csv``.
    """
    log = log.apply(pd.to_numeric, errors="coerce")
    bands = [name for name in log.columns if name.startswith("mse_t")]
    figure = Figure(figsize=(12, 4), layout="constrained", dpi=150)
    loss, parts, norm = figure.subplots(1, 3)
    loss.plot(log["step"], log["loss"], color=MEASURED, alpha=0.3)
    trend = log["loss"].rolling(5, min_periods=1, center=True).mean()
    loss.plot(log["step"], trend, color=MEASURED, linewidth=2)
    for shade, name in zip((0.25, 0.5, 0.75, 1.0), bands, strict=False):
        smooth = log[name].rolling(9, min_periods=1, center=True).mean()
        label = f"t from {name.removeprefix('mse_t')}"
        parts.plot(log["step"], smooth, color=MEASURED, alpha=shade, label=label)
    parts.legend(frameon=False)
    norm.plot(log["step"], log["grad_norm"], color=QUIET)
    titles = ("weighted loss", "squared error by timestep", "norm of the gradient")
    for axes, title in zip((loss, parts, norm), titles, strict=True):
        axes.set(title=title, xlabel="step")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return with_alt_text(
        VectorFigure(figure),
        f"Three curves over {log['step'].iloc[-1]:.0f} training steps: the weighted loss, from "
        f"{trend.iloc[0]:.3f} to {trend.iloc[-1]:.3f}; the squared error of each band of "
        "timesteps; the norm of the gradient.",
    )
