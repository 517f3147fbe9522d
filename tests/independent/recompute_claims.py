"""Every verdict on a study's record, computed again by code that knows nothing of this project's.

It reads the records (Parquet) and the claims (YAML) as anybody could, takes the rule from the page
on evaluation, and has a bootstrap of its own. With --evidence, it compares with what the notebooks
recorded, and fails on any difference.

    python tests/independent/recompute_claims.py --evidence build/small
"""

import argparse
import json
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import yaml
from scipy import stats

ROOT = Path(__file__).parents[2]
LOWER = ("distance", "spread", "skin_difference")
SHARES = ("face", "accepted", "followed", "shown", "likeness")
NEEDS_JUDGE = ("distance", "recovery", "spread", "accepted", "shown")
DLIB_THRESHOLD = 0.07  # DeepFace's for dlib and the cosine
RESAMPLES = 20_000


def interval(columns, statistic, level=0.95):
    """BCa interval (Efron 1987), the level widened for few people as Student's t is."""
    columns = [np.asarray(column, float) for column in columns]
    n = len(columns[0])
    estimate = statistic(*columns)
    if n < 5:
        return estimate, np.nan, np.nan
    if all(np.all(column == column[0]) for column in columns):
        return estimate, estimate, estimate
    rng = np.random.default_rng(20_261_201)
    rows = rng.integers(n, size=(RESAMPLES, n))
    drawn = statistic(*(column[rows] for column in columns))
    left_out = np.array(
        [statistic(*(np.delete(column, i) for column in columns)) for i in range(n)]
    )
    lean = left_out.mean() - left_out
    speed = (lean**3).sum() / (6 * (lean**2).sum() ** 1.5)
    below = np.mean(drawn < estimate) + np.mean(drawn == estimate) / 2
    bias = stats.norm.ppf(below)
    reach = stats.t.ppf((1 + level) / 2, n - 1) * np.sqrt(n / (n - 1))
    ends = []
    for quantile in (-reach, reach):
        at = bias + (bias + quantile) / (1 - speed * (bias + quantile))
        ends.append(np.quantile(drawn, stats.norm.cdf(at)))
    return estimate, *ends


def mean(values):
    return values.mean(axis=-1)


def recovery(distance, genuine, impostor):
    far = impostor.mean(axis=-1)
    return (far - distance.mean(axis=-1)) / (far - genuine.mean(axis=-1))


def answer(asks, low, high, smallest):
    """The rule: ends are relative to the threshold."""
    if not np.isfinite([low, high]).all():
        return "undecided"
    if asks == "more":
        if low > -smallest and high < smallest:
            return "no difference that matters"
        if low > 0:
            return "supported"
        return "not supported" if high < smallest else "undecided"
    if asks == "no less":
        if low > -smallest:
            return "supported"
        return "not supported" if high < -smallest else "undecided"
    if low > -smallest and high < smallest:
        return "supported"
    return "not supported" if high < -smallest or low > smallest else "undecided"


def values_of(claim, images, judge):
    """One number for each picture, and the kind of the metric."""
    metric = claim.get("metric", "distance")
    column = f"{'unseen' if claim.get('against') == 'unseen' else 'distance'} {judge}"
    asked = [name for name in images if name.endswith("_correct")]
    face = images["face"].astype(float)
    if metric in ("distance", "recovery"):
        return images[column]
    if metric == "accepted":
        near = (images[column] <= DLIB_THRESHOLD).astype(float)
        return near.where(images[column].notna())
    if metric == "face":
        return face
    if metric in ("followed", "shown"):
        every = images[asked].min(axis=1) * face
        if metric == "shown":
            every = every * (images[column] < images[f"strangers {judge}"])
        return every
    if metric == "likeness":
        return images[[f"{trait}_kept" for trait in claim["traits"]]].mean(axis=1)
    if metric.endswith("_correct"):
        return images[metric] * face
    return images[metric]


