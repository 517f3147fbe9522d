"""The index of a training set: where every sample lies, in webdataset shards or plain files.

Shards are tar files in img2dataset's layout: ``000012345.jpg``, ``.txt`` and ``.json`` of one
sample follow each other. webdataset reads them front to back, which shuffles within a buffer only
and resumes at a shard at best. Here the members' offsets are read once and cached
(``index_samples``), so that one `pread` reads any sample: an epoch is a true permutation, each
rank's share is arithmetic, and a run resumes by a sample's number. The shards have to be on a disk.
"""

from __future__ import annotations

import functools
import io
import json
import logging
import os
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image
from tqdm.auto import tqdm
from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from fusionlib.errors import FusionError
from fusionlib.inputs.photos import read_photo
from fusionlib.support.files import write_text
from fusionlib.support.provenance import sha256_json

logger = logging.getLogger(__name__)

PICTURES = ("jpg", "jpeg", "png", "webp")
"""Extensions of a sample's picture, in order of preference."""

TEXTS = ("json", "txt")
"""Extensions of the files that are read into the index."""

FORMAT = 2
"""Version of the index files, raised when other facts are read from a shard."""


@dataclass(frozen=True)
class Sample:
    """One picture and what is known about it; its content stays on the disk.

    Attributes:
        key: Name within the set.
        source: Shard that holds the sample, or the picture's own file.
        files: For each extension, the file that holds it, and offset and length there in bytes.
        captions: One or more wordings.
        person: Person in the picture; None where the set does not say.
        style: Style of the picture: "photo", "line art", ...
        faces: Faces that `fusionlib data prepare` found, as eyes, nose and score in pixels of the
            upright picture; None where it was not run.
    """

    key: str
    source: str
    files: dict[str, tuple[str, int, int]]
    captions: list[str] = field(default_factory=list)
    person: str | None = None
    style: str = "photo"
    faces: list[dict[str, Any]] | None = None

    @property
    def place(self) -> str:
        """The file and the key, for reports."""
        return f"{self.source}: {self.key}" if self.source.endswith(".tar") else self.source

    def content(self, extension: str) -> bytes:
        """The bytes of one of its files.

        Raises:
            FusionError: The shard is gone or became shorter since it was indexed.
        """
        path, offset, length = self.files[extension]
        try:
            status = os.stat(path)
            file = _opened(path, status.st_ino, status.st_mtime_ns)
            found = os.pread(file.fileno(), length, offset)
        except OSError as error:
            raise MissingShard(
                f"{path} cannot be read ({error.strerror}), but it was there when the training set "
                "was indexed: bring it back, or remove it from `training.shards`"
            ) from error
        if len(found) < length:
            raise MissingShard(f"{path} became shorter since it was indexed: get a whole copy")
        return found

    @property
    def picture_file(self) -> str:
        """The extension of its picture.

        Raises:
            FusionError: The sample has no picture.
        """
        extension = next((e for e in PICTURES if e in self.files), None)
        if extension is None:
            raise FusionError("it has no picture")
        return extension

    def picture(self) -> Image.Image:
        """Its picture, RGB, upright and opaque.

        Raises:
            FusionError: The file is no picture, or a damaged one.
        """
        content = self.content(self.picture_file)
        try:
            return read_photo(Image.open(io.BytesIO(content)), "its picture")
        except FusionError:
            raise
        except Exception as error:  # a decoder may raise anything on damaged bytes
            raise FusionError(f"its picture cannot be read ({error})") from error

    def record(self) -> dict[str, Any]:
        """The content of its JSON file; empty where there is none, or none that can be read."""
        try:
            facts = json.loads(self.content("json")) if "json" in self.files else {}
        except ValueError:
            return {}
        return facts if isinstance(facts, dict) else {}


class MissingShard(FusionError):
    """A file of the training set has changed or gone, which must be repaired, not skipped."""


