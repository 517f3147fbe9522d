"""How often the rule of `companion.claims.rule` errs, and how often it finds an effect.

Each simulated study has people who differ, noise within people, a scale from a stranger to the
person and pictures without a face, spread as the records of this book spread. It is judged by the
very rule: each treatment of lost faces, the answer under each, and what they agree on. The seed is
fixed: every machine finds the same numbers. Shares of wrong answers go to
``book/records/verdicts.csv``, all four answers of every setting to ``verdicts_all.csv`` beside it.

    python -m benchmarks.verdicts
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import NDArray

from companion.claims.rule import Answer, Asks, agreed, answer
from companion.evaluation.statistics import Interval, bootstrap
from companion.evaluation.treatments import Filling, filling, treat
from fusionlib.profiles import ROOT

Values = NDArray[np.float64]
Size = tuple[int, int, int]
Intervals = Callable[[Values], list[Interval]]
"""From values by study and person to an interval for each study."""

SMALLEST = 0.05
"""Smallest effect of interest of a distance, in gaps, and of a share, as claims.yaml has it."""

SIZES: dict[str, Size] = {
    "100 people × 2 prompts × 2 seeds": (100, 2, 2),
    "139 people × 2 seeds": (139, 1, 2),
    "100 pairs × 2 seeds": (100, 1, 2),
    "40 people × 2 prompts": (40, 2, 1),
}
"""People, prompts and seeds: Table 1, several references, Table 2, and the choices of design."""


@dataclass(frozen=True)
class Spread:
    """How distances spread, in units of the gap from the person to a stranger.

    Attributes:
        between: Standard deviation between people of the difference of two methods.
        within: That of the difference within people, over prompts and seeds.
        level: Mean distance of a method; 0 is another picture of the person, 1 a stranger.
        level_between: Standard deviation of a method's distances between people.
        level_within: That within people.
        genuine: Standard deviation between people of the near end of the scale.
        impostor: That of the far end.
        ends: Correlation of the two ends.
        with_genuine: Correlation of a method's distance with the near end.
        with_impostor: That with the far end.
    """

    between: float
    within: float
    level: float
    level_between: float
    level_within: float
    genuine: float
    impostor: float
    ends: float
    with_genuine: float
    with_impostor: float


# `between` and `within` are medians over ten pairs of trained systems, by an analysis of variance
# of the cells that both have: fused with faceid, faceid-plus, instantid and fused-v1 in
# table1.parquet, with decoupled in concatenated-or-decoupled.parquet, and fused-short with the five
# adapters of some layers in choices.parquet. The rest is of fused in table1.parquet. The records
# are those of commit c3c9b7c9, made before the present rule was written.
SPREADS = {
    "dlib": Spread(0.06, 0.24, 0.71, 0.14, 0.25, 0.14, 0.14, 0.0, 0.05, 0.55),
    "identity network": Spread(0.14, 0.22, 0.35, 0.24, 0.21, 0.13, 0.39, 0.55, 0.53, 0.60),
}

LOST = (0.02, 0.05, 0.10)
"""Shares of pictures in which one method loses the face and the other does not."""

DEPENDENCE = {"at random": 0.0, "the farther the likelier": 0.5, "the farthest": 1.0}
"""Correlation of what loses a face with the face's distance. Where one method of these records lost
a face that another one kept, the other one's distance was 0.1 to 0.3 standard deviations more than
elsewhere, which a correlation of 0.1 to 0.3 gives."""

CLIP_WITHIN, CLIP_SMALLEST = 4.0, 0.5
"""Standard deviation within people of a difference of CLIP scores (concatenated-or-decoupled), and
the smallest one of interest. People differ by next to nothing."""


@dataclass(frozen=True)
class Setting:
    """What is true of a simulated study.

    Attributes:
        truth: What is simulated, in words.
        wrong: Answers that are errors.
        right: The answer that has to be found, if one has.
        effect: How much nearer the claim's method is, in gaps.
        lost: Share of faces lost by the claim's method, and by the other one.
        dependence: See `DEPENDENCE`.
        asks: What the claim asks.
        kind: Whether a distance is compared, the share of ``face`` found, or a ``clip`` score.
    """

    truth: str
    wrong: tuple[Answer, ...]
    right: Answer | None = None
    effect: float = 0.0
    lost: tuple[float, float] = (0.0, 0.0)
    dependence: float = 0.0
    asks: Asks = "more"
    kind: str = "distance"


def settings() -> Iterator[Setting]:
    """All that is simulated."""
    yield Setting("no effect, every face found", ("supported",))
    for how, dependence in DEPENDENCE.items():
        for share in LOST:
            for who, lost in (("its method", (share, 0.0)), ("the other", (0.0, share))):
                truth = f"no effect, {who} loses {share:.0%} of faces, {how}"
                yield Setting(truth, ("supported",), lost=lost, dependence=dependence)
    for times, name in ((1, "the smallest effect"), (2, "twice the smallest effect")):
        for share in (0.0, 0.01, 0.05):
            truth = f"{name}, both lose {share:.0%} of faces"
            wrong: tuple[Answer, ...] = ("not supported", "no difference that matters")
            effect = times * SMALLEST
            yield Setting(truth, wrong, "supported", effect=effect, lost=(share, share))
    less = "no less: a true loss of the smallest effect,"
    loses: dict[str, object] = {"asks": "no less", "wrong": ("supported",), "effect": -SMALLEST}
    yield Setting(f"{less} distances, both lose 1% of faces", lost=(0.01, 0.01), **loses)  # type: ignore[arg-type]
    yield Setting(f"{less} share of faces, 99% and 94%", lost=(0.06, 0.01), kind="face", **loses)  # type: ignore[arg-type]
    yield Setting(f"{less} share of faces, 90% and 85%", lost=(0.15, 0.10), kind="face", **loses)  # type: ignore[arg-type]
    yield Setting(f"{less} CLIP score", kind="clip", **loses)  # type: ignore[arg-type]


def simulated(
    setting: Setting, spread: Spread, size: Size, studies: int, seed: int = 0
) -> tuple[pd.DataFrame, Filling | None, Values]:
    """Studies of two methods, ``a`` of the claim and ``b``.

    Returns:
        A row for each cell, NaN where the face is lost, people of all studies numbered on; what may
        stand for a lost face; and the smallest effect of interest of each study.
    """
    rng = np.random.default_rng(seed)
    people, *pictures = size
    count = studies * people
    names = ["person", "prompt", "seed"]
    index = pd.MultiIndex.from_product([range(count), *map(range, pictures)], names=names)
    each = len(index) // count
    smallest = np.full(studies, SMALLEST)
    if setting.kind == "clip":
        difference = rng.normal(setting.effect / SMALLEST * CLIP_SMALLEST, CLIP_WITHIN, len(index))
        cells = pd.DataFrame({"a": difference, "b": 0.0}, index=index)
        return cells, None, np.full(studies, CLIP_SMALLEST)
    if setting.kind == "face":  # a face is lost where a person, a cell and chance are against it
        common = 0.4 * rng.normal(size=(count, 1)).repeat(each, 1).ravel()
        common += 0.4 * rng.normal(size=len(index))
        own = np.sqrt(1 - 2 * 0.4**2) * rng.normal(size=(2, len(index)))
        bars = scipy.stats.norm.ppf(setting.lost)
        found = {name: (common + own[i] > bars[i]).astype(float) for i, name in enumerate("ab")}
        return pd.DataFrame(found, index=index), None, smallest

    correlations = np.array(
        [
            [1, spread.ends, spread.with_genuine],
            [spread.ends, 1, spread.with_impostor],
            [spread.with_genuine, spread.with_impostor, 1],
        ]
    )
    deviations = np.array([spread.genuine, spread.impostor, spread.level_between])
    of_people = rng.multivariate_normal([0, 0, 0], correlations, size=count) * deviations
    scale = pd.DataFrame({"genuine": of_people[:, 0], "impostor": 1 + of_people[:, 1]})
    shared = np.sqrt(spread.level_within**2 - spread.within**2 / 2)
    gain = setting.effect + spread.between * rng.normal(size=count)
    distances = []
    middle = (spread.level + of_people[:, 2]).repeat(each) + shared * rng.normal(size=len(index))
    for side in (-0.5, 0.5):
        own_noise = rng.normal(0, spread.within / np.sqrt(2), len(index))
        distances.append(middle + side * gain.repeat(each) + own_noise)
    table = {}
    for name, distance, share in zip("ab", distances, setting.lost, strict=True):
        far = (distance - distance.mean()) / distance.std()
        luck = rng.normal(size=len(index))
        risk = setting.dependence * far + np.sqrt(1 - setting.dependence**2) * luck
        lost = risk > np.quantile(risk, 1 - share) if share else np.zeros(len(index), bool)
        table[name] = np.where(lost, np.nan, distance)
    gaps = (scale["impostor"] - scale["genuine"]).to_numpy().reshape(studies, people)
    images = pd.DataFrame({"person": scale.index})
    cells = pd.DataFrame(table, index=index)
    return cells, filling("distance", images, scale), SMALLEST * gaps.mean(axis=1)


def by_student(values: Values) -> list[Interval]:
    """Student's interval of each study, for distances: see `agreement` with the bootstrap."""
    people = values.shape[1]
    means, errors = values.mean(axis=1), scipy.stats.sem(values, axis=1)
    half = scipy.stats.t.ppf(0.975, people - 1) * errors
    ends = zip(means, means - half, means + half, strict=True)
    return [Interval(*map(float, one)) for one in ends]


