"""Streamed training data: the index, pairs, crops, the disk cache, and everything malformed."""

import io
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fusionlib.cli import app
from fusionlib.errors import FusionError
from fusionlib.inputs.photos import find_faces, prepare_photo
from fusionlib.profiles import ROOT
from fusionlib.training import shards
from fusionlib.training.crops import Crops, face_record
from fusionlib.training.loop import Batch, step_generator
from fusionlib.training.pairs import Pairing, PairStream, Skipped
from fusionlib.training.prepare import Selection, prepare_shards, select, statistics
from fusionlib.training.shards import MissingShard, Sample, find_shards, index_samples
from tests.helpers.training_data import SIDE, disc, encoded, sample, write_set, write_tar

FACE = ROOT / "data" / "heldout" / "0000_0.jpg"


def turn(number: int, size: int = 4, stride: int = 4) -> Batch:
    """Batch ``number`` of a run of one process."""
    first = number * stride
    return Batch(0, range(first, first + size), stride, step_generator(0, number))


def everyone(samples: list[Sample], seed: int = 0) -> Pairing:
    return Pairing([s.person for s in samples], [True] * len(samples), seed, alone=True)


def malformed(folder: Path) -> tuple[Path, set[str], set[str]]:
    """Two shards, one cut short; returns the keys that are useful, and those that are not."""
    good = {
        "a": sample(1),
        "grey": sample(2, encoded(disc(2, mode="L"))),
        "huge": sample(3, encoded(disc(3, side=4500))),  # 20 megapixels
        "bare": {"jpg": encoded(disc(4)), "txt": b"no json"},
        "b": sample(5),
    }
    bad = {
        "empty": sample(6, caption=""),
        "blank": sample(7, caption=" \n"),
        "html": sample(8, b"<html>404</html>"),
        "cut": sample(9, encoded(disc(9, side=256))[:900]),
        "none": {"txt": b"a caption alone"},
        "dot": sample(10, encoded(Image.new("RGB", (1, 1)))),
    }
    write_tar(folder / "00000.tar", {**dict(list(good.items())[:2]), **bad})
    broken = write_tar(folder / "00001.tar", dict(list(good.items())[2:]) | {"lost": sample(11)})
    content = broken.read_bytes()
    end = content.rindex(b"lost.jpg") + 700  # within the picture of the last sample
    broken.write_bytes(content[:end])
    return folder, set(good), set(bad)


def test_malformed_samples_are_skipped_and_counted_and_training_goes_on(tmp_path: Path) -> None:
    folder, good, bad = malformed(tmp_path / "shards")
    samples = index_samples(folder)
    assert list(samples.damaged) == [str(folder / "00001.tar")]
    skipped = Skipped(tmp_path / "run")
    stream = PairStream(samples, everyone(samples.samples), Crops(SIDE), skipped)
    for number in range(10):  # every sample comes up several times
        pairs = stream(turn(number))
        assert pairs.targets.shape == pairs.references.shape == (4, SIDE, SIDE, 3)
    # "lost" has a caption and no whole picture; "lost.jpg" is what the cut went through.
    known = {place.rpartition(": ")[2] for place in samples.skipped | Skipped.all(tmp_path / "run")}
    assert known - {"lost"} == bad
    used = {s.key for s in samples.samples} - known
    assert used == good
    again = Skipped(tmp_path / "run")
    again.add(Skipped.all(tmp_path / "run"))
    assert len(Skipped.all(tmp_path / "run")) == 3, "counted once, also over a resumption"
    Skipped(tmp_path / "run", fresh=True)
    assert Skipped.all(tmp_path / "run") == {}, "a run that starts over has skipped nothing yet"


def test_a_header_that_is_overwritten_is_noticed(tmp_path: Path) -> None:
    shard = write_set(tmp_path, 6) / "00000.tar"
    content = bytearray(shard.read_bytes())
    place = content.index(b"000000003.jpg")
    content[place : place + 512] = b"\xff" * 512
    shard.write_bytes(content)
    samples = index_samples(tmp_path)
    assert len(samples.samples) == 3 and "no header" in samples.damaged[str(shard)]


