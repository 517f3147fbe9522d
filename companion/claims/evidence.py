"""What experiments found about claims: recorded where it is measured, read wherever it is shown.

The notebook that makes an experiment records what it found as a small file under its ``out``
folder. A verdict is computed from intervals, by `companion.claims.rule`; none is written by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from companion.claims.claims import CLAIMS, Claim, find_claim, read_claims, read_effects
from companion.claims.decide import (
    Found,
    Part,
    computed,
    decide,
    deciding_part,
    judge,
    methods_of,
    part_answer,
)
from companion.claims.rule import Answer, differing, holm, people_needed
from companion.evaluation.comparison import Estimate, PairedDifference
from companion.evaluation.designs import one_training_note
from companion.evaluation.measure import Measurements
from companion.evaluation.statistics import Interval
from fusionlib.errors import FusionError
from fusionlib.support.files import write_text
from fusionlib.support.provenance import git_commit, package_versions, sha256_json

Status = Answer | Literal["not measured yet", "not testable here"]

STATUSES: tuple[Status, ...] = (
    "supported",
    "not supported",
    "no difference that matters",
    "undecided",
    "not measured yet",
    "not testable here",
)
"""The order in which claims are shown."""


@dataclass(frozen=True)
class Evidence:
    """What an experiment found about a claim.

    Attributes:
        claim: The claim.
        verdict: The verdict on it.
        parts: The comparisons that it rests on.
        profile: Name of the profile under which it was measured.
        run: Name of the run, see `companion.studies.study.run_label`.
        made_from: Hash of the commit, the package versions and the run.
        beside: The same comparisons by the recognisers that do not decide.
        study: Name of the study, if it was one of a file.
        note: What limits the verdict, for example to the networks that were trained; "" for
            nothing.
    """

    claim: Claim
    verdict: Answer
    parts: tuple[Part, ...]
    profile: str
    run: str
    made_from: str
    beside: tuple[Part, ...] = ()
    study: str = ""
    note: str = ""

    @property
    def part(self) -> Part:
        """The comparison that the verdict hangs on."""
        return deciding_part(self.claim, list(self.parts), self.verdict)

    @property
    def found(self) -> Found:
        """The number of that comparison."""
        return self.part.found

    @property
    def assumption(self) -> str:
        """What an undecided verdict depends on, if that is how lost faces are treated."""
        return part_answer(self.claim, self.part)[1]

    @property
    def p(self) -> float:
        """The p value of the verdict among all comparisons that it rests on; 1 if undecided."""
        if self.verdict == "undecided":
            return 1.0
        every = [part.p for part in self.parts]
        if self.verdict == "supported":
            return max(every)
        return min(1.0, len(every) * self.part.p)

    @property
    def people_needed(self) -> int | None:
        """How many people would decide it at the present spread; None where no number does."""
        part, claim = self.part, self.claim
        interval = part.found.composite or part.found.interval
        people = len(part.found.values) or part.found.people
        return people_needed(claim.asks, interval, people, claim.threshold, part.smallest)

    @property
    def judges_differ(self) -> bool:
        """Whether another recogniser contradicts the verdict."""
        answers = [self.verdict] + [part_answer(self.claim, part)[0] for part in self.beside]
        return differing(answers)


def record_claim(
    out: str | Path,
    claim: str,
    found: Found | tuple[Sequence[Part], Sequence[Part]],
    *,
    profile: str,
    run: str,
    study: str = "",
    note: str = "",
    path: str | Path = CLAIMS,
) -> Evidence:
    """Judge a claim by what was found, and record that as ``out/claims/ID.json``.

    The same findings give the same bytes. A record of an earlier run is replaced.

    Args:
        out: Folder that the notebook writes to.
        claim: Id of the claim.
        found: The number that decides it, as the claim's `decided_by` says; or the comparisons of
            `companion.claims.decide.decide`.
        profile: Name of the profile.
        run: Name of the run, see `companion.studies.study.run_label`.
        study: Name of the study, if it was one of a file.
        note: What limits the verdict.
        path: File of the claims.

    Raises:
        FusionError: There is no such claim, or it is said to be untestable under this profile, or
            to be decided by another study.
    """
    known = find_claim(claim, path)
    if profile in known.obstacle:
        raise FusionError(
            f"The claim {claim!r} was measured under the profile {profile!r}, but {path} says that "
            "it cannot be: take the `obstacle` out."
        )
    wanted = known.decided_on(profile)
    if wanted is not None and wanted != study:
        raise FusionError(
            f"The claim {claim!r} is decided by the study {wanted!r}, and was measured on "
            f"{study or 'none'!r}: record it where that study is shown."
        )
    if isinstance(found, tuple):
        parts, beside = found
    else:
        parts, beside = computed(known, found, read_effects(path)), []
    made_from = sha256_json([git_commit(), package_versions(), run])
    evidence = Evidence(
        known,
        judge(known, list(parts)),
        tuple(parts),
        profile,
        run,
        made_from,
        tuple(beside),
        study,
        note,
    )
    record = {
        "claim": claim,
        "verdict": evidence.verdict,
        "asks": known.asks,
        "threshold": known.threshold,
        "unit": known.unit,
        "parts": [_written(part) for part in parts],
        "beside": [_written(part) for part in beside],
        "study": study,
        "note": note,
        "profile": profile,
        "run": run,
        "experiment": known.tested_by(profile),
        "made_from": made_from,
    }
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    write_text(Path(out) / "claims" / f"{claim}.json", text)
    return evidence


def record_claims(
    out: str | Path,
    claims: Sequence[str],
    measured: Measurements | pd.DataFrame,
    *,
    profile: str,
    run: str,
    study: str = "",
    weights: Mapping[str, Mapping[str, str]] | None = None,
    page: str | None = None,
    path: str | Path = CLAIMS,
) -> list[Evidence]:
    """Record what measured pictures say of claims, each as the claims' file says.

    A claim is passed over where `decide` finds no number: a method's weights are not there, say.

    Args:
        out: Folder that the notebook writes to.
        claims: Ids of the claims.
        measured: See `companion.claims.decide.decide`.
        profile: Name of the profile.
        run: Name of the run, see `companion.studies.study.run_label`.
        study: Name of the study, if it was one of a file.
        weights: Hashes of the weights of each method, by which a verdict on designs is limited to
            the networks that were trained.
        page: Name of the notebook; claims that another one tests under the profile are passed over.
        path: File of the claims.

    Returns:
        What was found, in the order of `claims`.
    """
    recorded = []
    effects = read_effects(path)
    for name in claims:
        claim = find_claim(name, path)
        if page and claim.tested_by(profile) != f"notebooks/{page}":
            continue
        found = decide(claim, measured, profile, effects)
        if found is not None:
            about: dict[str, Any] = {"profile": profile, "run": run, "study": study}
            if claim.designs and weights:
                about["note"] = one_training_note(weights, methods_of(claim, profile))
            recorded.append(record_claim(out, name, found, path=path, **about))
    return recorded


def read_evidence(
    out: str | Path, profile: str, claims: Mapping[str, Claim] | None = None
) -> dict[str, Evidence]:
    """What was recorded about claims under a profile, by the claims' ids.

    Records of other profiles, of claims that are no longer made or cannot be tested, and of another
    experiment, question or threshold than the claim has now are passed over.

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
            parts = [_read(part) for part in record["parts"]]
            beside = [_read(part) for part in record["beside"]]
            about = ("profile", "experiment", "asks", "threshold", "study")
            made_by = [record[name] for name in about]
            run, made_from, note = record["run"], record["made_from"], record["note"]
        except (ValueError, KeyError, TypeError) as error:
            raise FusionError(
                f"The record {file} cannot be read ({error!r}): delete it, and run the notebook "
                "that makes it."
            ) from error
        study = record["study"]
        wanted = claim.decided_on(profile) or study
        asked = [profile, claim.tested_by(profile), claim.asks, claim.threshold, wanted]
        if made_by == asked:
            judged = judge(claim, parts)
            recorded[claim.id] = Evidence(
                claim,
                judged,
                tuple(parts),
                profile,
                run,
                made_from,
                tuple(beside),
                study,
                note,
            )
    return recorded


