"""Claims of the paper: what it says, where, what would decide it, and what was found.

The claims stand in ``data/paper/claims.yaml``. Evidence on them is recorded by the notebook that
makes the experiment, as a small file under its ``out`` folder, and read from there wherever it is
shown. A verdict is computed from an interval when it is recorded; none is written down by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, model_validator

from companion.entries import read_entries
from companion.evaluation.comparison import (
    MIN_PAIRED,
    Estimate,
    IdentityScores,
    PairedDifference,
    best_of,
    estimate_change,
    estimate_mean,
    estimate_recovery,
    paired_difference,
    with_accepted,
    with_likeness_kept,
    with_prompt_followed,
)
from companion.evaluation.measure import Measurements
from companion.evaluation.statistics import MIN_PEOPLE, Interval, Verdict, verdict
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT, Profile
from fusionlib.support.files import write_text
from fusionlib.support.provenance import git_commit, package_versions, sha256_json

CLAIMS = ROOT / "data" / "paper" / "claims.yaml"

Status = Verdict | Literal["not measured yet"]

STATUSES: tuple[Status, ...] = (
    "supported",
    "not supported",
    "undecided",
    "not measured yet",
    "not testable here",
)
"""The order in which claims are shown."""

Better = tuple[str, str | list[str]]
"""A method that a claim says is better, and the other one; of several others, the best."""

Recogniser = Literal["first", "last"]


class Expected(BaseModel):
    """The verdict that a profile's present weights give, and from how many people on.

    Attributes:
        verdict: What was found.
        people: Number of people below which "undecided" is no contradiction.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    verdict: Literal["supported", "not supported", "undecided"]
    people: int = Field(ge=2)


class Claim(BaseModel):
    """One claim of the paper.

    The number that decides it is either the difference of a `pair` of methods, or the mean of one
    method (`mean_of`), or else is computed by the experiment itself.

    Attributes:
        id: Name used in file names: small letters, digits and hyphens.
        title: The claim in a few words of our own.
        text: The claim in the paper's words, or in ours.
        words: Whose words `text` is in.
        section: Section of the paper that makes it.
        decided_by: The number that decides it, in words.
        pair: The better method and the other one, or the best of several others; or one such pair
            for each profile, by the profile's name.
        baseline: A second pair, whose difference is subtracted from that of the first.
        mean_of: The method whose mean decides.
        metric: A column of the measured pictures, ``recovery`` of identity, ``accepted`` by the
            recogniser, ``followed`` for the whole prompt, or ``likeness`` of the `traits`.
        traits: Traits that count for ``likeness``; all of them by default.
        recogniser: Which of the profile's recognisers measures distances, the first or the last; or
            one for each profile.
        only: The only prompt whose pictures count.
        without: A prompt whose pictures do not count.
        unit: Unit of that number.
        over: What was averaged over: people, unless it says otherwise.
        threshold: Value that the number has to exceed for the claim to hold: 0 where two methods
            are compared, below 0 where the claim is that nothing is lost.
        experiment: What measures it: a notebook (without its extension), a study's file or a
            benchmark, from the repository's root; or one for each profile, by the profile's name.
            None where there is none yet.
        expected: What was found under a profile, by the profile's name: see `check_claims`.
        obstacle: Why it cannot be tested under a profile, by the profile's name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    title: str = Field(min_length=1)
    text: str = Field(min_length=1)
    words: Literal["the paper's", "ours"]
    section: str
    decided_by: str = Field(min_length=1)
    pair: Better | dict[str, Better] | None = None
    baseline: tuple[str, str] | None = None
    mean_of: str | None = None
    metric: str = "distance"
    traits: list[str] | None = None
    recogniser: Recogniser | dict[str, Recogniser] = "first"
    only: str | None = None
    without: str | None = None
    unit: str
    over: str = "people"
    threshold: float = 0.0
    experiment: str | dict[str, str] | None = None
    expected: dict[str, Expected] = Field(default_factory=dict)
    obstacle: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Claim:
        if self.experiment is None and not self.obstacle:
            raise ValueError("needs the experiment that tests it, or the obstacle to one")
        if both := self.expected.keys() & self.obstacle.keys():
            raise ValueError(f"cannot be both expected and untestable under {', '.join(both)}")
        if self.pair and self.mean_of:
            raise ValueError("is decided by a pair of methods or by the mean of one, not by both")
        return self

    def tested_by(self, profile: str) -> str | None:
        """What measures it under a profile, if anything does."""
        experiment: str | None = _under(profile, self.experiment)
        return experiment

    @property
    def quotation(self) -> str:
        """The text, in quotation marks if the words are the paper's."""
        return f"“{self.text}”" if self.words == "the paper's" else self.text


