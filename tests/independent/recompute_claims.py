"""Every verdict on a study's record, computed again without a line of this project's code.

It reads the claims (YAML) and the records of studies (Parquet) as a stranger could, follows the
rule as the book's page on evaluation and `companion/claims/rule.py` state it in words, and has a
bootstrap of its own with other random numbers. With ``--evidence`` it compares what the notebooks
recorded: estimates, counts and p values have to be equal, ends of intervals as near as two
bootstraps can be (see `Ends.band`), and verdicts the same. It names every difference and exits
with 1 if there is any.

    python tests/independent/recompute_claims.py [--evidence build/small/claims]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import yaml
from scipy import stats

ROOT = Path(__file__).parents[2]
PROFILE = "embedded"
RESAMPLES, SEED = 20_000, 310_745
THEIR_RESAMPLES = 9_999  # of the intervals that the book prints (its page on evaluation)
SIGMAS = 4.5  # of resampling noise: of a thousand compared ends, one in a hundred runs is further

DEEPFACE = {"Dlib": 0.07, "ArcFace": 0.68, "Facenet512": 0.30, "VGG-Face": 0.68}
"""Cosine distances below which DeepFace takes two faces for one person's."""

DISTANCE_LIKE = ("distance", "recovery")
JUDGED = ("distance", "recovery", "spread", "accepted", "shown")  # each recogniser has its own
FAILURES = ("face", "accepted", "followed", "shown", "likeness")  # nothing there: 0
SMALL_IS_GOOD = ("distance", "spread", "skin_difference")
MORE, TIE, LESS, OPEN = "supported", "no difference that matters", "not supported", "undecided"


# --- intervals --------------------------------------------------------------------------------


@lru_cache(maxsize=6)
def drawn(people: int) -> np.ndarray:
    """How often each resample holds each person, ``(RESAMPLES, people)``."""
    rng = np.random.default_rng([SEED, people])
    return rng.multinomial(people, np.full(people, 1 / people), size=RESAMPLES).astype(float)


@dataclass(frozen=True)
class Ends:
    """An estimate, the two ends of its interval, and where another bootstrap may find them."""

    estimate: float
    low: float = np.nan
    high: float = np.nan
    band: tuple[tuple[float, float], tuple[float, float]] = field(
        default=((np.nan, np.nan), (np.nan, np.nan)), repr=False
    )


def ratio(distance: np.ndarray, genuine: np.ndarray, impostor: np.ndarray) -> np.ndarray:
    """Identity recovery of mean distances: 0 for a stranger, 1 for the person."""
    return (impostor - distance) / (impostor - genuine)


def hedges(mean: np.ndarray, square: np.ndarray, people: int) -> np.ndarray:
    """Standardised mean of a sample with this mean and mean square."""
    variance = square - mean**2
    variance = np.where(variance < 1e-12 * square, 0, variance)  # equal numbers, but for rounding
    spread = np.sqrt(variance * people / (people - 1))
    with np.errstate(all="ignore"):
        return np.asarray(mean / spread * (1 - 3 / (4 * (people - 1) - 1)))


