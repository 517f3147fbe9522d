"""Experiments: what a study declares becomes pictures, measurements and verdicts in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from companion.claims.evidence import Evidence, record_claim, record_claims
from companion.evaluation.comparison import (
    Estimate,
    IdentityScores,
    PairedDifference,
    Target,
    estimate_of,
    method_recovery,
    with_prompt_followed,
)
from companion.evaluation.measure import Measurements, check_scale, count_faces, measure
from companion.evaluation.scale import main_scale
from companion.evaluation.statistics import Interval
from companion.methods import Method, Models, build_available, build_method
from companion.person import Person, load_people
from companion.studies.declaration import load_models, resized
from companion.studies.records import Record, recorded
from companion.studies.study import Study, run_label, run_study
from fusionlib.profiles import ROOT, Profile

RECORDS = ROOT / "book" / "records" / "studies"
"""Records of whole studies, a folder for each profile."""


@dataclass(frozen=True)
class Experiment:
    """A study with its pictures. They are measured when a measurement is first asked for.

    Attributes:
        profile: Profile whose models made the pictures.
        study: The study as it was run here.
        missing: Methods whose weights are not here, each with the reason.
        index: A row for each picture, as `companion.studies.study.run_study` returns it.
        out: Folder of the store.
        looked_for: Arguments of `companion.evaluation.measure.measure`.
        records: Folder of records, if the study may have one.
        over: What each person of the study stands for, in the plural: people, pairs, groups.
    """

    profile: Profile
    study: Study
    missing: Mapping[str, str]
    index: pd.DataFrame
    out: Path
    looked_for: Mapping[str, Any]
    records: Path | None = None
    over: str = "people"

    @property
    def people(self) -> list[Person]:
        """The people of the study."""
        return list(self.study.people)

    @property
    def prompts(self) -> list[str]:
        """Every prompt of the study once."""
        return self.study.all_prompts

    @property
    def left_out(self) -> dict[str, str]:
        """Methods that could not be built, each with the reason, for a table of facts."""
        return dict(self.missing) or {"left out": "none"}

    def index_of(self, prompts: Sequence[str]) -> pd.DataFrame:
        """The index of the pictures of some prompts."""
        return self.index[self.index["prompt"].isin(prompts)]

    def index_without(self, method: str) -> pd.DataFrame:
        """The index of the pictures of all other methods."""
        return self.index[self.index["method"] != method]

    @cached_property
    def _measured_here(self) -> Measurements:
        if self.looked_for["against"] == "others" and not self.records:
            check_scale(self.people, "others")
        cache = self.out / "observations"
        return measure(self.index, self.people, cache=cache, **self.looked_for)

    @cached_property
    def _record(self) -> Record | None:
        return recorded(self.study, self._measured_here, self.records) if self.records else None

    @property
    def measured(self) -> Measurements:
        """What was measured, of the whole study where a record of it is kept."""
        return self._record.measured if self._record else self._measured_here

    @property
    def run(self) -> str:
        """One sentence that names what was measured, for captions."""
        return self._record.run if self._record else self.label

    @property
    def weights(self) -> Mapping[str, Mapping[str, str]]:
        """Hashes of the weights of each method, of the record where one is kept."""
        if self._record:
            return self._record.weights
        return {method.name: method.settings["weights"] for method in self.study.methods}

    @property
    def label(self) -> str:
        """One sentence that names the study as it was run here."""
        return run_label(self.profile.name, self.study, self.over)

    @property
    def images(self) -> pd.DataFrame:
        """The table of measured pictures."""
        return self.measured.images

    @property
    def recognisers(self) -> list[str]:
        """Names of the recognisers, in the profile's order."""
        return list(self.measured.scales)

    @property
    def scores(self) -> list[IdentityScores]:
        """Distances under each recogniser, in the profile's order."""
        return [self.measured.identity(name) for name in self.recognisers]

    @property
    def main_scores(self) -> list[IdentityScores]:
        """Distances to pictures that no system was shown, where known, under each recogniser."""
        return [main_scale(self.measured, name).scores for name in self.recognisers]

    @property
    def by_prompt(self) -> dict[str, tuple[IdentityScores | pd.DataFrame, str]]:
        """What `companion.figures.tables.prompts_table` compares: faces, identity, prompt."""
        faces = self.images.assign(face=self.images["face"].astype(float))
        return {
            "face found": (faces, "face"),
            **{f"nearer ({one.recogniser})": (one, "distance") for one in self.main_scores},
            "CLIP score": (self.images, "clip_score"),
            "face and prompt": (with_prompt_followed(self.images), "followed"),
        }

    def recovery(self, method: str) -> Interval:
        """Identity recovery R of a method under the first recogniser."""
        return method_recovery(self.scores[0], method)

    def count_faces(self) -> dict[str, int]:
        """The number of pictures made here, and of those with a face, for a table of facts."""
        return count_faces(self.index, detector=self.profile.detector)

    def record_claim(
        self, claim: str, found: Estimate | PairedDifference | Sequence[float]
    ) -> Evidence:
        """Record a claim by a number that was computed from the pictures made here.

        Args:
            claim: Id of the claim.
            found: The number, or one value for each person.
        """
        number = estimate_of(found) if isinstance(found, Sequence) else found
        about = {"profile": self.profile.name, "run": self.label, "study": self.study.name}
        return record_claim(self.out, claim, number, **about)

    def record_claims(
        self,
        *claims: str,
        measured: pd.DataFrame | None = None,
        page: str | None = None,
    ) -> list[Evidence]:
        """Record what the study says of claims: see `companion.claims.evidence.record_claims`.

        Args:
            claims: Ids of the claims.
            measured: A table of what was measured otherwise, by default of what is measured here.
            page: Name of the notebook, where other notebooks test some of the claims.
        """
        about: dict[str, Any] = {
            "profile": self.profile.name,
            "run": self.run,
            "study": self.study.name,
            "weights": self.weights,
            "page": page,
        }
        found = self.measured if measured is None else measured
        return record_claims(self.out, claims, found, **about)


