"""A study's store: named by content, resumed after any kill, shared, the same for any processes."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from companion import append_table
from companion.figures.grids import pairs_grid, study_grid
from companion.methods import Method, Models
from companion.methods.fusion import fused, text_only
from companion.person import Person, load_people
from companion.studies.declaration import Declaration, load_declaration, resized
from companion.studies.store import Store
from companion.studies.study import (
    BLOCK,
    Share,
    Study,
    cells,
    left_out,
    noise_seed,
    read_study,
    run_study,
    study_status,
)
from fusionlib.cli import app
from fusionlib.errors import FusionError, NoFaceError
from fusionlib.inputs.images import read_metadata
from fusionlib.profiles import ROOT, load_profile
from fusionlib.profiles.loading import load_pipeline
from fusionlib.support.provenance import sha256_file

runner = CliRunner()


def paint(prompt: str, references: Sequence[Image.Image], seed: int) -> Image.Image:
    """A method without a model: noise, tinted by the first reference."""
    noise = np.random.default_rng([seed, len(prompt)]).integers(0, 128, (32, 32, 3))
    tint = np.asarray(references[0]).mean() / 2 if references else 0
    return Image.fromarray((noise + tint).astype(np.uint8))


def paint_slowly(prompt: str, references: Sequence[Image.Image], seed: int) -> Image.Image:
    time.sleep(0.02)
    return paint(prompt, references, seed)


def build_paint(models: Models, name: str = "paint") -> Method:
    """As a study's file names it: ``test_study:build_paint``."""
    return Method(name, paint, {"v": 1})


def write_people(folder: Path) -> list[Person]:
    found = []
    for name, level in (("ada", 40), ("ben", 200)):
        path = folder / f"{name}.png"
        Image.new("RGB", (32, 32), (level, level, level)).save(path)
        found.append(Person(name, references=(path,)))
    return found


@pytest.fixture
def people(tmp_path: Path) -> list[Person]:
    return write_people(tmp_path)


def make_study(people: list[Person], generate=paint, seeds: Sequence[int] = (0, 1)) -> Study:  # type: ignore[no-untyped-def]
    methods = [
        Method("blind", generate, {"v": 1}, references=0),
        Method("seeing", generate, {"v": 1}),
    ]
    return Study("two", methods, people, prompts=["a face", "a laughing face"], seeds=seeds)


@pytest.fixture
def study(people: list[Person]) -> Study:
    return make_study(people)


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store / "images").rglob("*.png")}


def listed(store: Path) -> list[tuple[str, str]]:
    """Key and hash of every row of the index as it lies on the disk, repetitions included."""
    tables = [pq.ParquetFile(path).read() for path in (store / "index").glob("*.parquet")]
    return sorted((row["key"], row["sha256"]) for table in tables for row in table.to_pylist())


def is_whole(store: Path, study: Study) -> bool:
    """Every cell once, in the images and in the index, whose hashes are the files'."""
    keys = sorted(cell.key for cell in cells(study))
    return (
        sorted(name.removesuffix(".png") for name in contents(store)) == keys
        and [key for key, _ in listed(store)] == keys
        and all(sha256_file(Store(store).path(key)) == digest for key, digest in listed(store))
    )


def test_every_cell_gets_its_picture(study: Study, tmp_path: Path) -> None:
    store = tmp_path / "store"
    index = run_study(study, store, progress=False)
    assert len(index) == 2 * 2 * 2 * 2
    assert index["key"].is_unique
    assert not index.duplicated(["method", "person", "prompt", "seed"]).any()
    for row in index.itertuples():
        record = read_metadata(row.image)
        assert (record["prompt"], record["noise_seed"]) == (row.prompt, row.noise_seed)
        assert len(record["references"]) == (row.method == "seeing")
    again, people = read_study(store / "studies" / "two")
    assert again.equals(index)
    assert [person.name for person in people] == ["ada", "ben"]
    assert is_whole(store, study)
    rows = Store(store).index()
    assert (rows["seconds"] > 0).all() and rows["worker"].str.endswith(f":{os.getpid()}").all()
    record = Store(store).manifest("two")
    assert record["methods"][0]["settings"] == {"v": 1} and record["versions"]["numpy"]
    assert "commit" in record


