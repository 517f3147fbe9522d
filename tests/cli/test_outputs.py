"""What every command does before it writes, and how it ends when it is asked to."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer
from typer.testing import CliRunner

from companion.cli.options import one_sentence
from fusionlib.cli import app
from fusionlib.profiles import ROOT
from tests.helpers.trees import tree, write_tree

HELDOUT = ROOT / "data" / "heldout"
FACE = (HELDOUT / "0000_0.jpg").read_bytes()

runner = CliRunner()

STUDY = """name: one
profile: embedded
methods: [text-only]
people: {count: 1, only: {style: photo}}
prompts: [a face]
"""

FILES: dict[str, str | bytes] = {
    "me.png": FACE,
    "holiday.png": FACE,
    "notes/todo.txt": "1",
    "table.csv": "name,age\n",
    "weights.safetensors": "1",
    "study.yaml": STUDY,
    "judged/references/ada.jpg": FACE,
    "judged/one/ada.jpg": FACE,
    "judged/index.csv": "image,person,method\none/ada.jpg,ada,one\n",
    "photos/ada/1.jpg": FACE,
    "set/00000.tar": "1",
    "set/index.csv": "a,b\n",
    "set/manifest.json": "{}",
    "site/book/index.html": "1",
}

GENERATE = ("generate", "--prompt", "a face", "--reference", "me.png", "--crop", "none", "--out")
RENDER = ("people", "render", "--people", "1", "--views", "1")
EVALUATE = ("evaluate", "judged", "--clip", "none", "--classifier", "none")

REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "a picture over its reference": ((*GENERATE, "me.png"), "me.png"),
    "a picture over its reference, by a link": ((*GENERATE, "link.png"), "link.png"),
    "a picture over a photograph": ((*GENERATE, "holiday.png"), "was not made by this command"),
    "a picture over a folder": ((*GENERATE, "a.png/../judged"), "must end in .png"),
    "a picture below a file": ((*GENERATE, "table.csv/a.png"), "cannot be written"),
    "numbers over its source": ((*EVALUATE, "--out", "judged/index.csv"), "was not made by this"),
    "numbers over a table": ((*EVALUATE, "--out", "table.csv"), "was not made by this command"),
    "numbers over a folder": ((*EVALUATE, "--out", "judged"), "is a folder: give the name"),
    "a record over a table": ((*EVALUATE, "--record", "table.csv"), "was not made by this"),
    "a cache below a file": ((*EVALUATE, "--cache", "table.csv/a"), "cannot be written"),
    "a cache over a file": ((*EVALUATE, "--cache", "table.csv"), "is a file: give the name"),
    "a store over a file": (("study", "run", "study.yaml", "--store", "table.csv"), "is a file"),
    "costs over a table": (
        ("study", "costs", "study.yaml", "--record", "table.csv"), "was not made by this"
    ),
    "costs over the study": (
        ("study", "costs", "study.yaml", "--record", "study.yaml"), "was not made by this"
    ),
    "people over a set": ((*RENDER, "set"), "which this command did not make"),
    "files over a set": ((*RENDER, "--files", "set"), "which this command did not make"),
    "people over notes": ((*RENDER, "notes"), "holds todo.txt, which this command did not make"),
    "people over a file": ((*RENDER, "table.csv"), "is a file: give the name of a folder"),
    "people below a file": ((*RENDER, "table.csv/a"), "cannot be written"),
    "cut people over a folder": (("data", "people", "photos", "photos"), "photos exists"),
    "cut people over a file": (("data", "people", "photos", "table.csv"), "exists"),
    "embeddings over weights": (
        ("data", "embed", "set", "weights.safetensors"), "was not made by this command"
    ),
    "embeddings over a folder": (("data", "embed", "set", "judged"), "is a folder"),
    "an adapter over notes": (("train", "adapter", "--out", "notes"), "holds todo.txt"),
    "an adapter here": (("train", "adapter", "--out", "."), "the folder that you are in"),
    "an adapter over a file": (("train", "adapter", "--out", "table.csv"), "is a file"),
    "a method over notes": (("train", "method", "ip-adapter", "--out", "notes"), "holds todo.txt"),
    "a book over a site": (("book", "--out", "site"), "holds book, which no reproduction made"),
    "a reproduction over a site": (
        ("reproduce", "--out", "site", "--only", "claims"), "holds book, which no reproduction"
    ),
    "a reproduction over a file": (
        ("reproduce", "--out", "table.csv", "--only", "claims"), "is a file"
    ),
    "stored outputs over a file": (("notebooks", "claims", "--out", "table.csv"), "cannot be"),
}  # fmt: skip


@pytest.mark.parametrize("arguments, says", REFUSED.values(), ids=REFUSED.keys())
def test_an_output_that_would_lose_something_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    write_tree(tmp_path, FILES)
    (tmp_path / "link.png").symlink_to("me.png")
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    done = runner.invoke(app, list(arguments))
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.output
    *_, line = done.stderr.strip().splitlines()  # transformers warns when it is imported
    assert line.startswith("Error: ") and says in line
    assert tree(tmp_path) == before


@pytest.mark.parametrize("folder", [".", "book", "data", "notebooks"])
def test_a_reproduction_never_writes_over_its_sources(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in (["reproduce", "--only", "claims"], ["book"], ["book", "--pdf"]):
        if "--pdf" in command:
            monkeypatch.setenv("CHROME_PATH", sys.executable)
        done = runner.invoke(app, [*command, "--out", str(ROOT / folder)])
        assert done.exit_code == 1 and "which is read: choose another place" in done.stderr


def _command(function: Callable[[], Any]) -> typer.Typer:
    app = typer.Typer()
    app.command()(one_sentence(function))
    return app


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_ends_a_command_and_its_children(number: int) -> None:
    started = []

    def work() -> None:
        started.append(subprocess.Popen(["sleep", "600"]))
        os.kill(os.getpid(), number)
        time.sleep(600)

    done = runner.invoke(_command(work), [])
    assert done.exit_code == 128 + number
    name = signal.Signals(number).name
    assert done.stderr == f"Stopped by {name}: the same command goes on from there.\n"
    assert not psutil.pid_exists(started[0].pid)


def test_a_full_disk_is_a_sentence() -> None:
    def work() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "build/a.png")

    done = runner.invoke(_command(work), [])
    assert done.exit_code == 1
    said = "Error: build/a.png: No space left on device. What was there before is still whole.\n"
    assert done.stderr == said


def test_workers_of_a_study_end_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`study run --workers 2` under SIGTERM: both workers are asked, and waited for."""
    worker = tmp_path / "worker"
    worker.write_text(
        f"#!{sys.executable}\n"
        "import os, pathlib, signal, sys, time\n"
        f"file = pathlib.Path({str(tmp_path)!r}, f'{{os.getpid()}}.pid')\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "file.touch()\n"
        "try:\n    time.sleep(600)\nfinally:\n    time.sleep(0.3); file.unlink()\n"
    )
    worker.chmod(0o755)
    (tmp_path / "study.yaml").write_text(STUDY)
    monkeypatch.setattr(sys, "executable", str(worker))
    pids: list[int] = []

    def stop() -> None:
        while len(files := list(tmp_path.glob("*.pid"))) < 2:
            time.sleep(0.05)
        pids.extend(int(file.stem) for file in files)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    study = ["study", "run", str(tmp_path / "study.yaml"), "--store", str(tmp_path / "store")]
    done = runner.invoke(app, [*study, "--workers", "2"])
    assert done.exit_code == 143 and "Stopped by SIGTERM" in done.stderr
    assert len(pids) == 2 and not any(psutil.pid_exists(pid) for pid in pids)
    assert not list(tmp_path.glob("*.pid")), "each came to its own end"