def _under(profile: str, value: Any) -> Any:
    """What holds under a profile, where there may be one value for each."""
    return value.get(profile) if isinstance(value, dict) else value


@dataclass(frozen=True)
class Evidence:
    """What an experiment found about a claim.

    Attributes:
        claim: The claim.
        verdict: The verdict on it.
        found: The number that decides it.
        profile: Name of the profile under which it was measured.
        run: Name of the run, see `companion.studies.study.run_label`.
        made_from: Hash of the commit, the package versions and the run.
    """

    claim: Claim
    verdict: Verdict
    found: Estimate | PairedDifference
    profile: str
    run: str
    made_from: str


def read_claims(path: str | Path = CLAIMS) -> dict[str, Claim]:
    """All claims by id, in the file's order.

    Raises:
        FusionError: The file cannot be read, or a claim in it does not fit; names both.
    """
    return read_entries(path, Claim, "claim", "id")


def claims_under(profile: Profile, path: str | Path = CLAIMS) -> dict[str, Claim]:
    """All claims as they stand under a profile.

    A claim whose page is left out of the profile's book cannot be tested, for the same reason.

    Raises:
        FusionError: See `read_claims`.
    """
    claims = {}
    for name, claim in read_claims(path).items():
        page = Path(claim.tested_by(profile.name) or "").name
        why = profile.left_out.get(page)
        obstacle = ({profile.name: why} if why else {}) | claim.obstacle
        claims[name] = claim.model_copy(update={"obstacle": obstacle})
    return claims


def find_claim(claim: str, path: str | Path = CLAIMS) -> Claim:
    """One claim by its id.

    Raises:
        FusionError: There is no claim with that id.
    """
    claims = read_claims(path)
    if claim not in claims:
        raise FusionError(f"There is no claim {claim!r} in {path}: it has {', '.join(claims)}.")
    return claims[claim]


def judge(claim: Claim, found: Estimate | PairedDifference) -> Verdict:
    """The verdict on a claim: on which side of the claim's threshold the interval lies.

    It is "undecided" whatever the interval if more than a tenth of the pictures could not be
    measured, since those left out could change it, or with fewer than five people (or whatever was
    averaged over).
    """
    if found.pairs < MIN_PAIRED * found.cells:
        return "undecided"
    return judge_measured(claim, found)


def judge_measured(claim: Claim, found: Estimate | PairedDifference) -> Verdict:
    """The verdict if the pictures that could not be measured were like the others."""
    if found.people < MIN_PEOPLE:
        return "undecided"
    interval, threshold = found.interval, claim.threshold
    return verdict(
        Interval(interval.estimate - threshold, interval.low - threshold, interval.high - threshold)
    )