def test_a_missing_shard_names_itself(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", 12)
    assert len(find_shards(folder)) == len(find_shards(f"{folder}/{{00000..00001}}.tar")) == 2
    with pytest.raises(FusionError, match=r"00002\.tar is missing"):
        find_shards(f"{folder}/{{00000..00002}}.tar")
    (folder / "00003_stats.json").write_text("{}")
    with pytest.raises(FusionError, match=r"00003\.tar is missing"):
        find_shards(folder)
    (folder / "00003_stats.json").unlink()
    (folder / "manifest.json").write_text(json.dumps({"shards": [{"file": "00007.tar"}]}))
    with pytest.raises(FusionError, match=r"00007\.tar is missing"):
        find_shards(folder)
    (folder / "manifest.json").unlink()

    samples = index_samples(folder)
    (folder / "00001.tar").unlink()
    for workers in (0, 1):
        stream = PairStream(
            samples, everyone(samples.samples), Crops(SIDE), Skipped(tmp_path / "run"), workers
        )
        with pytest.raises(FusionError, match=r"00001\.tar cannot be read") as caught:
            for number in range(3):
                stream(turn(number))
        assert "Traceback" not in str(caught.value)
    with pytest.raises(FusionError, match="nothing to train on"):
        index_samples(tmp_path / "nowhere")


def test_the_index_is_read_again_only_when_a_shard_changes(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", 12)
    first = index_samples(folder, tmp_path / "index")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "index").iterdir()}
    assert len(kept) == 2
    assert index_samples(folder, tmp_path / "index") == first
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    write_tar(folder / "00001.tar", {"x": sample(99)})
    changed = index_samples(folder, tmp_path / "index")
    assert [s.key for s in changed.samples[6:]] == ["x"]


def test_a_shard_of_the_same_size_is_read_again(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "set" / "00000.tar", {"x": sample(1, caption="a face, one")})
    before = index_samples(tmp_path / "set", tmp_path / "index")
    status = shard.stat()
    write_tar(shard, {"x": sample(1, caption="a face, two")})
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert shard.stat().st_size == status.st_size
    after = index_samples(tmp_path / "set", tmp_path / "index")
    assert [s.samples[0].captions for s in (before, after)] == [["a face, one"], ["a face, two"]]


def test_an_index_of_another_format_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "set" / "00000.tar", {"x": sample(1)})
    index_samples(tmp_path / "set", tmp_path / "index")
    (kept,) = (tmp_path / "index").iterdir()
    kept.write_text(kept.read_text().replace("a face", "as it was read"))

    def caption() -> str:
        return index_samples(tmp_path / "set", tmp_path / "index").samples[0].captions[0]

    assert caption().startswith("as it was read")
    monkeypatch.setattr(shards, "FORMAT", shards.FORMAT + 1)
    assert caption().startswith("a face")


def test_a_shard_that_changes_under_a_run_is_never_read_by_halves(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "00000.tar", {"x": sample(1)})
    (one,) = index_samples(tmp_path).samples
    before = one.content("jpg")
    new = write_tar(tmp_path / "elsewhere" / "new", {"x": sample(1, before[::-1])})
    os.replace(new, shard)  # of the same layout, so that every place in it is as it was
    assert one.content("jpg") == before[::-1], "what is there, not what was open"
    os.truncate(shard, one.files["jpg"][1] + 10)
    with pytest.raises(MissingShard, match=r"00000\.tar became shorter since it was indexed"):
        one.content("jpg")


def test_a_folder_of_files_is_a_set_and_its_subfolders_are_people() -> None:
    samples = index_samples(ROOT / "data" / "heldout").samples
    assert len(samples) == 1400 and len({s.person for s in samples}) == 200
    assert samples[0].picture().tobytes() == Image.open(FACE).convert("RGB").tobytes()


def test_subfolders_are_people(tmp_path: Path) -> None:
    for who in ("ann", "bob"):
        (tmp_path / who).mkdir()
        for n in range(2):
            (tmp_path / who / f"{n}.png").write_bytes(encoded(disc(n), "PNG"))
            (tmp_path / who / f"{n}.txt").write_text("a face")
    samples = index_samples(tmp_path).samples
    assert [s.person for s in samples] == ["ann", "ann", "bob", "bob"]
    pairing = everyone(samples)
    assert pairing.partners(0) == [1] and pairing.partners(3) == [2]


