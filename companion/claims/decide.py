"""From measured pictures to the numbers that decide a claim, as the claims' file says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from companion.claims.claims import Claim, Effect, under
from companion.claims.rule import Answer, agreed, answer, over_several, p_value
from companion.evaluation.comparison import (
    Estimate,
    IdentityScores,
    PairedDifference,
    estimate_change,
    estimate_mean,
    estimate_recovery,
    has_threshold,
    paired_difference,
    with_a_face,
    with_accepted,
    with_likeness_kept,
    with_person_shown,
    with_prompt_followed,
    with_spread,
)
from companion.evaluation.measure import Measurements
from companion.evaluation.statistics import Interval
from companion.evaluation.treatments import LOWER_IS_BETTER

Found = Estimate | PairedDifference

BY_RECOGNISER = ("distance", "recovery", "spread", "accepted", "shown")
"""Metrics that a recogniser measures."""


@dataclass(frozen=True)
class Part:
    """One comparison of those that a claim rests on.

    Attributes:
        against: The method it is compared with, or the one whose mean it is; "" where the
            experiment computed the number.
        recogniser: Name of the recogniser; "" where none has a part in it.
        found: The number with its 95% interval.
        smallest: The smallest effect of interest, in the number's unit.
        p: See `companion.claims.rule.p_value`.
        corrected: The number with intervals widened for the number of comparisons, where the claim
            rests on several.
    """

    against: str
    recogniser: str
    found: Found
    smallest: float
    p: float
    corrected: Found | None = None


def decide(
    claim: Claim,
    measured: Measurements | pd.DataFrame,
    profile: str,
    effects: Mapping[str, Effect],
) -> tuple[list[Part], list[Part]] | None:
    """The numbers that decide a claim, computed from measured pictures.

    Args:
        claim: A claim with a `pair` or a `mean_of`.
        measured: What was measured, or a table of it with the claim's metric as a column.
        profile: Name of the profile.
        effects: Smallest effects of interest by unit.

    Returns:
        The comparisons that the claim rests on, and the same by the other recognisers, where there
        are any. None where a method is not there, or what the claim asks was not measured.
    """
    judges: list[str] = []
    if isinstance(measured, Measurements):
        judges = list(measured.scales)
    chosen = under(profile, claim.recogniser) or "first"
    deciding = judges if chosen == "each" else judges[:1] if chosen == "first" else judges[-1:]
    if claim.metric not in BY_RECOGNISER:
        judges, deciding = [], []
    parts = [
        part
        for judge in deciding or [""]
        for part in _comparisons(claim, measured, judge, profile, effects, len(deciding) or 1)
    ]
    if not parts:
        return None
    others = [judge for judge in judges if judge not in deciding]
    beside = [
        part
        for judge in others
        for part in _comparisons(claim, measured, judge, profile, effects, 1)
    ]
    return parts, beside


def methods_of(claim: Claim, profile: str) -> list[str]:
    """Names of the methods that a claim compares under a profile."""
    first, others = under(profile, claim.pair) or (claim.mean_of, [])
    named = [first, *([others] if isinstance(others, str) else others), *(claim.baseline or ())]
    return [name for name in named if name]


def computed(claim: Claim, found: Found, effects: Mapping[str, Effect]) -> list[Part]:
    """A number that the experiment computed itself, as the only part of a claim."""
    smallest = _smallest(claim, None, effects)
    return [_part(claim, "", "", found, None, smallest)]


def intervals_of(found: Found) -> dict[str, Interval]:
    """The number's intervals by the name of the treatment of missing pictures."""
    if found.composite is None or found.bounds is None:
        return {"complete cases": found.interval}
    return {
        "complete cases": found.interval,
        "composite": found.composite,
        "bounds": found.bounds,
    }


def answers_of(claim: Claim, found: Found, smallest: float) -> dict[str, Answer]:
    """The answer of a number under each treatment of missing pictures."""
    answers: dict[str, Answer] = {}
    for name, interval in intervals_of(found).items():
        answers[name] = answer(claim.asks, interval, claim.threshold, smallest)
    if found.composite is None and found.pairs < found.cells:
        answers["any other"] = "undecided"
    return answers


def part_answer(claim: Claim, part: Part) -> tuple[Answer, str]:
    """The answer of one comparison, and the assumption it depends on, if it does."""
    return agreed(answers_of(claim, part.found, part.smallest))


def judge(claim: Claim, parts: list[Part]) -> Answer:
    """The verdict on a claim: what all of its comparisons give together."""
    at_level = [part_answer(claim, part)[0] for part in parts]
    if len(parts) == 1:
        return at_level[0]
    corrected = [
        agreed(answers_of(claim, part.corrected or part.found, part.smallest))[0] for part in parts
    ]
    return over_several(at_level, corrected, claim.asks)


