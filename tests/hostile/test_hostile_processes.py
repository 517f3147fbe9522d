"""Hostile surroundings: signals at bad moments, two runs at once, streams and folders that go."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from fusionlib.inputs.images import read_metadata
from tests.helpers import hostile_process as process
from tests.helpers.hostile import Place, nothing_lost
from tests.helpers.hostile_process import Ended, start
from tests.helpers.training_data import write_set
from tests.helpers.trees import written

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs signals")

CACHE = "home/.cache/*"
"""What libraries keep in a home folder, such as onnxruntime's database."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def profile(place: Place, tiny_profile: Path) -> Path:
    """The tiny profile, and what commands are given."""
    Image.new("RGB", (48, 48), "red").save("face.png")
    write_set(Path("set"), 4, each=2)
    study = {
        "name": "first", "profile": "tiny.yaml", "methods": ["text-only"],
        "people": {"names": ["ada", "ben"]}, "prompts": ["a face"],
    }  # fmt: skip
    written("study.yaml", yaml.safe_dump(study))
    return written("tiny.yaml", tiny_profile.read_bytes()).absolute()


PAINT = ["generate", "--profile", "tiny.yaml", "--reference", "face.png", "--crop", "none", "--prompt", "a", "--out", "out.png", "--count", "2"]  # fmt: skip
RUN = ["study", "run", "study.yaml", "--store", "store"]
PREPARE = ["data", "prepare", "set", "out", "--workers", "1"]

MOMENTS: dict[str, tuple[list[str], str, int, tuple[str, ...]]] = {
    "loading": (PAINT, "fusionlib.profiles.loading:load_pipeline", 1, ()),
    "painting": (PAINT, "fusionlib.pipeline:FusionPipeline.__call__", 2, ("out-0.png",)),
    "writing": (PAINT, "PIL.Image:Image.save", 2, ("out-[01].png",)),
    "a study's first picture": (RUN, "companion.studies.store:Store.add", 1, ("store/*",)),
    "a study's last picture": (RUN, "companion.studies.store:Store.add", 2, ("store/*",)),
    "a study's record": (RUN, "companion.studies.store:Store.declare", 1, ("store/*",)),
    "selecting": (PREPARE, "fusionlib.training.prepare:select", 1, ("out/*",)),
    "the second shard": (PREPARE, "fusionlib.training.prepare:select", 3, ("out/*",)),
}


def assert_clean(ended: Ended) -> None:
    assert "Traceback" not in ended.said and "Exception ignored" not in ended.said, ended.said


@pytest.mark.parametrize(
    ("moment", "number"), [(moment, SIGNALS[n % 3]) for n, moment in enumerate(MOMENTS)], ids=str
)
def test_a_signal_ends_a_command_cleanly(
    place: Place, profile: Path, moment: str, number: signal.Signals
) -> None:
    """No traceback, nothing half written under a final name, no litter; the same command goes on."""
    command, function, call, writes = MOMENTS[moment]
    with nothing_lost(place.root, *writes, CACHE):
        ended = start(
            place.root, command, prepare=process.signalled, given=(function, number, call)
        )()
    assert_clean(ended)
    assert ended.code in (1, 128 + number, -number), ended
    for path in place.root.rglob("*.png"):
        Image.open(path).load()
    litter = [
        str(p) for p in place.root.rglob("*") if p.name.startswith(".") or "partial" in p.name
    ]
    assert not litter


AGAIN = {
    "generate": (PAINT, ("out-[01].png",)),
    "study run": (RUN, ("store/*",)),
    "data prepare": (PREPARE, ("out/*",)),
}


@pytest.mark.parametrize("command", AGAIN)
def test_two_runs_in_one_folder(place: Place, profile: Path, command: str) -> None:
    """Each ends well, or says in one sentence that another one is at it; the result is whole."""
    arguments, writes = AGAIN[command]
    with nothing_lost(place.root, *writes, CACHE):
        first, second = start(place.root, arguments), start(place.root, arguments)
        ends = [first(), second()]
    assert 0 in [ended.code for ended in ends], ends
    for ended in ends:
        assert_clean(ended)
        assert ended.code == 0 or ended.err.strip().splitlines()[-1].startswith("Error: "), ended
    for path in place.root.rglob("*.png"):
        Image.open(path).load()
        assert (
            path.name == "face.png" or read_metadata(path)["prompt"] == "a" or "store" in str(path)
        )


