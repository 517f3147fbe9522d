"""Figures and tables of the data card and the model card: the people, and what the suite shows.

What is said about people is computed by the sampler that they come from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from companion.evaluation.comparison import means_by_method, paired_difference
from companion.evaluation.statistics import MIN_PEOPLE, Interval
from companion.figures.display import VectorFigure, with_alt_text
from companion.figures.grids import picture_grid
from companion.figures.style import INK, MEASURED, QUIET
from companion.figures.tables import marked_table, summary_table
from companion.methods.counterparts import compared_with
from companion.pages.judging_judges import read_records
from companion.pages.suite_criteria import Criterion
from companion.people.appearance import SHAPE_SPREAD, sample_person, skin_color
from companion.people.caption import attributes
from companion.people.view import sample_view
from companion.person import Person
from fusionlib.errors import FusionError
from fusionlib.inputs.images import load_image

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

T = TypeVar("T")

BARS = 12
"""Most bars in one histogram of names; rarer names are counted together."""


def people_sheet(people: Sequence[Person], *, columns: int = 10, upscale: int = 1) -> Image.Image:
    """The first picture of each person, row by row, as many as fill whole rows."""
    pictures = [load_image(person.references[0]) for person in people]
    whole = len(pictures) // columns * columns
    rows = [pictures[start : start + columns] for start in range(0, whole, columns)]
    return picture_grid(rows, upscale=upscale)


def view_rows(people: Sequence[Person]) -> list[list[Image.Image]]:
    """For each person a row: the reference, then the other pictures."""
    return [
        [load_image(path) for path in (*person.references, *person.others)] for person in people
    ]


def group_rows(folder: str | Path, count: int) -> list[list[Image.Image]]:
    """Pictures of several people: a row of pictures, one of their masks, one of their depth.

    Args:
        folder: Folder of pictures with ``index.csv``, as `fusionlib people render --groups --files`
            writes them.
        count: Number of pictures to show, the first ones.
    """
    folder = Path(folder)
    files = pd.read_csv(folder / "index.csv")["file"].iloc[:count]
    return [
        [Image.open(folder / Path(file).with_suffix(suffix)).convert("RGB") for file in files]
        for suffix in (".jpg", ".mask.png", ".depth.png")
    ]


def heldout_counts(folder: str | Path, groups: str | Path) -> dict[str, int]:
    """How many people and pictures are held out, by what they show.

    Args:
        folder: Folder of pictures of one person each, with ``index.csv``.
        groups: The same for pictures of several people.
    """
    alone = pd.read_csv(Path(folder) / "index.csv")
    several = pd.read_csv(Path(groups) / "index.csv")["people"].str.count(" ") + 1
    photographs = int((alone["style"] == "photo").sum())
    return {
        "people": alone["person"].nunique(),
        "pictures of one person": len(alone),
        "of these, photographs": photographs,
        "of these, other styles": len(alone) - photographs,
        "of these, combinations that training never shows": int(alone["held_out"].sum()),
        **{f"pictures of {count} people": int((several == count).sum()) for count in (2, 3)},
    }


def sampled_attributes(
    count: int, *, seed: int = 0, first: int = 0, views: int = 4
) -> pd.DataFrame:
    """Attributes of the pictures of a data set, without rendering it: a row for each picture.

    Args:
        count: Number of people.
        seed: Seed of the data set.
        first: Number of the first person.
        views: Number of pictures of each.

    Returns:
        The fields of `companion.people.caption.attributes`, and ``person``, ``view``, ``skin tone``
        (0 is the lightest, 1 the darkest that is drawn), ``weight`` and the shape's parameters.
    """
    rows = []
    for index in range(first, first + count):
        person = sample_person(seed, index)
        tone = _tone(person.skin)
        for view in range(views):
            fields = attributes(person, sample_view(seed, index, view))
            rows.append(
                fields
                | {"person": index, "view": view, "skin tone": tone}
                | {"weight": person.phenotypes["weight"]}
                | {name: person.shape[name] for name in SHAPE_SPREAD if name in person.shape}
            )
    return pd.DataFrame(rows)


def _tone(skin: tuple[float, float, float]) -> float:
    """The skin tone whose colour has the brightness of the given one."""
    steps = [number / 100 for number in range(101)]
    return min(steps, key=lambda tone: abs(sum(skin_color(tone)) - sum(skin)))


def histograms(table: pd.DataFrame, fields: Sequence[str], *, columns: int = 4) -> Image.Image:
    """One small histogram for each field: bars of names by their frequency, or of binned numbers.

    The alternative text gives the range and the middle half of numbers, and of names their count,
    the commonest and the rarest.

    Args:
        table: Records, such as those of `sampled_attributes`.
        fields: Columns of the table to draw.
        columns: Number of histograms side by side.
    """
    count = -(-len(fields) // columns)
    figure = Figure(figsize=(3.1 * columns, 2.5 * count), layout="constrained", dpi=130)
    axes = list(figure.subplots(count, columns, squeeze=False).flat)
    words = []
    for axis, field in zip(axes, fields, strict=False):
        title, values = field.replace("_", " "), table[field].dropna()
        if pd.api.types.is_numeric_dtype(values):
            axis.hist(values, bins=24, color=MEASURED)
            axis.set_yticks([])
            least, low, high, most = (f"{values.quantile(q):.3g}" for q in (0, 0.25, 0.75, 1))
            words.append(f"{title} from {least} to {most}, half of it from {low} to {high}")
        else:
            named = Counter(values).most_common()
            ends = [f"{name} ({times / len(values):.0%})" for name, times in named]
            words.append(f"{title}: {len(named)}, from {ends[0]} to {ends[-1]}")
            shown = named[: BARS - 1] if len(named) > BARS else named
            rest = sum(times for _, times in named[len(shown) :])
            shown += [(f"{len(named) - len(shown)} more", rest)] if rest else []
            names, times = zip(*shown[::-1], strict=True)
            axis.barh(names, [time / len(values) for time in times], color=MEASURED)
            axis.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
            axis.locator_params(axis="x", nbins=3)
        axis.set_title(title, fontsize=10, color=INK, loc="left")
        axis.tick_params(labelsize=8, colors=QUIET)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(fields) :]:
        axis.set_visible(False)
    return with_alt_text(VectorFigure(figure), f"Histograms: {'; '.join(words)}.")


def criteria_table(criteria: Sequence[Criterion], run: str) -> Styler:
    """Lay out what the suite must show beside what was found; what falls short is bold.

    Args:
        criteria: Criteria of `companion.pages.suite_criteria`.
        run: The run, see `companion.studies.study.run_label`.
    """
    found = [one.measured for one in criteria]
    shown = pd.DataFrame(
        {
            "measured": [str(one) if isinstance(one, Interval) else f"{one:.3f}" for one in found],
            "at least": ["–" if one.least is None else f"{one.least:g}" for one in criteria],
            "met": [{True: "yes", False: "no", None: "–"}[one.met] for one in criteria],
            "looked at": [one.looked_at for one in criteria],
        },
        index=[f"{one.part}: {one.what}" for one in criteria],
    )
    styler = marked_table(shown, f"Measured here. {run}")
    return styler.map(lambda met: "font-weight: bold" if met == "no" else "", subset=["met"])


def evenly_spread(rows: Sequence[T], most: int) -> list[T]:
    """At most this many items of a sequence, evenly spread from the first to the last.

    Args:
        rows: Sequence to choose from.
        most: 1 or more.
    """
    chosen = np.linspace(0, len(rows) - 1, min(most, len(rows)))
    return [rows[round(place)] for place in chosen]


def measured_rows(table: pd.DataFrame, run: str, digits: int = 3) -> Styler:
    """Lay out a table of measured numbers as it is; columns of whole numbers without decimals.

    Args:
        table: Numbers, with names for rows and columns.
        run: The run, see `companion.studies.study.run_label`.
        digits: Number of digits after the point.
    """

    def as_text(column: pd.Series[float]) -> pd.Series[str]:
        places = 0 if (column == column.round()).all() else digits
        return column.map(f"{{:.{places}f}}".format)

    return marked_table(table.apply(as_text), f"Measured here. {run}")


def costs_table(costs: pd.DataFrame, run: str) -> Styler:
    """Lay out what methods cost, marked as measured here.

    Args:
        costs: Result of `companion.studies.costs.cost_table`; times are relative to its first row.
        run: The run, see `companion.studies.study.run_label`.
    """
    columns = {
        "trained parameters": "{parameters:,.0f}",
        "steps": "{steps:,.0f}",
        "minutes of training": "{minutes:.0f}",
        "s for a person": "{prepare_s:.2f}",
        "s for a picture": "{picture_s:.2f}",
        f"against {costs.index[0]}": "{relative:.2f}",
    }
    places = ", ".join(costs["measured_on"].dropna().unique())
    text = (
        f"Measured on {places}, the middle one of a few pictures; parameters, steps and minutes as "
        f"the training recorded them. {run}"
    )
    relative = costs["picture_s"] / costs["picture_s"].iloc[0]
    return marked_table(costs.assign(relative=relative), text, columns)


def gains_table(gains: pd.DataFrame, run: str) -> Styler:
    """Lay out what a reference tells each adapter, beside the one that it is an ablation of.

    Args:
        gains: Result of `companion.pages.reference_gains.reference_gains`.
        run: The run, see `companion.studies.study.run_label`.
    """
    columns = {"own reference": "own", "another's": "another", "about the person": "identity"}
    rows: dict[str, dict[str, object]] = {}
    for name, found in means_by_method(gains, columns).to_dict("index").items():
        other = compared_with(str(name))
        compared = {"compared with": other or "–", "more about the person": "–"}
        if other in set(gains["method"]):
            difference = paired_difference(gains, str(name), str(other), "identity")
            enough = difference.people >= MIN_PEOPLE
            compared["more about the person"] = (
                str(difference.interval) if enough else f"fewer than {MIN_PEOPLE} people"
            )
        rows[str(name)] = {**{str(k): v for k, v in found.items()}, **compared}
    return summary_table(rows, run)


def captions_and_pictures(
    folder: str | Path, count: int
) -> tuple[list[str], list[Path], list[Path]]:
    """Captions of held-out pictures, these pictures, and as many others.

    Args:
        folder: Folder with records, see `companion.pages.judging_judges.read_records`.
        count: Number of captions; no two are the same.

    Raises:
        FusionError: There are not twice as many pictures.
    """
    pictures = [(path, record["caption"]) for _, path, record in read_records(folder)]
    chosen: dict[str, Path] = {}
    for path, caption in pictures[::2]:
        chosen.setdefault(caption, path)
    further = [path for path, _ in pictures[1::2]]
    if count > min(len(chosen), len(further)):
        raise FusionError(f"{folder} has fewer than {2 * count} pictures with different captions.")
    captions = list(chosen)[:count]
    return captions, [chosen[caption] for caption in captions], further[:count]