def compared(claim, images, scale, judge, methods, weights, level):
    """The three intervals of a weighted sum of methods' numbers, and one value for each person."""
    metric = claim.get("metric", "distance")
    table = images.assign(value=values_of(claim, images, judge))
    if metric == "spread":
        distance = images.assign(value=images[f"distance {judge}"])
        by = distance.groupby(["method", "person"])["value"].std(ddof=1)
        table = by.reset_index().assign(prompt="all", seed=0)
    if metric in ("followed", "shown") or metric.endswith("_correct"):
        told = table.groupby("prompt")["value"].transform("count") > 0
        table = table[told]
    everyone = table
    table = table[table["method"].isin(methods)]
    cells = table.pivot(index=["person", "prompt", "seed"], columns="method", values="value")
    cells = cells.replace([np.inf, -np.inf], np.nan)
    people = cells.index.get_level_values("person").to_numpy()
    if metric in ("distance", "recovery"):
        ends = scale.reindex(people)
        ends = ends.fillna(scale.reindex(pd.unique(everyone["person"])).mean())
        far, near = ends["impostor"].to_numpy(), ends["genuine"].to_numpy()
        fills = far, np.minimum(far, near), np.maximum(far, near)
    elif metric in SHARES or metric.endswith(("_kept", "_correct")):
        fills = np.zeros(len(people)), np.zeros(len(people)), np.ones(len(people))
    else:
        known = everyone["value"].replace([np.inf, -np.inf], np.nan).dropna()
        low, high = np.quantile(known, [0.1, 0.9])
        worst = high if metric.startswith(LOWER) else low
        fills = tuple(np.full(len(people), value) for value in (worst, low, high))

    def by_person(added, subtracted):
        total = np.zeros(len(cells))
        for method, weight in zip(methods, weights, strict=True):
            own = cells[method].to_numpy()
            fill = added if weight > 0 else subtracted
            total += weight * (own if fill is None else np.where(np.isnan(own), fill, own))
        frame = pd.Series(total, index=people).dropna()
        return frame.groupby(level=0).mean()

    def number(values):
        if metric == "recovery":
            own = scale.reindex(values.index)
            keep = own.notna().all(axis=1).to_numpy()
            columns = values[keep], own["genuine"][keep], own["impostor"][keep]
            return interval(columns, recovery, level)
        return interval([values], mean, level)

    complete = by_person(None, None)
    composite = by_person(fills[0], fills[0])
    if not cells[list(methods)].isna().any().any():
        found = number(complete)
        return {"complete": found, "composite": found, "bounds": found}, complete
    ends = [number(by_person(fills[1], fills[2])), number(by_person(fills[2], fills[1]))]
    middle = number(composite)
    bounds = middle[0], min(end[1] for end in ends), max(end[2] for end in ends)
    return {"complete": number(complete), "composite": middle, "bounds": bounds}, composite


def verdict_of(claim, threshold, smallest, treated):
    asks = claim.get("asks", "more")
    answers = {
        answer(asks, low - threshold, high - threshold, smallest) for _, low, high in treated
    }
    return answers.pop() if len(answers) == 1 else "undecided"


def p_of(claim, verdict, values, threshold, smallest):
    """Two-sided p of the boundary whose exclusion gave the answer."""
    asks = claim.get("asks", "more")
    values = np.asarray(values, float) - threshold
    if verdict == "undecided" or len(values) < 5:
        return 1.0
    if np.ptp(values) == 0:
        return 2 * 0.5 ** len(values)
    if verdict == "no difference that matters" or (asks, verdict) == ("as much", "supported"):
        sides = [(-smallest, "greater"), (smallest, "less")]
    elif verdict == "supported":
        sides = [(0.0 if asks == "more" else -smallest, "greater")]
    elif asks == "more":
        sides = [(smallest, "less")]
    elif asks == "no less" or values.mean() < 0:
        sides = [(-smallest, "less")]
    else:
        sides = [(smallest, "greater")]
    single = [stats.ttest_1samp(values, at, alternative=side).pvalue for at, side in sides]
    return min(1.0, 2 * max(single))