def bca(columns: Sequence[np.ndarray], of_means: Any = None, level: float = 0.95) -> Ends:
    """Bias-corrected, accelerated interval (Efron 1987) of a function of means over people.

    The level is raised for few people as Student's t is wider than the normal distribution
    (Hesterberg 2015); fewer than five have no interval.
    """
    of_means = of_means or (lambda mean: mean)
    table = np.stack([np.asarray(column, float) for column in columns], axis=1)
    n = len(table)
    if n == 0:
        return Ends(np.nan)
    estimate = float(of_means(*table.mean(axis=0)))
    if n < 5:
        return Ends(estimate)
    if not np.ptp(table, axis=0).any():
        return Ends(estimate, estimate, estimate, ((estimate,) * 2, (estimate,) * 2))
    values = of_means(*(drawn(n) @ table / n).T)
    without = of_means(*((table.sum(axis=0) - table) / (n - 1)).T)
    deviation = without.mean() - without
    acceleration = (deviation**3).sum() / (6 * (deviation**2).sum() ** 1.5)
    # A resample with the very mean counts half; sums in another order may differ by rounding.
    rounding = 1e-12 * (1 + abs(estimate))
    below = float(np.mean(values < estimate - rounding))
    below = below + float(np.mean(np.abs(values - estimate) <= rounding)) / 2
    reach = stats.t.ppf((1 + level) / 2, n - 1) * np.sqrt(n / (n - 1))
    reach = min(reach, stats.norm.ppf(1 - 1 / THEIR_RESAMPLES))  # no quantile lies further out
    shift = stats.norm.ppf(below)
    ends, bands = [], []
    for side in (-reach, reach):
        damped = 1 - acceleration * (shift + side)
        z = shift + (shift + side) / damped
        if not np.isfinite(z):  # all resamples lie on one side of the estimate
            return Ends(estimate)
        ends.append(float(np.quantile(values, stats.norm.cdf(z))))
        # A quantile of B resamples is uncertain by sqrt(p (1 - p) / B) of probability, and so is
        # the share below the estimate, which moves the quantile. Both in standard normal units:
        p = stats.norm.cdf(z)
        noise = p * (1 - p) / stats.norm.pdf(z) ** 2
        noise += (1 + damped**-2) ** 2 * below * (1 - below) / stats.norm.pdf(shift) ** 2
        wide = SIGMAS * np.sqrt(noise * (1 / RESAMPLES + 1 / THEIR_RESAMPLES))
        around = np.quantile(values, stats.norm.cdf([z - wide, z + wide]))
        # The outermost resamples are few: there, at least a straight line beyond the end.
        slope = wide * abs((ends[-1] - estimate) / z)
        if z < 0:
            around[0] = min(around[0], ends[-1] - slope)
        else:
            around[1] = max(around[1], ends[-1] + slope)
        bands.append((float(around[0]), float(around[1])))
    return Ends(estimate, ends[0], ends[1], (bands[0], bands[1]))


# --- the rule ---------------------------------------------------------------------------------


def answer(asks: str, found: Ends, threshold: float, smallest: float) -> str:
    """What one interval answers."""
    low, high = found.low - threshold, found.high - threshold
    if np.isnan(low) or np.isnan(high):
        return OPEN
    small = low > -smallest and high < smallest
    if asks == "more":
        if small:
            return TIE
        if low > 0:
            return MORE
        return LESS if high < smallest else OPEN
    if asks == "no less":
        if low > -smallest:
            return MORE
        return LESS if high < -smallest else OPEN
    if small:
        return MORE
    return LESS if low > smallest or high < -smallest else OPEN


def all_agree(answers: Sequence[str]) -> str:
    """An answer counts if every treatment gives it."""
    return answers[0] if len(set(answers)) == 1 else OPEN


def of_all(asks: str, single: Sequence[str], widened: Sequence[str]) -> str:
    """A claim of several comparisons holds if each does, and fails if one does after widening."""
    if len(single) == 1:
        return single[0]
    if set(single) == {MORE}:
        return MORE
    if LESS in widened:
        return LESS
    if asks == "more" and set(single) <= {MORE, TIE} and TIE in widened:
        return TIE
    return OPEN


def student(
    asks: str, verdict: str, values: np.ndarray, threshold: float, smallest: float
) -> float:
    """Two-sided p at the boundary that the verdict excludes; 1 where it excludes none."""
    if verdict == OPEN or len(values) < 5:
        return 1.0
    if values.min() == values.max():
        return 2.0 * 0.5 ** len(values)
    nothing = 0.0 if asks == "more" else -smallest
    if verdict == TIE or (asks, verdict) == ("as much", MORE):
        above, below = -smallest, smallest
    elif verdict == MORE:
        above, below = nothing, None
    elif asks == "as much":
        above, below = (None, -smallest) if values.mean() < threshold else (smallest, None)
    else:
        above, below = None, smallest if asks == "more" else -smallest
    one_sided = [
        stats.ttest_1samp(values, threshold + at, alternative=side).pvalue
        for at, side in ((above, "greater"), (below, "less"))
        if at is not None
    ]
    return float(min(1.0, 2 * max(one_sided)))


