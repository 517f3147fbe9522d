"""Hostile disks: full, read-only, gone; what was there stays, and nothing half written is left."""

import builtins
import errno
import io
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from companion.person import frame_people
from companion.studies.picture_folder import export_study
from fusionlib import FusionAdapter, FusionPipeline, ReferenceCache, encode_references
from fusionlib.errors import FusionError
from fusionlib.inputs.images import save_png
from fusionlib.profiles import ROOT
from fusionlib.support.files import write_text
from fusionlib.training.prepare import prepare_shards
from tests.helpers.hostile import Case, Place, assert_says, nothing_lost, refused
from tests.helpers.tiny import tiny_unet
from tests.helpers.training_data import write_profile, write_set
from tests.helpers.trees import linked, pipe, written

HELDOUT = ROOT / "data" / "heldout"


@contextmanager
def full_disk(at_bytes: int = 300) -> Iterator[None]:
    """No file may grow beyond some bytes: the system's own error, in the middle of a write."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at_bytes, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


def failing(number: int, *names: str) -> Callable[[], Any]:
    """Functions that fail inside the place, as on a disk that went read-only.

    Args:
        number: Number of the error.
        names: Functions of ``os``, and ``open`` for every way to open a file for writing.
    """

    @contextmanager
    def fail() -> Iterator[None]:
        root = os.getcwd()

        def refusing(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(path: Any, *args: Any, **more: Any) -> Any:
                named = isinstance(path, str | os.PathLike)
                how = args[0] if args else more.get("mode", more.get("flags", "r"))
                writing = (
                    how & (os.O_WRONLY | os.O_RDWR)
                    if isinstance(how, int)
                    else set("wax+") & set(str(how))
                )
                if (
                    named
                    and os.path.abspath(path).startswith(root)
                    and (writing or original.__name__ != "open")
                ):
                    raise OSError(number, os.strerror(number), str(path))
                return original(path, *args, **more)

            return wrapped

        with pytest.MonkeyPatch.context() as patch:
            for name in names:
                for module in (os, io, builtins) if name == "open" else (os,):
                    patch.setattr(module, name, refusing(getattr(module, name)))
            yield

    return fail


FAULTS: dict[str, Callable[[], Any]] = {
    "a full disk": full_disk,
    "a folder that is read-only": failing(errno.EROFS, "open", "mkdir", "rename", "replace", "link", "symlink"),
    "a folder without permission": failing(errno.EACCES, "open", "mkdir", "rename", "replace"),
    "a name that may not be replaced": failing(errno.EPERM, "rename", "replace"),
    "no room for a name": failing(errno.ENOSPC, "open", "mkdir"),
    "a quota": failing(errno.EDQUOT, "rename", "replace"),
    "a broken disk": failing(errno.EIO, "open", "replace", "rename"),
}  # fmt: skip


class Writers:
    """What the library and the commands write, each to a name that is given."""

    def __init__(self, profile: Path) -> None:
        self.profile = profile
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            unet = tiny_unet()
            self.adapter = FusionAdapter.from_unet(unet)
            self.adapter.attach(unet)
            states = encode_references(unet, torch.zeros(1, 4, 8, 8), torch.zeros(1, 16, 16))
            self.cache: ReferenceCache = self.adapter.cache(states)

    def picture(self, name: str) -> None:
        save_png(Image.open(HELDOUT / "0000_0.jpg"), f"{name}.png", {"prompt": "a"})

    def text(self, name: str) -> None:
        write_text(Path(f"{name}.txt"), "a" * 5000)

    def references(self, name: str) -> None:
        self.cache.save(f"{name}.safetensors")

    def shards(self, name: str) -> None:
        prepare_shards("set", Path(name), workers=1)

    def people(self, name: str) -> None:
        frame_people("mine", name, 64)


KINDS = {
    "picture": "new.png",
    "text": "new.txt",
    "references": "new.safetensors",
    "shards": "new",
    "people": "new",
}


@pytest.fixture(scope="module")
def writers(tiny_profile: Path) -> Writers:
    return Writers(tiny_profile)


@pytest.fixture
def sources(place: Place) -> None:
    write_set(Path("set"), 2, each=2)
    written("mine/ada/1.jpg", (HELDOUT / "0000_0.jpg").read_bytes())


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_fails_is_named_and_nothing_is_left(
    place: Place, sources: None, writers: Writers, kind: str, fault: str
) -> None:
    """A first file is not begun for nothing, and an old one stays whole."""
    write, writes = getattr(writers, kind), ("new", "new/*") if KINDS[kind] == "new" else ()
    failed = pytest.raises((FusionError, OSError))
    with nothing_lost(place.root, *writes), failed as caught, FAULTS[fault]():
        write("new")
    # The command line makes a sentence of the system's error, which names the file and the reason.
    assert_says(str(caught.value), ["new"])
    left = [p for p in place.root.rglob("*") if p.name.startswith(".") or "partial" in p.name]
    assert not left
    write("new")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["picture", "text", "references"])
def test_an_old_file_survives_a_disk_that_fails(
    place: Place, writers: Writers, kind: str, fault: str
) -> None:
    write = getattr(writers, kind)
    write("new")
    failed = pytest.raises((FusionError, OSError))
    with nothing_lost(place.root), failed, FAULTS[fault]():
        write("new")
    with nothing_lost(place.root, KINDS[kind]):
        write("new")


@pytest.mark.parametrize("kind", ["picture", "text", "references"])
def test_no_file_takes_the_place_of_a_pipe(place: Place, writers: Writers, kind: str) -> None:
    """Root's results once took the place of devices that a link led to."""
    linked(KINDS[kind], str(pipe("pipe")))
    with nothing_lost(place.root), pytest.raises((FusionError, OSError), match="file|pipe"):
        getattr(writers, kind)("new")


