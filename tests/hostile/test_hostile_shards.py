"""Hostile training sets: archives, captions and records as strangers and systems leave them."""

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusionlib.errors import FusionError
from fusionlib.training.pictures import load_pictures
from fusionlib.training.prepare import statistics
from fusionlib.training.shards import SampleSet, index_samples
from tests.helpers.hostile import Case, Place, nothing_lost, refused, table
from tests.helpers.training_data import disc, encoded, sample, write_tar
from tests.helpers.trees import linked, pipe, written

Given = Callable[[], Any]
Files = dict[str, bytes]
PICTURE = encoded(disc(0))


def archive(content: bytes = b"", name: str = "set/00001.tar") -> Given:
    """A set of one good shard and another one of the given bytes."""

    def make() -> Path:
        write_tar(Path("set/00000.tar"), {"000000000": sample(0)})
        return written(name, content).parent if content or name else Path("set")

    return make


def members(*infos: tarfile.TarInfo, contents: dict[str, bytes] | None = None) -> Given:
    """A set of one good shard and another one with members of any kind."""

    def make() -> Path:
        write_tar(Path("set/00000.tar"), {"000000000": sample(0)})
        with tarfile.open("set/00001.tar", "w") as tar:
            for info in infos:
                content = (contents or {}).get(info.name, b"")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return Path("set")

    return make


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def whole(count: int = 2) -> bytes:
    """The bytes of a shard of some samples."""
    path = write_tar(Path("scratch.tar"), {f"00001{n:04d}": sample(n) for n in range(count)})
    content = path.read_bytes()
    path.unlink()
    return content


def cut(share: float) -> Given:
    return lambda: archive(whole()[: int(len(whole()) * share)])()


def shard(*samples: Files) -> Given:
    """A set of one shard: a good sample and those given."""

    def make() -> Path:
        known = {"000000000": sample(0)}
        write_tar(Path("set/00000.tar"), known | {f"{n:09d}": s for n, s in enumerate(samples, 1)})
        return Path("set")

    return make


def caption(content: bytes) -> Files:
    return {"jpg": PICTURE, "txt": content}


def facts(content: bytes | str, text: bytes = b"a face") -> Files:
    return {
        "jpg": PICTURE,
        "txt": text,
        "json": content if isinstance(content, bytes) else content.encode(),
    }


def plain(files: dict[str, bytes]) -> Given:
    """A folder of plain files."""

    def make() -> Path:
        for name, content in files.items():
            written(f"set/{name}", content)
        return Path("set")

    return make


GOOD = {"good.jpg": PICTURE, "good.txt": b"a face"}

