"""The folder of a reproduction: what it may replace, and what a signal leaves in it."""

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from companion.publishing.book import build_book
from companion.publishing.exports import export_notebook, remove_exports
from companion.publishing.notebooks import execute_notebook
from companion.publishing.reproduce import reproduce
from companion.publishing.stored_outputs import store_outputs
from companion.publishing.tasks import run_in_order
from fusionlib.errors import FusionError
from fusionlib.support.files import locked
from fusionlib.support.signals import Stopped, obeyed
from tests.helpers.tiny_book import make_repository
from tests.helpers.trees import tree, write_tree

SLEEPS = (
    "import os, pathlib, time\npathlib.Path('{0}').write_text(str(os.getpid()))\ntime.sleep(600)"
)


@pytest.mark.parametrize("name", ["book/index.html", "book.pdf", "book-source/a", "manifest.json"])
def test_what_others_built_is_not_replaced(tmp_path: Path, name: str) -> None:
    root = make_repository(tmp_path / "root", "1")
    write_tree(tmp_path / "out", {name: "mine"})
    before = tree(tmp_path)
    for attempt in (reproduce, lambda out, root: build_book(out, root=root)):
        with pytest.raises(FusionError, match="which no reproduction made here"):
            attempt(out=tmp_path / "out", root=root)
        assert tree(tmp_path) == before


def test_exports_of_others_are_not_deleted(tmp_path: Path) -> None:
    import nbformat

    write_tree(tmp_path / "out" / "exports" / "fig", {"mine.png": "1"})
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "fig.ipynb")
    before = tree(tmp_path)
    remove_exports(tmp_path / "out", "fig")
    with pytest.raises(FusionError, match=r"holds mine\.png"):
        export_notebook(tmp_path / "fig.ipynb", tmp_path / "out", {"digest": "1"})
    assert tree(tmp_path) == before


def test_a_notebook_is_never_run_onto_itself(tmp_path: Path) -> None:
    root = make_repository(tmp_path / "root", "1")
    (tmp_path / "link").symlink_to(root / "notebooks")
    before = tree(tmp_path)
    notebook = root / "notebooks" / "tiny.ipynb"
    with pytest.raises(FusionError, match="which is read"):
        execute_notebook(notebook, tmp_path / "link" / "tiny.ipynb", tmp_path / "failed.ipynb")
    assert tree(tmp_path) == before


def test_two_reproductions_in_one_folder_keep_apart(tmp_path: Path) -> None:
    root, out = make_repository(tmp_path / "root", "1"), tmp_path / "out"
    for name, run in (
        ("executed", lambda: reproduce(out=out, root=root, book=False)),
        ("book-source", lambda: build_book(out, root=root)),
        ("stored", lambda: store_outputs(out=out, root=root)),
    ):
        with locked(out / name), pytest.raises(FusionError, match="Another process is writing"):
            run()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_signal_ends_kernels_and_leaves_nothing_half_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], jobs: int
) -> None:
    file = tmp_path / "pid"
    sources = {"slow": SLEEPS.format(file), "next": "1"}
    root = make_repository(tmp_path / "root", sources, after={"next": ["slow"]})
    before = tree(root)

    def stop() -> None:
        while not (file.exists() and file.read_text()):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(Stopped), obeyed():
        reproduce(out=tmp_path / "out", root=root, book=False, jobs=jobs)
    assert not psutil.pid_exists(int(file.read_text()))
    left = [name for name, content in tree(tmp_path / "out").items() if content is not None]
    assert not left and tree(root) == before
    assert "failed" not in capsys.readouterr().out


def test_a_task_that_does_not_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from companion.publishing import tasks

    monkeypatch.setattr(tasks, "PATIENCE", 0.1)

    def run(name: str, _: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)

    began = time.monotonic()
    with pytest.raises(Stopped), obeyed():
        run_in_order({"a": []}, run)
    assert time.monotonic() - began < 20
