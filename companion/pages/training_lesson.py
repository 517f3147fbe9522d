"""A training run of the adapter that is small enough to watch: what `notebooks/training` calls."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import webdataset
from diffusers import UNet2DConditionModel
from matplotlib.figure import Figure
from PIL import Image

from companion.evaluation.training_monitor import make_sheets
from companion.figures.display import VectorFigure, with_alt_text
from companion.figures.style import MEASURED, QUIET
from companion.person import load_people
from fusionlib.adapter import FusionAdapter
from fusionlib.errors import FusionError
from fusionlib.inputs.images import load_image
from fusionlib.profiles import Profile
from fusionlib.training.adapter import train
from fusionlib.training.checkpoints import load_frozen
from fusionlib.training.loop import Run
from fusionlib.training.runs import RunOptions, run_folder

FIRST = 120
"""Of the held-out people whom the lesson trains on; its adapter is used by no other page."""


@dataclass(frozen=True)
class Lesson:
    """A small run and who takes part.

    Attributes:
        profile: base model and recipe.
        learned: a reference of each person that the adapter is trained on.
        strangers: references of people that it never sees.
        pictures: how many it is trained on, of all of them together.
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
    """Set up a run on a few of the held-out people, for a fresh clone has no others.

    The adapter that comes of it goes to a folder of its own and is used nowhere else.

    Args:
        profile: with a folder of held-out people.
        out: where shards, checkpoints and the adapter go.
        people: how many to train on.
        steps: of training.
        shown: people of either kind on the sample sheets.

    Raises:
        FusionError: the profile has no such people.
    """
    if profile.heldout is None:
        raise FusionError(
            f"the profile '{profile.name}' has no held-out people to take a lesson with: use "
            "--profile embedded"
        )
    everyone = load_people(profile.heldout)
    if not shown <= people <= len(everyone) - FIRST:
        raise FusionError(f"people must be from {shown} to {len(everyone) - FIRST}, not {people}.")
    taught = everyone[FIRST : FIRST + people]
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
    strangers = everyone[FIRST - shown : FIRST]
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
        lesson: whose prompts are painted.
        faces: the references.
        trained: with the adapter after its last step, or else before its first.
    """
    unet = load_frozen(UNet2DConditionModel, Path(lesson.profile.base_model) / "unet")
    adapter = FusionAdapter.from_unet(unet, init="self_attention")
    if trained:
        adapter = FusionAdapter.from_pretrained(lesson.adapter)
    return make_sheets(lesson.profile, unet, adapter.eval(), faces)(0)


def likeness_table(lesson: Lesson, looks: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """What the sheets say in numbers: a row for each."""
    columns = {
        "identity_distance": "distance to the reference",
        "faces_found": "share of pictures with a face",
        "clip_score": "CLIP score",
        "face_attention": "attention on the face's keys",
    }
    rows = {name: {columns[key]: seen.get(key) for key in columns} for name, seen in looks.items()}
    return pd.DataFrame.from_dict(rows, orient="index").round(3)


class LiveCurves:
    """Draws the curves of a running training into one output of a notebook, again and again.

    Args:
        every: seconds between two drawings, at least.
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
        log: the rows of ``loss.csv``.
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