def by_bootstrap(values: Values, resamples: int = 999) -> list[Interval]:
    """The interval of the book for each study."""
    return [bootstrap(study, resamples=resamples) for study in values]


def treated(
    cells: pd.DataFrame, fill: Filling | None, sign: float, people: int, intervals: Intervals
) -> list[dict[str, Interval]]:
    """The intervals of each study under each treatment.

    `companion.evaluation.treatments.treat` fills the cells of all studies at once, as nothing in it
    depends on other people; only the outer ends of the bounds are taken study by study, here.
    """
    values: list[pd.Series[float]] = []

    def kept(found: pd.Series[float]) -> Interval:
        values.append(found)
        return Interval(0, 0, 0)

    everyone = pd.RangeIndex(cells.index.get_level_values("person")[-1] + 1)
    treat(cells, {"a": sign, "b": -sign}, fill, kept)
    if len(values) == 1:  # nothing is missing
        complete = intervals(values[0].to_numpy().reshape(-1, people))
        return [dict.fromkeys(("complete cases", "composite", "bounds"), one) for one in complete]
    middle, *ends = (intervals(one.to_numpy().reshape(-1, people)) for one in values[:3])
    whole = values[3].reindex(everyone).to_numpy().reshape(-1, people)
    some = [study[~np.isnan(study)] for study in whole]  # people with any pair left
    complete = [intervals(study[None])[0] for study in some]
    return [
        {
            "complete cases": one,
            "composite": two,
            "bounds": Interval(two.estimate, min(a.low, b.low), max(a.high, b.high)),
        }
        for one, two, a, b in zip(complete, middle, *ends, strict=True)
    ]


