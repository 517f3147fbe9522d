"""What several trainings of each design say of the designs: a table, from the study's record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from pandas.io.formats.style import Styler

from companion.evaluation.comparison import with_prompt_followed
from companion.evaluation.designs import at_each_length, with_strangers
from companion.evaluation.measure import Measurements
from companion.figures.tables import marked_table
from companion.studies.experiment import RECORDS, Experiment
from companion.studies.records import Record, read_record
from companion.studies.study import label_run
from fusionlib.errors import FusionError

PAIRS = (("fused", "decoupled"), ("fused", "ip-adapter"))
"""Designs that are compared: the first one might be better."""

WAITS = (
    "This comparison waits: the trainings need a CUDA GPU, and no record of them is kept yet "
    "(docs/gpu-queue.md)."
)

COLUMNS = {
    "difference": "{difference}",
    "spread between trainings": "{trainings_sd:.4f}",
    "between people": "{people_sd:.4f}",
    "degrees of freedom": "{freedom:.1f}",
    "trainings × people": "{trainings} × {people}",
    "the lengths": "{agreement}",
}


def designs_table(shown: Experiment, name: str = "trainings", records: Path = RECORDS) -> Styler:
    """Differences of designs after trainings of each length, or a sentence that they wait.

    Args:
        shown: An experiment over the base model that the record has to be of.
        name: Name of the study of trainings.
        records: Folder of records, with a folder for each profile.

    Returns:
        A row for each pair of designs, metric and length: the difference with its 95% interval
        (positive: the first design is better), the standard deviations between trainings and
        between people, the degrees of freedom, the counts, and whether the lengths agree. Where no
        record is kept, one row that says so.

    Raises:
        FusionError: The record was made over another base model, or has missing pictures.
    """
    file = records / shown.profile.name / f"{name}.parquet"
    if not file.is_file():
        waiting = pd.DataFrame({"": [WAITS]}, index=["trainings"])
        return marked_table(waiting, "Not measured yet.", kind=None, header=False)
    record = read_record(file)
    base = _base_model(record, shown, file)
    rows = {}
    for metric, column, images in _metrics(record.measured):
        for design, other in PAIRS:
            compared = at_each_length(images, design, other, column)
            for steps, found in compared.differences.items():
                rows[f"{design} over {other}, {metric}, {steps} steps"] = {
                    "difference": found.interval,
                    "trainings_sd": found.between_trainings,
                    "people_sd": found.between_people,
                    "freedom": found.freedom,
                    "trainings": found.trainings,
                    "people": found.people,
                    "agreement": compared.agreement,
                }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    kept = record.manifest
    sizes = (len(kept["people"]), len(kept["prompts"]), len(kept["seeds"]))
    caption = (
        "Measured here, with 95% intervals for another training and other people; a picture "
        "without a face counts as a stranger's. "
        + label_run(shown.profile.name, *sizes, [{"base_model": base}])
    )
    return marked_table(frame, caption, COLUMNS)


def _metrics(measured: Measurements) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """What is compared: its words, its column, and pictures in which none is missing."""
    for recogniser in measured.scales:
        scores = measured.unseen(recogniser) or measured.identity(recogniser)
        yield f"nearer by {recogniser}", "distance", with_strangers(scores)
    images = measured.images
    if "face" in images:
        yield "faces found", "face", images.assign(face=images["face"].astype(float))
    if images.columns.str.endswith("_correct").any():
        followed = with_prompt_followed(images)
        asked = followed.groupby("prompt")["followed"].transform("count") > 0
        if asked.any():
            yield "prompt followed", "followed", followed[asked]


def _base_model(record: Record, shown: Experiment, file: Path) -> str:
    """Hash of the base model that the trainings share, which has to be the one that is here."""
    here = {method.settings["weights"].get("base_model") for method in shown.study.methods}
    there = {weights.get("base_model") for weights in record.weights.values()} - {None}
    if len(there) != 1 or not there <= here:
        raise FusionError(
            f"The record {file} is of trainings over another base model than the one that is here: "
            "make it anew by `fusionlib train designs --fresh`, `fusionlib study run` and "
            "`fusionlib evaluate --record`."
        )
    return str(there.pop())
