"""The index of a training set: where every sample lies, in webdataset shards or plain files.

Shards are tar files in img2dataset's layout: ``000012345.jpg``, ``.txt`` and ``.json`` of one
sample follow each other. webdataset reads them front to back, which shuffles within a buffer only
and resumes at a shard at best. Here the members' offsets are read once and cached
(``index_samples``), so that one `pread` reads any sample: an epoch is a true permutation, each
rank's share is arithmetic, and a run resumes by a sample's number. The shards have to be on a disk.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import io
import json
import logging
import math
import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image
from tqdm.auto import tqdm
from webdataset.shardlists import expand_urls

from fusionlib.errors import FusionError
from fusionlib.inputs.images import open_picture, picture_suffixes
from fusionlib.inputs.photos import read_photo
from fusionlib.support.files import write_text
from fusionlib.support.paths import Scan, is_hidden, scan_folder, summary, user_path
from fusionlib.support.provenance import sha256_json
from fusionlib.support.texts import decode_text, read_text, same_name

logger = logging.getLogger(__name__)

PICTURES = tuple(suffix.removeprefix(".") for suffix in picture_suffixes())
"""Extensions of a sample's picture, in order of preference."""

MAPS = ("mask.png", "depth.png")
"""Extensions of pictures that belong to a sample's picture."""

TEXTS = ("json", "txt")
"""Extensions of the files that are read into the index."""

MOST_SHARDS = 1_000_000
"""Number of shards from which on a pattern is taken for a mistake."""

FORMAT = 3
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
        problem: What is wrong with its texts; empty where nothing is.
    """

    key: str
    source: str
    files: dict[str, tuple[str, int, int]]
    captions: list[str] = field(default_factory=list)
    person: str | None = None
    style: str = "photo"
    faces: list[dict[str, Any]] | None = None
    problem: str = ""

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
            return read_photo(open_picture(io.BytesIO(content), "its picture"), "its picture")
        except FusionError:
            raise
        except Exception as error:  # a decoder may raise anything on damaged bytes
            raise FusionError(f"its picture cannot be read ({error})") from error

    def record(self) -> dict[str, Any]:
        """The content of its JSON file; empty where there is none, or none that can be read."""
        try:
            facts = (
                json.loads(decode_text(self.content("json"), "it")) if "json" in self.files else {}
            )
        except (ValueError, RecursionError):
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
        skipped: Why samples and other files were left out of the index, by place.
        damaged: Where shards are damaged, by file. Their samples before that point are included.
        noted: What is wrong with the texts of samples that are used all the same, by place.
    """

    samples: list[Sample]
    skipped: dict[str, str]
    damaged: dict[str, str]
    noted: dict[str, str] = field(default_factory=dict)


def find_shards(shards: str | Path) -> list[Path]:
    """The shards of a set, in order.

    Args:
        shards: Folder, searched with its subfolders; a single shard; or a pattern with braces or
            asterisks.

    Raises:
        FusionError: There is no such folder, or an expected shard is missing. Shards are expected
            by a pattern, by a folder's ``manifest.json``, and by img2dataset's statistics beside
            each shard.
    """
    place = user_path(shards)
    if place.is_file():
        if place.suffix.lower() != ".tar":
            raise FusionError(
                f"{place} is a file: give a folder, or a shard (*.tar); other archives have to be "
                "unpacked"
            )
        return [place]
    if place.is_dir():
        return _shards_in(place, scan_folder(place).files)
    if "{" in str(place):
        found = _expanded(str(place))
        _check_there(found)
    elif any(sign in str(place) for sign in "*?["):
        found = sorted(map(Path, glob.glob(str(place), recursive=True)))
        if not found:
            raise FusionError(f"the pattern {place} fits no file: check it, in quotes")
    else:
        raise FusionError(f"there is nothing to train on: there is no folder {place}")
    return found


def _shards_in(folder: Path, files: Sequence[Path]) -> list[Path]:
    """The shards among the files of a folder, none of those that its records expect missing."""
    expected = [
        file.with_name(file.name.removesuffix("_stats.json") + ".tar")
        for file in files
        if file.name.endswith("_stats.json")
    ]
    manifest = folder / "manifest.json"
    if manifest.is_file():
        try:
            listed = json.loads(read_text(manifest)).get("shards", [])
            expected += [folder / shard["file"] for shard in listed]
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
            raise FusionError(f"{manifest} is no record of shards: {error}") from error
    _check_there(expected)
    return [file for file in files if file.suffix.lower() == ".tar"]