def decide(
    claim: Claim, measured: Measurements | pd.DataFrame, profile: str
) -> Estimate | PairedDifference | None:
    """The number that decides a claim, computed from measured pictures.

    Args:
        claim: A claim with a `pair` or a `mean_of`.
        measured: What was measured, or a table of it with the claim's metric as a column.
        profile: Name of the profile.

    Returns:
        The number; None where a method is not there, or what the claim asks was not measured.
    """
    images = measured if isinstance(measured, pd.DataFrame) else measured.images
    scores = None
    if isinstance(measured, Measurements) and measured.scales:
        place = 0 if _under(profile, claim.recogniser) == "first" else -1
        scores = measured.identity(list(measured.scales)[place])
        images = scores.images
    if claim.only:
        images = images[images["prompt"] == claim.only]
    if claim.without:
        images = images[images["prompt"] != claim.without]
    there = set(images["method"])
    if claim.mean_of and claim.mean_of not in there:
        return None
    if claim.mean_of and claim.metric == "recovery":
        return estimate_recovery(scores, claim.mean_of) if scores else None
    images = _with_metric(claim, images, scores)
    if claim.metric not in images:
        return None
    if claim.mean_of:
        return estimate_mean(images, claim.metric, claim.mean_of)
    method, other = _under(profile, claim.pair) or ("", "")
    if not isinstance(other, str):
        other = best_of(images, claim.metric, other)
    if not {method, other, *(claim.baseline or ())} <= there:
        return None
    if claim.baseline:
        return estimate_change(images, (other, method), claim.baseline[::-1], claim.metric)
    return paired_difference(images, method, other, claim.metric)


def record_claim(
    out: str | Path,
    claim: str,
    found: Estimate | PairedDifference,
    *,
    profile: str,
    run: str,
    path: str | Path = CLAIMS,
) -> Evidence:
    """Judge a claim by what was found, and record that as ``out/claims/ID.json``.

    The same findings give the same bytes. A record of an earlier run is replaced.

    Args:
        out: Folder that the notebook writes to.
        claim: Id of the claim.
        found: The number that decides it, as the claim's `decided_by` says.
        profile: Name of the profile.
        run: Name of the run, see `companion.studies.study.run_label`.
        path: File of the claims.

    Raises:
        FusionError: There is no such claim, or it is said to be untestable under this profile.
    """
    known = find_claim(claim, path)
    if profile in known.obstacle:
        raise FusionError(
            f"The claim {claim!r} was measured under the profile {profile!r}, but {path} says that "
            "it cannot be: take the `obstacle` out."
        )
    made_from = sha256_json([git_commit(), package_versions(), run])
    evidence = Evidence(known, judge(known, found), found, profile, run, made_from)
    record = {
        "claim": claim,
        "verdict": evidence.verdict,
        "threshold": known.threshold,
        "unit": known.unit,
        "kind": type(found).__name__,
        "found": asdict(found),
        "profile": profile,
        "run": run,
        "experiment": known.tested_by(profile),
        "made_from": made_from,
    }
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    write_text(Path(out) / "claims" / f"{claim}.json", text)
    return evidence


def record_claims(
    out: str | Path,
    claims: Sequence[str],
    measured: Measurements | pd.DataFrame,
    *,
    profile: str,
    run: str,
    page: str | None = None,
    path: str | Path = CLAIMS,
) -> list[Evidence]:
    """Record what measured pictures say of claims, each as the claims' file says.

    A claim is passed over where `decide` finds no number: a method's weights are not there, say.

    Args:
        out: Folder that the notebook writes to.
        claims: Ids of the claims.
        measured: See `decide`.
        profile: Name of the profile.
        run: Name of the run, see `companion.studies.study.run_label`.
        page: Name of the notebook; claims that another one tests under the profile are passed over.
        path: File of the claims.

    Returns:
        What was found, in the order of `claims`.
    """
    recorded = []
    for name in claims:
        claim = find_claim(name, path)
        if page and claim.tested_by(profile) != f"notebooks/{page}":
            continue
        found = decide(claim, measured, profile)
        if found is not None:
            recorded.append(record_claim(out, name, found, profile=profile, run=run, path=path))
    return recorded


