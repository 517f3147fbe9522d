"""Fixtures for every test file."""

import os
import signal
from multiprocessing import forkserver
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that asks the hub for something is a bug

# Ignored under nohup and in a shell's background, of which tests of signals must know nothing.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        default = signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL
        signal.signal(_number, default)


@pytest.fixture(autouse=True)
def a_living_fork_server() -> None:
    """Forget a fork server that a test of signals has ended, as it ends all children."""
    import psutil

    server = forkserver._forkserver  # type: ignore[attr-defined]
    if server._forkserver_pid is not None and not psutil.pid_exists(server._forkserver_pid):
        os.close(server._forkserver_alive_fd)
        server._forkserver_address = server._forkserver_alive_fd = server._forkserver_pid = None


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight Stable Diffusion folder of 32x32 pixels, with ``clip/`` and ``adapter/``."""
    from tests.helpers.tiny import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def tiny_profile(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an embedded profile with the tiny checkpoint and three steps."""
    import yaml

    from fusionlib.profiles import load_profile

    settings = load_profile("embedded").model_dump(mode="json")
    settings.update(
        base_model=str(tiny_checkpoint),
        adapter=str(tiny_checkpoint / "adapter"),
        num_inference_steps=3,
    )
    path = tmp_path_factory.mktemp("profile") / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path
