"""Training sets as people bring them: every file is used, or counted with a reason."""

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fusionlib.errors import FusionError
from fusionlib.training.pictures import load_pictures
from fusionlib.training.prepare import statistics
from fusionlib.training.shards import find_shards, index_samples, split_name
from tests.helpers.training_data import disc, encoded, sample, write_set, write_tar


def put(folder: Path, name: str, content: bytes | str = "a face") -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def test_names_are_split_at_their_last_dot() -> None:
    wanted = {
        "ada.lovelace.jpg": ("ada.lovelace", "jpg"),
        "00000/000012345.JPG": ("00000/000012345", "jpg"),
        "a.mask.png": ("a", "mask.png"),
        "a.b.depth.png": ("a.b", "depth.png"),
        "v1.2/a": ("v1.2/a", ""),
        ".jpg": (".jpg", ""),
    }
    assert {name: split_name(name) for name in wanted} == wanted


def test_names_with_dots_are_samples_of_their_own(tmp_path: Path) -> None:
    names = ("a.jpg", "IMG_1.edited.jpg", "ada.lovelace.jpg", "ada.byron.JPG")
    members = {}
    for number, name in enumerate(names):
        put(tmp_path / "plain", name, encoded(disc(number)))
        put(tmp_path / "plain", f"{name[:-4]}.TXT", f"face {number}")
        members[name[:-4]] = {"JPG": encoded(disc(number)), "TXT": f"face {number}".encode()}
    write_tar(tmp_path / "shards" / "00000.tar", members)
    for folder in ("plain", "shards"):
        found = index_samples(tmp_path / folder)
        captions = {sample.key: sample.captions for sample in found.samples}
        assert not found.skipped
        assert captions == {name[:-4]: [f"face {n}"] for n, name in enumerate(names)}


def test_every_kind_of_picture_counts(tmp_path: Path) -> None:
    kinds = {"bmp": "BMP", "tif": "TIFF", "gif": "GIF", "avif": "AVIF", "jp2": "JPEG2000"}
    for suffix, kind in (kinds | {"jfif": "JPEG", "WEBP": "WEBP"}).items():
        put(tmp_path, f"{suffix}.{suffix}", encoded(disc(1, 64), kind))
        put(tmp_path, f"{suffix}.txt")
    put(tmp_path, "phone.HEIC", b"\0\0\0\x18ftypheic" + bytes(40))
    put(tmp_path, "phone.txt")
    found = index_samples(tmp_path)
    assert len(found.samples) == 8 and not found.skipped
    by_key = {sample.key: sample for sample in found.samples}
    for key, one in by_key.items():
        if key != "phone":
            assert one.picture().size == (64, 64)
    with pytest.raises(FusionError, match="pillow-heif|damaged"):
        by_key["phone"].picture()


def test_what_is_not_used_is_counted_with_its_reason(tmp_path: Path) -> None:
    picture = encoded(disc(1))
    for name, content in {
        "used.jpg": picture, "used.txt": "a face", "used.png": encoded(disc(2), "PNG"),
        "bare.jpg": picture, "empty.jpg": picture, "empty.txt": " \n",
        "latin.jpg": picture, "latin.txt": "visage fâché".encode("latin-1"),
        "alone.txt": "a face", "notes.pdf": "x", ".DS_Store": "x", "@eaDir/used.jpg": picture,
    }.items():  # fmt: skip
        put(tmp_path / "set", name, content)
    put(tmp_path / "elsewhere", "x.jpg", picture)
    put(tmp_path / "elsewhere", "x.txt")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    found = index_samples(tmp_path / "set")
    assert [(sample.key, sample.person) for sample in found.samples] == [
        ("linked/x", "linked"), ("used", None)
    ]  # fmt: skip
    reasons = {Path(place).name: why for place, why in found.skipped.items()}
    assert reasons.pop("latin.jpg").startswith("its caption is not UTF-8 text (at byte 8)")
    assert reasons == {
        "used.png": "the jpg picture of this name is used",
        "bare.jpg": "it has no caption",
        "empty.jpg": "its caption is empty",
        "alone.txt": "it has no picture",
        "notes.pdf": "it is no picture, caption or record",
    }
    table = statistics(tmp_path / "set")
    assert table["skipped"] == "6" and table["  it has no caption"] == "1"


CAPTIONS = {
    "byte-order mark": ({"txt": "a face".encode("utf-8-sig")}, ["a face"], ""),
    "UTF-16": ({"txt": "a face".encode("utf-16")}, ["a face"], ""),
    "UTF-16 record": ({"json": '{"caption": "a face"}'.encode("utf-16")}, ["a face"], ""),
    "broken JSON beside a caption": ({"txt": b"a face", "json": b"{"}, ["a face"], "JSON file is"),
    "a list beside a caption": ({"txt": b"a face", "json": b"[1]"}, ["a face"], "no record"),
    "Latin-1 beside a record": (
        {"txt": b"\xe9", "json": b'{"caption": "a face"}'}, ["a face"], "Latin-1"
    ),
    "null among captions": ({"json": b'{"captions": [null, "a", "", "b"]}'}, ["a", "b"], ""),
    "nothing but null": ({"txt": b"a face", "json": b'{"captions": [null]}'}, ["a face"], ""),
    "null as caption": ({"txt": b"a face", "json": b'{"caption": null}'}, ["a face"], ""),
    "half a surrogate": ({"json": b'{"caption": "a\\ud800b"}'}, ["a?b"], ""),
}  # fmt: skip


