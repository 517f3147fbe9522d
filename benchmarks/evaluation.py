"""A study's status with many cells, and what it costs to evaluate a picture as they grow many.

Half of the cells are done. Evaluation measures the held-out people by dlib, face quality included,
without a cache; the time of a picture should not depend on how many there are.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.alternate import Setting, compare
from benchmarks.startup import process
from companion.append_table import AppendTable
from companion.evaluation.measure import measure
from companion.pages.benchmark_records import Group
from companion.pages.psnr_audit import SAME, picture_pairs
from companion.person import load_people
from companion.studies.store import INDEX, Store
from companion.studies.study import study_status
from fusionlib.profiles import load_profile


def run(setting: Setting) -> list[Group]:
    """Measure both."""
    tiny = setting.size == "tiny"
    few = replace(setting, repeats=min(setting.repeats, 3))
    return [_status(few, 1_000 if tiny else 100_000), _evaluation(few, [2] if tiny else [30, 120])]


def fill(store: Store, cells: int) -> None:
    """Declare a study and list the pictures of every other cell, without making any."""
    grid = [
        {
            "method": f"method {number % 5}",
            "person": str(number // 50),
            "prompt": f"a photo of a person doing thing {number % 10}",
            "seed": number % 3,
            "noise_seed": number,
            "key": hashlib.sha256(str(number).encode()).hexdigest(),
        }
        for number in range(cells)
    ]
    store.declare("large", grid, {"people": []})
    with AppendTable(store.root / "index", INDEX) as ledger:
        for cell in grid[::2]:
            ledger.append(
                {
                    "key": cell["key"],
                    "sha256": cell["key"],
                    "bytes": 20_000,
                    "created": datetime.now(UTC),
                    "seconds": 1.5,
                    "worker": "here:1",
                    "commit": "0" * 40,
                }
            )


def _status(setting: Setting, cells: int) -> Group:
    with tempfile.TemporaryDirectory() as folder:
        fill(Store(folder), cells)
        calls = {
            "the function": lambda: study_status(folder, "large"),
            "the command": process("-m", "fusionlib", "study", "status", folder),
        }
        title = f"Status of a study of {cells:,} cells"
        return compare(title, calls, setting, shows="value")


def _evaluation(setting: Setting, counts: list[int]) -> Group:
    people = load_people(Path(load_profile("embedded").heldout or ""), others=5)
    pairs = picture_pairs(people)
    pairs = pairs[pairs["method"] == SAME]

    def judge(count: int) -> None:
        shown = pairs.head(count)
        known = [person for person in people if person.name in set(shown["person"])]
        measure(shown, known, progress=False)

    calls = {f"of {count} pictures": (lambda count=count: judge(count)) for count in counts}
    group = compare("Evaluation, milliseconds for a picture", calls, setting, shows="value")
    rows = tuple(
        replace(row, values=tuple(1000 * value / count for value in row.values))
        for row, count in zip(group.rows, counts, strict=True)
    )
    return replace(group, rows=rows, unit="ms")