# What is used of a set: its samples, those left out with a reason, and its damaged shards.
SETS = table(
    *[
        Case(name, (given, counts))
        for name, given, counts in (
            # Archives.
            ("nothing in an archive", archive(b"", "set/00001.tar"), (1, 0, 1)),
            ("text as an archive", archive(b"no archive" * 200), (1, 0, 1)),
            ("HTML as an archive", archive(b"<!DOCTYPE html>" * 99), (1, 0, 1)),
            ("a pointer of Git LFS", archive(b"version https://git-lfs.github.com/spec/v1\n"), (1, 0, 1)),
            ("zeros as an archive", archive(bytes(10240)), (1, 0, 0)),
            ("a compressed archive", lambda: archive(gzip.compress(whole()))(), (1, 0, 1)),
            ("a cut archive", cut(0.4), (2, 0, 1)),
            ("an archive without its end", lambda: archive(whole()[: whole().rstrip(b"\0").__len__() // 512 * 512 + 512])(), (3, 0, 0)),
            ("a name above the folder", members(member("../../x.jpg"), member("../../x.txt"), contents={"../../x.jpg": PICTURE, "../../x.txt": b"a face"}), (2, 0, 0)),
            ("a name from the root", members(member("/etc/x.jpg"), member("/etc/x.txt"), contents={"/etc/x.jpg": PICTURE, "/etc/x.txt": b"a face"}), (2, 0, 0)),
            ("links in an archive", members(member("1.jpg", tarfile.SYMTYPE, "/etc/passwd"), member("1.txt", tarfile.LNKTYPE, "../x")), (1, None, 0)),
            ("devices in an archive", members(member("1.jpg", tarfile.CHRTYPE), member("1.txt", tarfile.FIFOTYPE)), (1, None, 0)),
            ("folders in an archive", members(member("1.jpg", tarfile.DIRTYPE), member("a/b", tarfile.DIRTYPE)), (1, 0, 0)),
            ("names that are not ASCII", members(member("é😀.jpg"), member("é😀.txt"), contents={"é😀.jpg": PICTURE, "é😀.txt": b"a face"}), (2, 0, 0)),
            ("names that are very long", members(member("n" * 300 + ".jpg"), member("n" * 300 + ".txt"), contents={"n" * 300 + ".jpg": PICTURE, "n" * 300 + ".txt": b"a face"}), (2, 0, 0)),
            ("members without a suffix", members(member("README"), member(".jpg")), (1, None, 0)),
            ("suffixes in capitals", members(member("1.JPG"), member("1.TXT"), contents={"1.JPG": PICTURE, "1.TXT": b"a face"}), (2, 0, 0)),
            # Captions.
            ("no caption", shard({"jpg": PICTURE}), (1, 1, 0)),
            ("an empty caption", shard(caption(b"")), (1, 1, 0)),
            ("a caption of spaces", shard(caption(b" \t\r\n")), (1, 1, 0)),
            ("a caption of a mark alone", shard(caption(b"\xef\xbb\xbf")), (1, 1, 0)),
            ("a caption in Latin-1", shard(caption("caf\xe9".encode("latin-1"))), (1, 1, 0)),
            ("a caption of zeros", shard(caption(bytes(9))), (1, 1, 0)),
            ("no picture", shard({"txt": b"a face"}), (1, 1, 0)),
            ("a very long caption", shard(caption(b"a face " * 20_000)), (2, 0, 0)),
            ("a caption with a mark", shard(caption(b"\xef\xbb\xbfa face")), (2, 0, 0)),
            ("a caption in UTF-16", shard(caption("a face".encode("utf-16"))), (2, 0, 0)),
            # Records.
            ("a broken record", shard(facts("{")), (2, 0, 0)),
            ("a record of nothing", shard(facts("")), (2, 0, 0)),
            ("a record that is a list", shard(facts("[1]")), (2, 0, 0)),
            ("a record without end", shard(facts("[" * 100_000)), (2, 0, 0)),
            ("a record with a mark", shard(facts('\ufeff{"caption": "a face"}')), (2, 0, 0)),
            ("a record in UTF-16", shard(facts('{"caption": "a face"}'.encode("utf-16"))), (2, 0, 0)),
            ("nothing among captions", shard(facts('{"captions": ["a face", null, ""]}', b"")), (2, 0, 0)),
            ("captions of nothing", shard(facts('{"captions": [null]}', b"")), (1, 1, 0)),
            ("a caption that is a number", shard(facts('{"caption": 5}', b"")), (2, 0, 0)),
            ("captions that are no list", shard(facts('{"captions": {"a": 1}}')), (2, 0, 0)),
            ("NaN in a record", shard(facts('{"caption": "a face", "similarity": NaN}')), (2, 0, 0)),
            ("faces that are none", shard(facts('{"caption": "a face", "faces": "two"}')), (1, 1, 0)),
            ("faces without eyes", shard(facts('{"caption": "a face", "faces": [{"score": 1}]}')), (1, 1, 0)),
            ("a person that is a list", shard(facts('{"caption": "a face", "person": ["ada"]}')), (1, 1, 0)),
            ("a person of zero", shard(facts('{"caption": "a face", "person": 0}')), (2, 0, 0)),
            # Plain files.
            ("plain files", plain(GOOD), (1, 0, 0)),
            ("dots in a name", plain(GOOD | {"IMG_1.edited.jpg": PICTURE, "IMG_1.edited.txt": b"a face", "ada.lovelace.jpg": PICTURE, "ada.lovelace.txt": b"a face"}), (3, 0, 0)),
            ("other kinds of pictures", plain(GOOD | {f"{n}.{e}": encoded(disc(n), k) for n, (e, k) in enumerate((("bmp", "BMP"), ("tif", "TIFF"), ("gif", "GIF"), ("jfif", "JPEG"), ("avif", "AVIF"), ("jp2", "JPEG2000")))} | {f"{n}.txt": b"a face" for n in range(6)}), (7, 0, 0)),
            ("what systems leave", plain(GOOD | {".DS_Store": b"x", "Thumbs.db": b"x", "._good.jpg": b"x", "@eaDir/good.jpg": PICTURE, "@eaDir/good.txt": b"a", ".thumbnails/a.jpg": PICTURE, ".thumbnails/a.txt": b"a", "__MACOSX/._good.jpg": b"x"}), (1, 0, 0)),
            ("names of every kind", plain(GOOD | {f"{n}.{e}": c for n in ("a b", "-x", "[a]*", "😀", "é", "e\u0301", "%s", "line\nbreak", os.fsdecode(b"caf\xe9")) for e, c in (("jpg", PICTURE), ("txt", b"a face"))}), (10, 0, 0)),
            ("a pipe beside pictures", lambda: (plain(GOOD)(), pipe("set/a.jpg"), written("set/a.txt", "a"))[0], (1, 1, 0)),
            ("a dead link beside pictures", lambda: (plain(GOOD)(), linked("set/a.jpg", "gone"), written("set/a.txt", "a"))[0], (1, 1, 0)),
            ("a link in a circle", lambda: (plain(GOOD)(), linked("set/again", "../set"))[0], (1, None, 0)),
            ("a linked folder", lambda: (plain(GOOD)(), plain(GOOD)().rename("other"), plain(GOOD)(), linked("set/ada", "../other"))[2], (2, 0, 0)),
        )
    ]
)  # fmt: skip


@SETS
def test_a_set_is_used_and_what_is_not_is_counted(place: Place, case: Case) -> None:
    given, (samples, skipped, damaged) = case.given
    folder = given()
    with nothing_lost(place.root):
        found: SampleSet = index_samples(folder)
        numbers = statistics(folder)
        for each in found.samples:
            each.picture()
            assert each.captions and all(text.strip() for text in each.captions)
            assert not any(text.startswith("\ufeff") or "\0" in text for text in each.captions)
            assert isinstance(each.record(), dict)
    assert len(found.samples) == samples and len(found.damaged) == damaged
    assert skipped is None or len(found.skipped) == skipped, found.skipped
    assert all(reason for reason in (*found.skipped.values(), *found.damaged.values()))
    assert numbers["samples"] == str(samples)


def cached(content: bytes) -> None:
    """The same set is indexed twice, and what was kept of it is spoilt between."""
    folder = shard()()
    index_samples(folder, Path("cache"))
    for path in Path("cache").iterdir():
        path.write_bytes(content)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"key": 1}', b"\xff\xfe", b"[" * 99_999],
    ids=lambda content: repr(content[:9]),
)
def test_a_spoilt_cache_is_made_again(place: Place, content: bytes) -> None:
    cached(content)
    with nothing_lost(place.root, "cache/*"):
        assert len(index_samples(Path("set"), Path("cache")).samples) == 1


def manifest(content: bytes | str) -> Given:
    return lambda: (shard()(), written("set/manifest.json", content))[0]


MISSING = table(
    refused("no folder", lambda: "none", "none"),
    refused("no name", lambda: "", "there is"),
    refused("an empty folder", lambda: written("set/.keep").parent, "set", "pictures"),
    refused("only texts", plain({"a.txt": b"a face"}), "set", "pictures"),
    refused("only pictures", plain({"a.jpg": PICTURE}), "set", "caption"),
    refused("only damaged archives", lambda: written("set/a.tar", b"x" * 2000).parent, "set", "damaged"),
    refused("a text file", lambda: written("set.txt", "x"), "set.txt"),
    refused("a dead link", lambda: linked("set", "gone"), "set"),
    refused("a link to itself", lambda: linked("set", "set"), "set"),
    refused("a pipe", lambda: pipe("set"), "set"),
    refused("a name too long", lambda: "n" * 300, "nnn"),
    refused("a zero byte in the name", lambda: "a\0b", "b"),
    refused("an open brace", lambda: "set/{0..", "set/{0.."),
    refused("an empty brace", lambda: "set/{}.tar", "set/{}.tar"),
    refused("braces of words", lambda: "set/{a..z}.tar", "set/"),
    refused("braces without end", lambda: "set/{0..99999999999}.tar", "set/"),
    refused("braces backwards", lambda: "set/{9..0}.tar", "set/"),
    refused("a missing shard", lambda: (shard()(), "set/{00000..00001}.tar")[1], "00001.tar is missing"),
    refused("an address", lambda: "https://example.com/{00..01}.tar", "example.com"),
    refused("a command", lambda: "pipe:touch owned", "pipe:touch owned"),
    *[
        refused(f"a manifest of {name}", manifest(content), "manifest.json")
        for name, content in (
            ("nothing", ""), ("an open brace", "{"), ("a list", "[1]"), ("null", "null"), ("zeros", bytes(9)),
            ("shards in words", '{"shards": "all"}'), ("shards without files", '{"shards": [{}]}'),
            ("shards of numbers", '{"shards": [5]}'), ("files of numbers", '{"shards": [{"file": 5}]}'),
        )
    ],
    refused("a shard that the manifest names", manifest('{"shards": [{"file": "00009.tar"}]}'), "00009.tar is missing"),
    refused("statistics without their shard", lambda: (shard()(), written("set/00007_stats.json", "{}"))[0], "00007.tar is missing"),
)  # fmt: skip


@MISSING
def test_what_is_no_set_is_refused(place: Place, case: Case) -> None:
    place.read(case, index_samples)


def test_a_whole_set_in_memory_is_read_or_refused(place: Place) -> None:
    """`load_pictures` reads rendered people, whose samples all have a mask and a person."""
    mask = encoded(disc(0, mode="L"), "PNG")
    record = json.dumps({"captions": ["a face"], "person": 0, "style": "photo"}).encode()
    good = {"jpg": PICTURE, "json": record, "mask.png": mask, "txt": b"a face"}
    spoilt = {
        "empty mask": {"mask.png": b""}, "no record": {"json": None},
        "broken record": {"json": b"{"}, "record without end": {"json": b"[" * 99_999}, "cut picture": {"jpg": PICTURE[:300]},
    }  # fmt: skip
    for name, change in spoilt.items():
        bad = {k: v for k, v in (good | change).items() if v is not None}
        write_tar(Path("set/00000.tar"), {"1": good, "2": bad})
        with nothing_lost(place.root):
            assert load_pictures(Path("set"), 32).skipped == 1, name
    write_tar(Path("set/00000.tar"), {"2": good | {"jpg": b""}})
    with nothing_lost(place.root), pytest.raises(FusionError, match="set"):
        load_pictures(Path("set"), 32)