def answers(
    setting: Setting,
    spread: Spread,
    size: Size,
    *,
    studies: int,
    intervals: Intervals = by_student,
    seed: int = 0,
) -> list[Answer]:
    """The answer of each simulated study."""
    cells, fill, smallest = simulated(setting, spread, size, studies, seed)
    sign = -1.0 if setting.kind == "distance" else 1.0
    found = treated(cells, fill, sign, size[0], intervals)
    return [
        agreed({name: answer(setting.asks, one, 0.0, least) for name, one in each.items()})[0]
        for each, least in zip(found, smallest, strict=True)
    ]


FOUR: tuple[Answer, ...] = (
    "supported",
    "no difference that matters",
    "not supported",
    "undecided",
)


def table(
    chosen: Sequence[Setting] | None = None,
    sizes: Sequence[str] = tuple(SIZES),
    *,
    studies: int = 1000,
) -> pd.DataFrame:
    """Shares of the four answers, and of wrong and right ones: a row for each setting and size."""
    rows = []
    for setting in settings() if chosen is None else chosen:
        for judge, spread in SPREADS.items():
            for size in sizes:
                if setting.kind != "distance" and judge != "dlib":
                    continue  # no recogniser has a part in it
                # Shares are lattices and skewed, where Student's interval errs too often.
                how = by_student if setting.kind == "distance" else by_bootstrap
                told = answers(setting, spread, SIZES[size], studies=studies, intervals=how)
                given = Counter(told)
                shares = {name: given[name] / studies for name in FOUR}
                counted = {
                    "wrong": sum(shares[name] for name in setting.wrong),
                    "found": shares[setting.right] if setting.right else np.nan,
                }
                judged = judge if setting.kind == "distance" else ""
                about = {"simulated": setting.truth, "spread": judged, "size": size}
                rows.append(about | shares | counted)
    return pd.DataFrame(rows)


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """A row for each truth, a column for each size: wrong answers, by the worse recogniser."""
    shown = []
    for what, column, worst in (("wrong", "wrong", "max"), ("found", "found", "min")):
        rows = found.dropna(subset=column)
        pivot = rows.pivot_table(
            index="simulated", columns="size", values=column, aggfunc=worst, sort=False
        )
        shown.append(pivot.map("{:.1%}".format).assign(counted=what))
    joined = pd.concat(shown).reset_index()
    order = ["simulated", "counted", *[size for size in SIZES if size in joined]]
    return joined[order]