def test_an_epoch_is_a_permutation_and_pairs_are_of_one_person() -> None:
    people = [n % 5 for n in range(20)]
    photo = [n % 4 != 0 for n in range(20)]
    pairing = Pairing(people, photo, 7, alone=False)
    again = Pairing(people, photo, 7, alone=False)
    epochs = []
    for epoch in range(3):
        chosen = [pairing.choose(epoch * 20 + n)[:2] for n in range(20)]
        assert sorted(target for target, _ in chosen) == list(range(20))
        for number, (target, reference) in enumerate(chosen):
            assert people[target] == people[reference] and target != reference
            assert photo[reference]
            assert again.choose(epoch * 20 + number)[:2] == (target, reference), "out of order"
        epochs.append([target for target, _ in chosen])
    assert epochs[0] != epochs[1] != epochs[2]
    other = Pairing(people, photo, 8, alone=False)
    assert [other.choose(n)[0] for n in range(20)] != epochs[0], "each run has its own order"
    with pytest.raises(FusionError, match="another photograph"):
        Pairing([None, "a"], [True, True], 0, alone=False)
    assert Pairing([None, "a"], [True, True], 0, alone=True).choose(0)[0] in (0, 1)


def test_workers_and_ranks_and_resumption_see_the_same_samples(tmp_path: Path) -> None:
    samples = index_samples(write_set(tmp_path / "set", 12))
    crops = Crops(SIDE, augment=True)

    def stream(workers: int) -> PairStream:
        return PairStream(samples, everyone(samples.samples), crops, Skipped(tmp_path), workers)

    whole, part, resumed = stream(0), stream(2), stream(0)
    for number in range(4):
        one = whole(turn(number))
        assert torch.equal(one.targets, part(turn(number)).targets)
        if number == 3:
            assert torch.equal(one.references, resumed(turn(number)).references)
            resumed(turn(0))  # and back, as nothing that runs in order does
            assert torch.equal(one.references, resumed(turn(number)).references)
        for rank in range(2):  # the same four samples as two ranks draw them
            first = 4 * number + 2 * rank
            share = Batch(0, range(first, first + 2), 4, step_generator(0))
            half = stream(0)(share)
            assert torch.equal(half.references, one.references[2 * rank : 2 * rank + 2])
            assert half.captions == one.captions[2 * rank : 2 * rank + 2]


def recorded(image: Image.Image) -> Sample:
    """A picture in memory as a sample with its faces found."""

    class Held(Sample):
        def picture(self) -> Image.Image:
            return image

    return Held(
        "x", "memory", {}, ["a face"], faces=[face_record(face) for face in find_faces(image)]
    )


def test_a_reference_is_cut_as_a_users_photograph_is() -> None:
    image = Image.new("RGB", (300, 260), "grey")
    image.paste(Image.open(FACE).convert("RGB").rotate(15).resize((200, 200)), (70, 40))
    held = recorded(image)
    crops = Crops(96, "face")
    expected = np.asarray(prepare_photo(image, size=96)).astype(int)
    seen = [crops.reference(held, np.random.default_rng(s)).astype(int) for s in range(8)]
    mirrored = [np.abs(s - expected).mean() > np.abs(s[:, ::-1] - expected).mean() for s in seen]
    assert 0 < sum(mirrored) < 8
    for one, turned in zip(seen, mirrored, strict=True):
        assert np.abs((one[:, ::-1] if turned else one) - expected).mean() < 1.0


def test_targets_hold_the_face_and_references_are_not_their_pixels() -> None:
    image = Image.new("RGB", (500, 400), "grey")
    image.paste(Image.open(FACE).convert("RGB").resize((160, 160)), (310, 60))
    held = recorded(image)
    crops = Crops(128, "face", augment=True)
    sizes, differences = [], []
    for seed in range(12):
        target = Image.fromarray(crops.target(held, np.random.default_rng(seed)).pixels)
        found = find_faces(target)
        assert len(found) == 1, "the face is in the target, whole"
        sizes.append(found[0].side / 128)
        first = crops.reference(held, np.random.default_rng(seed))
        second = crops.reference(held, np.random.default_rng(seed + 100))
        differences.append(np.abs(first.astype(int) - second).mean())
        assert len(find_faces(Image.fromarray(first))) == 1
    assert 0.15 < min(sizes) < max(sizes) < 0.8 and max(sizes) > 1.3 * min(sizes)
    assert min(differences) > 3
    with pytest.raises(FusionError, match="no face is recorded"):
        files = {"jpg": (str(FACE), 0, FACE.stat().st_size)}
        crops.reference(Sample("x", str(FACE), files, ["a"]), np.random.default_rng(0))