@pytest.mark.parametrize("texts, captions, problem", CAPTIONS.values(), ids=CAPTIONS)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "shard"])
def test_captions_from_other_systems(
    tmp_path: Path, texts: dict[str, bytes], captions: list[str], problem: str, packed: bool
) -> None:
    files = {"jpg": encoded(disc(1)), **texts}
    if packed:
        write_tar(tmp_path / "00000.tar", {"a": files})
    else:
        for extension, content in files.items():
            put(tmp_path, f"a.{extension}", content)
    found = index_samples(tmp_path)
    assert found.samples[0].captions == captions and not found.skipped
    assert problem in "".join(found.noted.values()) and bool(problem) == bool(found.noted)


def test_folders_archives_and_patterns_each_have_their_message(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", 12)
    assert len(find_shards(folder / "00001.tar")) == 1 == len(find_shards(f"{folder}/*1.tar"))
    put(tmp_path, "set.zip", b"PK")
    (tmp_path / "empty").mkdir()
    for place, says in (
        (tmp_path / "nowhere", "there is no folder"),
        (tmp_path / "set.zip", r"set.zip is a file: give a folder, or a shard"),
        (f"{tmp_path}/no/*.tar", "fits no file"),
        (tmp_path / "empty", "nothing to train on"),
    ):
        with pytest.raises(FusionError, match=says):
            index_samples(place)
    for pattern, says in (("{0..99999999999}", "too many shards"), ("{0..", "set/{0..")):
        with pytest.raises(FusionError, match=says):
            find_shards(f"{folder}/{pattern}")
    put(folder, "notes.pdf", "x")
    put(folder, "00000_stats.json", "{}")
    (reason,) = index_samples(folder).skipped.values()
    assert reason == "it lies beside shards, which are read instead"


def test_people_in_memory_keep_their_dots_and_texts(tmp_path: Path) -> None:
    record = json.dumps({"person": 1, "captions": [None, "a face"]}).encode("utf-8-sig")
    files = {"JPG": encoded(disc(1)), "json": record}
    write_tar(tmp_path / "00000.tar", {"v1.a": files, "v1.b": files})
    found = load_pictures(tmp_path, 32)
    assert found.captions == [["a face"]] * 2 and not found.skipped


def test_a_photograph_in_a_shard_may_be_large(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64)
    large = disc(1, side=80)  # between once and twice as many pixels, like a phone's
    buffer = io.BytesIO()
    large.save(buffer, "JPEG")
    write_tar(tmp_path / "00000.tar", {"a": sample(1, buffer.getvalue())})
    assert index_samples(tmp_path).samples[0].picture().size == (80, 80)


def test_names_in_any_spelling_find_their_captions(tmp_path: Path) -> None:
    composed, apart = "é", "e\u0301"
    for number, name in enumerate((composed, apart, os.fsdecode(b"caf\xe9"), "line\nbreak")):
        put(tmp_path / "all", f"{name}.jpg", encoded(disc(number)))
        put(tmp_path / "all", f"{name}.txt", f"face {number}")
    found = index_samples(tmp_path / "all")
    assert sorted(s.captions[0] for s in found.samples) == [f"face {n}" for n in range(4)]
    assert not found.skipped
    put(tmp_path / "other", f"{composed}.jpg", encoded(disc(0)))
    put(tmp_path / "other", f"{apart}.txt", "a face")
    (one,) = index_samples(tmp_path / "other").samples
    assert one.captions == ["a face"]


@pytest.mark.parametrize(
    "record, says",
    [
        ({"person": ["ada"]}, "its person is neither a name nor a number"),
        ({"faces": "two"}, "its recorded faces are damaged"),
        ({"faces": [{"score": 1}]}, "its recorded faces are damaged"),
    ],
)
def test_records_that_cannot_be_meant_are_counted(
    tmp_path: Path, record: dict[str, Any], says: str
) -> None:
    write_tar(tmp_path / "00000.tar", {"good": sample(0), "bad": sample(1, **record)})
    found = index_samples(tmp_path)
    assert [s.key for s in found.samples] == ["good"] and list(found.skipped.values()) == [says]


@pytest.mark.parametrize("content", [b"", b"{", b"null", b'{"key": 1}', b"\xff\xfe"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, content: bytes) -> None:
    write_set(tmp_path / "set", 2)
    index_samples(tmp_path / "set", tmp_path / "cache")
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(content)
    assert len(index_samples(tmp_path / "set", tmp_path / "cache").samples) == 2
