"""What each method costs: trained once, prepared for a person, and asked for a picture."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image, ImageOps
from safetensors import safe_open

from companion.evaluation.scale import ANCHORS
from companion.methods import Method
from fusionlib.profiles import Profile
from fusionlib.support.files import write_text
from fusionlib.support.provenance import processor

COLUMNS = "prepare_s,picture_s,measured_on,parameters,steps"
"""Columns of the record, after the method's name."""


def cost_table(
    profile: Profile,
    methods: Iterable[Method],
    references: Sequence[Image.Image],
    *,
    prompt: str = "a photo of a person",
    repeats: int = 3,
    record: str | Path | None = None,
) -> pd.DataFrame:
    """Measure what methods cost, and read what their training did.

    Methods paint in turn, on a machine that should have nothing else to do. Each has prepared the
    mirrored pictures before, so that what it loads or makes once for all people does not count.
    What a method learns of a person, and then keeps on disk, counts as preparation the first time
    only: DreamBooth's cache has to be empty.

    Args:
        profile: Profile that names the folders of the trainings' records.
        methods: Methods, named as they were trained.
        references: Pictures of one person, as many as the method that sees most.
        prompt: Prompt to paint.
        repeats: Number of pictures that are timed, after one that is not; the median counts.
        record: A file of `write_costs`. If it is there, its methods and its seconds are shown,
            methods that it lacks without seconds, and nothing is measured. Seconds do not depend on
            what weights hold, so they are not compared with those that are here.

    Returns:
        Indexed by method: ``parameters`` that were trained, ``steps``, ``samples`` and ``minutes``
        of it, and ``machine``, missing where there was no training (DreamBooth, which trains when
        it prepares, has the first two); ``prepare_s`` for a person and ``picture_s``, in seconds,
        and ``measured_on`` what, and when.
    """
    methods = [method for method in methods if method.name not in ANCHORS]  # they paint nothing
    if record is not None and Path(record).is_file():
        seconds = pd.read_csv(record, index_col="method")
        lacking = [method.name for method in methods if method.name not in seconds.index]
        seconds = seconds.reindex([*seconds.index, *lacking])
    else:
        seconds = _measured(methods, references, prompt, repeats)
    rows = {str(name): training_record(profile, str(name)) for name in seconds.index}
    columns = ["parameters", "steps", "samples", "minutes", "machine"]
    trained = pd.DataFrame(list(rows.values()), index=list(rows)).reindex(columns=columns)
    own = ["parameters", "steps"]
    return trained.combine_first(seconds[own])[columns].join(seconds.drop(columns=own))


def write_costs(costs: pd.DataFrame, path: str | Path) -> None:
    """Keep the seconds of a `cost_table` as CSV.

    Args:
        costs: Table of `cost_table`.
        path: File to write.
    """
    kept = costs[COLUMNS.split(",")].round(4)
    write_text(Path(path), kept.to_csv(index_label="method"))


def _measured(
    methods: Sequence[Method], references: Sequence[Image.Image], prompt: str, repeats: int
) -> pd.DataFrame:
    rows: dict[str, dict[str, Any]] = {}
    prepared = {}
    for method in methods:
        seen = list(references[: method.references])
        method.prepare([ImageOps.mirror(image) for image in seen])  # what is loaded and made once
        started = _now()
        prepared[method.name] = method.prepare(seen)
        rows[method.name] = {
            "prepare_s": _now() - started,
            "measured_on": f"{_place(method)}, {date.today()}",
            **_learned(method, prepared[method.name]),
        }
    seconds: dict[str, list[float]] = {method.name: [] for method in methods}
    for number in range(repeats + 1):  # in turn: a machine that slows down does so for all
        for method in methods:
            started = _now()
            method.generate(prompt, prepared[method.name], number)
            seconds[method.name].append(_now() - started)
    for name, row in rows.items():
        row["picture_s"] = statistics.median(seconds[name][1:])
    columns = ["prepare_s", "picture_s", "measured_on", "parameters", "steps"]
    return pd.DataFrame.from_dict(rows, orient="index").reindex(columns=columns)


def _learned(method: Method, prepared: Any) -> dict[str, int]:
    """Of a method that learns a person, and keeps the weights in a file."""
    if not (isinstance(prepared, Path) and prepared.suffix == ".safetensors"):
        return {}
    with safe_open(prepared, "pt") as weights:
        sizes = [math.prod(weights.get_slice(name).get_shape()) for name in weights.keys()]  # noqa: SIM118
    return {"parameters": sum(sizes), "steps": int(method.settings["steps"])}


def _now() -> float:
    """Seconds, once the GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _place(method: Method) -> str:
    if str(method.settings.get("device", "")).startswith("cuda"):
        return torch.cuda.get_device_name()
    threads = method.settings.get("threads", torch.get_num_threads())
    return f"{processor()}, {threads} thread{'' if threads == 1 else 's'}"


def training_record(profile: Profile, name: str) -> dict[str, int | float | str]:
    """What a method's training recorded of itself, if it was trained under this profile.

    Args:
        profile: Profile that names the folders.
        name: Name of the method; ``fused`` is the profile's own adapter.
    """
    if name == "fused":
        path = Path(profile.adapter).parent / "training" / "adapter.json"
    elif profile.counterparts is not None:
        path = Path(profile.counterparts) / "training" / f"{name}.json"
    else:
        return {}
    if not path.is_file():
        return {}
    run = json.loads(path.read_text("utf-8"))
    record = {key: run[key] for key in ("steps", "samples", "machine")}
    if run.get("parameters"):  # older records do not say
        record["parameters"] = run["parameters"]
    return record | {"minutes": run["seconds"] / 60}