@functools.lru_cache(maxsize=256)
def _opened(path: str, inode: int, time: int) -> BinaryIO:
    """The file as it is now; `pread` uses no position, so processes may share it."""
    return open(path, "rb", buffering=0)  # noqa: SIM115 (closed when the cache forgets it)


@dataclass(frozen=True)
class SampleSet:
    """A whole training set.

    Attributes:
        samples: Samples in the order of shards and keys.
        skipped: Why samples were left out of the index, by place.
        damaged: Where shards are damaged, by file. Their samples before that point are included.
    """

    samples: list[Sample]
    skipped: dict[str, str]
    damaged: dict[str, str]


def find_shards(shards: str | Path) -> list[Path]:
    """The shards of a set, in order.

    Args:
        shards: Folder, searched with its subfolders, or a pattern with braces.

    Raises:
        FusionError: An expected shard is missing. Shards are expected by a pattern, by a folder's
            ``manifest.json``, and by img2dataset's statistics beside each shard.
    """
    if "{" in str(shards):
        expected = [Path(path) for path in expand_urls(str(shards))]
        found = expected
    else:
        folder = Path(shards)
        found = sorted(folder.rglob("*.tar"))
        expected = [
            stats.with_name(stats.name.removesuffix("_stats.json") + ".tar")
            for stats in sorted(folder.rglob("*_stats.json"))
        ]
        manifest = folder / "manifest.json"
        if manifest.is_file():
            listed = json.loads(manifest.read_text()).get("shards", [])
            expected += [folder / shard["file"] for shard in listed]
    missing = [path for path in expected if not path.is_file()]
    if missing:
        others = f" (and {len(missing) - 1} more)" if missing[1:] else ""
        raise FusionError(
            f"the shard {missing[0]} is missing{others}: copy it again, or take it out of what "
            "names it (the pattern in `training.shards`, manifest.json, or its _stats.json)"
        )
    return found


def index_samples(shards: str | Path, cache: Path | None = None) -> SampleSet:
    """Find every sample of a training set.

    Args:
        shards: Folder of shards or of plain files, or a pattern of shards.
        cache: Folder for the index of each shard, valid while its size and time are the same.

    Returns:
        The samples. Those without picture or caption, and the unreadable parts of damaged shards,
        are counted and reported.

    Raises:
        FusionError: A shard is missing, or there is nothing to train on.
    """
    found = find_shards(shards)
    samples: list[Sample] = []
    damaged: dict[str, str] = {}
    if found:
        for shard in tqdm(found, desc="indexing shards", mininterval=2.0):
            part, damage = _indexed(shard, cache)
            samples += part
            if damage:
                damaged[str(shard)] = damage
                logger.warning("%s is damaged: %s", shard, damage)
    else:
        samples = list(_plain_samples(Path(shards)))
    usable, skipped = _usable(samples)
    if not usable:
        raise FusionError(
            f"there is nothing to train on in {shards}: it needs webdataset shards (*.tar), or "
            f"pictures with a caption each ({len(skipped)} samples without, {len(damaged)} damaged "
            "shards)"
        )
    if skipped:
        logger.warning("%d of %d samples in %s are useless", len(skipped), len(samples), shards)
    return SampleSet(usable, skipped, damaged)


def _usable(samples: Iterable[Sample]) -> tuple[list[Sample], dict[str, str]]:
    usable, skipped = [], {}
    for sample in samples:
        if not any(extension in sample.files for extension in PICTURES):
            skipped[sample.place] = "it has no picture"
        elif not any(caption.strip() for caption in sample.captions):
            skipped[sample.place] = "its caption is empty"
        else:
            usable.append(sample)
    return usable, skipped