def agreement(
    chosen: Sequence[Setting] | None = None,
    size: str = "40 people × 2 prompts",
    *,
    studies: int = 200,
    resamples: int = 999,
) -> pd.DataFrame:
    """The share of studies that Student's intervals and the bootstrap answer alike.

    By default in all settings in which a tenth of faces is lost, or a hundredth by both methods, or
    no less is asked, with the fewest people; and the shares of wrong answers by both.
    """
    every = settings() if chosen is None else chosen
    kept = ("10%", "both lose 1%", "no less")
    rows = []
    for setting in every:
        if chosen is None and not any(words in setting.truth for words in kept):
            continue
        told = [
            answers(setting, SPREADS["dlib"], SIZES[size], studies=studies, intervals=how, seed=1)
            for how in (by_student, partial(by_bootstrap, resamples=resamples))
        ]
        alike = np.mean([one == other for one, other in zip(*told, strict=True)])
        row: dict[str, object] = {"simulated": setting.truth, "resamples": resamples}
        row["alike"] = alike
        for name, made in zip(("Student", "the bootstrap"), told, strict=True):
            row[f"wrong by {name}"] = np.mean([one in setting.wrong for one in made])
            row[f"found by {name}"] = np.mean([one == setting.right for one in made])
        rows.append(row)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    pd.set_option("display.width", 250, "display.max_colwidth", 90)
    found = table()
    print(found.round(3).to_string(index=False))
    short = summary(found)
    print(short.to_string(index=False))
    folder = ROOT / "book" / "records"
    found.round(3).to_csv(folder / "verdicts_all.csv", index=False)
    short.to_csv(folder / "verdicts.csv", index=False)
    print(agreement().round(3).to_string(index=False))
    twice = [one for one in settings() if one.truth.startswith("twice") and "5%" in one.truth]
    for resamples in (999, 9_999):
        print(agreement(twice, studies=400, resamples=resamples).round(3).to_string(index=False))
