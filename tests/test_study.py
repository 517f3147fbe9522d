"""A study's store: named by content, resumed after a kill, shared, never mistaken."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fusionlib.errors import FusionError
from fusionlib.images import read_metadata
from fusionlib.loading import load_pipeline
from fusionlib.methods import Method
from fusionlib.methods.fusion import fused, text_only
from fusionlib.profiles import load_profile
from fusionlib.study import Person, Study, cells, load_people, noise_seed, read_study, run_study


def paint(
    references: Sequence[Sequence[Image.Image]], prompts: Sequence[str], seeds: Sequence[int]
) -> list[Image.Image]:
    """A method without a model: noise, tinted by the first reference."""
    images = []
    for own, prompt, seed in zip(references, prompts, seeds, strict=True):
        noise = np.random.default_rng([seed, len(prompt)]).integers(0, 128, (32, 32, 3))
        tint = np.asarray(own[0]).mean() / 2 if own else 0
        images.append(Image.fromarray((noise + tint).astype(np.uint8)))
    return images


@pytest.fixture
def people(tmp_path: Path) -> list[Person]:
    found = []
    for name, level in (("ada", 40), ("ben", 200)):
        path = tmp_path / f"{name}.png"
        Image.new("RGB", (32, 32), (level, level, level)).save(path)
        found.append(Person(name, references=(path,)))
    return found


@pytest.fixture
def study(people: list[Person]) -> Study:
    methods = [Method("blind", paint, {"v": 1}, references=0), Method("seeing", paint, {"v": 1})]
    return Study("two", methods, people, prompts=["a face", "a laughing face"], seeds=[0, 1])


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store / "images").rglob("*.png")}


def test_every_cell_gets_its_picture(study: Study, tmp_path: Path) -> None:
    index = run_study(study, tmp_path / "store", progress=False)
    assert len(index) == 2 * 2 * 2 * 2
    assert index["key"].is_unique
    assert not index.duplicated(["method", "person", "prompt", "seed"]).any()
    for row in index.itertuples():
        record = read_metadata(row.image)
        assert (record["prompt"], record["noise_seed"]) == (row.prompt, row.noise_seed)
        assert len(record["references"]) == (row.method == "seeing")
    again, people = read_study(tmp_path / "store" / "studies" / "two")
    assert again.equals(index)
    assert [person.name for person in people] == ["ada", "ben"]


def test_noise_is_paired_across_methods_and_differs_between_people(study: Study) -> None:
    grid = cells(study)
    noise = {(cell.person, cell.prompt, cell.seed): set() for cell in grid}
    for cell in grid:
        noise[cell.person, cell.prompt, cell.seed].add(cell.noise_seed)
    assert all(len(seeds) == 1 for seeds in noise.values())
    assert len({noise_seed(name, seed) for name in ("ada", "ben") for seed in range(50)}) == 100


def test_finished_pictures_are_not_made_again(study: Study, tmp_path: Path) -> None:
    made: list[str] = []

    def count(references, prompts, seeds):  # type: ignore[no-untyped-def]
        made.extend(prompts)
        return paint(references, prompts, seeds)

    study = replace(study, methods=[replace(m, generate=count) for m in study.methods])
    run_study(study, tmp_path / "store", progress=False)
    assert len(made) == 16
    run_study(study, tmp_path / "store", progress=False)
    assert len(made) == 16
    larger = replace(study, name="three seeds", seeds=[0, 1, 2])
    run_study(larger, tmp_path / "store", batch_size=1, progress=False)
    assert len(made) == 16 + 8  # another study finds what this one made


@pytest.mark.parametrize("change", ["settings", "reference", "prompt"])
def test_changed_ingredients_are_new_pictures(
    study: Study, people: list[Person], tmp_path: Path, change: str
) -> None:
    before = {cell.key for cell in cells(study) if cell.method == "seeing"}
    if change == "settings":
        study = replace(study, methods=[replace(m, settings={"v": 2}) for m in study.methods])
    elif change == "reference":  # the same file name, another picture
        for person in people:
            Image.new("RGB", (32, 32), "red").save(person.references[0])
    else:
        study = replace(study, prompts=["a sad face"])
    assert before.isdisjoint(cell.key for cell in cells(study) if cell.method == "seeing")


def test_a_method_without_references_ignores_them(study: Study, people: list[Person]) -> None:
    before = {cell.key for cell in cells(study) if cell.method == "blind"}
    Image.new("RGB", (32, 32), "red").save(people[0].references[0])
    assert before == {cell.key for cell in cells(study) if cell.method == "blind"}


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_study as t
def slow(references, prompts, seeds):
    time.sleep(0.1)
    return t.paint(references, prompts, seeds)
people = [t.Person(n, references=(Path({folder!r}) / (n + ".png"),)) for n in ("ada", "ben")]
methods = [t.Method("blind", slow, {{"v": 1}}, references=0), t.Method("seeing", slow, {{"v": 1}})]
t.run_study(t.Study("two", methods, people, ["a face", "a laughing face"], list(range(30))),
            Path({folder!r}) / "killed", batch_size=3, progress=False)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_and_resumed_is_the_same_byte_for_byte(study: Study, tmp_path: Path) -> None:
    study = replace(study, seeds=list(range(30)))
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script])
    images = tmp_path / "killed" / "images"
    while len(list(images.rglob("*.png"))) < 20 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    first = len(contents(tmp_path / "killed"))
    assert 20 <= first < 240
    run_study(study, tmp_path / "killed", batch_size=3, progress=False)
    run_study(study, tmp_path / "whole", batch_size=3, progress=False)
    killed = contents(tmp_path / "killed")
    assert len(killed) == 240
    assert killed == contents(tmp_path / "whole")


def test_mistakes_end_in_one_sentence(study: Study, people: list[Person], tmp_path: Path) -> None:
    with pytest.raises(FusionError, match="sees 2 reference"):
        cells(replace(study, methods=[replace(study.methods[1], references=2)]))
    with pytest.raises(FusionError, match="share a name"):
        run_study(replace(study, people=[people[0], people[0]]), tmp_path, progress=False)
    with pytest.raises(FusionError, match="no finished study"):
        read_study(tmp_path)
    people[0].references[0].unlink()
    with pytest.raises(FusionError, match="no reference image"):
        cells(study)


def test_people_are_read_in_order_from_an_index(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text(
        "person,view,file,style\n10,1,d.png,photo\n2,1,b.png,noir\n2,0,a.png,photo\n"
        "10,0,c.png,photo\n2,2,e.png,photo\n3,0,f.png,photo\n"
    )
    people = load_people(tmp_path)
    assert [person.name for person in people] == ["2", "10"]
    assert people[0].references == (tmp_path / "a.png",)
    assert people[0].others == (tmp_path / "b.png", tmp_path / "e.png")
    assert people[1].others == (tmp_path / "d.png",)  # person 3 has nothing to measure against
    assert load_people(tmp_path, 1) == people[:1]
    (photos, _) = load_people(tmp_path, only={"style": "photo"})
    assert photos.others == (tmp_path / "e.png",)
    (both,) = load_people(tmp_path, references=2)
    assert both.references == (tmp_path / "a.png", tmp_path / "b.png")
    with pytest.raises(FusionError, match="2 people .* fewer than the 3"):
        load_people(tmp_path, 3)
    with pytest.raises(FusionError, match="columns person, view, file, mood"):
        load_people(tmp_path, only={"mood": "good"})
    with pytest.raises(FusionError, match="index.csv"):
        load_people(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint: Path):  # type: ignore[no-untyped-def]
    profile = load_profile("embedded").model_copy(
        update={"base_model": str(tiny_checkpoint), "adapter": str(tiny_checkpoint / "adapter")}
    )
    return load_pipeline(profile, device="cpu")


SETTINGS = {"num_inference_steps": 3, "guidance_scale": 3.0}


def test_the_seed_names_the_picture_whatever_the_batch(
    pipeline, people: list[Person], tmp_path: Path
) -> None:
    study = Study(
        "batches",
        [text_only(pipeline, **SETTINGS), fused(pipeline, **SETTINGS)],
        people,
        prompts=["a face", "a laughing face"],
    )
    one = run_study(study, tmp_path / "one", batch_size=1, progress=False)
    eight = run_study(study, tmp_path / "eight", batch_size=8, progress=False)
    assert one["key"].tolist() == eight["key"].tolist()
    pictures = []
    for a, b in zip(one["image"], eight["image"], strict=True):
        first, second = (np.asarray(Image.open(path)).astype(int) for path in (a, b))
        assert np.abs(first - second).max() <= 1  # the last bit may round otherwise
        pictures.append(first)
    for number, picture in enumerate(pictures):
        for another in pictures[number + 1 :]:
            assert np.abs(picture - another).max() > 5  # and every cell is a picture of its own


def test_the_library_call_makes_the_same_picture(
    pipeline, people: list[Person], tmp_path: Path
) -> None:
    study = Study("one", [fused(pipeline, **SETTINGS)], people, ["a face"])
    index = run_study(study, tmp_path, batch_size=1, progress=False)
    direct = pipeline(
        "a face",
        references=[Image.open(people[0].references[0])],
        generator=torch.Generator().manual_seed(int(index["noise_seed"][0])),
        **SETTINGS,
    ).images[0]
    assert np.array_equal(np.asarray(direct), np.asarray(Image.open(index["image"][0])))


def test_changed_weights_are_new_pictures(pipeline, people: list[Person]) -> None:
    def keys(method: Method) -> set[str]:
        return {cell.key for cell in cells(Study("weights", [method], people, ["a face"]))}

    before = keys(text_only(pipeline)), keys(fused(pipeline))
    weight = next(pipeline.adapter.parameters())
    with torch.no_grad():
        weight.view(-1)[0] += 1
        after = keys(text_only(pipeline)), keys(fused(pipeline))
        weight.view(-1)[0] -= 1
    assert before[0] == after[0]  # the base model has not changed
    assert before[1].isdisjoint(after[1])
    assert before[1].isdisjoint(keys(fused(pipeline, strengths=[0.5])))
