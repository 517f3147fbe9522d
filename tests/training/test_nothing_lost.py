"""Nothing is lost where training and preparation write, and a signal leaves a checkpoint."""

import json
import os
import signal
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import RECIPE, _linear, _regression
from torch import nn

from companion.embedded import classifier, clip, controlnet, recogniser, unet, vae
from companion.methods.counterpart_training import train_method
from fusionlib import FusionAdapter
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT, load_profile
from fusionlib.support.files import locked
from fusionlib.support.signals import Stopped
from fusionlib.training import adapter, prepare
from fusionlib.training.export import ADAPTER, copy_record, own_folder
from fusionlib.training.loop import Batch, fit
from fusionlib.training.prepare import prepare_shards
from fusionlib.training.runs import RunOptions
from fusionlib.training.shards import Sample
from tests.helpers.training_data import write_profile, write_set
from tests.helpers.trees import tree, write_tree

Files = dict[str, str | bytes]
CONFIG = '{"_class_name": "FusionAdapter"}'
CARD = "---\n---\n\n# Fusion adapter for us\n"
WEIGHTS = "diffusion_pytorch_model.safetensors"

TARGETS: dict[str, tuple[str, Files, str]] = {
    "a folder of results": ("results", {"results/table.csv": "1"}, "holds table.csv"),
    "results beside an adapter": (
        "results", {f"results/{k}": v for k, v in {
            "config.json": CONFIG, WEIGHTS: "", "README.md": CARD, "table.csv": "1"}.items()},
        "holds table.csv",
    ),
    "the checkpoints": ("runs", {"runs/mine/adapter/checkpoint.pt": "1"}, "checkpoint.pt"),
    "the training set": ("shards", {}, "holds 00000.tar"),
    "the training set by a link": ("linked", {}, "holds 00000.tar"),
    "the training set by dots": ("results/../shards", {"results/a": ""}, "holds 00000.tar"),
    "a README of somebody's": ("project", {"project/README.md": "# Mine"}, "holds README.md"),
    "another model": (
        "unet", {"unet/config.json": '{"_class_name": "UNet2DConditionModel"}'},
        "holds config.json",
    ),
    "weights of another name": (
        "mine", {"mine/config.json": CONFIG, "mine/lora.safetensors": "1"}, "lora.safetensors"
    ),
    "a clone of a hub's repository": (
        "clone", {"clone/config.json": CONFIG, "clone/.git/HEAD": "1"}, "holds .git/HEAD"
    ),
    "the folder one is in": ("../here/.", {}, "the folder that you are in"),
    "a file": ("file.txt", {"file.txt": "1"}, "is a file"),
    "below a file": ("file.txt/adapter", {"file.txt": "1"}, "cannot be written"),
    "a record of somebody's": (
        "a/adapter", {"a/training/adapter.csv": "name,age\n"}, "adapter.csv exists and was not made"
    ),
    "a whole pipeline": ("pipe", {"pipe/model_index.json": "{}"}, "holds a whole pipeline"),
}  # fmt: skip


@pytest.mark.parametrize("out, files, says", TARGETS.values(), ids=TARGETS.keys())
@pytest.mark.parametrize("how", ["--out", "adapter:"])
def test_the_adapter_never_takes_the_place_of_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, files: Files, says: str, how: str
) -> None:
    """Before any model or picture is loaded: there is no checkpoint at all here."""
    write_tree(tmp_path, files)
    shards = write_set(tmp_path / "shards", 2)
    (tmp_path / "linked").symlink_to(shards)
    (tmp_path / "here").mkdir(exist_ok=True)
    options = RunOptions(Path(out)) if how == "--out" else RunOptions()
    changes = {} if how == "--out" else {"adapter": out}
    monkeypatch.chdir(tmp_path if "here" not in out else tmp_path / "here")
    file = write_profile(tmp_path / "mine.yaml", tmp_path / "nowhere", shards, **changes)
    before = tree(tmp_path)
    with pytest.raises(FusionError, match=says):
        adapter.train(load_profile(file), options)
    assert tree(tmp_path) == before


def test_adapters_of_before_are_replaced(tmp_path: Path) -> None:
    """With and without the card, in shards, and those that this repository carries."""
    for files in ({}, {"README.md": CARD}, {"model-00001-of-00002.safetensors": "1"}):
        folder = write_tree(tmp_path / str(len(str(files))), {"config.json": CONFIG, WEIGHTS: ""})
        own_folder(write_tree(folder, files), ADAPTER, "adapter")
    models = ROOT / "data" / "models" / "embedded"
    made = {"vae": vae.VAE, "unet": unet.UNET, "scheduler": unet.SCHEDULER, **clip.FOLDERS}
    made |= {"adapter": ADAPTER, "controlnet": controlnet.CONTROLNET}
    for name, kind in made.items():
        assert kind.foreign(models / name) is None, name


