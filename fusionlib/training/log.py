"""The logs of a run: CSV files for the book, TensorBoard to watch it meanwhile.

A run that resumes at a step removes what was written after it, so that the files of an interrupted
run are those of an uninterrupted one.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fusionlib.inputs.images import save_png
from fusionlib.support.files import write_text

Row = dict[str, Any]
"""One line of a CSV file, by column."""


class Table:
    """A CSV file that grows row by row; its columns are those of the first row.

    Args:
        path: Path of the file.
        resume_at: Step after which rows are dropped; 0 starts an empty file.
    """

    def __init__(self, path: Path, resume_at: int) -> None:
        self.path = path
        self.rows: list[Row] = []
        if resume_at and path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if None not in row.values()]
            # A kill may have cut the last line short, within its columns or within its step.
            self.rows = [row for row in rows if int(row["step"]) <= resume_at]
        if self.rows or path.is_file():
            self._rewrite()

    def write(self, row: Row) -> None:
        """Add a row."""
        self.rows.append(row)
        if len(self.rows) == 1:
            self._rewrite()
        else:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.rows[0], extrasaction="ignore").writerow(row)

    def _rewrite(self) -> None:
        text = io.StringIO(newline="")
        if self.rows:
            writer = csv.DictWriter(text, self.rows[0], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.rows)
        write_text(self.path, text.getvalue())


class Log:
    """``loss.csv``, ``samples.csv`` with its sheets, and TensorBoard.

    Args:
        folder: Folder of the run.
        resume_at: Step at which the run resumes.
    """

    def __init__(self, folder: Path, *, resume_at: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        self._losses = Table(folder / "loss.csv", resume_at)
        self._samples = Table(folder / "samples.csv", resume_at)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_at or None)

    @property
    def rows(self) -> list[Row]:
        """The rows of ``loss.csv``."""
        return self._losses.rows

    def write(self, step: int, samples: int, seconds: float, values: Mapping[str, float]) -> None:
        """Add a row of means to ``loss.csv``; a NaN is left empty."""
        before = self.rows[-1] if self.rows else {"samples": 0, "seconds": 0.0}
        row: Row = {"step": step, "samples": samples, "seconds": round(seconds, 1)}
        row |= {k: "" if math.isnan(v) else f"{v:.6g}" for k, v in values.items()}
        self._losses.write(row)
        time = seconds - float(before["seconds"])
        if time > 0:
            rate = (samples - int(before["samples"])) / time
            self.board.add_scalar("samples_per_second", rate, step)
        self.scalars(step, values)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers to TensorBoard only."""
        for key, value in values.items():
            if not math.isnan(value):
                self.board.add_scalar(key, value, step)

    def samples(self, step: int, found: Mapping[str, float | Image.Image]) -> None:
        """Write what a monitor returned: pictures as PNG files, numbers as a row."""
        numbers = {key: value for key, value in found.items() if isinstance(value, (int, float))}
        for key, image in found.items():
            if isinstance(image, Image.Image):
                save_png(image, self.folder / "samples" / f"{key}-{step:07d}.png", {"step": step})
                self.board.add_image(key, np.asarray(image), step, dataformats="HWC")
        if numbers:
            text = {k: "" if math.isnan(v) else f"{v:.6g}" for k, v in numbers.items()}
            self._samples.write({"step": step} | text)
            self.scalars(step, numbers)

    def recent(self) -> float:
        """The mean loss over the last 100 rows."""
        losses = [float(row["loss"]) for row in self.rows[-100:]]
        return sum(losses) / len(losses) if losses else float("nan")

    def close(self) -> None:
        """Write what is still in memory."""
        self.board.close()
