"""What a result was made from: hashes of files and weights, versions, the commit."""

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

PACKAGES = ("fusionlib", "torch", "diffusers", "transformers", "deepface", "dlib-bin", "numpy")
"""Distributions whose version can change a picture or a number."""


def sha256_file(path: str | Path) -> str:
    """Hash of a file's content, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_folder(path: str | Path) -> str:
    """Hash of a folder: of the relative names and contents of all files in it, in name order."""
    path = Path(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return sha256_json([[file.relative_to(path).as_posix(), sha256_file(file)] for file in files])


def sha256_json(value: Any) -> str:
    """Hash of anything JSON can hold, whatever the order of its dictionaries' keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_modules(modules: Iterable[Module]) -> str:
    """Hash of the weights as loaded: names, shapes, types and values of all tensors.

    What is loaded is what is hashed, so a local folder, a hub download and a model changed in
    memory are all told apart by the same rule. About 0.5 s for each gigabyte.
    """
    import torch

    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def package_versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Installed versions by distribution name; packages that are not installed are left out."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_commit(folder: str | Path | None = None) -> str | None:
    """Commit that the code in `folder` was run from, with ``-dirty`` added if it was changed since.

    Args:
        folder: a folder inside a checkout; by default the one that holds this package.

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
    """What the CPU calls itself, or its kind where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def manifest(**settings: Any) -> dict[str, Any]:
    """A record to store beside results: the given settings, and where and with what they ran."""
    return {
        **settings,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": package_versions(),
    }
