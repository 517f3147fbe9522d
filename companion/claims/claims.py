"""Claims of the paper: what it says, where, what would decide it, and what was found.

The claims stand in ``data/paper/claims.yaml``. Evidence on them is recorded by the notebook that
makes the experiment, as a small file under its ``out`` folder, and read from there wherever it is
shown. A verdict is computed from an interval when it is recorded; nobody writes one down.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from companion.evaluation.comparison import (
    MIN_PAIRED,
    Estimate,
    IdentityScores,
    PairedDifference,
    paired_difference,
)
from companion.evaluation.statistics import MIN_PEOPLE, Interval, Verdict, verdict
from fusionlib.errors import FusionError, explain_validation
from fusionlib.profiles import ROOT, Profile
from fusionlib.support.files import write_atomically
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
"""In the order in which claims are shown."""


class Expected(BaseModel):
    """The verdict that a profile's present weights give, and from how many people on.

    Attributes:
        verdict: what was found.
        people: with fewer, "undecided" is no contradiction.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    verdict: Literal["supported", "not supported", "undecided"]
    people: int = Field(ge=2)


class Claim(BaseModel):
    """One claim of the paper.

    Attributes:
        id: its name in file names: small letters, digits and hyphens.
        title: the claim in a few words of our own.
        text: in the paper's words, or in ours.
        words: whose words `text` is in.
        section: of the paper, where it is made.
        decided_by: the number that decides it, in words.
        unit: of that number.
        over: what was averaged over: people, unless it says otherwise.
        threshold: what the number has to exceed for the claim to hold: 0 where two methods are
            compared for which is better, below 0 where the claim is that nothing is lost.
        experiment: what measures it: a notebook (without its extension), a study's file or a
            benchmark, from the repository's root; or one for each profile, by the profile's name.
            None where there is none yet.
        expected: what was found under a profile, by the profile's name: see `check_claims`.
        obstacle: why it cannot be tested under a profile, by the profile's name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    title: str = Field(min_length=1)
    text: str = Field(min_length=1)
    words: Literal["the paper's", "ours"]
    section: str
    decided_by: str = Field(min_length=1)
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
        return self

    def tested_by(self, profile: str) -> str | None:
        """What measures it under a profile, if anything does."""
        if isinstance(self.experiment, dict):
            return self.experiment.get(profile)
        return self.experiment

    @property
    def quotation(self) -> str:
        """The text, in quotation marks if the words are the paper's."""
        return f"“{self.text}”" if self.words == "the paper's" else self.text


@dataclass(frozen=True)
class Evidence:
    """What an experiment found about a claim.

    Attributes:
        claim: which.
        verdict: on it.
        found: the number that decides it.
        profile: under which it was measured.
        run: on what: see `companion.figures.tables.run_label`.
        made_from: hash of the commit, the package versions and the run.
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
        FusionError: the file cannot be read, or a claim in it does not fit; names both.
    """
    try:
        entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise FusionError(f"The claims in {path} cannot be read: {error}.") from error
    if not isinstance(entries, list) or not entries:
        raise FusionError(f"{path} has to be a list of claims, each with an `id`.")
    claims: dict[str, Claim] = {}
    for number, entry in enumerate(entries, start=1):
        name = entry.get("id", "?") if isinstance(entry, dict) else "?"
        try:
            claim = Claim.model_validate(entry)
        except ValidationError as error:
            raise FusionError(
                f"Claim {number} ({name}) in {path} does not fit: {explain_validation(error)}"
            ) from error
        if claim.id in claims:
            raise FusionError(f"Claim {number} in {path} has an id that is taken: {claim.id}.")
        claims[claim.id] = claim
    return claims


def claims_under(profile: Profile, path: str | Path = CLAIMS) -> dict[str, Claim]:
    """All claims as they stand under a profile.

    One that is tested by a page which the profile's book goes without has that for its obstacle.

    Raises:
        FusionError: see `read_claims`.
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
        FusionError: there is none of that id.
    """
    claims = read_claims(path)
    if claim not in claims:
        raise FusionError(f"There is no claim {claim!r} in {path}: it has {', '.join(claims)}.")
    return claims[claim]