def _expanded(pattern: str) -> list[Path]:
    """The paths for which a pattern with braces stands."""
    for first, last in re.findall(r"\{(\d+)\.\.(\d+)\}", pattern):
        if abs(int(last) - int(first)) >= MOST_SHARDS:
            raise FusionError(f"the pattern {pattern} stands for too many shards: check it")
    try:
        return [Path(path) for path in expand_urls(pattern)]
    except Exception as error:  # braceexpand has errors of its own
        raise FusionError(f"the pattern {pattern} has braces that do not fit: {error}") from error


def _check_there(expected: Sequence[Path]) -> None:
    missing = [path for path in expected if not path.is_file()]
    if missing:
        others = f" (and {len(missing) - 1} more)" if missing[1:] else ""
        raise FusionError(
            f"the shard {missing[0]} is missing{others}: copy it again, or take it out of what "
            "names it (the pattern in `training.shards`, manifest.json, or its _stats.json)"
        )


def index_samples(shards: str | Path, cache: Path | None = None) -> SampleSet:
    """Find every sample of a training set.

    Args:
        shards: Folder of shards or of plain files, a single shard, or a pattern of shards.
        cache: Folder for the index of each shard, valid while its size and time are the same.

    Returns:
        The samples. Whatever else there is, the unreadable parts of damaged shards among it, is
        counted and reported.

    Raises:
        FusionError: A shard is missing, or there is nothing to train on.
    """
    found = find_shards(shards)
    samples: list[Sample] = []
    damaged: dict[str, str] = {}
    folder = user_path(shards)
    scan = scan_folder(folder) if folder.is_dir() else Scan()
    skipped = dict(scan.passed_over)
    if found:
        for shard in tqdm(found, desc="indexing shards", mininterval=2.0):
            part, damage, others = _indexed(shard, cache)
            samples += part
            skipped |= others
            if damage:
                damaged[str(shard)] = damage
                logger.warning("%s is damaged: %s", shard, damage)
        records = ("manifest.json", "selection.json")
        for file in set(scan.files) - set(found):
            ours = file.name in records or file.name.endswith("_stats.json")
            if not ours and file.with_suffix(".tar") not in found:
                skipped[str(file)] = "it lies beside shards, which are read instead"
    else:
        plain, others = _plain_samples(folder, scan.files, scan.passed_over)
        samples += plain
        skipped |= others
    usable, useless = _usable(samples)
    skipped |= useless
    if not usable:
        raise FusionError(
            f"there is nothing to train on in {shards}: it needs webdataset shards (*.tar), or "
            f"pictures with a caption each ({len(samples)} samples without, {len(damaged)} damaged "
            f"shards){'; ' + summary(skipped) if skipped else ''}"
        )
    if skipped:
        logger.warning(
            "%d of what is in %s is not used: %s", len(skipped), shards, summary(skipped)
        )
    if scan.hidden:
        logger.info("%d hidden or system files in %s are passed over", len(scan.hidden), shards)
    noted = {sample.place: sample.problem for sample in usable if sample.problem}
    if noted:
        logger.warning("%d samples in %s are used in part: %s", len(noted), shards, summary(noted))
    return SampleSet(usable, skipped, damaged, noted)


def _usable(samples: Iterable[Sample]) -> tuple[list[Sample], dict[str, str]]:
    usable, skipped = [], {}
    for sample in samples:
        if not any(extension in sample.files for extension in PICTURES):
            skipped[sample.place] = "it has no picture"
        elif not any(caption.strip() for caption in sample.captions):
            skipped[sample.place] = sample.problem or "its caption is empty"
        else:
            usable.append(sample)
    return usable, skipped


def _indexed(shard: Path, cache: Path | None) -> tuple[list[Sample], str | None, dict[str, str]]:
    """What `scan_shard` finds, from the cache if it is there."""
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
        # A cache that is damaged is made again.
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            record = json.loads(cached.read_text(encoding="utf-8"))
            if record["key"] == key:
                samples = [
                    Sample(**row | {"files": {e: tuple(at) for e, at in row["files"].items()}})
                    for row in record["samples"]
                ]
                return samples, record["damage"], record["skipped"]
    samples, damage, skipped = scan_shard(shard)
    if cached:
        record = {"key": key, "damage": damage, "samples": [vars(sample) for sample in samples]}
        write_text(cached, json.dumps(record | {"skipped": skipped}))
    return samples, damage, skipped