def test_preparation_keeps_one_clear_face_and_counts_the_rest(tmp_path: Path) -> None:
    face = Image.open(FACE).convert("RGB")

    def scene(*places: tuple[int, int, int], size: tuple[int, int] = (640, 480)) -> Image.Image:
        image = Image.new("RGB", size, "grey")
        for left, top, side in places:
            image.paste(face.resize((side, side)), (left, top))
        return image

    one = (100, 50, 320)
    mask = {"mask.png": encoded(Image.new("L", (640, 480), 1), "PNG")}
    samples = {
        "good": sample(0, encoded(scene(one)), person="ann") | mask,
        "grey": sample(1, encoded(scene(one).convert("L"))),
        "large": sample(2, encoded(scene((900, 700, 2400), size=(5200, 3900)))),
        "two": sample(3, encoded(scene((20, 80, 300), (330, 80, 300)))),
        "tiny": sample(4, encoded(scene((20, 80, 120)))),
        "small": sample(5, encoded(face)),
        "empty": sample(6, encoded(scene(one)), caption=""),
        "nobody": sample(7, encoded(scene())),
        "html": sample(8, b"<html>"),
    }
    raw = tmp_path / "raw"
    write_tar(raw / "00000.tar", dict(list(samples.items())[:5]))
    write_tar(raw / "00001.tar", dict(list(samples.items())[5:]))
    out = tmp_path / "out"
    counts = prepare_shards(raw, out, workers=1)
    assert Counter(counts) - Counter({"damaged shards": 0}) == Counter(
        {
            "kept": 3, "too many faces": 1, "face too small": 1, "picture too small": 1,
            "empty caption": 1, "no face": 1, "unreadable": 1,
        }
    )  # fmt: skip
    kept = index_samples(out)
    assert not kept.skipped and not kept.damaged and len(kept.samples) == 3
    assert kept.samples[0].person == "ann"
    assert kept.samples[0].content("jpg") == samples["good"]["jpg"], "byte for byte"
    assert kept.samples[0].content("mask.png") == mask["mask.png"]
    (found,) = find_faces(Image.open(io.BytesIO(samples["large"]["jpg"])))
    assert kept.samples[2].faces == [json.loads(json.dumps(face_record(found)))]
    for held in kept.samples:
        Crops(64, "face", augment=True).target(held, np.random.default_rng(0))
    assert statistics(out)["with a recorded face"] == "3"
    shown = CliRunner().invoke(app, ["data", "statistics", str(out)])
    assert shown.exit_code == 0 and "side of the face, pixels" in shown.output
    missing = CliRunner().invoke(app, ["data", "prepare", f"{raw}/{{0..3}}.tar", str(out)])
    assert missing.exit_code == 1 and "0.tar is missing" in missing.output

    finished = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert prepare_shards(raw, out, workers=1) == counts
    changed = [p.name for p, time in finished.items() if p.stat().st_mtime_ns != time]
    assert changed == ["selection.json"]
    assert prepare_shards(raw, tmp_path / "few", pairs=2, workers=2)["kept"] == 3
    assert [p.name for p in sorted((tmp_path / "few").glob("*.tar"))] == ["00000.tar"]
    assert len(index_samples(tmp_path / "few").samples) == 3
    (out / "00000.tar").unlink()  # lost, though its statistics are there
    assert prepare_shards(raw, out, workers=1) == counts
    assert len(index_samples(out).samples) == 3
    with pytest.raises(FusionError, match="other rules"):
        prepare_shards(raw, out, selection=Selection(max_faces=2), workers=1)


def test_a_picture_of_two_is_kept_where_two_are_allowed() -> None:
    image = Image.new("RGB", (640, 320))
    for n in range(2):
        image.paste(Image.open(FACE).convert("RGB").resize((320, 320)), (320 * n, 0))
    facts, reason = select(recorded(image), Selection(max_faces=2, min_face=64, min_side=300))
    assert reason == "kept" and facts is not None and len(facts["faces"]) == 2
    surest = max(face["score"] for face in facts["faces"])
    strict = Selection(max_faces=2, min_face=64, min_side=300, min_score=surest + 0.1)
    assert select(recorded(image), strict) == (None, "face unclear")
