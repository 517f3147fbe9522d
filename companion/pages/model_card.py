"""What the model card asks of the suite, each part of it measured once for all of its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from companion.evaluation.quality import reconstruct
from companion.evaluation.separation import Separation
from companion.faces.recognisers import Instrument, load_recognisers
from companion.pages import suite_criteria as suite
from companion.pages.judging_judges import classifier_accuracy, recogniser_separation
from companion.person import load_people
from companion.studies.experiment import Experiment
from fusionlib.errors import FusionError
from fusionlib.inputs.images import load_image
from fusionlib.profiles import ROOT

PROMPTS = ROOT / "data" / "prompts" / "suite.csv"
"""Prompts of the suite, each with what it asks for."""


@dataclass(frozen=True)
class SuitePrompts:
    """Prompts that the base model is judged by.

    Attributes:
        all: Some of the suite's prompts, evenly taken from the list.
        photos: Those that ask for a photograph.
        others: The first prompt of each other style.
        styles: Style of every prompt of the suite.
    """

    all: list[str]
    photos: list[str]
    others: list[str]
    styles: Mapping[str, str]


def choose_suite_prompts(count: int) -> SuitePrompts:
    """Choose about `count` prompts of the suite."""
    whole = pd.read_csv(PROMPTS)
    plan = whole.iloc[:: max(len(whole) // count, 1)]
    photo = plan["style"] == "photo"
    return SuitePrompts(
        list(plan["prompt"]),
        list(plan.loc[photo, "prompt"]),
        list(plan[~photo].drop_duplicates("style")["prompt"]),
        dict(zip(whole["prompt"], whole["style"], strict=True)),
    )


@dataclass(frozen=True)
class JudgedSuite:
    """What was found of a suite of models.

    Attributes:
        criteria: What the suite must show, and what it shows.
        recognisers: How well each recogniser tells people apart.
        classifier: How often the classifier is right, see `classifier_accuracy`.
        styles: How often a face is found in each style, see `suite_criteria.faces_by_style`.
        judges: The recognisers by name.
    """

    criteria: list[suite.Criterion]
    recognisers: Mapping[str, Separation]
    classifier: pd.DataFrame
    styles: pd.DataFrame
    judges: Mapping[str, Instrument]


def judge_suite(
    pipeline: Any,
    base: Experiment,
    adapters: Experiment,
    styles: Mapping[str, str],
    *,
    people: int,
    rendered: int,
) -> JudgedSuite:
    """Measure everything that the suite must show.

    Args:
        pipeline: The suite's pipeline.
        base: Pictures of the base model alone.
        adapters: Pictures by the adapters, ``fused`` and ``fused-v1``.
        styles: Style that each prompt of the base model asks for.
        people: Number of held-out people by whom the judges are judged.
        rendered: Number of held-out people whose renders are searched for faces.

    Raises:
        FusionError: The profile has no held-out people or no classifier.
    """
    settings, out = base.profile, base.out
    if settings.heldout is None or settings.classifier is None:
        raise FusionError(f"The profile {settings.name!r} needs held-out people and a classifier.")
    cache = out / "observations"
    seen: dict[str, Any] = {"detector": settings.detector, "cache": cache}
    photographed = load_people(settings.heldout, people, others=0, only={"style": "photo"})
    judges = load_recognisers(settings.recognisers)
    apart = recogniser_separation(settings.recognisers, photographed, **seen)
    read = classifier_accuracy(settings.classifier, settings.heldout, people=people, cache=cache)
    by_style = suite.faces_by_style(base.images, styles, settings.heldout, people=rendered, **seen)
    likeness = {one.recogniser: one for one in adapters.scores}
    criteria = [
        *suite.criteria_of_people(apart["Dlib"]),
        *suite.criteria_of_autoencoder(pipeline, photographed, judges["Dlib"], out=out, **seen),
        *suite.criteria_of_clip(settings.clip_model, settings.heldout, candidates=32, cache=cache),
        *suite.criteria_of_classifier(read),
        *suite.criteria_of_base(base.measured),
        *suite.criteria_of_renders(by_style),
        *suite.criteria_of_adapter(adapters.measured, likeness, "fused"),
        *suite.criteria_of_adapter(adapters.measured, likeness, "fused-v1", least=None),
    ]
    return JudgedSuite(criteria, apart, read, by_style, judges)


def restored_rows(pipeline: Any, paths: Sequence[Path]) -> list[list[Image.Image]]:
    """A row of pictures, and below it what the autoencoder keeps of them."""
    pictures = [load_image(path) for path in paths]
    return [pictures, reconstruct(pipeline, pictures)]