def experiment(
    study: str | Path,
    profile: str | Path | Models,
    out: str | Path,
    *,
    methods: Sequence[str | Method] = (),
    strengths: Mapping[str, Sequence[float]] | None = None,
    people: int | Sequence[Person] | None = None,
    prompts: Sequence[str] | None = None,
    seeds: int | None = None,
    asked: Mapping[str, Sequence[str]] | None = None,
    recognisers: Sequence[str] | None = None,
    against: Target = "reference",
    classifier: bool = True,
    clip: bool = False,
    traits: bool = False,
    quality: bool = False,
    over: str = "people",
    **sampling: Any,
) -> Experiment:
    """Run a study at the size of a notebook, and say what is to be measured of it.

    Args:
        study: File of the study (``.yaml``), of which the methods whose weights are here are run;
            or the name of a study that the following arguments declare.
        profile: Name of the profile, or its file; or models that several experiments share.
        out: Folder of the store.
        methods: Methods by name or as built, for a study without a file.
        strengths: Strengths of the references that the fused attention sees, by the name of each
            method, for a study without a file.
        people: Number of people, the first ones; or the people themselves.
        prompts: Prompts for everyone, in place of the file's.
        seeds: Number of seeds, in place of the file's.
        asked: What the picture of each prompt should show, for each head of the classifier of which
            the prompt does not say it in words that the classifier knows.
        recognisers: Recognisers to measure identity by; by default the profile's.
        against: Pictures that distances lead to, see `companion.evaluation.measure.measure`.
        classifier: Whether the profile's classifier tells if the prompt was followed.
        clip: Whether to measure the CLIP score.
        traits: Whether the classifier looks for the person's traits.
        quality: Whether to compare face regions.
        over: What each person of the study stands for, in the plural.
        sampling: Arguments of the pipeline's call.

    Raises:
        FusionError: None of the methods can be built, or a person is not there.
    """
    models = profile if isinstance(profile, Models) else load_models(profile, **sampling)
    settings, count = models.profile, people if isinstance(people, int) else None
    from_file = Path(study).suffix in (".yaml", ".yml")
    if from_file:
        name = settings.name if isinstance(profile, Models) else str(profile)
        size: dict[str, Any] = {
            "people": count,
            "prompts": prompts and list(prompts),
            "seeds": seeds,
        }
        declared, missing = resized(study, profile=name, **size, **sampling).available()
    else:
        names = [method for method in methods if isinstance(method, str)]
        built, missing = build_available(names, models)
        built += [method for method in methods if isinstance(method, Method)]
        for name, each in (strengths or {}).items():
            built.append(build_method("fused", models, name=name, strengths=list(each)))
        if people is None or isinstance(people, int):
            people = load_people(settings.heldout, count, only={"style": "photo"})
        declared = Study(str(study), built, people, prompts or (), range(seeds or 1))
    index = run_study(declared, out)
    for head, labels in (asked or {}).items():
        index[head] = index["prompt"].map(dict(zip(declared.all_prompts, labels, strict=True)))
    looked_for = {
        "recognisers": settings.recognisers if recognisers is None else recognisers,
        "detector": settings.detector,
        "against": against,
        "clip": settings.clip_model if clip else None,
        "classifiers": {"classifier": settings.classifier} if classifier else None,
        "traits": settings.traits if traits else (),
        "quality": quality,
    }
    records = RECORDS / settings.name if from_file else None
    return Experiment(settings, declared, missing, index, Path(out), looked_for, records, over)