def test_people_may_have_prompts_of_their_own(study: Study, people: list[Person]) -> None:
    prompts = {"ada": ["a face"], "ben": ["a laughing face", "a sad face"]}
    own = replace(study, prompts=prompts, seeds=[0])
    assert own.all_prompts == ["a face", "a laughing face", "a sad face"]
    made = {(cell.method, cell.person, cell.prompt): cell.key for cell in cells(own)}
    wanted = {(m, p, text) for m in ("blind", "seeing") for p in prompts for text in prompts[p]}
    assert made.keys() == wanted
    # A picture is the same whether its prompt was asked of everybody or of one.
    for cell in cells(study):
        place = (cell.method, cell.person, cell.prompt)
        assert cell.seed != 0 or place not in made or made[place] == cell.key
    with pytest.raises(FusionError, match="no prompt for 'ben'"):
        cells(replace(own, prompts={"ada": ["a face"]}))
    with pytest.raises(FusionError, match="'a face' twice"):
        cells(replace(own, prompts=prompts | {"ada": ["a face", "a face"]}))


def test_noise_is_paired_across_methods_and_differs_between_people(study: Study) -> None:
    grid = cells(study)
    noise = {(cell.person, cell.prompt, cell.seed): set() for cell in grid}
    for cell in grid:
        noise[cell.person, cell.prompt, cell.seed].add(cell.noise_seed)
    assert all(len(seeds) == 1 for seeds in noise.values())
    assert len({noise_seed(name, seed) for name in ("ada", "ben") for seed in range(50)}) == 100


def test_finished_pictures_are_not_made_again(study: Study, tmp_path: Path) -> None:
    made: list[str] = []

    def count(prompt, references, seed):  # type: ignore[no-untyped-def]
        made.append(prompt)
        return paint(prompt, references, seed)

    study = replace(study, methods=[replace(m, generate=count) for m in study.methods])
    run_study(study, tmp_path / "store", progress=False)
    assert len(made) == 16
    run_study(study, tmp_path / "store", progress=False)
    assert len(made) == 16
    larger = replace(study, name="three seeds", seeds=[0, 1, 2])
    run_study(larger, tmp_path / "store", progress=False)
    assert len(made) == 16 + 8  # another study finds what this one made
    assert is_whole(tmp_path / "store", larger)


def test_a_persons_references_are_prepared_once_for_a_block(
    people: list[Person], tmp_path: Path
) -> None:
    prepared = []

    def prepare(references):  # type: ignore[no-untyped-def]
        prepared.append(len(references))
        return references

    study = make_study(people, seeds=range(BLOCK))  # two prompts: two blocks for each person
    study = replace(study, methods=[replace(m, prepare=prepare) for m in study.methods])
    run_study(study, tmp_path / "store", progress=False)
    assert prepared == [0] * 4 + [1] * 4


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


def run_share(folder: Path, store: Path, share: Share, seeds: int, flush: float) -> None:
    """What a process of its own does."""
    append_table.FLUSH_SECONDS = flush
    people = [Person(name, (folder / f"{name}.png",)) for name in ("ada", "ben")]
    run_study(make_study(people, paint_slowly, range(seeds)), store, share=share, progress=False)