def _written(part: Part) -> dict[str, Any]:
    """A comparison as it stands in a record; values of single people are left out."""

    def numbers(found: Found | None) -> dict[str, Any] | None:
        if found is None:
            return None
        values = {"kind": type(found).__name__} | asdict(found)
        return {name: value for name, value in values.items() if name != "values"} | {
            "counted": len(found.values)
        }

    return {
        "against": part.against,
        "recogniser": part.recogniser,
        "smallest": part.smallest,
        "p": part.p,
        "found": numbers(part.found),
        "corrected": numbers(part.corrected),
    }


def _read(record: Mapping[str, Any]) -> Part:
    def number(values: dict[str, Any] | None) -> Found | None:
        if values is None:
            return None
        kind, counted = values.pop("kind"), values.pop("counted")
        for name in ("interval", "composite", "bounds", "effect"):
            if values.get(name) is not None:
                values[name] = Interval(**values[name])
        values["values"] = (float("nan"),) * counted  # how many people, which is all that is needed
        if kind == "Estimate":
            return Estimate(**values)
        values["by_seed"] = {int(seed): value for seed, value in values["by_seed"].items()}
        return PairedDifference(**values)

    found = number(record["found"])
    assert found is not None
    return Part(
        record["against"],
        record["recogniser"],
        found,
        record["smallest"],
        record["p"],
        number(record["corrected"]),
    )


def status(claim: Claim, evidence: Mapping[str, Evidence], profile: str) -> Status:
    """The verdict on a claim under a profile, or why there is none."""
    if profile in claim.obstacle:
        return "not testable here"
    return evidence[claim.id].verdict if claim.id in evidence else "not measured yet"


def after_holm(evidence: Mapping[str, Evidence]) -> dict[str, float]:
    """P values of the verdicts, corrected for the number of tested claims, by the claims' ids."""
    return holm({name: one.p for name, one in evidence.items()})


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