SURROUNDINGS: dict[str, tuple[list[str], dict[str, str | None], Callable[..., None] | None, tuple[Any, ...], tuple[int, ...]]] = {
    "no home": (PAINT, {"HOME": None}, None, (), (0,)),
    "a home that is not there": (PAINT, {"HOME": "/nonexistent"}, None, (), (0,)),
    "a home that is a file": (PAINT, {"HOME": "/dev/null"}, None, (), (0,)),
    "another time zone": (RUN, {"TZ": "Pacific/Apia"}, None, (), (0,)),
    "a time zone of nonsense": (RUN, {"TZ": "Mars/Olympus"}, None, (), (0,)),
    "no path": (RUN, {"PATH": None}, None, (), (0,)),
    "a folder for temporary files that is gone": (PAINT, {"TMPDIR": "/nonexistent"}, None, (), (0,)),
    "no columns": (RUN, {"COLUMNS": "0"}, None, (), (0,)),
    "a rank that is none": (RUN, {"WORLD_SIZE": "2", "RANK": "x"}, None, (), (1,)),
    "a rank beyond all": (RUN, {"WORLD_SIZE": "2", "RANK": "7"}, None, (), (1,)),
    "a world of none": (RUN, {"WORLD_SIZE": "many"}, None, (), (1,)),
    "help with no input": (["--help"], {}, process.closed, (0,), (0,)),
    "help into a closed pipe": (["--help"], {}, process.broken_pipe, (), (0, 1)),
    "pictures into a closed pipe": (PAINT, {}, process.broken_pipe, (), (0, 1)),
    "a study into a closed pipe": (RUN, {}, process.broken_pipe, (), (0, 1)),
    "words onto a full disk": (PAINT, {}, process.full_disk, (), (1,)),
    "statistics onto a full disk": (["data", "statistics", "set"], {}, process.full_disk, (), (1,)),
}  # fmt: skip


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_odd_surroundings(place: Place, profile: Path, name: str) -> None:
    arguments, environment, prepare, given, codes = SURROUNDINGS[name]
    with nothing_lost(place.root, "out-[01].png", "store/*", CACHE):
        ended = start(
            place.root, arguments, environment=environment, prepare=prepare, given=given
        )()
    assert_clean(ended)
    assert ended.code in codes, ended
    if ended.code == 1 and "pipe" not in name:
        assert ended.err.strip().splitlines()[-1].startswith("Error: "), ended


def test_a_current_folder_that_is_gone(place: Place, profile: Path) -> None:
    gone = place.root / "gone"
    for words, code in ((["--version"], 0), (PAINT, 1), (["data", "statistics", "set"], 1)):
        gone.mkdir()
        with nothing_lost(place.root, "gone", CACHE):
            ended = start(place.root / "gone", words, prepare=process.deleted_folder)()
            gone.mkdir()
        gone.rmdir()
        assert_clean(ended)
        assert ended.code == code, ended


@pytest.mark.parametrize("mask", [0o077, 0o002])
def test_files_have_the_permissions_that_the_user_gives(
    place: Place, profile: Path, mask: int
) -> None:
    for command, pattern in (
        (PAINT, "out-0.png"),
        (RUN, "store/images/*/*.png"),
        (PREPARE, "out/*.tar"),
    ):
        with nothing_lost(place.root, "out-[01].png", "store/*", "out/*", CACHE):
            assert start(place.root, command, prepare=process.masked, given=(mask,))().code == 0
        path = next(place.root.glob(pattern))
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
        if path.parent != place.root:
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o777 & ~mask


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["generate", "--prompt", "é", "--out", "é.jpg"], 1),
        (["generate", "--prompt", "a", "--reference", os.fsdecode(b"caf\xe9.png"), "--out", "a.png"], 1),
        (["study", "run", "李.yaml"], 1),
    ],
    ids=["help", "an accent", "a name that is not UTF-8", "a name in Chinese"],
)  # fmt: skip
def test_a_locale_without_letters(place: Place, arguments: list[str], code: int) -> None:
    """The real C locale, in a real process: what cannot be printed is escaped."""
    environment = {
        **os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    with nothing_lost(place.root):
        done = subprocess.run(
            [sys.executable, "-m", "fusionlib", *arguments], env=environment, capture_output=True, timeout=100
        )  # fmt: skip
    said = (done.stdout + done.stderr).decode("utf-8", "replace")
    assert done.returncode == code and "Traceback" not in said, said