@pytest.fixture(scope="module")
def processes() -> Iterator[multiprocessing.context.ForkServerContext]:
    """Processes that start at once: their modules are loaded already, in a process without any."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_study"])
    yield context


def finish(started: Sequence[multiprocessing.Process]) -> None:
    for process in started:
        process.start()
    for process in started:
        process.join()
        assert process.exitcode == 0


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_twenty_times_and_resumed_is_the_same_byte_for_byte(
    processes, people: list[Person], tmp_path: Path
) -> None:
    seeds, store, moments = 40, tmp_path / "killed", random.Random(0)
    study = make_study(people, seeds=range(seeds))
    for kill in range(20):
        flush = moments.choice([0.0, 0.02, 2.0])  # at every picture, now and then, at the end
        arguments = (tmp_path, store, Share(), seeds, flush)
        process = processes.Process(target=run_share, args=arguments)
        before = len(Store(store).keys())
        process.start()
        # Among pictures or, every other time, at any moment from the process's first.
        while kill % 2 and len(Store(store).keys()) == before and process.is_alive():
            time.sleep(0.005)
        deadline = time.monotonic() + moments.uniform(0, 0.06 if kill % 2 else 0.3)
        while time.monotonic() < deadline:
            rows = Store(store).index()  # readable, and never ahead of the pictures
            assert all(Store(store).path(key).is_file() for key in rows["key"])
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the study was finished too early"
        for path in (store / "images").rglob("*.png"):
            Image.open(path).load()  # no half of a picture under a picture's name
        keys = [key for key, _ in listed(store)]
        assert len(keys) == len(set(keys)) <= len(Store(store).keys())
    assert 10 <= len(Store(store).keys()) < 8 * seeds
    run_study(study, store, progress=False)
    run_study(study, tmp_path / "whole", progress=False)
    assert contents(store) == contents(tmp_path / "whole")
    assert is_whole(store, study)
    assert Store(store).index()["seconds"].isna().any()  # some were listed by the next run


@pytest.mark.parametrize("count", [2, 3])
def test_processes_side_by_side_give_the_same_store_as_one(
    processes, people: list[Person], tmp_path: Path, count: int
) -> None:
    seeds = 20
    study = make_study(people, seeds=range(seeds))
    run_study(study, tmp_path / "one", progress=False)
    finish(
        [
            processes.Process(
                target=run_share,
                args=(tmp_path, tmp_path / "many", Share(number, count), seeds, 0.0),
            )
            for number in range(count)
        ]
    )
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert listed(tmp_path / "many") == listed(tmp_path / "one")
    workers = Store(tmp_path / "many").index()["worker"].value_counts()
    assert len(workers) == count and workers.min() > len(cells(study)) / count / 2
    assert read_study(tmp_path / "many" / "studies" / "two")[0]["key"].tolist() == [
        cell.key for cell in cells(study)
    ]


def test_another_number_of_processes_goes_on_where_the_first_stopped(
    study: Study, tmp_path: Path
) -> None:
    run_study(study, tmp_path / "store", share=Share(1, 3), progress=False)
    assert 0 < len(contents(tmp_path / "store")) < 16
    for number in range(2):
        run_study(study, tmp_path / "store", share=Share(number, 2), progress=False)
    assert is_whole(tmp_path / "store", study)


def test_status_tells_what_is_done_and_forecasts_the_rest(study: Study, tmp_path: Path) -> None:
    store = tmp_path / "store"
    run_study(replace(study, methods=study.methods[:1]), store, progress=False)
    run_study(study, store, share=Share(1, 9), progress=False)  # nothing, and declares nothing
    table = study_status(store, "two")
    assert table["done"].tolist() == [8] and table["seconds"].tolist() == [0]
    run_study(replace(study, methods=study.methods[:1], seeds=[0]), store, progress=False)
    run_study(replace(study, seeds=[0]), tmp_path / "other", share=Share(0, 4), progress=False)
    table = study_status(tmp_path / "other", "two")
    assert table["cells"].tolist() == [4, 4] and table["done"].tolist() == [2, 0]
    rows = Store(tmp_path / "other").index()
    assert table["seconds"]["blind"] == pytest.approx(2 * rows["seconds"].mean())
    assert np.isnan(table["seconds"]["seeing"])


def test_deleted_pictures_are_made_again(study: Study, tmp_path: Path) -> None:
    index = run_study(study, tmp_path / "store", progress=False)
    whole = contents(tmp_path / "store")
    Path(index["image"][3]).unlink()
    with pytest.raises(FusionError, match="lacks 1 of 16 pictures"):
        read_study(tmp_path / "store" / "studies" / "two")
    run_study(study, tmp_path / "store", progress=False)
    assert contents(tmp_path / "store") == whole
    assert len(Store(tmp_path / "store").index()) == 16


def picky(images: Sequence[Image.Image]) -> Sequence[Image.Image]:
    """Finds a face where a picture is bright."""
    if images[0].getpixel((0, 0))[0] < 100:  # type: ignore[index]
        raise NoFaceError("Reference 1 (32 x 32 pixels) shows no face.")
    return images


def test_who_shows_no_face_is_left_out_and_counted(
    people: list[Person], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store"
    asked = []

    def prepare(images: Sequence[Image.Image]) -> Sequence[Image.Image]:
        asked.append(images)
        return picky(images)

    study = make_study(people)
    blind, seeing = study.methods
    study = replace(study, methods=[blind, replace(seeing, prepare=prepare)])
    index = run_study(study, store, progress=False)
    assert "'ada' is left out for 'seeing': Reference 1" in caplog.text
    counts = index.groupby(["method", "person"]).size().to_dict()
    assert counts == {("blind", "ada"): 4, ("blind", "ben"): 4, ("seeing", "ben"): 4}
    assert all(Path(path).is_file() for path in index["image"])

    again = run_study(study, store, progress=False)
    assert again.equals(index) and len(asked) == 2, "nobody is asked twice"
    run_study(replace(study, seeds=range(2 * BLOCK)), tmp_path / "large", progress=False)
    assert len(asked) == 2 + 1 + 4, "ada once for all of her pictures, ben for each block of his"
    assert read_study(store / "studies" / "two")[0].equals(index)
    (gone,) = left_out(store / "studies" / "two").to_dict("records")
    assert (gone["method"], gone["person"]) == ("seeing", "ada") and "no face" in gone["reason"]
    table = study_status(store, "two").loc["seeing"]
    assert (table["cells"], table["done"], table["left_out"], table["seconds"]) == (8, 4, 4, 0)

    for number in (1, 0):  # in two processes it is the same study
        run_study(study, tmp_path / "parts", share=Share(number, 2), progress=False)
    assert contents(tmp_path / "parts") == contents(store)
    assert left_out(tmp_path / "parts" / "studies" / "two").to_dict("records") == [gone]
    shown = runner.invoke(app, ["study", "status", str(store)]).output
    (line,) = (line for line in shown.splitlines() if "seeing" in line)
    assert [cell.strip() for cell in line.split("│")[3:7]] == ["4", "8", "4", ""]

    grid = study_grid(index, people, prompts=study.prompts[:1])
    whole = run_study(make_study(people), tmp_path / "whole", progress=False)
    full = study_grid(whole, people, prompts=study.prompts[:1])
    differs = np.asarray(grid) != np.asarray(full)
    assert grid.size == full.size and differs.any(), "a place stays empty"
    rows, columns = np.nonzero(differs.any(axis=2))
    assert columns.min() > grid.width / 2 and rows.max() < grid.height * 0.7, "and no other"
    with pytest.raises(FusionError, match="no pictures of 'another'"):
        study_grid(index, people, prompts=["another"])
    assert pairs_grid(index, people).height == pairs_grid(whole, people).height
    assert pairs_grid(index[index["person"] == "ben"], people).height < grid.height

    first = replace(study, methods=[replace(seeing, prepare=picky), blind])
    there = run_study(first, tmp_path / "first", progress=False)
    assert there.groupby(["method", "person"]).size().to_dict() == counts, "for that method alone"
    two = [replace(seeing, prepare=picky), replace(seeing, name="too", prepare=picky)]
    two[1] = replace(two[1], settings={"v": 2})
    run_study(replace(study, methods=two), tmp_path / "both", progress=False)
    both = left_out(tmp_path / "both" / "studies" / "two")
    assert both[["method", "person"]].values.tolist() == [["seeing", "ada"], ["too", "ada"]]

    cell = next(c for c in cells(study) if (c.method, c.person) == ("seeing", "ada"))
    with Store(store).writing() as shelf:  # another machine's detector found the face
        shelf.add(cell.key, Image.new("RGB", (32, 32)), cell.ingredients, 1.0)
    assert len(read_study(store / "studies" / "two")[0]) == len(index) + 1
    table = study_status(store, "two").loc["seeing"]
    assert (table["done"], table["left_out"]) == (5, 3)


def test_mistakes_end_in_one_sentence(study: Study, people: list[Person], tmp_path: Path) -> None:
    def wrong(**changes: object) -> Study:
        return replace(study, **changes)  # type: ignore[arg-type]

    for bad, says in (
        (wrong(methods=[replace(study.methods[1], references=2)]), "sees 2 reference"),
        (wrong(people=[people[0], people[0]]), "person 'ada' twice"),
        (wrong(seeds=[1, 1]), "seed 1 twice"),
        (wrong(prompts=[]), "no prompt"),
        (wrong(name="../elsewhere"), "names a folder"),
    ):
        with pytest.raises(FusionError, match=says):
            run_study(bad, tmp_path / "store", progress=False)
    with pytest.raises(FusionError, match="holds no study"):
        read_study(tmp_path)
    with pytest.raises(FusionError, match="no study 'three'.*its studies: two"):
        run_study(study, tmp_path / "store", progress=False)
        study_status(tmp_path / "store", "three")
    with pytest.raises(FusionError, match="not 2 of 2"):
        Share(2, 2)
    (damaged,) = (tmp_path / "store" / "index").glob("*.parquet")
    damaged.write_bytes(damaged.read_bytes()[:50])
    with pytest.raises(FusionError, match=f"{damaged.name} is damaged"):
        Store(tmp_path / "store").index()
    damaged.unlink()
    run_study(study, tmp_path / "store", progress=False)
    assert is_whole(tmp_path / "store", study)  # it was listed again, as the error says
    rows = Store(tmp_path / "store").index()
    assert rows[["seconds", "commit"]].isna().all().all(), "nobody knows of what code they are"
    people[0].references[0].unlink()
    with pytest.raises(FusionError, match="no reference image"):
        cells(study)


def test_a_table_begins_a_new_file_when_one_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(append_table, "ROWS_PER_FILE", 10)
    schema = append_table.pa.schema(
        {"key": append_table.pa.string(), "value": append_table.pa.int64()}
    )
    with append_table.AppendTable(tmp_path, schema) as table:
        for number in range(25):
            table.append({"key": str(number), "value": number})
        table.append({"key": "3", "value": -3})
    assert len(list(tmp_path.glob("*.parquet"))) == 3
    rows = append_table.AppendTable(tmp_path, schema).read()
    assert len(rows) == 25 and rows.set_index("key")["value"]["3"] == -3
    assert list(append_table.AppendTable(tmp_path, schema).read(columns=[])) == ["key"]


def test_people_are_read_in_order_from_an_index(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text(
        "person,view,file,style\n10,1,d.png,photo\n2,1,b.png,noir\n2,0,a.png,photo\n"
        "10,0,c.png,photo\n2,2,e.png,photo\n3,0,f.png,photo\n"
    )
    for name in "abcdef":
        (tmp_path / f"{name}.png").touch()
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
    return load_pipeline(tiny_profile(tiny_checkpoint), device="cpu")


def tiny_profile(checkpoint: Path):  # type: ignore[no-untyped-def]
    return load_profile("embedded").model_copy(
        update={"base_model": str(checkpoint), "adapter": str(checkpoint / "adapter")}
    )


SETTINGS = {"num_inference_steps": 3, "guidance_scale": 3.0}


def model_study(pipeline, people: list[Person], threads: int = 1) -> Study:  # type: ignore[no-untyped-def]
    settings = {**SETTINGS, "threads": threads}
    methods = [text_only(pipeline, **settings), fused(pipeline, **settings)]
    return Study("model", methods, people, ["a face", "a laughing face"], [0, 1])


def run_model_share(checkpoint: Path, folder: Path, store: Path, share: Share) -> None:
    """What a process of its own does, however many threads its machine would give it."""
    torch.set_num_threads(share.count)
    pipeline = load_pipeline(tiny_profile(checkpoint), device="cpu")
    people = [Person(name, (folder / f"{name}.png",)) for name in ("ada", "ben")]
    run_study(model_study(pipeline, people), store, share=share, progress=False)


def test_one_two_and_three_processes_make_the_same_pictures_with_a_model(
    processes, tiny_checkpoint: Path, people: list[Person], tmp_path: Path
) -> None:
    stores = {}
    for count in (1, 2, 3):
        store = tmp_path / str(count)
        finish(
            [
                processes.Process(
                    target=run_model_share,
                    args=(tiny_checkpoint, tmp_path, store, Share(number, count)),
                )
                for number in range(count)
            ]
        )
        stores[count] = contents(store), listed(store)
        assert len(stores[count][0]) == 16
    assert stores[1] == stores[2] == stores[3]


def test_a_picture_does_not_depend_on_its_company(
    pipeline, people: list[Person], tmp_path: Path
) -> None:
    study = model_study(pipeline, people)
    alone = replace(study, people=people[1:], prompts=study.prompts[1:], seeds=[1])
    run_study(study, tmp_path / "all", progress=False)
    run_study(alone, tmp_path / "alone", progress=False)
    everything, few = contents(tmp_path / "all"), contents(tmp_path / "alone")
    assert len(few) == 2 and few.items() <= everything.items()
    pictures = [np.asarray(Image.open(p)).astype(int) for p in (tmp_path / "all").rglob("*.png")]
    for number, picture in enumerate(pictures):
        for another in pictures[number + 1 :]:
            assert np.abs(picture - another).max() > 5  # and every cell is a picture of its own


def test_threads_are_part_of_what_names_a_picture(pipeline, people: list[Person]) -> None:
    one, two = ({cell.key for cell in cells(model_study(pipeline, people, n))} for n in (1, 2))
    assert one.isdisjoint(two)
    method = fused(pipeline, threads=1, **SETTINGS)
    seen = []
    hook = pipeline.unet.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        method.generate("a face", method.prepare([Image.open(people[0].references[0])]), 0)
        assert set(seen) == {1} and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
        hook.remove()


def test_the_library_call_makes_the_same_picture(
    pipeline, people: list[Person], tmp_path: Path
) -> None:
    study = Study("one", [fused(pipeline, **SETTINGS)], people, ["a face"])
    index = run_study(study, tmp_path, progress=False)
    direct = pipeline(
        "a face",
        references=[Image.open(people[0].references[0])],
        generator=torch.Generator().manual_seed(int(index["noise_seed"][0])),
        **SETTINGS,
    ).images[0]
    assert np.array_equal(np.asarray(direct), np.asarray(Image.open(index["image"][0])))


@pytest.mark.parametrize("left", [0, 5, 0.5, -1])
def test_a_picture_that_is_cut_short_is_made_again(
    study: Study, tmp_path: Path, left: float, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store"
    run_study(study, store, progress=False)
    before = contents(store)
    key = cells(study)[3].key
    path = Store(store).path(key)
    whole = path.read_bytes()
    path.write_bytes(whole[: left if isinstance(left, int) else int(len(whole) * left)])
    run_study(study, store, progress=False)
    assert contents(store) == before
    assert f"{path} is cut short" in caplog.text
    rows = Store(store).index().set_index("key")
    assert len(rows) == len(before) and rows.loc[key, "sha256"] == sha256_file(path)


def test_changed_weights_are_new_pictures(pipeline, people: list[Person]) -> None:
    def keys(method: Method) -> set[str]:
        return {cell.key for cell in cells(Study("weights", [method], people, ["a face"]))}

    before = keys(text_only(pipeline)), keys(fused(pipeline))
    weight = next(pipeline.adapter.parameters())
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.view(-1)[0] += 1
        after = keys(text_only(pipeline)), keys(fused(pipeline))
        weight.copy_(kept)
    assert before[1] == keys(fused(pipeline))
    assert before[0] == after[0]  # the base model has not changed
    assert before[1].isdisjoint(after[1])
    assert before[1].isdisjoint(keys(fused(pipeline, strengths=[0.5])))
    assert before[1].isdisjoint(keys(fused(pipeline, reference_prompt="a face")))


@pytest.fixture
def declared(tiny_checkpoint: Path, people: list[Person], tmp_path: Path) -> Path:
    """A study's file: a tiny model, two people of a folder, a method of somebody else's."""
    profile = tiny_profile(tiny_checkpoint).model_dump(mode="json")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(profile))
    rows = [f"{person.name},0,{person.references[0].name}" for person in people]
    (tmp_path / "index.csv").write_text("\n".join(["person,view,file", *rows]) + "\n")
    content = {
        "name": "declared",
        "profile": str(tmp_path / "tiny.yaml"),
        "methods": [
            "text-only",
            {"method": "fused", "name": "strong", "strengths": [2]},
            {"method": "test_study:build_paint", "name": "somebody's"},
        ],
        "people": {"folder": str(tmp_path), "others": 0},
        "prompts": ["a face"],
        "seeds": 2,
        "sampling": {"num_inference_steps": 2},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "study.yaml"


def test_a_declared_study_runs_from_the_command_line(declared: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    done = runner.invoke(app, ["study", "run", str(declared), "--store", str(store)])
    assert done.exit_code == 0, done.output
    index, people = read_study(store / "studies" / "declared")
    assert list(index["method"].unique()) == ["text-only", "strong", "somebody's"]
    assert len(index) == 3 * 2 * 2 and [person.name for person in people] == ["ada", "ben"]
    settings = read_metadata(index["image"][5])["settings"]
    assert (settings["strengths"], settings["num_inference_steps"]) == ([2.0], 2)
    assert settings["threads"] == 1
    record = Store(store).manifest("declared")
    assert Declaration.model_validate(record["declaration"]) == load_declaration(declared)
    assert record["methods"][1]["citation"] == "mohamed2024fusion"
    status = runner.invoke(app, ["study", "status", str(store)])
    assert status.exit_code == 0
    assert [
        line.split("│")[1:5] for line in status.output.splitlines() if line.startswith("│ decl")
    ] == [
        [" declared ", f" {name:10} ", "    4 ", "  4 "]
        for name in ("text-only", "strong", "somebody's")
    ]
    parts = tmp_path / "parts"
    for part in ("1/2", "2/2"):
        arguments = ["study", "run", str(declared), "--store", str(parts), "--share", part]
        assert runner.invoke(app, arguments).exit_code == 0
    assert contents(parts) == contents(store)


def test_a_declared_study_takes_a_list_of_pairs(declared: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("person,prompt\nben,a king\nada,a queen\n")
    content = yaml.safe_load(declared.read_text()) | {"prompts": str(tmp_path / "pairs.csv")}
    declared.write_text(yaml.safe_dump(content))
    study = load_declaration(declared).study()
    assert study.prompts == {"ben": ["a king"], "ada": ["a queen"]}
    assert [person.name for person in study.people] == ["ada", "ben"]
    one = resized(declared, profile=content["profile"], people=1).study()
    assert [person.name for person in one.people] == ["ben"] and one.prompts == {"ben": ["a king"]}
    own = resized(declared, profile=content["profile"], prompts=["a duke"]).study()
    assert len(own.people) > 1 and list(own.all_prompts) == ["a duke"]


BAD_FILES = {
    "not there": (None, "no study file"),
    "no YAML": ("a: [", "is not YAML"),
    "a list": ("- 1", "does not fit at the whole"),
    "no prompts": ({"prompts": None}, "does not fit at prompts"),
    "no list": (
        {"prompts": "nowhere.csv"},
        "The list of prompts nowhere.csv cannot be read (No such",
    ),
    "unknown entry": ({"promts": ["a"]}, "does not fit at promts: there is no such entry"),
    "no threads": ({"threads": 0}, "does not fit at threads"),
    "unknown method": ({"methods": ["magic"]}, "no method 'magic'"),
    "unknown option": ({"methods": [{"method": "fused", "strenghts": [1]}]}, "strenghts"),
    "guidance in words": (
        {"methods": ["text-only", {"method": "fused", "name": "f", "guidance_scale": "foo"}]},
        "methods.1: guidance_scale of the method 'f': The guidance scale 'foo' must be a number",
    ),
    "no steps": (
        {"methods": [{"method": "fused", "num_inference_steps": 0}]},
        "methods.0: num_inference_steps of the method 'fused': The number of steps must be from 1",
    ),
    "half steps": ({"methods": [{"method": "fused", "num_inference_steps": 2.5}]}, "not 2.5"),
    "steps in words": (
        {"sampling": {"num_inference_steps": "x"}},
        "sampling: num_inference_steps of all methods: The number of steps must be from 1 to 1000",
    ),
    "unknown profile": ({"profile": "none"}, "no profile 'none'"),
    "too many people": ({"people": {"count": 500}}, "fewer than the 500"),
    "people elsewhere": ({"people": {"folder": "nowhere"}}, "nowhere needs a file index.csv"),
    "two of a name": ({"methods": ["fused", "fused"]}, "method 'fused' twice"),
    "no seeds": ({"seeds": 0}, "than or equal to 1"),
}


@pytest.mark.parametrize("changes, says", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_malformed_study_file_is_one_sentence(
    declared: Path, tmp_path: Path, changes: object, says: str
) -> None:
    if changes is None:
        declared.unlink()
    elif isinstance(changes, str):
        declared.write_text(changes)
    else:
        content = yaml.safe_load(declared.read_text()) | changes
        content = {name: value for name, value in content.items() if value is not None}
        declared.write_text(yaml.safe_dump(content))
    done = runner.invoke(app, ["study", "run", str(declared), "--store", str(tmp_path / "s")])
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("Error: ") and says in line
    assert not contents(tmp_path / "s")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["workers", "accelerate"])
def test_workers_and_accelerate_make_the_same_store(
    declared: Path, tmp_path: Path, how: str
) -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    command = ["-m", "fusionlib", "study", "run", str(declared), "--store"]
    python = [sys.executable, *command]
    subprocess.run([*python, str(tmp_path / "one")], env=environment, check=True)
    many = [*python, str(tmp_path / "many"), "--workers", "3"]
    if how == "accelerate":
        # It starts torchrun; without a GPU the processes find themselves on the CPU.
        launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
        many = [sys.executable, *launch, *command, str(tmp_path / "many")]
    subprocess.run(many, env=environment, check=True)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert listed(tmp_path / "many") == listed(tmp_path / "one")
    assert Store(tmp_path / "many").index()["worker"].nunique() > 1