def _indexed(shard: Path, cache: Path | None) -> tuple[list[Sample], str | None]:
    """The samples of one shard and where it is damaged, from the cache if it is there."""
    status = shard.stat()
    key = {
        "format": FORMAT,
        "shard": str(shard.resolve()),
        "bytes": status.st_size,
        "time": status.st_mtime_ns,
    }
    # Shards of different folders share their names: 00000.tar.
    cached = cache and cache / f"{shard.stem}-{sha256_json(key['shard'])[:12]}.json"
    if cached and cached.is_file():
        record = json.loads(cached.read_text())
        if record["key"] == key:
            samples = [
                Sample(**row | {"files": {e: tuple(at) for e, at in row["files"].items()}})
                for row in record["samples"]
            ]
            return samples, record["damage"]
    samples, damage = scan_shard(shard)
    if cached:
        record = {"key": key, "damage": damage, "samples": [vars(sample) for sample in samples]}
        write_text(cached, json.dumps(record, ensure_ascii=False))
    return samples, damage


def scan_shard(shard: Path) -> tuple[list[Sample], str | None]:
    """Read the table of contents of a tar file, and the texts in it.

    Returns:
        The samples whose files lie wholly in it, and where and why reading stopped if that was
        before the end of the archive.
    """
    members: dict[str, dict[str, tuple[str, int, int]]] = defaultdict(dict)
    texts: dict[str, dict[str, bytes]] = defaultdict(dict)
    damage, end, size = None, 0, shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                key, extension = base_plus_ext(member.name)
                inside = member.offset_data + member.size <= size
                if member.isfile() and key and inside:
                    place = (str(shard), member.offset_data, member.size)
                    members[key][extension.lower()] = place
                    content = archive.extractfile(member) if extension in TEXTS else None
                    if content is not None:
                        texts[key][extension] = content.read()
                if not inside:
                    damage = f"it ends within {member.name}"
            end = archive.offset
    except (tarfile.TarError, EOFError, OSError) as error:
        damage = f"{error} after {len(members)} samples"
    if damage is None and size > end:
        # tarfile takes an unreadable header for the end; the real end is all zeros.
        with shard.open("rb") as file:
            file.seek(end)
            if any(file.read(512)):
                damage = f"byte {end} is no header, after {len(members)} samples"
    samples = [_described(key, str(shard), at, texts[key]) for key, at in members.items()]
    return samples, damage


def _plain_samples(folder: Path) -> Iterator[Sample]:
    """``name.jpg`` with ``name.txt`` and possibly ``name.json`` and ``name.mask.png``.

    A subfolder stands for a person, unless the JSON file names one.
    """
    files: dict[str, dict[str, tuple[str, int, int]]] = defaultdict(dict)
    for path in sorted(folder.rglob("*")):
        key, extension = base_plus_ext(path.relative_to(folder).as_posix())
        if key and path.is_file():
            files[key][extension.lower()] = (str(path), 0, path.stat().st_size)
    for key, parts in files.items():
        if any(extension in parts for extension in PICTURES):
            person = Path(key).parent.as_posix()
            source = next(parts[e][0] for e in PICTURES if e in parts)
            texts = {e: Path(parts[e][0]).read_bytes() for e in TEXTS if e in parts}
            yield _described(key, source, parts, texts, None if person == "." else person)


def _described(
    key: str,
    source: str,
    files: dict[str, tuple[str, int, int]],
    texts: dict[str, bytes],
    person: str | None = None,
) -> Sample:
    """A sample with the contents of its text and JSON file, as far as they can be read."""
    facts: Any = {}
    text = ""
    try:
        facts = json.loads(texts.get("json", b"{}"))
        text = texts.get("txt", b"").decode()
    except ValueError as error:
        logger.warning("%s: %s: %s", source, key, error)
    if not isinstance(facts, dict):
        facts = {}
    captions = facts.get("captions")
    if not (isinstance(captions, list) and captions):
        captions = [text or facts.get("caption") or ""]
    who = facts.get("person", person)
    return Sample(
        key,
        source,
        {extension: at for extension, at in files.items() if extension != "txt"},
        captions=[str(caption) for caption in captions],
        person=None if who is None else str(who),
        style=str(facts.get("style", "photo")),
        faces=facts.get("faces"),
    )
