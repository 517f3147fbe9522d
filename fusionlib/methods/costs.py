"""What each method costs: trained once, prepared for a person, and asked for a picture."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path

import pandas as pd
import torch
from PIL import Image

from fusionlib.manifest import processor
from fusionlib.methods import Method
from fusionlib.profiles import Profile


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

    Methods are measured one after the other, on a machine that should have nothing else to do.
    What a method learns of a person anew, and then keeps on disk, counts as preparation the first
    time only: DreamBooth's cache has to be empty.

    Args:
        profile: says where the records of trainings lie.
        methods: built, named as they were trained.
        references: pictures of one person, as many as the method that sees most.
        prompt: what to paint.
        repeats: pictures that are timed, after one that is not; the median counts.
        record: a file of `write_costs`. If it is there, its methods and its seconds are shown, and
            nothing is measured. Seconds do not depend on what weights hold, so they are not
            compared with those that are here.

    Returns:
        Indexed by method: ``parameters`` that were trained, ``steps``, ``samples`` and ``minutes``
        of it, and ``machine``, missing where there was no training; ``prepare_s`` for a person and
        ``picture_s``, in seconds, and ``measured_on`` what, and when.
    """
    if record is not None and Path(record).is_file():
        seconds = pd.read_csv(record, index_col="method")
    else:
        seconds = _measured(methods, references, prompt, repeats)
    rows = {str(name): training_record(profile, str(name)) for name in seconds.index}
    columns = ["parameters", "steps", "samples", "minutes", "machine"]
    trained = pd.DataFrame(list(rows.values()), index=list(rows)).reindex(columns=columns)
    return trained.join(seconds)


def write_costs(costs: pd.DataFrame, path: str | Path) -> None:
    """Keep the seconds of a `cost_table` as CSV.

    Args:
        costs: of `cost_table`.
        path: to write, at once.
    """
    kept = costs[["prepare_s", "picture_s", "measured_on"]].round(4)
    partial = Path(path).with_suffix(".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    kept.to_csv(partial, index_label="method")
    os.replace(partial, path)


def _measured(
    methods: Iterable[Method], references: Sequence[Image.Image], prompt: str, repeats: int
) -> pd.DataFrame:
    rows = {}
    for method in methods:
        started = _now()
        prepared = method.prepare(list(references[: method.references]))
        preparing = _now() - started
        seconds = []
        for number in range(repeats + 1):
            started = _now()
            method.generate(prompt, prepared, number)
            seconds.append(_now() - started)
        rows[method.name] = {
            "prepare_s": preparing,
            "picture_s": statistics.median(seconds[1:]),
            "measured_on": f"{_place(method)}, {date.today()}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _now() -> float:
    """Seconds, once the GPU has done what it was told."""
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
        profile: says where.
        name: of the method; ``fused`` is the profile's own adapter.
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