def judge(claim: Claim, found: Estimate | PairedDifference) -> Verdict:
    """The verdict on a claim: where the interval lies, seen from the claim's threshold.

    It is "undecided" whatever the interval if more than a tenth of the pictures could not be
    measured, since those left out could turn it, or with fewer than five people (or whatever was
    averaged over).
    """
    if found.pairs < MIN_PAIRED * found.cells:
        return "undecided"
    return judge_measured(claim, found)


def judge_measured(claim: Claim, found: Estimate | PairedDifference) -> Verdict:
    """The same, as if those that could not be measured were like the others."""
    if found.people < MIN_PEOPLE:
        return "undecided"
    interval, threshold = found.interval, claim.threshold
    return verdict(
        Interval(interval.estimate - threshold, interval.low - threshold, interval.high - threshold)
    )


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
        out: the folder that the notebook was handed.
        claim: its id.
        found: the number that decides it, as the claim's `decided_by` says.
        profile: its name.
        run: see `companion.figures.tables.run_label`.
        path: of the claims.

    Raises:
        FusionError: there is no such claim, or it is said to be untestable under this profile.
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
    folder = Path(out) / "claims"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{claim}.json", lambda file: file.write(text.encode()))
    return evidence


def record_pairs(
    out: str | Path,
    pairs: Mapping[str, tuple[str, str]],
    scores: IdentityScores | pd.DataFrame,
    metric: str = "distance",
    *,
    profile: str,
    run: str,
    experiment: str | None = None,
    path: str | Path = CLAIMS,
) -> list[Evidence]:
    """Record the claims that one method of a study is better than another.

    A claim about a method that the study lacks, because its weights are not there, is passed over.

    Args:
        out: see `record_claim`.
        pairs: by the claim's id, the method that it says is better, and the other.
        scores: see `companion.evaluation.comparison.paired_difference`.
        metric: a column of them.
        profile: see `record_claim`.
        run: see `record_claim`.
        experiment: of this name; claims that another one tests under the profile are passed over.
        path: of the claims.

    Returns:
        What was found, in the order of `pairs`.
    """
    claims = read_claims(path)
    images = scores.images if isinstance(scores, IdentityScores) else scores
    return [
        record_claim(
            out,
            claim,
            paired_difference(scores, *methods, metric),
            profile=profile,
            run=run,
            path=path,
        )
        for claim, methods in pairs.items()
        if set(methods) <= set(images["method"])
        and experiment in (None, claims[claim].tested_by(profile))
    ]


def read_evidence(
    out: str | Path, profile: str, claims: Mapping[str, Claim] | None = None
) -> dict[str, Evidence]:
    """What was recorded about claims under a profile, by the claims' ids.

    Records of other profiles, of claims that are no longer made or cannot be tested, and of another
    experiment or threshold than the claim has now are passed over.

    Args:
        out: the folder that the notebooks were handed.
        profile: its name.
        claims: of `read_claims`; read if not given.

    Raises:
        FusionError: a record cannot be read.
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
    """The recorded number, as the type that it was."""
    values["interval"] = Interval(**values["interval"])
    if kind == "Estimate":
        return Estimate(**values)
    values["effect"] = Interval(**values["effect"])
    values["by_seed"] = {int(seed): value for seed, value in values["by_seed"].items()}
    return PairedDifference(**values)


def status(claim: Claim, evidence: Mapping[str, Evidence], profile: str) -> Status:
    """How it stands with a claim under a profile: the verdict, or why there is none."""
    if profile in claim.obstacle:
        return "not testable here"
    return evidence[claim.id].verdict if claim.id in evidence else "not measured yet"


def broken(claims: Mapping[str, Claim], evidence: Mapping[str, Evidence]) -> list[str]:
    """Claims whose evidence is not what the profile's weights gave before, each in a sentence."""
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
    """Hold the recorded verdicts to those that ``claims.yaml`` expects under their profile.

    Raises:
        FusionError: one differs; names each claim that does, and what was found.
    """
    if sentences := broken(claims, evidence):
        raise FusionError(
            " ".join(sentences) + " If that is right, change `expected` in data/paper/claims.yaml."
        )
