"""Training sets that tests make for themselves, in img2dataset's layout."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw

SIDE = 32


def encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def disc(number: int, side: int = SIDE, mode: str = "RGB") -> Image.Image:
    """A disc in place of a face, with a colour for each number."""
    colour = tuple(int(c) for c in np.random.default_rng(number).integers(40, 255, 3))
    image = Image.new("RGB", (side, side), (20, 30, 40))
    ImageDraw.Draw(image).ellipse([side * f for f in (0.2, 0.15, 0.75, 0.85)], fill=colour)
    return image.convert(mode)


def write_tar(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, files in samples.items():
            for extension, content in files.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def sample(number: int, picture: bytes | None = None, **facts: Any) -> dict[str, bytes]:
    """The files of one sample, as img2dataset writes them."""
    caption = facts.pop("caption", f"a face, number {number}")
    return {
        "jpg": picture if picture is not None else encoded(disc(number)),
        "txt": caption.encode(),
        "json": json.dumps({"caption": caption, "url": "https://x"} | facts).encode(),
    }


def write_set(folder: Path, count: int = 12, *, each: int = 6, people: int | None = None) -> Path:
    """Write shards ``00000.tar`` and so on of discs, with a number of people who take turns."""
    for start in range(0, count, each):
        numbers = range(start, min(start + each, count))
        who = {n: {} if people is None else {"person": n % people} for n in numbers}
        write_tar(
            folder / f"{start // each:05d}.tar",
            {f"{start // each:05d}{n:04d}": sample(n, **who[n]) for n in numbers},
        )
    return folder


def write_profile(file: Path, checkpoint: Path, shards: Path, **changes: Any) -> Path:
    """A profile that extends ``paper``, shrunk to the tiny checkpoint and the CPU."""
    recipe = {
        "steps": 4, "batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 1, "ema_decay": 0.5,
        "mixed_precision": "no",
    }  # fmt: skip
    training = {
        "shards": str(shards),
        "runs": str(file.parent / "runs"),
        "workers": 0,
        "crop": "whole",
        "sample_every": 0,
        "adapter": recipe | changes.pop("recipe", {}),
    }
    file.write_text(
        yaml.safe_dump(
            {
                "extends": "paper",
                "name": file.stem,
                "base_model": str(checkpoint),
                "clip_model": str(checkpoint / "clip"),
                "adapter": str(file.parent / f"{file.stem}-adapter"),
                "resolution": SIDE,
                "num_inference_steps": 2,
                "recognisers": ["Dlib"],
                "detector": "dlib",
                "training": training | changes.pop("training", {}),
            }
            | changes
        )
    )
    return file