def holm(p: dict[str, float]) -> dict[str, float]:
    """Holm's correction: the k-th smallest of m times m - k + 1, never falling."""
    names = sorted(p, key=lambda name: p[name])
    steps = [min(1.0, p[name] * (len(names) - k)) for k, name in enumerate(names)]
    return dict(zip(names, np.maximum.accumulate(steps).tolist(), strict=True))


# --- a claim on a record ----------------------------------------------------------------------


class Missing(Exception):
    """What a record lacks for a claim."""


@dataclass(frozen=True)
class Comparison:
    """One number of a claim by one recogniser: under each treatment, and what was counted."""

    against: str
    recogniser: str
    treated: dict[str, Ends]
    widened: dict[str, Ends] | None
    smallest: float
    answer: str
    p: float
    pairs: int
    cells: int
    people: int
    ahead: float | None = None
    effect: Ends | None = None
    by_seed: dict[int, float] | None = None


@dataclass(frozen=True)
class Result:
    """What a record says of a claim."""

    claim: dict[str, Any]
    study: str
    verdict: str
    p: float
    parts: list[Comparison]
    beside: list[Comparison]


def here(value: Any) -> Any:
    """What holds for the profile, where there is one value for each."""
    return value.get(PROFILE) if isinstance(value, dict) else value


def listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def measured(
    claim: dict[str, Any], pictures: pd.DataFrame, scales: dict[str, pd.DataFrame], judge: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The claim's number of each picture as ``value``, and the scale of the person's distances."""
    metric = claim.get("metric", "distance")
    if claim.get("only"):
        pictures = pictures[pictures["prompt"].isin(claim["only"])]
    if claim.get("without"):
        pictures = pictures[pictures["prompt"] != claim["without"]]
    unseen = claim.get("against") == "unseen"

    def column(name: str) -> pd.Series:
        if name not in pictures:
            raise Missing(f"the record has no column {name!r}")
        return pictures[name].astype(float)

    prefix = "unseen_" if unseen else ""
    distance = column(f"{'unseen' if unseen else 'distance'} {judge}")
    scale = scales[judge]
    if f"{prefix}genuine" not in scale:
        raise Missing(f"the scale of {judge} has no {prefix}genuine")
    scale = pd.DataFrame({"own": scale[prefix + "genuine"], "other": scale[prefix + "impostor"]})

    def as_asked() -> pd.Series:
        asked = [name for name in pictures if name.endswith("_correct")]
        if not asked:
            raise Missing("no classifier read the pictures")
        every = pictures[asked].astype(float)
        # Of what is not asked there is no number; a picture of which nothing is asked has none.
        good = ((every == 1) | every.isna()).all(axis=1).astype(float)
        return good.where(every.notna().any(axis=1)) * column("face")

    if metric in DISTANCE_LIKE:
        value = distance
    elif metric == "spread":
        who = [pictures["method"], pictures["person"]]
        by_person = distance.groupby(who).agg(lambda d: np.std(d.dropna(), ddof=1))
        table = by_person.rename("value").reset_index()
        return table.assign(prompt="", seed=0), scale
    elif metric == "accepted":
        if judge not in DEEPFACE:
            raise Missing(f"DeepFace has no threshold for {judge}")
        value = (distance <= DEEPFACE[judge]).astype(float).where(distance.notna())
    elif metric == "followed":
        value = as_asked()
    elif metric == "shown":
        value = as_asked() * (distance < column(f"strangers {judge}"))
    elif metric == "likeness":
        traits = claim.get("traits")
        names = [f"{trait}_kept" for trait in traits] if traits else []
        names = names or [name for name in pictures if name.endswith("_kept")]
        value = pd.concat([column(name) for name in names], axis=1).mean(axis=1)
    elif metric.endswith("_correct"):
        value = column(metric) * column("face")
    else:
        value = column(metric)
    return pictures[["method", "person", "prompt", "seed"]].assign(value=value), scale


def compare(
    claim: dict[str, Any],
    table: pd.DataFrame,
    scale: pd.DataFrame,
    weights: dict[str, float],
    level: float,
) -> tuple[dict[str, Ends], np.ndarray, dict[str, Any]]:
    """A weighted sum of methods under three treatments, a value for each person, and counts."""
    metric = claim.get("metric", "distance")
    everybody = table["person"].unique()
    known = table["value"].replace([np.inf, -np.inf], np.nan).dropna().to_numpy()
    table = table[table["method"].isin(list(weights))]
    if metric in ("followed", "shown") or metric.endswith("_correct"):
        asked = table.loc[table["value"].notna(), "prompt"].unique()
        table = table[table["prompt"].isin(asked)]

    # A row for each cell, a column for each method; what was not painted is as missing.
    where: dict[tuple[str, str, int], int] = {}
    rows = [
        where.setdefault(cell, len(where))
        for cell in zip(table["person"], table["prompt"], table["seed"], strict=True)
    ]
    order = {method: place for place, method in enumerate(weights)}
    numbers = np.full((len(where), len(order)), np.nan)
    numbers[rows, [order[method] for method in table["method"]]] = table["value"]
    numbers[np.isinf(numbers)] = np.nan
    signs = np.array(list(weights.values()))
    names = np.array([cell[0] for cell in where])
    seeds = np.array([cell[2] for cell in where])

    # What a missing number may be: a stranger's, the least and the greatest plausible one.
    if metric in DISTANCE_LIKE:
        ends = scale.reindex(everybody)
        ends = ends.fillna(ends.mean()).loc[names].to_numpy()
        stranger, least, most = ends[:, 1], ends.min(axis=1), ends.max(axis=1)
    elif metric in FAILURES or metric.endswith(("_kept", "_correct")):
        stranger, least, most = np.zeros(len(names)), np.zeros(len(names)), np.ones(len(names))
    else:
        tenths = np.quantile(known, [0.1, 0.9])
        least, most = (np.full(len(names), tenth) for tenth in tenths)
        stranger = most if metric.startswith(SMALL_IS_GOOD) else least

    def people_of(sums: np.ndarray) -> pd.Series:
        there = ~np.isnan(sums)
        who, place = np.unique(names[there], return_inverse=True)
        return pd.Series(np.bincount(place, sums[there]) / np.bincount(place), index=who)

    def filled(added: np.ndarray, taken: np.ndarray) -> pd.Series:
        fill = np.where(signs > 0, added[:, None], taken[:, None])
        return people_of(np.where(np.isnan(numbers), fill, numbers) @ signs)

    def number(values: pd.Series) -> Ends:
        if metric != "recovery":
            return bca([values.to_numpy()], level=level)
        own = scale.reindex(values.index)
        have = own.notna().all(axis=1).to_numpy()
        if have.sum() < 5:
            return Ends(np.nan)
        columns = [values.to_numpy(), own["own"].to_numpy(), own["other"].to_numpy()]
        return bca([column[have] for column in columns], ratio, level)

    sums = numbers @ signs
    measured = people_of(sums)
    whole = ~np.isnan(sums)
    if whole.all():
        found = number(measured)
        treated = dict.fromkeys(("complete cases", "composite", "bounds"), found)
        values = measured
    else:
        values = filled(stranger, stranger)
        middle = number(values)
        sides = [number(filled(least, most)), number(filled(most, least))]
        lowest = min(sides, key=lambda end: end.low)
        highest = max(sides, key=lambda end: end.high)
        band = (lowest.band[0], highest.band[1])
        treated = {
            "complete cases": number(measured),
            "composite": middle,
            "bounds": Ends(middle.estimate, lowest.low, highest.high, band),
        }
    single = values.to_numpy()
    if metric == "recovery":  # a ratio's linear part, for one value a person
        own = scale.reindex(values.index).to_numpy()
        gap = own[:, 1] - own[:, 0]
        at = treated["composite"].estimate
        single = at + (own[:, 1] - single - at * gap) / np.nanmean(gap)
        single = single[~np.isnan(single)]
    counts: dict[str, Any] = {
        "pairs": int(whole.sum()),
        "cells": len(whole),
        "people": len(measured),
    }
    if len(weights) == 2:
        n, each = len(measured), measured.to_numpy()
        counts["ahead"] = float(np.mean(each > 1e-12)) if n else np.nan
        few = n < 3
        counts["effect"] = (
            Ends(np.nan) if few else bca([each, each**2], lambda m, s: hedges(m, s, n))
        )
        counts["by_seed"] = {
            int(seed): float(people_of(np.where(seeds == seed, sums, np.nan)).mean())
            for seed in np.unique(seeds[whole])
        }
    return treated, single, counts


def recompute(
    claim: dict[str, Any],
    effects: dict[str, Any],
    pictures: pd.DataFrame,
    scales: dict[str, pd.DataFrame],
) -> Result:
    """The verdict of a record on a claim.

    Raises:
        Missing: The record lacks a method or a column that the claim needs.
    """
    metric, asks = claim.get("metric", "distance"), claim.get("asks", "more")
    threshold = claim.get("threshold", 0.0)
    judges = list(scales)
    choice = here(claim.get("recogniser", "first")) or "first"
    deciding = {"first": judges[:1], "last": judges[-1:], "each": judges}[choice]
    if metric not in JUDGED:
        judges = deciding = judges[:1]  # the distances of none have a part in it
    mean_of = claim.get("mean_of")
    better, others = (mean_of, [mean_of]) if mean_of else here(claim["pair"])
    sign = -1.0 if metric.startswith(SMALL_IS_GOOD) else 1.0

    def weights(other: str) -> dict[str, float]:
        if mean_of:
            return {better: 1.0}
        gain = {better: sign, other: -sign}
        base = claim.get("baseline") or ()
        return gain | dict(zip(base, (-sign, sign), strict=False))

    needed = {name for other in listed(others) for name in weights(other)}
    if lacking := needed - set(pictures["method"]):
        raise Missing(f"the record has no method {', '.join(sorted(lacking))}")

    def smallest(scale: pd.DataFrame) -> float:
        if claim.get("smallest") is not None:
            return float(claim["smallest"])
        effect = effects.get(claim["unit"])
        if mean_of or effect is None:
            return 0.0
        gap = float((scale["other"] - scale["own"]).mean()) if effect.get("of") == "gap" else 1.0
        return float(effect["smallest"]) * gap

    def comparison(judge: str, other: str, count: int) -> Comparison:
        table, scale = measured(claim, pictures, scales, judge)
        treated, values, counts = compare(claim, table, scale, weights(other), 0.95)
        widened = None
        if count > 1:
            widened = compare(claim, table, scale, weights(other), 1 - 0.05 / count)[0]
        least = smallest(scale)
        told = all_agree([answer(asks, found, threshold, least) for found in treated.values()])
        p = student(asks, told, values, threshold, least)
        name = judge if metric in JUDGED else ""
        return Comparison(other, name, treated, widened, least, told, p, **counts)

    count = len(deciding) * len(listed(others))
    parts = [comparison(judge, other, count) for judge in deciding for other in listed(others)]
    beside = []
    for judge in judges:
        if judge in deciding:
            continue
        try:
            several = len(listed(others))
            beside += [comparison(judge, other, several) for other in listed(others)]
        except Missing:
            pass  # this recogniser has no such number
    corrected = [
        all_agree(
            [
                answer(asks, found, threshold, part.smallest)
                for found in (part.widened or part.treated).values()
            ]
        )
        for part in parts
    ]
    verdict = of_all(asks, [part.answer for part in parts], corrected)
    if verdict == OPEN:
        p = 1.0
    elif verdict == MORE:
        p = max(part.p for part in parts)
    else:  # the first comparison that fails, or ties, times how many could have
        first = next(part for part, one in zip(parts, corrected, strict=True) if one == verdict)
        p = min(1.0, len(parts) * first.p)
    return Result(claim, here(claim["study"]), verdict, p, parts, beside)


# --- records and evidence ---------------------------------------------------------------------


def read_study(file: Path) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """The pictures of a record, and the scale of each recogniser by person."""
    table = pq.read_table(file)
    about = json.loads(table.schema.metadata[b"fusionlib"])
    scales = {name: pd.DataFrame(rows).T.astype(float) for name, rows in about["scales"].items()}
    return table.to_pandas(), scales


def results(claims: Path, records: Path) -> Iterator[Result | tuple[str, str]]:
    """Each claim that a record decides, or its id with what is missing."""
    content = yaml.safe_load(claims.read_text("utf-8"))
    effects = {effect["unit"]: effect for effect in content["smallest_effects"]}
    seen: dict[str, tuple[pd.DataFrame, dict[str, pd.DataFrame]]] = {}
    for claim in content["claims"]:
        study = here(claim.get("study"))
        if study is None or PROFILE in claim.get("obstacle", {}):
            continue
        file = records / f"{study}.parquet"
        if not file.is_file():
            yield claim["id"], f"there is no record {file.name}"
            continue
        if study not in seen:
            seen[study] = read_study(file)
        try:
            yield recompute(claim, effects, *seen[study])
        except Missing as missing:
            yield claim["id"], str(missing)


def differences(result: Result, record: dict[str, Any]) -> Iterator[str]:
    """What a notebook recorded otherwise, each in a sentence."""
    name = result.claim["id"]
    if record["study"] != result.study:
        yield f"{name}: recorded on {record['study'] or 'no study'!r}, not {result.study!r}."
    if record["verdict"] != result.verdict:
        yield f"{name}: the verdict is {record['verdict']!r} there, {result.verdict!r} here."
    for kind, parts in (("parts", result.parts), ("beside", result.beside)):
        if len(record[kind]) != len(parts):
            yield f"{name}: {len(record[kind])} {kind} there, {len(parts)} here."
            continue
        for part, theirs in zip(parts, record[kind], strict=True):
            about = f"{name}, against {part.against!r} by {part.recogniser or 'no recogniser'!r}"
            for sentence in _of_a_part(part, theirs):
                yield f"{about}: {sentence}"


def _of_a_part(part: Comparison, theirs: dict[str, Any]) -> Iterator[str]:
    if (theirs["against"], theirs["recogniser"]) != (part.against, part.recogniser):
        yield f"is about {theirs['against']!r} by {theirs['recogniser']!r} there."
    numbers = [(what, theirs[what], getattr(part, what)) for what in ("smallest", "p")]
    found = theirs["found"]
    counted = ("pairs", "cells", "people") + (() if part.ahead is None else ("ahead",))
    if found["kind"] == "PairedDifference":
        numbers += [(what, found[what], getattr(part, what)) for what in counted]
        yield from _of_an_interval("effect", found["effect"], part.effect)
        seeds = {int(seed): value for seed, value in found["by_seed"].items()}
        if seeds.keys() != (part.by_seed or {}).keys():
            yield f"has the seeds {sorted(seeds)} there, {sorted(part.by_seed or {})} here."
        else:
            numbers += [(f"seed {s}", seeds[s], (part.by_seed or {})[s]) for s in seeds]
    else:
        numbers += [(what, found[what], getattr(part, what)) for what in counted[:3]]
    for what, there, own in numbers:
        if not np.isclose(there, own, rtol=1e-9, atol=1e-9, equal_nan=True):
            yield f"{what} is {there} there, {own} here."
    for kept, mine in ((found, part.treated), (theirs["corrected"], part.widened)):
        if (kept is None) != (mine is None):
            yield f"widened intervals are {'missing' if kept is None else 'kept'} there."
        if kept is None or mine is None:
            continue
        places = zip(("interval", "composite", "bounds"), mine.items(), strict=True)
        for place, (treatment, ends) in places:
            yield from _of_an_interval(treatment, kept[place], ends)


def _of_an_interval(what: str, there: dict[str, float], own: Ends | None) -> Iterator[str]:
    if own is None:
        yield f"{what} is not here."
        return
    if not np.isclose(there["estimate"], own.estimate, rtol=1e-9, atol=1e-9, equal_nan=True):
        yield f"{what} is {there['estimate']} there, {own.estimate} here."
    for end, (least, most) in zip(("low", "high"), own.band, strict=True):
        if np.isnan([there[end], getattr(own, end)]).any():
            agree = np.isnan(there[end]) and np.isnan(getattr(own, end))
        else:
            agree = least - 1e-9 <= there[end] <= most + 1e-9
        if not agree:
            yield (
                f"the {end} end of {what} is {there[end]:.6f} there, {getattr(own, end):.6f} here "
                f"(and would be between {least:.6f} and {most:.6f})."
            )


def furthest(result: Result, record: dict[str, Any]) -> float:
    """The largest difference between two ends of one interval, in widths of the interval."""
    apart = [0.0]
    for part, theirs in zip(result.parts, record["parts"], strict=False):
        places = zip(("interval", "composite", "bounds"), part.treated.values(), strict=True)
        for place, own in places:
            for end in ("low", "high"):
                width = own.high - own.low
                if width > 0:
                    apart.append(abs(theirs["found"][place][end] - getattr(own, end)) / width)
    return max(apart)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every result; with evidence, every difference too."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    records = ROOT / "book" / "records" / "studies" / PROFILE
    parser.add_argument("--records", type=Path, default=records, help="folder of PARQUET files")
    parser.add_argument("--claims", type=Path, default=ROOT / "data" / "paper" / "claims.yaml")
    parser.add_argument("--evidence", type=Path, help="folder of ID.json, or that which holds it")
    options = parser.parse_args(arguments)
    found = list(results(options.claims, options.records))
    told = [one for one in found if isinstance(one, Result)]
    corrected = holm({one.claim["id"]: one.p for one in told})
    print(f"{'claim':24}{'verdict':28}{'p':>10}{'Holm':>10}")
    for one in told:
        name = one.claim["id"]
        print(f"{name:24}{one.verdict:28}{one.p:10.2g}{corrected[name]:10.2g}")
        for part in [*one.parts, *one.beside]:
            mark = " " if part in one.parts else "~"  # by a recogniser that does not decide
            print(f"  {mark} {part.against} {part.recogniser}: {part.answer}")
            print(
                f"      {part.pairs} of {part.cells} pairs, {part.people} people, "
                f"smallest effect {part.smallest:.4g}, p {part.p:.2g}"
            )
            for treatment, ends in part.treated.items():
                print(
                    f"      {treatment:16}{ends.estimate:+.4f} [{ends.low:+.4f}, {ends.high:+.4f}]"
                )
    for one in found:
        if not isinstance(one, Result):
            print(f"{one[0]:24}not computed: {one[1]}")
    if options.evidence is None:
        return 0
    folder = options.evidence
    folder = folder / "claims" if (folder / "claims").is_dir() else folder
    wrong: list[str] = []
    apart, compared = 0.0, 0
    for one in told:
        file = folder / f"{one.claim['id']}.json"
        if not file.is_file():
            wrong.append(f"{one.claim['id']}: {folder} has no record of it.")
            continue
        record = json.loads(file.read_text("utf-8"))
        wrong += differences(one, record)
        apart, compared = max(apart, furthest(one, record)), compared + 1
    for kept in [one for one in found if not isinstance(one, Result)]:
        if (folder / f"{kept[0]}.json").is_file():
            wrong.append(f"{kept[0]}: recorded there, and cannot be computed here: {kept[1]}.")
    print(
        f"{compared} claims compared with {folder}: {len(wrong)} differences; ends of intervals "
        f"differ by at most {apart:.1%} of their width."
    )
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
