"""Hostile weights: caches of references, adapters and checkpoints that are not what they say."""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fusionlib import FusionAdapter, FusionPipeline, ReferenceCache, encode_references
from tests.helpers.hostile import Case, Place, refused, table, used
from tests.helpers.tiny import tiny_unet
from tests.helpers.trees import linked, pipe, written

WEIGHTS = "diffusion_pytorch_model.safetensors"
Given = Callable[[], Any]
nan, inf = float("nan"), float("inf")


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole cache and a whole adapter, which every case spoils in its own way."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    unet = tiny_unet()
    adapter = FusionAdapter.from_unet(unet)
    adapter.attach(unet)
    states = encode_references(unet, torch.zeros(2, 4, 8, 8), torch.zeros(1, 16, 16))
    adapter.cache(states).save(folder / "whole.safetensors")
    adapter.save_pretrained(folder / "whole")
    MODELS.append(folder)
    return folder


MODELS: list[Path] = []


def copied(name: str) -> Path:
    source = MODELS[-1] / name
    copy = shutil.copytree if source.is_dir() else shutil.copyfile
    return Path(copy(source, Path(name)))


def raw(content: Callable[[bytes], bytes]) -> Given:
    """A cache whose bytes are changed."""

    def make() -> Path:
        path = copied("whole.safetensors")
        path.write_bytes(content(path.read_bytes()))
        return path

    return make


def header(change: Callable[[dict[str, Any]], Any]) -> Given:
    """A cache whose header is changed, with the rest as it was."""

    def rewrite(content: bytes) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        entries = json.loads(content[8 : 8 + length])
        changed = change(entries)
        text = json.dumps(entries if changed is None else changed).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    return raw(rewrite)


def metadata(**values: str | None) -> Given:
    def change(entries: dict[str, Any]) -> None:
        known = entries["__metadata__"] | values
        entries["__metadata__"] = {k: v for k, v in known.items() if v is not None}

    return header(change)


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Given:
    """A cache whose tensors are changed, well formed as a file."""

    def make() -> Path:
        path = copied("whole.safetensors")
        found = load_file(path)
        change(found)
        known = {"format": "fusionlib.ReferenceCache", "version": "1", "references": "2"}
        save_file({name: t.contiguous() for name, t in found.items()}, path, known)
        return path

    return make


def key(found: dict[str, torch.Tensor], ending: str = ".key") -> str:
    return next(name for name in found if name.startswith("0.") and name.endswith(ending))


def other(value: Callable[[torch.Tensor], torch.Tensor], ending: str = ".key") -> Given:
    def change(found: dict[str, torch.Tensor]) -> None:
        name = key(found, ending)
        found[name] = value(found[name].clone())

    return tensors(change)


