"""Photographs of people who agreed become held-out people, as a profile's studies read them."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from fusionlib.errors import FusionError
from fusionlib.photos import prepare_photo

KINDS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Names of picture files end so; others are passed over."""


def frame_people(
    source: str | Path, out: str | Path, size: int
) -> tuple[dict[int, int], list[str]]:
    """Cut the faces out of photographs, and write them with an ``index.csv``.

    Args:
        source: a folder of pictures for each person, whose name is the person's. The first picture
            by name becomes the reference.
        out: the folder to write; `fusionlib.study.load_people` reads it.
        size: side of the written pictures, pixels.

    Returns:
        How many people have how many pictures, and what is wrong with each that was left out.

    Raises:
        FusionError: there are no pictures, or `out` exists.
    """
    source, out = Path(source), Path(out)
    if out.exists():
        raise FusionError(f"{out} exists: name a new folder, or remove it first.")
    folders = sorted(folder for folder in source.glob("*") if folder.is_dir())
    pictures = {
        folder: sorted(file for file in folder.iterdir() if file.suffix.lower() in KINDS)
        for folder in folders
    }
    if not any(pictures.values()):
        raise FusionError(f"{source} has no folders of pictures, one for each person.")
    rows, problems = [], []
    for folder, files in pictures.items():
        view = 0
        for file in files:
            try:
                face = prepare_photo(file, size=size)
            except FusionError as error:
                problems.append(str(error))
                continue
            name = f"{folder.name}/{view:03d}.png"
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            face.save(out / name)
            rows.append((folder.name, view, name, "photo"))
            view += 1
    if not rows:
        raise FusionError(f"None of the pictures in {source} shows one face: {problems[0]}")
    with open(out / "index.csv", "w", newline="", encoding="utf-8") as index:
        csv.writer(index).writerows([("person", "view", "file", "style"), *rows])
    return dict(Counter(Counter(person for person, *_ in rows).values())), problems
