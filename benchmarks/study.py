"""Times a study's status with many cells, and the cost of evaluating a picture as they grow many.

    python benchmarks/study.py --cells 100000 --pictures 60 125 250 500

Prints a table each. Status is timed as a user sees it, in a process of its own, half of the cells
being done. Evaluation measures the held-out people by dlib, face quality included, without a cache;
the time of a picture should not depend on how many there are.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from fusionlib.evaluation.audit import SAME, pair_up
from fusionlib.evaluation.measure import measure
from fusionlib.ledger import Ledger
from fusionlib.profiles import load_profile
from fusionlib.store import INDEX, Store
from fusionlib.study import load_people, study_status


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
    with Ledger(store.root / "index", INDEX) as ledger:
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


def _children() -> float:
    """Processor time of all processes that were started here and have ended, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--pictures", type=int, nargs="*", default=[60, 125, 250, 500])
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        fill(store, arguments.cells)
        started, used = time.perf_counter(), time.process_time()
        table = study_status(folder, "large")
        wall, cpu = time.perf_counter() - started, time.process_time() - used
        print(f"{arguments.cells:,} cells, {table['done'].sum():,} done: status")
        print(f"  the function           {wall:6.2f} s, of which processor {cpu:.2f} s")
        command = [sys.executable, "-m", "fusionlib", "study", "status", folder]
        started, used = time.perf_counter(), _children()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall, cpu = time.perf_counter() - started, _children() - used
        print(f"  the command            {wall:6.2f} s, of which processor {cpu:.2f} s")

    people = load_people(Path(load_profile("embedded").heldout or ""), others=5)
    pairs = pair_up(people)
    pairs = pairs[pairs["method"] == SAME]
    measure(pairs.head(5), people[:2], progress=False)  # load everything
    print(f"{'pictures':>10} {'ms each':>10} {'processor':>10}")
    for count in arguments.pictures:
        shown = pairs.head(count)
        known = [person for person in people if person.name in set(shown["person"])]
        started, used = time.perf_counter(), time.process_time()
        measure(shown, known, progress=False)
        wall, cpu = time.perf_counter() - started, time.process_time() - used
        print(f"{count:10} {1000 * wall / count:10.1f} {1000 * cpu / count:10.1f}")


if __name__ == "__main__":
    main()