def _with_metric(claim: Claim, images: pd.DataFrame, scores: IdentityScores | None) -> pd.DataFrame:
    """The pictures with the claim's metric as a column, where it can be computed."""
    if claim.metric == "accepted" and scores:
        accepted = with_accepted(scores)["accepted"]
        return images.assign(accepted=accepted[images.index])
    if claim.metric == "followed" and images.columns.str.endswith("_correct").any():
        return with_prompt_followed(images)
    if claim.metric == "likeness" and images.columns.str.endswith("_kept").any():
        return with_likeness_kept(images, claim.traits)
    return images


def read_evidence(
    out: str | Path, profile: str, claims: Mapping[str, Claim] | None = None
) -> dict[str, Evidence]:
    """What was recorded about claims under a profile, by the claims' ids.

    Records of other profiles, of claims that are no longer made or cannot be tested, and of another
    experiment or threshold than the claim has now are passed over.

    Args:
        out: Folder that the notebooks wrote to.
        profile: Name of the profile.
        claims: Claims to look for, by id; by default all of `read_claims`.

    Raises:
        FusionError: A record cannot be read.
    """
    known = read_claims() if claims is None else claims
    recorded = {}
    for claim in known.values():
        file = Path(out) / "claims" / f"{claim.id}.json"
        if not file.exists() or profile in claim.obstacle:
            continue
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            found = _found(record["kind"], record["found"])
            made_by = (record["profile"], record["experiment"], record["threshold"])
            run, made_from = record["run"], record["made_from"]
        except (ValueError, KeyError, TypeError) as error:
            raise FusionError(
                f"The record {file} cannot be read ({error!r}): delete it, and run the notebook "
                "that makes it."
            ) from error
        if made_by == (profile, claim.tested_by(profile), claim.threshold):
            judged = judge(claim, found)
            recorded[claim.id] = Evidence(claim, judged, found, profile, run, made_from)
    return recorded


def _found(kind: str, values: dict[str, Any]) -> Estimate | PairedDifference:
    """The recorded number, as the type it had."""
    values["interval"] = Interval(**values["interval"])
    if kind == "Estimate":
        return Estimate(**values)
    values["effect"] = Interval(**values["effect"])
    values["by_seed"] = {int(seed): value for seed, value in values["by_seed"].items()}
    return PairedDifference(**values)


def status(claim: Claim, evidence: Mapping[str, Evidence], profile: str) -> Status:
    """The verdict on a claim under a profile, or why there is none."""
    if profile in claim.obstacle:
        return "not testable here"
    return evidence[claim.id].verdict if claim.id in evidence else "not measured yet"


def changed_verdicts(claims: Mapping[str, Claim], evidence: Mapping[str, Evidence]) -> list[str]:
    """Claims whose verdict is not what the profile's weights gave before, each in a sentence."""
    sentences = []
    for name, one in evidence.items():
        expected = claims[name].expected.get(one.profile)
        if expected is None or one.verdict == expected.verdict:
            continue
        if one.found.people < expected.people and "undecided" in (one.verdict, expected.verdict):
            continue  # a small run sees less, which is no contradiction
        sentences.append(
            f"The claim {name!r} ({claims[name].title}) is {one.verdict} by "
            f"{claims[name].tested_by(one.profile)}, and was {expected.verdict}: "
            f"{one.found.interval} {claims[name].unit}, to exceed {claims[name].threshold:g}, over "
            f"{one.found.people} {claims[name].over}."
        )
    return sentences


def check_claims(claims: Mapping[str, Claim], evidence: Mapping[str, Evidence]) -> None:
    """Make sure that the recorded verdicts are those that ``claims.yaml`` expects.

    Raises:
        FusionError: A verdict differs; names each claim whose verdict does, and what was found.
    """
    if sentences := changed_verdicts(claims, evidence):
        raise FusionError(
            " ".join(sentences) + " If that is right, change `expected` in data/paper/claims.yaml."
        )
