"""The whole: where the minutes of `make reproduce` go, and how long a first picture takes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.alternate import Setting, compare
from benchmarks.startup import process
from fusionlib.benchmarked import Group, Row
from fusionlib.profiles import ROOT, load_profile
from fusionlib.stages import read_stamp
from fusionlib.toc import toc_notebooks

STOCK = """
import torch
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained({model!r}, safety_checker=None)
pipeline.to({device!r})("a photo of a person", num_inference_steps={steps}).images[0].save({out!r})
"""
"""What a user of diffusers would write for a picture without a face, of the same model."""


def run(setting: Setting) -> list[Group]:
    """Time the first picture of a process, and read what the last reproduction recorded."""
    groups = [] if setting.size == "full" else [_first_picture(setting)]
    stages = _stages(ROOT / "build")
    if stages and setting.size == "embedded":
        rows = tuple(Row(name, (seconds / 60,)) for name, seconds in stages.items())
        note = "Each as it was last run here, by `make reproduce`."
        title = "make reproduce, minutes by stage"
        groups.append(Group(title, "minutes", rows, "value", note))
    return groups


def _first_picture(setting: Setting) -> Group:
    """With the repository's own weights: a command that ends with a file on the disk."""
    profile = load_profile("embedded")
    steps = 1 if setting.size == "tiny" else profile.num_inference_steps
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "picture.png")
        facts = {"model": profile.base_model, "device": setting.device, "out": out}
        command = ["-m", "fusionlib", "generate", "--prompt", "a photo of a person", "--out", out]
        command += ["--device", setting.device, "--steps", str(steps)]
        reference = f"{profile.heldout}/0000_0.jpg"
        return compare(
            "The first picture of a new process, seconds",
            {
                "diffusers, no face": process("-c", STOCK.format(steps=steps, **facts)),
                "fusionlib generate, no face": process(*command),
                "fusionlib generate, one face": process(*command, "--reference", reference),
            },
            setting,
        )


def _stages(out: Path) -> dict[str, float]:
    """Seconds of each stage that was recorded, in the book's order."""
    names = [*(Path(name).stem for name in toc_notebooks(ROOT)), "book"]
    stamps = {name: read_stamp(out, name) for name in names}
    return {name: stamp.seconds for name, stamp in stamps.items() if stamp}
