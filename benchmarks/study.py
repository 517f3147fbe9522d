"""A study's throughput: pictures a second, by processes side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmarks.alternate import Setting, say
from benchmarks.models import PROMPT
from benchmarks.startup import process
from companion.pages.benchmark_records import Group, Row
from companion.publishing.tasks import cores
from companion.studies.store import Store


def run(setting: Setting) -> list[Group]:
    """Measure the fused method by `fusionlib study run`, in one process and in more of them.

    The repository's own weights; loading is left out, for it does not grow with the study. Each
    process has as many pictures to make as the only one of the smallest study.
    """
    tiny = setting.size == "tiny"
    study: dict[str, Any] = {
        "name": "speed",
        "profile": "embedded",
        "methods": ["fused"],
        "people": {"count": 2 if tiny else 3, "only": {"style": "photo"}},
        "prompts": [PROMPT] if tiny else [PROMPT, "a photo of an angry person"],
        "dtype": setting.dtype,
    } | ({"sampling": {"num_inference_steps": 1}} if tiny else {})
    # One GPU is for one process.
    counts = [1] if tiny or setting.device == "cuda" else powers_of_two(cores())
    rates: dict[int, list[float]] = {count: [] for count in counts}
    for number in range(setting.repeats):
        for count in counts[:: -1 if number % 2 else 1]:
            say(f"a study, processes: {count}")
            seeds = 1 if tiny else 2 * count
            rates[count].append(_rate(study | {"seeds": seeds}, count, setting.device))
    title = "Pictures a second of a study, default settings"
    names = ["1 process", *(f"{count} processes" for count in counts[1:])]
    rows = tuple(Row(name, tuple(rates[n])) for name, n in zip(names, counts, strict=True))
    return [Group(title, "pictures/s", rows, "value")]


def powers_of_two(highest: int) -> list[int]:
    """1, 2, 4 and so on, up to a number."""
    return [2**power for power in range(highest.bit_length())]


def _rate(study: Mapping[str, Any], workers: int, device: str) -> float:
    """Pictures a second, from the first to the last of each process, summed over processes."""
    with tempfile.TemporaryDirectory() as folder:
        file, store = Path(folder) / "study.yaml", Path(folder) / "store"
        file.write_text(yaml.safe_dump(dict(study)), "utf-8")
        command = ["-m", "fusionlib", "study", "run", str(file), "--store", str(store)]
        process(*command, "--workers", str(workers), "--device", device)()
        index = Store(store).index()
    return sum(_pace(made) for _, made in index.groupby("worker"))


def _pace(made: pd.DataFrame) -> float:
    when = pd.to_datetime(made["created"])
    seconds = (when.max() - when.min()).total_seconds()
    return (len(made) - 1) / seconds if seconds > 0 else 0.0