def scan_shard(shard: Path) -> tuple[list[Sample], str | None, dict[str, str]]:
    """Read the table of contents of a tar file, and the texts in it.

    Returns:
        The samples whose files lie wholly in it, where and why reading stopped if that was before
        the end of the archive, and why other files are not used.
    """
    members = _Members()
    texts: dict[str, dict[str, bytes]] = defaultdict(dict)
    damage, end, size = None, 0, shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                key, extension = split_name(member.name)
                inside = member.offset_data + member.size <= size
                place = f"{shard}: {member.name}"
                if not inside:
                    damage = f"it ends within {member.name}"
                elif member.isdir() or is_hidden(member.name):
                    continue
                elif not member.isfile():
                    members.skipped[place] = "it is no ordinary file"
                elif members.add(place, member.name, str(shard), member.offset_data, member.size):
                    content = archive.extractfile(member) if extension in TEXTS else None
                    if content is not None:
                        texts[key][extension] = content.read()
            end = archive.offset
    except (tarfile.TarError, EOFError, OSError) as error:
        damage = f"{error} after {len(members.files)} samples"
    if damage is None and size > end:
        # tarfile takes an unreadable header for the end; the real end is all zeros.
        with shard.open("rb") as file:
            file.seek(end)
            if any(file.read(512)):
                damage = f"byte {end} is no header, after {len(members.files)} samples"
    samples = [_described(key, str(shard), at, texts[key]) for key, at in members.files.items()]
    return samples, damage, members.skipped


def split_name(name: str) -> tuple[str, str]:
    """A sample's key and a file's extension, in lower case: `ada.lovelace.JPG` is ada.lovelace's.

    webdataset splits at the first dot. Where keys have no dot, as img2dataset's, it is the same;
    elsewhere the pictures of several people would become one sample.
    """
    folder, slash, file = name.rpartition("/")
    known = next((one for one in MAPS if file.lower().endswith(f".{one}")), None)
    extension = known or file.rpartition(".")[2]
    if "." not in file or len(extension) + 1 >= len(file):
        return folder + slash + file, ""
    return folder + slash + file[: -len(extension) - 1], extension.lower()


