"""The steps of a reproduction: each leaves a stamp that says what its result was made from."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from fusionlib.images import write_atomically


@dataclass(frozen=True)
class Stage:
    """One step of a reproduction.

    Attributes:
        name: the notebook's, or ``book``, or ``pdf``.
        digest: hash of what it was made from.
        seconds: how long it took when it was last run.
        reused: whether that was an earlier run.
    """

    name: str
    digest: str
    seconds: float
    reused: bool


def read_stamp(out: Path, name: str) -> Stage | None:
    """What was recorded when this stage last succeeded, if it did."""
    try:
        record = json.loads((out / "stamps" / f"{name}.json").read_text(encoding="utf-8"))
        return Stage(**(record | {"reused": True}))
    except (OSError, ValueError, TypeError):
        return None


def write_stamp(out: Path, stage: Stage) -> Stage:
    """Record that a stage succeeded; returns it."""
    write_text(out / "stamps" / f"{stage.name}.json", json.dumps(vars(stage)) + "\n")
    return stage


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader never meets half of it; its folder is made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(text.encode()))


def short(path: Path) -> str:
    """A path as seen from the current folder, where that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)
