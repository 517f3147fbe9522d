"""Studies too long for the book: made and measured once, kept in a small file, shown as they are.

A record holds what was measured of every picture, not the pictures, and the study's manifest. It is
written by ``fusionlib evaluate STORE/studies/NAME --record FILE`` and belongs to the weights that
made the pictures: a notebook that shows it checks that they are still the same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from companion.evaluation.measure import Measurements
from companion.studies.study import Study, describe_study, label_run, left_out
from fusionlib.errors import FusionError
from fusionlib.support.files import write_atomically

_KEY = b"fusionlib"


@dataclass(frozen=True)
class Record:
    """A study that was measured elsewhere.

    Attributes:
        measured: Measurements as `companion.evaluation.measure.measure` returned it, without the
            pictures.
        manifest: Manifest of the study: methods with settings and weights, people, prompts, seeds,
            versions, and who was left out.
    """

    measured: Measurements
    manifest: Mapping[str, Any]

    @property
    def weights(self) -> dict[str, Mapping[str, str]]:
        """Hashes of the weights of each method."""
        return {
            method["name"]: method["settings"]["weights"] for method in self.manifest["methods"]
        }

    @property
    def run(self) -> str:
        """Name of the run, see `run_label`, and the people it leaves out."""
        kept = self.manifest
        profile = kept.get("declaration", {}).get("profile", "unknown")
        sizes = (len(kept["people"]), len(kept["prompts"]), len(kept["seeds"]))
        run = label_run(profile, *sizes, self.weights.values())
        gone = Counter(row["method"] for row in kept.get("left_out", ()))
        if not gone:
            return run
        counts = ", ".join(f"{count} for {method}" for method, count in gone.items())
        return f"{run} People left out, in whose reference no face was found: {counts}."


def write_record(measured: Measurements, study_folder: Path, file: Path) -> None:
    """Write what was measured of a study, atomically.

    Args:
        measured: Measurements, with every picture readable.
        study_folder: Folder ``STORE/studies/NAME``, whose ``manifest.json`` goes into the record.
        file: File to write, ``.parquet``.

    Raises:
        FusionError: The study has no manifest, or the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        kept = json.loads((study_folder / "manifest.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FusionError(
            f"A record needs a study of `fusionlib study run`; {study_folder} has no manifest: "
            f"{error}."
        ) from error
    for person in kept["people"]:  # where they lay on that machine says nothing
        for kind in ("references", "others"):
            person[kind] = [Path(path).name for path in person[kind]]
    if (study_folder / "cells.parquet").is_file():  # not so in a folder that was exported
        kept["left_out"] = left_out(study_folder).to_dict("records")
    about = {
        "manifest": kept,
        "scales": {name: scale.to_dict("index") for name, scale in measured.scales.items()},
        "detector": measured.detector,
        "against": measured.against,
    }
    table = pa.Table.from_pandas(measured.images.drop(columns="image"), preserve_index=False)
    table = table.replace_schema_metadata(
        {**(table.schema.metadata or {}), _KEY: json.dumps(about).encode()}
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda opened: pq.write_table(table, opened, compression="zstd"))
    except OSError as error:
        raise FusionError(f"The record {file} cannot be written: {error}.") from error


def read_record(file: str | Path, study: Study | None = None) -> Record:
    """Read what `write_record` wrote.

    Args:
        file: File of the record.
        study: Study with methods of the same names, whose weights must be those of the record.

    Raises:
        FusionError: The file is not there or no record, or a method has other weights, another
            guidance scale or other strengths now.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    again = "make it anew by `fusionlib study run` and `fusionlib evaluate --record`"
    try:
        table = pq.read_table(file)
        about = json.loads((table.schema.metadata or {})[_KEY])
        scales = {
            name: pd.DataFrame.from_dict(rows, orient="index").rename_axis("person")
            for name, rows in about["scales"].items()
        }
        measured = Measurements(table.to_pandas(), scales, about["detector"], about["against"])
        record = Record(measured, about["manifest"])
    except OSError as error:
        raise FusionError(f"There is no record {file} ({error.strerror}): {again}.") from error
    except (pa.ArrowInvalid, KeyError, ValueError) as error:
        raise FusionError(f"{file} is no record of a study ({error}): {again}.") from error
    kept = {method["name"]: method["settings"] for method in record.manifest["methods"]}
    for method in study.methods if study else ():
        for what in ("weights", "guidance_scale", "strengths"):
            known = kept.get(method.name, {}).get(what)
            if known is not None and known != json.loads(json.dumps(method.settings.get(what))):
                raise FusionError(
                    f"The record {file} was made from other {what.replace('_', ' ')} of "
                    f"{method.name!r} than are here: {again}."
                )
    return record


def recorded(study: Study, measured: Measurements, folder: str | Path) -> Record:
    """The record of a study where a folder keeps one, or else what was measured of it just now.

    Args:
        study: Study as it was run just now, with a few people, for example.
        measured: Measurements of that run.
        folder: Folder of records, ``book/records/studies/PROFILE``; one that is not there keeps
            none.

    Raises:
        FusionError: The record is of other weights, at other settings or measured otherwise, or is
            none.
    """
    file = Path(folder) / f"{study.name}.parquet"
    if not file.is_file():
        made = set(zip(measured.images["method"], measured.images["person"], strict=True))
        missing = [
            {"method": method.name, "person": person.name}
            for method in study.methods
            for person in study.people
            if (method.name, person.name) not in made
        ]
        return Record(measured, {**describe_study(study), "left_out": missing})
    record = read_record(file, study)
    kept = record.measured
    for what, there, here in (
        ("other recognisers", list(kept.scales), list(measured.scales)),
        ("another detector", kept.detector, measured.detector),
        ("distances to other pictures", kept.against, measured.against),
    ):
        if there != here:
            raise FusionError(f"The record {file} has {what} ({there}) than are here ({here}).")
    return record