class _Members:
    """Files by key and extension, and why others are not used."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, tuple[str, int, int]]] = defaultdict(dict)
        self.skipped: dict[str, str] = {}

    def add(self, place: str, name: str, path: str, offset: int, length: int) -> bool:
        """Take a file up, unless it is of an unknown kind or there is another one in its place."""
        key, extension = split_name(name)
        if extension not in (*PICTURES, *TEXTS, *MAPS):
            self.skipped[place] = "it is no picture, caption or record"
            return False
        taken = self.files[key]
        if extension in taken:
            self.skipped[place] = "another file of this name is used"
            return False
        picture = next((one for one in taken if one in PICTURES), None)
        if extension in PICTURES and picture:
            if PICTURES.index(picture) < PICTURES.index(extension):
                self.skipped[place] = f"the {picture} picture of this name is used"
                return False
            self.skipped[f"{place} ({picture})"] = f"the {extension} picture of this name is used"
            del taken[picture]
        taken[extension] = (path, offset, length)
        return True


def _in_one_spelling(
    files: dict[str, dict[str, tuple[str, int, int]]],
) -> dict[str, dict[str, tuple[str, int, int]]]:
    """The files by key, those without a picture beside the picture that Unicode spells otherwise.

    A system may spell a picture's name in one way, and another one that of its caption.
    """
    whole = {key: dict(at) for key, at in files.items() if at.keys() & set(PICTURES)}
    spelled: dict[str, list[str]] = defaultdict(list)
    for key in whole:
        spelled[same_name(key)].append(key)
    for key, at in files.items():
        if key not in whole:
            found = spelled.get(same_name(key), [])
            one = whole[found[0]] if len(found) == 1 else {}
            if one and not one.keys() & at.keys():
                one |= at
            else:
                whole[key] = at
    return whole


def _plain_samples(
    folder: Path, files: Iterable[Path], unusable: Iterable[str] = ()
) -> tuple[list[Sample], dict[str, str]]:
    """``name.jpg`` with ``name.txt`` and possibly ``name.json`` and ``name.mask.png``.

    A subfolder stands for a person, unless the JSON file names one. What goes with an unusable
    picture is not counted beside it.
    """
    unreadable = {split_name(Path(p).relative_to(folder).as_posix())[0] for p in unusable}
    members = _Members()
    for path in files:
        try:
            length = path.stat().st_size
        except OSError as error:
            members.skipped[str(path)] = f"it cannot be read ({error.strerror})"
            continue
        members.add(str(path), path.relative_to(folder).as_posix(), str(path), 0, length)
    unread = {split_name(Path(p).relative_to(folder).as_posix())[0] for p in members.skipped}
    unread |= unreadable
    samples = []
    for key, parts in _in_one_spelling(members.files).items():
        person = Path(key).parent.as_posix()
        source = next((parts[e][0] for e in PICTURES if e in parts), "")
        if not source:
            if key not in unread:
                members.skipped |= {path: "it has no picture" for path, _, _ in parts.values()}
            continue
        texts, problem = {}, ""
        for extension in TEXTS:
            if extension in parts:
                try:
                    texts[extension] = Path(parts[extension][0]).read_bytes()
                except OSError as error:
                    problem = f"its {extension} file cannot be read ({error.strerror})"
        sample = _described(key, source, parts, texts, None if person == "." else person)
        samples.append(replace(sample, problem=problem or sample.problem))
    return samples, members.skipped


def _described(
    key: str,
    source: str,
    files: dict[str, tuple[str, int, int]],
    texts: dict[str, bytes],
    person: str | None = None,
) -> Sample:
    """A sample with the contents of its text and JSON file, as far as they can be read."""
    facts: Any = {}
    text, problem = "", "" if texts else "it has no caption"
    if "txt" in texts:
        try:
            text = decode_text(texts["txt"], "its caption")
        except FusionError as error:
            problem = str(error)
    if "json" in texts:
        try:
            facts = json.loads(decode_text(texts["json"], "its JSON file"))
        except FusionError as error:
            problem = str(error)
        except (ValueError, RecursionError) as error:
            problem = f"its JSON file is damaged ({error})"
    if not isinstance(facts, dict):
        facts, problem = {}, "its JSON file is no record"
    captions = wordings_of(facts, text.encode("utf-8", "replace"))
    who, faces = facts.get("person"), facts.get("faces")
    if isinstance(who, dict | list):
        captions, problem = [], "its person is neither a name nor a number"
    if faces is not None and not _are_faces(faces):
        captions, problem = [], "its recorded faces are damaged"
    who = person if who is None else who
    return Sample(
        key,
        source,
        {extension: at for extension, at in files.items() if extension != "txt"},
        captions=captions or [""],
        person=None if who is None else same_name(str(who)),
        style=str(facts.get("style") or "photo"),
        faces=faces,
        problem=problem,
    )


def _are_faces(faces: Any) -> bool:
    """Whether a record's faces are as `fusionlib.training.crops.face_record` makes them."""
    try:
        return all(
            math.isfinite(float(number))
            for face in faces
            for point in (*face["eyes"], face["nose"], (face["score"], 0))
            for number in (point[0], point[1])
        )
    except (KeyError, IndexError, TypeError, ValueError):
        return False


def wordings_of(facts: dict[str, Any], text: bytes | None) -> list[str]:
    """The captions of a record, or else those of its text file; none where all are empty.

    Raises:
        FusionError: The text file is needed, and has an unknown encoding.
    """
    listed = facts.get("captions")
    found = _captions(listed if isinstance(listed, list) else [listed])
    found = found or _captions([decode_text(text or b"", "its caption")])
    return found or _captions([facts.get("caption")])


def _captions(listed: Iterable[Any]) -> list[str]:
    """The wordings among what a record lists: texts and numbers that say anything."""
    texts = (str(one) for one in listed if isinstance(one, str | int | float))
    whole = (text.encode("utf-8", "replace").decode().removeprefix("\ufeff") for text in texts)
    return [text for text in whole if text.strip()]
