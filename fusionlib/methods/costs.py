"""What each method costs: trained once, prepared for a person, and asked for a picture."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from PIL import Image

from fusionlib.methods import Method
from fusionlib.profiles import Profile


def cost_table(
    profile: Profile,
    methods: Iterable[Method],
    references: Sequence[Image.Image],
    *,
    prompt: str = "a photo of a person",
    repeats: int = 3,
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

    Returns:
        Indexed by method: ``parameters`` that were trained, ``steps``, ``samples`` and ``minutes``
        of it, and ``machine``, missing where there was no training; ``prepare_s`` for a person and
        ``picture_s``, in seconds.
    """
    rows = {}
    for method in methods:
        started = time.perf_counter()
        prepared = method.prepare(list(references[: method.references]))
        preparing = time.perf_counter() - started
        seconds = []
        for number in range(repeats + 1):
            started = time.perf_counter()
            method.generate(prompt, prepared, number)
            seconds.append(time.perf_counter() - started)
        picture = statistics.median(seconds[1:])
        rows[method.name] = training_record(profile, method.name) | {
            "prepare_s": preparing,
            "picture_s": picture,
        }
    columns = ["parameters", "steps", "samples", "minutes", "machine", "prepare_s", "picture_s"]
    return pd.DataFrame.from_dict(rows, orient="index").reindex(columns=columns)


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