def deciding_part(claim: Claim, parts: list[Part], verdict: Answer) -> Part:
    """The comparison that a verdict hangs on: the first that gives it, or the weakest one."""

    def strength(part: Part) -> float:
        interval = part.found.interval
        half = (interval.high - interval.low) / 2
        return (interval.estimate - claim.threshold) / half if half > 0 else np.inf

    if verdict in ("not supported", "no difference that matters"):
        for part in parts:
            widened = part.corrected or part.found
            if agreed(answers_of(claim, widened, part.smallest))[0] == verdict:
                return part
    if verdict == "undecided":
        open_ones = [part for part in parts if part_answer(claim, part)[0] != "supported"]
        return min(open_ones or parts, key=strength)
    return min(parts, key=strength)


def _comparisons(
    claim: Claim,
    measured: Measurements | pd.DataFrame,
    judge: str,
    profile: str,
    effects: Mapping[str, Effect],
    judges: int,
) -> Iterator[Part]:
    """The claim's comparisons by one recogniser; none where a method or a metric is not there."""
    scores: IdentityScores | None = None
    if isinstance(measured, Measurements) and measured.scales:
        name = judge or next(iter(measured.scales))
        scores = measured.unseen(name) if claim.against == "unseen" else measured.identity(name)
        if scores is None:
            return
    images = scores.images if scores else measured
    if isinstance(images, Measurements):
        images = images.images
    images = _with_metric(claim, _of_prompts(claim, images), scores, measured, judge)
    if scores is None if claim.metric == "recovery" else claim.metric not in images:
        return
    table: IdentityScores | pd.DataFrame = images
    if scores is not None:
        table = replace(scores, images=images)
    smallest = _smallest(claim, scores.scale if scores else None, effects)
    there = set(images["method"])
    if claim.mean_of:
        if claim.mean_of not in there:
            return
        yield _part(claim, claim.mean_of, judge, _mean(claim, table, 0.95), None, smallest)
        return
    method, others = under(profile, claim.pair) or ("", [])
    others = [others] if isinstance(others, str) else list(others)
    if not {method, *others, *(claim.baseline or ())} <= there:
        return
    count = len(others) * judges
    for other in others:
        found = _pair(claim, table, method, other, 0.95)
        wide = _pair(claim, table, method, other, 1 - 0.05 / count) if count > 1 else None
        yield _part(claim, other, judge, found, wide, smallest)


def _of_prompts(claim: Claim, images: pd.DataFrame) -> pd.DataFrame:
    if claim.only:
        images = images[images["prompt"].isin(claim.only)]
    if claim.without:
        images = images[images["prompt"] != claim.without]
    return images


def _with_metric(
    claim: Claim,
    images: pd.DataFrame,
    scores: IdentityScores | None,
    measured: Measurements | pd.DataFrame,
    judge: str,
) -> pd.DataFrame:
    """The pictures with the claim's metric as a column, where it can be computed."""
    metric = claim.metric
    if metric == "face" and "face" in images:
        return images.assign(face=images["face"].astype(float))
    if metric == "spread":
        return with_spread(images)
    if metric == "accepted" and scores and has_threshold(scores.recogniser):
        return with_accepted(replace(scores, images=images))
    if metric == "likeness" and images.columns.str.endswith("_kept").any():
        return with_likeness_kept(images, claim.traits)
    if not images.columns.str.endswith("_correct").any():
        return images
    if metric == "followed":
        return with_prompt_followed(images)
    if metric == "shown" and scores and isinstance(measured, Measurements):
        strangers = measured.images.get(f"strangers {judge}")
        if strangers is None:
            return images
        return with_person_shown(replace(scores, images=images), strangers[images.index])
    if metric.endswith("_correct") and metric in images:
        return images.assign(**{metric: with_a_face(images, images[metric])})
    return images


def _mean(claim: Claim, table: IdentityScores | pd.DataFrame, level: float) -> Found:
    assert claim.mean_of is not None
    if claim.metric == "recovery":
        assert isinstance(table, IdentityScores)
        return estimate_recovery(table, claim.mean_of, level)
    return estimate_mean(table, claim.metric, claim.mean_of, level)


def _pair(
    claim: Claim, table: IdentityScores | pd.DataFrame, method: str, other: str, level: float
) -> Found:
    if claim.baseline:
        change, baseline = (method, other), claim.baseline
        if claim.metric.startswith(LOWER_IS_BETTER):  # the gain is what the better one has less of
            change, baseline = change[::-1], baseline[::-1]
        return estimate_change(table, change, baseline, claim.metric, level)
    return paired_difference(table, method, other, claim.metric, level)


def _smallest(claim: Claim, scale: pd.DataFrame | None, effects: Mapping[str, Effect]) -> float:
    """The smallest effect of interest of a claim, in its number's unit."""
    if claim.smallest is not None:
        return claim.smallest
    effect = effects.get(claim.unit)
    if effect is None or claim.mean_of:
        return 0.0
    if effect.of == "gap":
        if scale is None:
            return 0.0
        return effect.smallest * float((scale["impostor"] - scale["genuine"]).mean())
    return effect.smallest


def _part(
    claim: Claim, against: str, judge: str, found: Found, wide: Found | None, smallest: float
) -> Part:
    part = Part(against, judge, found, smallest, 1.0, wide)
    values = np.asarray(found.values, dtype=np.float64)
    verdict = part_answer(claim, part)[0]
    return replace(part, p=p_value(claim.asks, verdict, values, claim.threshold, smallest))
