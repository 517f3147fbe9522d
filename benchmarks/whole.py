"""The whole: how long a first picture takes, and where the minutes of `make reproduce` go.

Reproducing is not done again here: ``manifest.json``, which `fusionlib reproduce` leaves, says how
long each stage took when it was last run.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.alternate import Setting, compare
from benchmarks.startup import process
from companion.pages.benchmark_records import Group, Row
from fusionlib.errors import FusionError
from fusionlib.profiles import load_profile

STOCK = """
import torch
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained({model!r}, safety_checker=None)
pipeline.to({device!r})("a photo of a person", num_inference_steps={steps}).images[0].save({out!r})
"""
"""What a user of diffusers would write for a picture without a face, of the same model."""

ROUNDS = 5
"""At most: each is three processes that import everything."""


def run(setting: Setting) -> list[Group]:
    """Time the first picture of a process, and read what the last reproduction recorded."""
    record = setting.reproduced / "manifest.json"
    few = replace(setting, repeats=min(setting.repeats, ROUNDS))
    if record.is_file():
        return [_first_picture(few, ""), stages(record)]
    return [_first_picture(few, f"No reproduction is recorded in {setting.reproduced.name}/.")]


def _first_picture(setting: Setting, note: str) -> Group:
    """With the repository's own weights: a command that ends with a file on the disk."""
    profile = load_profile("embedded")
    tiny = setting.size == "tiny"
    steps = 1 if tiny else profile.num_inference_steps
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
            warm_up=0 if tiny else 1,
            note=note,
        )


def stages(record: Path) -> Group:
    """Minutes of each stage of a reproduction, the longest first.

    Args:
        record: the ``manifest.json`` that `companion.publishing.reproduce` wrote.

    Raises:
        FusionError: it is damaged, or of no stage.
    """
    try:
        content = json.loads(record.read_text("utf-8"))
        minutes = {stage["name"]: stage["seconds"] / 60 for stage in content["stages"]}
        facts = f"profile {content['profile']}, commit {str(content['commit'])[:8]}"
        when = content["created"][:10]
        if not minutes:
            raise ValueError("no stage")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FusionError(
            f"{record} cannot be read ({type(error).__name__}: {error}): run `make reproduce`."
        ) from error
    failed = ", ".join(content.get("failed", {}))
    return Group(
        "make reproduce, minutes by stage",
        "minutes",
        tuple(
            Row(name, (minutes[name],)) for name in sorted(minutes, key=minutes.__getitem__)[::-1]
        ),
        "value",
        f"The stages of make reproduce, together {sum(minutes.values()):.1f} minutes, were taken "
        f"from the last run of each on this machine ({facts}, {when})."
        + (f" Failed: {failed}." if failed else ""),
    )
