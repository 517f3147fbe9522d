"""What frozen models make of a training set: computed once, a chunk at a time, and kept on disk."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from fusionlib.errors import FusionError
from fusionlib.training.data import Pictures

CHUNK = 256
"""Pictures in one file."""


def pictures_key(pictures: Pictures) -> str:
    """A hash of a set's pixels, for the key of what is computed from them.

    Args:
        pictures: the set.
    """
    return hashlib.sha256(pictures.pixels.data).hexdigest()[:16]


def kept_rows(
    folder: Path, key: str, count: int, compute: Callable[[range], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Tensors with a row for each picture, read from disk, or computed where they are not there.

    A stopped run goes on, and runs that start side by side share the work: each takes the missing
    chunks in an order of its own.

    Args:
        folder: its files, and the name of the progress bar; files of another key are made anew.
        key: names all that the rows depend on.
        count: rows.
        compute: makes the rows of these numbers.

    Returns:
        By name, ``(count, ...)``.

    Raises:
        FusionError: another run replaces the files by those of another key.
    """
    starts = range(0, count, CHUNK)
    files = [folder / f"{start:08d}.safetensors" for start in starts]
    missing = [start for start, file in zip(starts, files, strict=True) if not holds(file, key)]
    random.Random(os.getpid()).shuffle(missing)  # noqa: S311
    for start in tqdm(missing, desc=folder.name, mininterval=2.0, disable=not missing):
        file = folder / f"{start:08d}.safetensors"
        if not holds(file, key):
            write(file, key, compute(range(start, min(start + CHUNK, count))))
    parts = []
    for file in files:
        with safe_open(file, "pt") as reader:
            if reader.metadata().get("key") != key:
                raise FusionError(
                    f"{file} was replaced while it was read: another run computes the same of "
                    "another set or by another model. Give one of them another `training.runs`."
                )
            parts.append({name: reader.get_tensor(name) for name in reader.keys()})  # noqa: SIM118
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def holds(file: Path, key: str) -> bool:
    """Whether a file is there and was written under this key.

    Args:
        file: of `write`.
        key: see `kept_rows`.
    """
    if not file.is_file():
        return False
    with safe_open(file, "pt") as reader:
        return (reader.metadata() or {}).get("key") == key


def write(file: Path, key: str, tensors: Mapping[str, Tensor], **said: str) -> None:
    """Write a file of tensors in one go, under a key.

    Args:
        file: its folder is made.
        key: see `holds`.
        tensors: by name.
        said: further metadata.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".partial-{uuid4().hex}")  # runs on other machines, too
    save_file(dict(tensors), partial, {"key": key, **said})
    os.replace(partial, file)
