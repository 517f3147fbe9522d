"""The rule by which a claim is decided, fixed before the pictures that it judges are measured.

A claim asks whether a number is *more* than a threshold, *no less* or *as much*. Beside the
number's 95% interval stands the smallest effect of interest: a difference below it would change
nobody's choice. So there are four answers, and a true "no difference" can be found.

A number that needs a face is computed under three treatments of lost faces
(`companion.evaluation.treatments`), and an answer counts only if all three give it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from companion.evaluation.statistics import MIN_PEOPLE, Interval

Asks = Literal["more", "no less", "as much"]

Answer = Literal["supported", "not supported", "no difference that matters", "undecided"]

POWER = 0.8
"""Share of studies in which an effect is to be found, where people are counted that it takes."""


def answer(asks: Asks, interval: Interval, threshold: float, smallest: float) -> Answer:
    """The answer of one interval.

    Args:
        asks: ``more``: the number exceeds the threshold. ``no less``: it does not fall below the
            threshold by the smallest effect of interest. ``as much``: it differs from the threshold
            by less than that.
        interval: The number with its 95% interval.
        threshold: What the number is compared with.
        smallest: The smallest effect of interest, in the number's unit; 0 where a value is asked
            for and not a difference.

    Returns:
        ``supported``, where the interval lies wholly on the claim's side; ``no difference that
        matters``, for ``more``, where it lies wholly within the smallest effect; ``not supported``,
        where it excludes what the claim needs: for ``more``, an advantage that matters.
    """
    low, high = interval.low - threshold, interval.high - threshold
    if not np.isfinite([low, high]).all():
        return "undecided"
    within = -smallest < low and high < smallest
    if asks == "more":
        if within:
            return "no difference that matters"
        if low > 0:
            return "supported"
        return "not supported" if high < smallest else "undecided"
    if within or (asks == "no less" and low > -smallest):
        return "supported"
    outside = high < -smallest or (asks == "as much" and low > smallest)
    return "not supported" if outside else "undecided"


def agreed(answers: Mapping[str, Answer]) -> tuple[Answer, str]:
    """The answer that all treatments give, or "undecided" and what each of them says.

    Args:
        answers: The answer under each treatment, by its name.

    Returns:
        The answer, and a sentence that names the assumption that would decide, if there is one.
    """
    if len(set(answers.values())) == 1:
        return next(iter(answers.values())), ""
    sides = "; ".join(f"{answer} by {treatment}" for treatment, answer in answers.items())
    return "undecided", f"It depends on what is made of pictures without a face: {sides}."


def over_several(at_level: Sequence[Answer], corrected: Sequence[Answer], asks: Asks) -> Answer:
    """The answer to a claim about several comparisons at once, of which each has to hold.

    "Better than all others" needs every comparison, which no correction for their number makes
    stricter (an intersection-union test, Berger 1982); that it fails may be the fault of any of
    them, so there the intervals are widened by Bonferroni.

    Args:
        at_level: Answer of each comparison by its 95% interval.
        corrected: The same by intervals of level 1 - 0.05 / k for k comparisons.
        asks: What the claim asks.
    """
    if all(one == "supported" for one in at_level):
        return "supported"
    if "not supported" in corrected:
        return "not supported"
    ties = all(one in ("supported", "no difference that matters") for one in at_level)
    if asks == "more" and ties and "no difference that matters" in corrected:
        return "no difference that matters"
    return "undecided"


def p_value(
    asks: Asks, verdict: Answer, values: NDArray[np.float64], threshold: float, smallest: float
) -> float:
    """Two-sided p of the boundary whose exclusion gave an answer, by Student's t over people.

    1 for an undecided claim, and where the values do not differ.
    """
    if verdict == "undecided" or len(values) < MIN_PEOPLE:
        return 1.0
    if np.ptp(values) == 0:  # all people alike: as if one of them had stood at the boundary
        return float(2 * 0.5 ** len(values))
    mean, error = float(np.mean(values)) - threshold, scipy.stats.sem(values)

    def beyond(boundary: float, side: int) -> float:
        return float(2 * scipy.stats.t.sf(side * (mean - boundary) / error, len(values) - 1))

    sides = {
        ("more", "supported"): [(0.0, 1)],
        ("more", "not supported"): [(smallest, -1)],
        ("more", "no difference that matters"): [(-smallest, 1), (smallest, -1)],
        ("no less", "supported"): [(-smallest, 1)],
        ("no less", "not supported"): [(-smallest, -1)],
        ("as much", "supported"): [(-smallest, 1), (smallest, -1)],
        ("as much", "not supported"): [(-smallest, -1) if mean < 0 else (smallest, 1)],
    }[asks, verdict]
    return min(1.0, max(beyond(*side) for side in sides))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P values corrected for how many claims are tested, by Holm (1979).

    Args:
        p_values: By claim.

    Returns:
        By claim: below 0.05, the answer stands in the family of all of them.
    """
    ordered = sorted(p_values, key=lambda name: p_values[name])
    corrected: dict[str, float] = {}
    reached = 0.0
    for place, name in enumerate(ordered):
        reached = max(reached, min(1.0, (len(ordered) - place) * p_values[name]))
        corrected[name] = reached
    return {name: corrected[name] for name in p_values}


def people_needed(
    asks: Asks, interval: Interval, people: int, threshold: float, smallest: float
) -> int | None:
    """How many people would decide an undecided claim, if they spread as the present ones do.

    The number is taken at its estimate, and must lie so far from a boundary that 80% of studies of
    this size exclude it. None where the estimate lies on a boundary (within a hundredth of the
    interval's width), so that no number of people does.
    """
    half = (interval.high - interval.low) / 2
    if people < MIN_PEOPLE or not np.isfinite(half):
        return None
    gap = _distance_to_decide(asks, interval.estimate - threshold, smallest)
    if gap < half / 50:
        return None
    normal = scipy.stats.norm.ppf
    ratio = 1 + normal(POWER) / normal(0.975)
    return int(np.ceil(people * (ratio * half / gap) ** 2))


def _distance_to_decide(asks: Asks, estimate: float, smallest: float) -> float:
    """How far the estimate lies from the boundary that has to be excluded."""
    if asks == "more" and smallest == 0:
        return abs(estimate)
    if asks == "more":
        # Either 0 and less are excluded, or the smallest effect and more.
        return max(estimate, smallest - estimate)
    if asks == "no less":
        return abs(estimate + smallest)
    return abs(smallest - abs(estimate))


def differing(answers: Iterable[Answer]) -> bool:
    """Whether some of several answers contradict each other; "undecided" contradicts none."""
    return len({one for one in answers if one != "undecided"}) > 1
