"""Rendered people are written beside nothing else, and two runs keep apart."""

import json
from pathlib import Path
from typing import Any

import pytest

from companion.people import dataset
from fusionlib.errors import FusionError
from fusionlib.support.files import locked
from tests.helpers.trees import tree, write_tree

SAMPLE = dataset.Sample(
    "000000000",
    {"person": 0, "view": 0} | dict.fromkeys(set(dataset.INDEX_FIELDS) - {"person", "view"}, ""),
    {"jpg": b"jpg", "txt": b"txt"},
)


@pytest.fixture(autouse=True)
def painted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that takes no time."""
    monkeypatch.setattr(dataset, "make_samples", lambda *_: iter([SAMPLE]))
    monkeypatch.setattr(dataset, "require", lambda *_: None)


def export(out: Path) -> Path:
    return dataset.export_files(out, people=1, views=1)


def test_a_set_of_ours_is_written_again_and_a_killed_one_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: Any) -> Any:
        yield SAMPLE
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dataset, "make_samples", dies)
        export(tmp_path / "set")
    assert not json.loads((tmp_path / "set" / "manifest.json").read_text())["complete"]
    export(tmp_path / "set")
    before = tree(tmp_path)
    (tmp_path / "link").symlink_to("set")
    export(tmp_path / "link")
    assert tree(tmp_path) == before | {"link": "set"}


FOREIGN: dict[str, dict[str, str | bytes]] = {
    "an index": {"index.csv": "mine\n"},
    "a manifest": {"manifest.json": '{"mine": 1}'},
    "pictures": {"IMG_1.jpg": "1"},
    "pictures of our names": {"0000_0.jpg": "1"},
    "notes beside a set": {"manifest.json": '{"first_person": 0}', "notes.txt": "1"},
}


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN.keys())
def test_nothing_of_others_is_written_over(tmp_path: Path, files: dict[str, str | bytes]) -> None:
    write_tree(tmp_path / "set", files)
    before = tree(tmp_path)
    for write in (export, lambda out: dataset.render_dataset(out, people=1, views=1)):
        with pytest.raises(FusionError, match="which this command did not make"):
            write(tmp_path / "set")
    assert tree(tmp_path) == before


def test_a_second_run_in_a_folder_is_refused(tmp_path: Path) -> None:
    export(tmp_path / "set")
    before, busy = tree(tmp_path), locked(tmp_path / "set", inside=True)
    with busy, pytest.raises(FusionError, match="Another process is writing"):
        export(tmp_path / "set")
    assert tree(tmp_path) == before
