"""How long imports and the command line's help take, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.alternate import Call, Setting, compare
from companion.pages.benchmark_records import Group
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT


def run(setting: Setting) -> list[Group]:
    """Measure how much longer each process takes than bare Python, in seconds."""
    calls = {
        "bare Python": process("-c", "pass"),
        "import fusionlib": process("-c", "import fusionlib"),
        "fusionlib --help": process("-m", "fusionlib", "--help"),
    }
    if setting.size != "tiny":
        calls |= {
            "import torch": process("-c", "import torch"),
            "diffusers' pipeline": process("-c", "from diffusers import StableDiffusionPipeline"),
            "FusionPipeline": process("-c", "from fusionlib import FusionPipeline"),
        }
    title = "A process, from its start to its end"
    return [compare(title, calls, setting, shows="difference")]


def process(*arguments: str) -> Call:
    """A call that runs Python with these arguments in the repository, without a model hub.

    If the process fails, the call raises a `FusionError` with the last line that it wrote.
    """

    def call() -> None:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        env = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
            raise FusionError(f"`python {' '.join(arguments)}` failed: {last}")

    return call