def recompute(claim, effects, images, scales):
    """Verdict, the intervals of each comparison, and its p value."""
    judges = list(scales)
    chosen = claim.get("recogniser", "first")
    chosen = chosen["embedded"] if isinstance(chosen, dict) else chosen
    deciding = {"first": judges[:1], "last": judges[-1:], "each": judges}[chosen]
    metric = claim.get("metric", "distance")
    if metric not in NEEDS_JUDGE:
        deciding = judges[:1]
    pair = claim.get("pair")
    pair = pair["embedded"] if isinstance(pair, dict) else pair
    if pair:
        first, others = pair[0], pair[1] if isinstance(pair[1], list) else [pair[1]]
    else:
        first, others = claim["mean_of"], [None]
    sign = -1.0 if metric.startswith(LOWER) else 1.0
    threshold, asks = claim.get("threshold", 0.0), claim.get("asks", "more")
    count = len(deciding) * len(others)
    at_level, corrected, parts = [], [], []
    for judge, other in product(deciding, others):
        scale = scales[judge][["genuine", "impostor"]]
        if claim.get("against") == "unseen":
            scale = scales[judge][["unseen_genuine", "unseen_impostor"]]
            scale = scale.set_axis(["genuine", "impostor"], axis=1)
        if claim.get("baseline"):
            methods = [other, first, *claim["baseline"][::-1]]
            weights = [1.0, -1.0, -1.0, 1.0]
        elif other:
            methods, weights = [first, other], [sign, -sign]
        else:
            methods, weights = [first], [1.0]
        effect = effects.get(claim["unit"], {"smallest": 0.0})
        smallest = claim.get("smallest", 0.0 if claim.get("mean_of") else effect["smallest"])
        if "smallest" not in claim and effect.get("of") == "gap" and not claim.get("mean_of"):
            smallest *= (scale["impostor"] - scale["genuine"]).mean()
        found, values = compared(claim, images, scale, judge, methods, weights, 0.95)
        verdict = verdict_of(claim, threshold, smallest, found.values())
        at_level.append(verdict)
        if count > 1:
            wide, _ = compared(claim, images, scale, judge, methods, weights, 1 - 0.05 / count)
            corrected.append(verdict_of(claim, threshold, smallest, wide.values()))
        if metric == "recovery":
            own = scale.reindex(values.index)
            gap, ratio = own["impostor"] - own["genuine"], found["composite"][0]
            values = (ratio + (own["impostor"] - values - ratio * gap) / gap.mean()).dropna()
        parts.append((other, judge, found, p_of(claim, verdict, values, threshold, smallest)))
    if count == 1:
        return at_level[0], parts
    if set(at_level) == {"supported"}:
        return "supported", parts
    if "not supported" in corrected:
        return "not supported", parts
    tie = "no difference that matters"
    if asks == "more" and set(at_level) <= {"supported", tie} and tie in corrected:
        return tie, parts
    return "undecided", parts


def read(path):
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[b"fusionlib"])
    scales = {
        name: pd.DataFrame.from_dict(rows, orient="index") for name, rows in about["scales"].items()
    }
    return table.to_pandas(), scales


def same(ours, theirs, width):
    """Whether two ends agree: to the third digit, or to what two bootstraps may differ by."""
    if not np.isfinite([ours, theirs]).all():
        return not np.isfinite(ours) and not np.isfinite(theirs)
    return abs(ours - theirs) <= max(5e-4, 0.04 * width)


def differences(claim, verdict, parts, record):
    """What a notebook recorded otherwise, in sentences."""
    if record["verdict"] != verdict:
        yield f"{claim['id']}: {record['verdict']} there, {verdict} here"
    if len(record["parts"]) != len(parts):
        yield f"{claim['id']}: {len(record['parts'])} comparisons there, {len(parts)} here"
        return
    names = {"complete": "interval", "composite": "composite", "bounds": "bounds"}
    for (other, judge, found, p), theirs in zip(parts, record["parts"], strict=True):
        for name, (estimate, low, high) in found.items():
            known = theirs["found"][names[name]]
            if not np.isclose(estimate, known["estimate"], rtol=0, atol=1e-9):
                yield f"{claim['id']} {other} {judge} {name}: {known['estimate']}, {estimate}"
            for end, own in (("low", low), ("high", high)):
                if not same(own, known[end], high - low):
                    yield f"{claim['id']} {other} {judge} {name} {end}: {known[end]}, {own}"
        if not np.isclose(p, theirs["p"], rtol=1e-6, atol=1e-12):
            yield f"{claim['id']} {other} {judge}: p {theirs['p']}, {p}"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--claims", type=Path, default=ROOT / "data" / "paper" / "claims.yaml")
    records = ROOT / "book" / "records" / "studies" / "embedded"
    parser.add_argument("--records", type=Path, default=records)
    parser.add_argument("--evidence", type=Path, help="folder `out` of the notebooks")
    options = parser.parse_args(arguments)
    content = yaml.safe_load(options.claims.read_text())
    effects = {effect["unit"]: effect for effect in content["smallest_effects"]}
    wrong, seen = [], {}
    for claim in content["claims"]:
        study = claim.get("study")
        study = study.get("embedded") if isinstance(study, dict) else study
        file = options.records / f"{study}.parquet"
        if study is None or not file.is_file():
            continue
        if study not in seen:
            seen[study] = read(file)
        verdict, parts = recompute(claim, effects, *seen[study])
        print(f"{claim['id']:24}{verdict}")
        for other, judge, found, p in parts:
            told = "  ".join(f"{e:+.4f} [{a:+.4f}, {b:+.4f}]" for e, a, b in found.values())
            print(f"    {other or '':16}{judge:10}{told}  p {p:.2g}")
        if options.evidence:
            kept = options.evidence / "claims" / f"{claim['id']}.json"
            if kept.is_file():
                record = json.loads(kept.read_text())
                wrong += differences(claim, verdict, parts, record)
            else:
                wrong.append(f"{claim['id']}: no record in {options.evidence}")
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