def _trainings() -> dict[str, tuple[str, Callable[..., Any]]]:
    return {
        "vae": ("vae", vae.train),
        "clip": ("text_encoder", clip.train),
        "tokenizer": ("tokenizer", clip.train),
        "base": ("unet", unet.train),
        "scheduler": ("scheduler", unet.train),
        "identity": ("identity", recogniser.train),
        "classifier": ("classifier", classifier.train),
        "controlnet": ("", controlnet.train),
        "method": ("", lambda *given: train_method(given[0], "ip-adapter", given[1])),
        "ablation": ("", lambda *given: train_method(given[0], "fused-random", given[1])),
    }


@pytest.mark.parametrize("folder, train", _trainings().values(), ids=_trainings().keys())
def test_nor_does_any_other_model(tmp_path: Path, folder: str, train: Callable[..., Any]) -> None:
    write_tree(tmp_path / "out" / folder, {"photo.jpg": "1"})
    profile = load_profile("embedded")
    profile.training.shards = str(tmp_path / "nowhere")
    profile.training.runs = str(tmp_path / "runs")
    before = tree(tmp_path)
    with pytest.raises(FusionError, match=r"holds photo\.jpg, which this command did not make"):
        train(profile, RunOptions(tmp_path / "out"))
    assert tree(tmp_path) == before