COMMANDS = {
    "generate": (["generate", "--profile", "PROFILE", "--prompt", "a", "--out", "new/out.png"], "out.png"),
    "study run": (["study", "run", "study.yaml", "--store", "new"], "new"),
    "data prepare": (["data", "prepare", "set", "new", "--workers", "1"], "new"),
    "data people": (["data", "people", "mine", "new", "--size", "64"], "new"),
    "evaluate": (["evaluate", "judged", "--profile", "PROFILE", "--clip", "none", "--classifier", "none", "--out", "new/a.csv"], "written"),
    "train": (["train", "adapter", "--profile", "training.yaml", "--out", "new", "--steps", "1"], "Error: "),
}  # fmt: skip


@pytest.mark.parametrize(
    "fault", ["a full disk", "a folder that is read-only", "a name that may not be replaced"]
)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_on_a_disk_that_fails_ends_in_a_sentence(
    place: Place, sources: None, tiny_profile: Path, tiny_checkpoint: Path, command: str, fault: str
) -> None:
    study = {"name": "first", "profile": str(tiny_profile), "methods": ["text-only"], "people": {"names": ["ada"]}, "prompts": ["a face"]}  # fmt: skip
    written("study.yaml", yaml.safe_dump(study))
    for place_of, name in (("references/p.jpg", "0000_0.jpg"), ("ours/p.jpg", "0000_1.jpg")):
        written(f"judged/{place_of}", (HELDOUT / name).read_bytes())
    write_profile(Path("training.yaml"), tiny_checkpoint, Path("set"))
    arguments, named = COMMANDS[command]
    words = [str(tiny_profile) if part == "PROFILE" else part for part in arguments]
    case = refused(
        command, words, named, writes=("new", "new/*", "runs", "runs/*", "build", "build/*")
    )
    with FAULTS[fault]():
        place.run(case)
    left = [str(p) for p in place.root.rglob("*") if p.name.startswith(".") or "partial" in p.name]
    assert not left


@pytest.mark.parametrize("name", ["export", "adapter", "pipeline"])
def test_a_folder_is_whole_or_not_there(
    place: Place, tiny_profile: Path, tiny_checkpoint: Path, name: str
) -> None:
    """What is written as a folder does not pass for whole when the disk was full."""
    if name == "export":
        study = {"name": "first", "profile": str(tiny_profile), "methods": ["text-only"], "people": {"names": ["ada"]}, "prompts": ["a face"]}  # fmt: skip
        written("study.yaml", yaml.safe_dump(study))
        place.run(Case("run", ["study", "run", "study.yaml", "--store", "store"], (), ("store/*",)))
        with (
            nothing_lost(place.root),
            pytest.raises((FusionError, OSError), match="new"),
            full_disk(),
        ):
            export_study("store", "first", "new")
        return
    shutil.copytree(tiny_checkpoint, "checkpoint")
    whole = FusionPipeline.from_pretrained("checkpoint")
    writer = whole if name == "pipeline" else whole.adapter
    with nothing_lost(place.root, "new", "new/*"):
        with pytest.raises(Exception), full_disk():  # noqa: B017 (diffusers' own error)
            writer.save_pretrained("new")
        with pytest.raises((FusionError, OSError)):
            type(writer).from_pretrained("new")


def test_a_picture_is_kept_where_its_record_cannot_be_written(place: Place) -> None:
    """Metadata that no JSON can hold is an error before the old picture is touched."""
    save_png(Image.new("RGB", (32, 32)), "a.png", {"prompt": "old"})
    for metadata in ({"a": object()}, {"a": {1, 2}}, {("a",): 1}):
        with nothing_lost(place.root), pytest.raises((TypeError, FusionError)):
            save_png(Image.new("RGB", (32, 32)), "a.png", metadata)  # type: ignore[arg-type]
