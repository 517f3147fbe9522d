"""Fixtures of the tables of hostile inputs."""

import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from tests.helpers.hostile import Place

SECONDS = 60
"""Time after which a case counts as hanging."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """An empty current folder, with the home folder in it, so that nothing is written unseen."""
    root = tmp_path / "place"
    (root / "home").mkdir(parents=True)
    monkeypatch.chdir(root)
    monkeypatch.setenv("HOME", str(root / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    return Place(root)


@pytest.fixture(autouse=True)
def no_hanging() -> Iterator[None]:
    """End a case that waits for ever, for a pipe that is never written for example."""

    def over(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"still not done after {SECONDS} seconds")

    former = signal.signal(signal.SIGALRM, over)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Homes for DeepFace's links and Matplotlib's fonts, outside of what is compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPFACE_HOME", str(tmp_path_factory.mktemp("deepface")))
        patch.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("matplotlib")))
        yield