def test_a_run_that_is_going_on_is_left_alone(tmp_path: Path) -> None:
    file = write_profile(tmp_path / "mine.yaml", tmp_path / "nowhere", tmp_path / "shards")
    profile = load_profile(file)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    busy = locked(tmp_path / "runs" / "mine" / "adapter")
    with busy, pytest.raises(FusionError, match="Another process is writing .*adapter"):
        adapter.train(profile, RunOptions(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["loss.csv", "run.json", "samples.csv"])
def test_logs_of_something_else_are_not_emptied(tmp_path: Path, name: str) -> None:
    write_tree(tmp_path, {name: "something else"})
    with pytest.raises(FusionError, match=f"{name} exists and was not made by this command"):
        fit(_linear(), _regression, RECIPE, tmp_path)
    assert tree(tmp_path) == {name: b"something else"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_leaves_a_checkpoint_however_early(tmp_path: Path, number: int) -> None:
    seen = 0
    recipe = RECIPE.model_copy(update={"checkpoint_minutes": 60})

    def stopped(network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        nonlocal seen
        seen += 1
        if seen == 3:
            os.kill(os.getpid(), number)
        return _regression(network, batch)

    with pytest.raises(Stopped, match=r"checkpoint\.pt holds step 3 of 12, and the same command"):
        fit(_linear(), stopped, recipe, tmp_path / "broken")
    assert json.loads((tmp_path / "broken" / "run.json").read_text())["steps"] == 3
    whole, resumed = _linear(), _linear()
    fit(resumed, _regression, recipe, tmp_path / "broken")
    fit(whole, _regression, recipe, tmp_path / "whole")
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = torch.save, []

    def full(state: Any, file: Any) -> None:
        saved.append((tmp_path / "checkpoint.pt").is_file())
        if len(saved) < 3:
            return save(state, file)
        with open("/dev/full", "wb") as device:
            save(state, device)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left on device"):
        fit(_linear(), _regression, RECIPE, tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2
    assert not list(tmp_path.glob(".*"))


def test_a_records_copy_follows_the_link_of_its_model(tmp_path: Path) -> None:
    run = write_tree(tmp_path / "runs" / "adapter", {"run.json": "{}"})
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "adapter")
    copy_record(tmp_path / "link", run)
    assert tree(tmp_path / "disk") == {"training": None, "training/adapter.json": b"{}"}


# preparation


def _keep(sample: Sample, selection: Any) -> tuple[dict[str, Any], str]:
    return {"faces": []}, "kept"


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two shards of which every picture is kept."""
    monkeypatch.setattr(prepare, "select", _keep)
    return write_set(tmp_path / "raw", 12)


OUTPUTS: dict[str, tuple[str, Files, str]] = {
    "its source": ("raw", {}, "is or lies in"),
    "its source by dots": ("raw/../raw", {}, "is or lies in"),
    "its source by a link": ("linked", {}, "is or lies in"),
    "in its source": ("raw/prep", {}, "is or lies in"),
    "around its source": (".", {}, "holds .*, which is read"),
    "others' archives": ("prep", {"prep/00000.tar": "1", "prep/lfw.tar": "2"}, "holds lfw.tar"),
    "an archive of another name": (
        "prep", {"prep/selection.json": '"min_face"', "prep/lfw.tar": "2"}, "holds lfw.tar"
    ),
    "an archive of our name": (
        "prep", {"prep/selection.json": '"min_face"', "prep/00007.tar": "2"}, "holds 00007.tar"
    ),
    "downloads of img2dataset": (
        "prep", {"prep/00000.tar": "1", "prep/00000_stats.json": "{}"}, "holds 00000.tar"
    ),
    "notes": ("prep", {"prep/notes.txt": "1"}, "holds notes.txt"),
    "a file": ("prep", {"prep": "1"}, "is a file"),
}  # fmt: skip


@pytest.mark.parametrize("out, files, says", OUTPUTS.values(), ids=OUTPUTS.keys())
def test_preparation_touches_no_archive_of_others(
    tmp_path: Path, raw: Path, out: str, files: Files, says: str
) -> None:
    write_tree(tmp_path, files)
    (tmp_path / "linked").symlink_to(raw)
    before = tree(tmp_path)
    for source in (raw, tmp_path / "linked"):
        with pytest.raises(FusionError, match=says):
            prepare_shards(source, tmp_path / out, workers=1)
        assert tree(tmp_path) == before


def test_two_preparations_keep_apart(tmp_path: Path, raw: Path) -> None:
    prepare_shards(raw, tmp_path / "prep", workers=1)
    before, busy = tree(tmp_path), locked(tmp_path / "prep", inside=True)
    with busy, pytest.raises(FusionError, match="Another process is writing"):
        prepare_shards(raw, tmp_path / "prep", workers=1)
    assert tree(tmp_path) == before


def test_preparation_onto_a_pattern_is_refused(tmp_path: Path, raw: Path) -> None:
    before = tree(tmp_path)
    with pytest.raises(FusionError, match="which is read"):
        prepare_shards(f"{raw}/{{00000..00001}}.tar", raw, workers=1)
    assert tree(tmp_path) == before


def test_what_an_earlier_run_finished_is_not_deleted(
    tmp_path: Path, raw: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "prep"
    prepare_shards(raw, out, workers=1)
    before = tree(out)
    assert len(before) == 5
    assert prepare_shards(raw, out, pairs=1, workers=1)["kept"] == 6
    assert tree(out) == before
    assert "keeps 1 shards of an earlier run" in caplog.text
    (tmp_path / "link").symlink_to(out)
    prepare_shards(raw, tmp_path / "link", workers=1)
    assert tree(out) == before and (tmp_path / "link").is_symlink()


def test_preparation_stops_between_two_pictures(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(sample: Sample, selection: Any) -> tuple[dict[str, Any], str]:
        if sample.key.endswith("8"):
            threading.Thread(target=lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
            time.sleep(0.3)
        return _keep(sample, selection)

    from fusionlib.support.signals import obeyed

    monkeypatch.setattr(prepare, "select", slow)
    with pytest.raises(Stopped), obeyed():
        prepare_shards(raw, tmp_path / "prep", workers=1)
    left = sorted(path.name for path in (tmp_path / "prep").iterdir())
    assert left == ["00000.tar", "00000_stats.json", "selection.json"]
    monkeypatch.setattr(prepare, "select", _keep)
    assert prepare_shards(raw, tmp_path / "prep", workers=1)["kept"] == 12
    with tarfile.open(tmp_path / "prep" / "00001.tar") as archive:
        assert len(archive.getnames()) == 18


def test_a_trained_adapter_is_still_one(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """Trained onto a link and again onto itself: the link stays, the folder is the adapter's."""
    shards = write_set(tmp_path / "shards", 4, people=2)
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "adapter")
    file = write_profile(tmp_path / "mine.yaml", tiny_checkpoint, shards, recipe={"steps": 1})
    for _ in range(2):
        adapter.train(load_profile(file), RunOptions(tmp_path / "link", resume=False))
    assert (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path / "disk")) == ["adapter", "training"]
    assert sorted(os.listdir(tmp_path / "link")) == ["README.md", "config.json", WEIGHTS]
    FusionAdapter.from_pretrained(tmp_path / "link")