def filled(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: tensor.index_fill(1, torch.tensor([0]), value)


def missing(ending: str) -> Given:
    return tensors(lambda found: found.pop(key(found, ending)))


AGAIN = "encode the references again"
SAVED = "ReferenceCache.save wrote"

CACHES = table(
    refused("missing", lambda: "none.safetensors", "none.safetensors", SAVED),
    refused("a folder", lambda: written("a/b").parent, "path a", SAVED),
    refused("a dead link", lambda: linked("a", "gone"), "path a", SAVED),
    refused("a link to itself", lambda: linked("a", "a"), "path a", SAVED),
    refused("a name too long", lambda: "n" * 300, "nnn", SAVED),
    refused("a zero byte in the name", lambda: "a\0b", "path", SAVED),
    refused("nothing in it", raw(lambda _: b""), "whole.safetensors", SAVED),
    refused("text", raw(lambda _: b"not a cache"), "whole.safetensors", SAVED),
    refused("HTML", raw(lambda _: b"<!DOCTYPE html>" * 9), "whole.safetensors", SAVED),
    refused("a pointer of Git LFS", raw(lambda _: b"version https://git-lfs.github.com/spec/v1\n"), "whole.safetensors", SAVED),
    refused("a pickle", raw(lambda _: pickle.dumps({"a": 1})), "whole.safetensors", SAVED),
    refused("a picture", raw(lambda _: b"\x89PNG\r\n\x1a\n" + bytes(99)), "whole.safetensors", SAVED),
    *[
        refused(f"{share:.0%} of it", raw(lambda c, share=share: c[: int(len(c) * share)]), "whole.safetensors", SAVED)
        for share in (0.001, 0.05, 0.5, 0.99)
    ],
    refused("a byte too many", raw(lambda c: c + b"\0"), "whole.safetensors", SAVED),
    refused("a header without end", raw(lambda c: struct.pack("<Q", 2**63) + c[8:]), "whole.safetensors", SAVED),
    refused("a header of nothing", raw(lambda c: struct.pack("<Q", 0) + c[8:]), "whole.safetensors", SAVED),
    refused("a header that is cut", raw(lambda c: struct.pack("<Q", 99) + c[8:]), "whole.safetensors", SAVED),
    refused("a header that is a list", header(lambda _: []), "whole.safetensors", SAVED),
    refused("no metadata", header(lambda e: e.pop("__metadata__") and None), "whole.safetensors", SAVED),
    refused("metadata of numbers", header(lambda e: e.update(__metadata__={"references": 2})), "whole.safetensors", SAVED),
    refused("tensors that overlap", header(lambda e: e[key(e)].update(data_offsets=[0, 9])), "whole.safetensors", SAVED),
    refused("a type of its own", header(lambda e: e[key(e)].update(dtype="F12")), "whole.safetensors", SAVED),
    refused("a shape below zero", header(lambda e: e[key(e)].update(shape=[-1, 2])), "whole.safetensors", SAVED),
    refused("another format", metadata(format="pt"), "whole.safetensors", SAVED),
    refused("a later version", metadata(version="2"), "whole.safetensors", AGAIN),
    *[
        refused(f"count of references {count!r}", metadata(references=count), "whole.safetensors", AGAIN)
        for count in (None, "", "two", "1", "0", "-1", "3", "1.5", "99999999999999", "2e0")
    ],
    refused("a key is missing", missing(".key"), "whole.safetensors", AGAIN),
    refused("a value is missing", missing(".value"), "whole.safetensors", AGAIN),
    used("an entry of nobody", tensors(lambda f: f.update({"stranger": torch.zeros(2)}))),
    refused("a number that is none", tensors(lambda f: f.update({"x.layer.key": torch.zeros(2)})), "whole.safetensors", AGAIN),
    refused("a key that is shorter", other(lambda t: t[:, 1:]), "whole.safetensors", AGAIN),
    refused("a value that is narrower", other(lambda t: t[..., 1:], ".value"), "whole.safetensors", AGAIN),
    refused("a flat key", other(lambda t: t[0]), "whole.safetensors", AGAIN),
    refused("whole numbers", other(lambda t: t.long()), "whole.safetensors", AGAIN),
    refused("NaN", other(filled(nan)), "whole.safetensors", AGAIN),
    refused("without end", other(filled(inf)), "whole.safetensors", AGAIN),
    used("as it was saved", lambda: copied("whole.safetensors")),
    used("a link", lambda: linked("a", str(copied("whole.safetensors")))),
    used("a name of every kind", lambda: copied("whole.safetensors").rename("my [faces] 😀\n%s.bin")),
    refused("a name that is not UTF-8", lambda: copied("whole.safetensors").rename(os.fsdecode(b"caf\xe9")), "cannot be read", SAVED),
)  # fmt: skip


@CACHES
def test_a_cache_is_read_or_refused(place: Place, case: Case) -> None:
    cache = place.read(case, ReferenceCache.load)
    assert cache is None or (len(cache), cache.batch_size) == (2, 1)


def test_a_cache_is_no_pipe(place: Place) -> None:
    """The pipe is held open, for safetensors' own open would wait for ever."""
    held = os.open(pipe("a"), os.O_RDWR | os.O_NONBLOCK)
    place.read(refused("pipe", "a", "path a", SAVED), ReferenceCache.load)
    os.close(held)


def adapter(*changes: Callable[[Path], Any]) -> Given:
    """The folder of an adapter, spoilt."""

    def make() -> Path:
        folder = copied("whole")
        for change in changes:
            change(folder)
        return folder

    return make


def config(change: Callable[[dict[str, Any]], Any]) -> Given:
    def rewrite(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        changed = change(values)
        (folder / "config.json").write_text(json.dumps(values if changed is None else changed))

    return adapter(rewrite)


def config_text(content: bytes | str) -> Given:
    return adapter(lambda folder: written(str(folder / "config.json"), content))


def weights_raw(content: Callable[[bytes], bytes]) -> Given:
    def rewrite(folder: Path) -> None:
        path = folder / WEIGHTS
        path.write_bytes(content(path.read_bytes()))

    return adapter(rewrite)


def weights(change: Callable[[dict[str, torch.Tensor]], Any], name: str = WEIGHTS) -> Given:
    def rewrite(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found)
        (folder / WEIGHTS).unlink()
        save_file(found, folder / name)

    return adapter(rewrite)


def weight(value: Callable[[torch.Tensor], torch.Tensor]) -> Given:
    def change(found: dict[str, torch.Tensor]) -> None:
        name = next(iter(found))
        found[name] = value(found[name].clone())

    return weights(change)


def all_widths(width: Any) -> Given:
    return config(lambda c: c.update(layers={name: [width, width] for name in c["layers"]}))


def as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def pickle_renamed(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / WEIGHTS)


GIVEN = ("pretrained_model_name_or_path", "'whole'")

ADAPTERS = table(
    refused("missing", lambda: "none", "'none'", "config.json"),
    refused("an empty folder", lambda: written("a/.keep").parent, "'a'", "config.json"),
    refused("a file", lambda: written("a", "x"), "'a'", "config.json"),
    refused("a dead link", lambda: linked("a", "gone"), "'a'", "config.json"),
    refused("a link to itself", lambda: linked("a", "a"), "'a'", "config.json"),
    refused("no name", lambda: "", "''", "config.json"),
    refused("a name too long", lambda: "n" * 300, "nnn", "config.json"),
    refused("a zero byte in the name", lambda: "a\0b", "config.json"),
    refused("no configuration", adapter(lambda f: (f / "config.json").unlink()), *GIVEN),
    refused("no weights", adapter(lambda f: (f / WEIGHTS).unlink()), *GIVEN),
    refused("weights only as a pickle", adapter(as_pickle), *GIVEN),
    refused("a pickle that is called safetensors", adapter(pickle_renamed), *GIVEN),
    *[
        refused(f"configuration of {name}", config_text(content), *GIVEN)
        for name, content in (
            ("nothing", ""), ("an open brace", "{"), ("a list", "[]"), ("null", "null"), ("a number", "5"),
            ("zeros", bytes(99)), ("Latin-1", '{"a": "caf\xe9"}'.encode("latin-1")),
            ("brackets without end", "[" * 100_000), ("YAML", "layers: {}\n"), ("another model", '{"_class_name": "UNet2DConditionModel"}'),
        )
    ],
    refused("no layers", config(lambda c: c.update(layers={})), *GIVEN),
    refused("layers as a list", config(lambda c: c.update(layers=[1, 2])), *GIVEN),
    refused("a layer more", config(lambda c: c["layers"].update({"mid.attn2": [8, 8]})), *GIVEN),
    refused("a layer fewer", config(lambda c: c["layers"].pop(next(iter(c["layers"]))) and None), *GIVEN),
    *[refused(f"widths {width!r}", all_widths(width), *GIVEN) for width in (-1, 0, 1.5, "x", None, 8, 10**12)],
    refused("another attention", config(lambda c: c.update(attention="fused")), *GIVEN),
    *[
        refused(f"weights of {name}", weights_raw(change), *GIVEN)
        for name, change in (
            ("nothing", lambda _: b""), ("text", lambda _: b"none" * 9), ("HTML", lambda _: b"<html>" * 99),
            ("half", lambda c: c[: len(c) // 2]), ("all but a byte", lambda c: c[:-1]), ("a byte too many", lambda c: c + b"\0"),
            ("a header without end", lambda c: struct.pack("<Q", 2**62) + c[8:]),
        )
    ],
    refused("a weight more", weights(lambda w: w.update(more=torch.zeros(2))), *GIVEN),
    refused("a weight fewer", weights(lambda w: w.pop(next(iter(w)))), *GIVEN),
    refused("no weight", weights(lambda w: w.clear()), *GIVEN),
    refused("a weight of another shape", weight(lambda t: t[:, 1:].contiguous()), *GIVEN),
    refused("a weight with NaN", weight(lambda t: t.index_fill(0, torch.tensor([0]), nan)), *GIVEN, "not numbers"),
    refused("a weight without end", weight(lambda t: t.index_fill(0, torch.tensor([0]), inf)), *GIVEN, "not numbers"),
    refused("weights in a pipe", adapter(lambda f: (f / WEIGHTS).unlink(), lambda f: HELD.append(os.open(pipe(str(f / WEIGHTS)), os.O_RDWR | os.O_NONBLOCK))), *GIVEN),
    refused("a folder for the weights", adapter(lambda f: (f / WEIGHTS).unlink(), lambda f: (f / WEIGHTS).mkdir()), *GIVEN),
    used("as it was saved", adapter()),
    used("in double precision", weight(lambda t: t.double())),
    used("in half precision", weight(lambda t: t.half())),
    used("a configuration with more in it", config(lambda c: c.update(_comment="mine"))),
    refused("a byte-order mark", adapter(lambda f: written(str(f / "config.json"), b"\xef\xbb\xbf" + (f / "config.json").read_bytes())), *GIVEN),
    used("other files beside it", adapter(lambda f: written(str(f / "README.md"), "x"), lambda f: written(str(f / ".DS_Store"), b"\0"))),
    used("a linked folder", lambda: linked("link", str(adapter()()))),
    used("a name of every kind", lambda: adapter()().rename("my [adapter] 😀\n%s")),
    used("a path with the folder above", lambda: str(adapter()() / ".." / "whole")),
)  # fmt: skip

HELD: list[int] = []


@ADAPTERS
def test_an_adapter_is_read_or_refused(place: Place, case: Case) -> None:
    found = place.read(case, FusionAdapter.from_pretrained)
    while HELD:
        os.close(HELD.pop())
    assert found is None or all(weight.isfinite().all() for weight in found.parameters())


def checkpoint(source: Path, *changes: Callable[[Path], Any]) -> Given:
    def make() -> Path:
        folder = Path(shutil.copytree(source, "checkpoint"))
        for change in changes:
            change(folder)
        return folder

    return make


def emptied(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(b"")


def gone(name: str) -> Callable[[Path], Any]:
    def remove(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


SPOILT: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "an empty index": (emptied("model_index.json"), ("checkpoint",)),
    "no index": (gone("model_index.json"), ("checkpoint", "model_index.json")),
    "no unet": (gone("unet"), ("checkpoint",)),
    "an empty configuration": (emptied("unet/config.json"), ("checkpoint",)),
    "empty weights": (emptied(f"unet/{WEIGHTS}"), ("checkpoint",)),
    "no weights": (gone(f"vae/{WEIGHTS}"), ("checkpoint",)),
    "no words": (gone("tokenizer"), ("checkpoint",)),
    "empty words": (emptied("tokenizer/tokenizer.json"), ("checkpoint",)),
    "no scheduler": (gone("scheduler"), ("checkpoint",)),
    "an empty scheduler": (emptied("scheduler/scheduler_config.json"), ("checkpoint",)),
    "a spoilt adapter": (emptied(f"adapter/{WEIGHTS}"), ("checkpoint", "adapter")),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_checkpoint_is_refused(place: Place, tiny_checkpoint: Path, name: str) -> None:
    """By the command, which says it in one line; the library lets diffusers' own errors through."""
    spoil, says = SPOILT[name]
    arguments = ["generate", "--prompt", "a", "--out", "a.png", "--base-model"]
    case = refused(name, lambda: [*arguments, checkpoint(tiny_checkpoint, spoil)()], *says)
    place.run(case)


def test_a_whole_checkpoint_is_used(place: Place, tiny_checkpoint: Path) -> None:
    case = used("whole", checkpoint(tiny_checkpoint, lambda f: written(str(f / "notes.txt"), "x")))
    assert place.read(case, FusionPipeline.from_pretrained).adapter is not None
