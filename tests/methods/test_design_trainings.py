"""Trainings from other seeds: what a seed changes, and all of them by one command."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from typer.testing import CliRunner

from companion.evaluation.designs import read_training
from companion.methods import Models, build_method, design_trainings
from companion.methods import counterpart_training as method
from companion.methods.counterparts import FILE
from companion.methods.design_trainings import (
    DESIGNS,
    LENGTHS,
    planned_trainings,
    train_designs,
    trainings_folder,
)
from companion.studies.declaration import Declaration, load_declaration
from fusionlib.cli import app
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT, Profile, load_profile
from fusionlib.training import adapter
from fusionlib.training.loop import Batch, step_generator
from fusionlib.training.runs import RunOptions, run_folder
from tests.helpers.training_data import write_profile, write_set


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    yield
    AcceleratorState._reset_state()
    PartialState._reset_state()


@pytest.fixture
def profile(tiny_checkpoint: Path, tmp_path: Path) -> Profile:
    """Twelve discs of four people, and a recipe of four steps of two samples."""
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    file = write_profile(
        tmp_path / "small.yaml", base, write_set(tmp_path / "shards", 12, people=4),
        training={"stream": False}, counterparts=str(tmp_path / "methods"), guidance_scale=3.0,
    )  # fmt: skip
    return load_profile(file)


def weights_of(folder: Path) -> bytes:
    (file,) = folder.glob("*.safetensors")
    return file.read_bytes()


def seeded(profile: Profile, seed: int) -> Profile:
    return profile.model_copy(update={"seed": seed})


def test_a_seed_draws_the_samples_and_weights_that_do_not_begin_as_copies(
    profile: Profile,
) -> None:
    rows, pixels, fused, projections = {}, {}, {}, {}
    for seed in (0, 1):
        task = adapter.prepare(seeded(profile, seed))
        batch = Batch(seed, range(8), 8, step_generator(seed))
        inputs = task.source(batch)
        assert inputs.rows is not None
        rows[seed] = inputs.rows.tolist()
        pixels[seed] = torch.cat([torch.randn(4, generator=g) for g in batch.sample_generators()])
        fused[seed] = dict(task.network.adapter.named_parameters())
        network: Any = method.build_network(seeded(profile, seed), "ip-adapter")
        projections[seed] = torch.cat([p.flatten() for p in network.projection.parameters()])
    assert rows[0] != rows[1] and not torch.equal(pixels[0], pixels[1])
    assert all(torch.equal(fused[0][name], fused[1][name]) for name in fused[0]), "copies"
    assert not torch.equal(projections[0], projections[1])


def test_designs_of_one_seed_see_the_same_samples_under_the_same_noise(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded within the trainings themselves, batch by batch."""
    seen: dict[str, list[Any]] = {}
    for module in (adapter, method):
        predict = module.Task.predict

        def record(self: Any, network: Any, inputs: Any, drawn: Any, predict: Any = predict) -> Any:
            log = [inputs.rows.tolist(), drawn.noisy.sum().item(), drawn.timesteps.tolist()]
            seen.setdefault(current, []).append(log + [drawn.no_reference.tolist()])
            return predict(self, network, inputs, drawn)

        monkeypatch.setattr(module.Task, "predict", record)
    for current in DESIGNS:
        method.train_method(profile, current, RunOptions(steps=2), seed=3)
    assert len(seen["fused"]) == 2
    assert seen["fused"] == seen["decoupled"] == seen["ip-adapter"]
    current = "other"
    method.train_method(profile, "fused", RunOptions(steps=2), seed=4)
    assert seen["other"] != seen["fused"]


def test_the_profiles_seed_is_the_default_and_changes_no_byte(
    profile: Profile, tmp_path: Path
) -> None:
    options = RunOptions(steps=2)
    for name in ("decoupled", "ip-adapter"):
        method.train_method(profile, name, options)
        first = weights_of(tmp_path / "methods" / name)
        given = replace(options, out=tmp_path / "given" / name, resume=False)
        method.train_method(profile, name, given, seed=profile.seed)
        assert weights_of(tmp_path / "given" / name) == first
        config = json.loads((tmp_path / "methods" / name / "config.json").read_text())
        assert "seed" not in config
        assert run_folder(profile, name).is_dir(), "the run is called as it was"


def test_another_seed_is_said_by_folder_and_record(profile: Profile, tmp_path: Path) -> None:
    arguments = ["--seed", "7", "--profile", str(tmp_path / "small.yaml"), "--steps", "2"]
    for name in DESIGNS:
        result = CliRunner().invoke(app, ["train", "method", name, *arguments])
        assert result.exit_code == 0, result.output
        record = tmp_path / "methods/training" / f"{name}-seed-7.json"
        assert json.loads(record.read_text())["seed"] == 7
        assert (tmp_path / "methods" / f"{name}-seed-7" / "config.json").is_file()
        assert (run_folder(profile, f"{name}-seed-7") / "checkpoint.pt").is_file()
    assert "| seed | 7 |" in (tmp_path / "methods/fused-seed-7/README.md").read_text()
    config = json.loads((tmp_path / "methods/ip-adapter-seed-7/config.json").read_text())
    assert config["seed"] == 7
    method.train_method(profile, "ip-adapter", RunOptions(steps=2))
    folders = [tmp_path / "methods" / name / FILE for name in ("ip-adapter", "ip-adapter-seed-7")]
    assert folders[0].read_bytes() != folders[1].read_bytes()


def test_mistakes_end_in_one_sentence(profile: Profile, tmp_path: Path) -> None:
    with pytest.raises(FusionError, match="`fusionlib train adapter` trains it from seed 0"):
        method.train_method(profile, "fused")
    with pytest.raises(FusionError, match="`fusionlib train adapter`"):
        method.train_method(profile, "fused", seed=0)
    with pytest.raises(FusionError, match="use one of fused, decoupled, ip-adapter"):
        train_designs(profile, "faceid")
    with pytest.raises(FusionError, match="first weights"):
        train_designs(profile, options=RunOptions(start_from=tmp_path))
    for arguments, words in (
        (["adapter", "--seed", "1"], "goes with `method`"),
        (["designs", "--seed", "1"], "goes with `method`"),
        (["method", "fused", "--seed", "-1"], "not a number from 0"),
    ):
        result = CliRunner().invoke(app, ["train", *arguments])
        assert result.exit_code == 1 and words in " ".join(result.output.split())


def test_one_command_trains_all_passes_over_what_is_finished_and_goes_on(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rehearsal: two seeds, two steps, and then in sessions of one step each."""
    whole = tmp_path / "whole"
    assert train_designs(profile, options=RunOptions(whole, steps=2), seeds=(1, 2)) == []
    names = {each.folder for each in planned_trainings(None, (1, 2), (2,))}
    assert len(names) == 6
    assert {path.name for path in whole.iterdir()} == names | {"training"}
    networks = {name: weights_of(whole / name) for name in names}
    assert len(set(networks.values())) == 6, "all differ"
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    assert train_designs(profile, options=RunOptions(whole, steps=2), seeds=(1, 2)) == []
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    broken = profile.model_copy(update={"name": "broken"})
    options = RunOptions(tmp_path / "parts", minutes=1e-9, steps=2)
    assert len(train_designs(broken, "fused", options, seeds=(1, 2))) == 2
    assert not (tmp_path / "parts").exists(), "the time was up"
    monkeypatch.setattr(design_trainings, "time", SimpleNamespace(monotonic=lambda: 0.0))
    left = [len(train_designs(broken, "fused", options, seeds=(1, 2))) for _ in range(2)]
    assert left == [2, 0], "a step of each training in each session"
    for seed in (1, 2):
        name = f"fused-2-steps-seed-{seed}"
        assert weights_of(tmp_path / "parts" / name) == networks[name], "as if never cut off"


def test_the_command_says_what_is_left(profile: Profile, tmp_path: Path) -> None:
    command = ["train", "designs", "fused", "--profile", str(tmp_path / "small.yaml")]
    command += ["--steps", "1", "--out", str(tmp_path / "all")]
    result = CliRunner().invoke(app, [*command, "--minutes", "0.000000001"])
    assert result.exit_code == 0, result.output
    assert "Not finished: fused, 1 steps, seed 3." in result.output
    assert "5 trainings are left" in result.output
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and "left" not in result.output, result.output
    assert len(list((tmp_path / "all" / "training").glob("*.json"))) == 5


def test_trainings_over_another_base_or_by_another_recipe_are_not_mixed(
    profile: Profile, tmp_path: Path
) -> None:
    options = RunOptions(tmp_path / "all", steps=2)
    train_designs(profile, "fused", options, seeds=(1,))
    name = "fused-2-steps-seed-1"
    first = weights_of(tmp_path / "all" / name)
    recipe = profile.training.adapter.model_copy(update={"learning_rate": 0.5})
    other = profile.model_copy(
        update={"training": profile.training.model_copy(update={"adapter": recipe})}
    )
    with pytest.raises(FusionError, match="by another recipe"):
        train_designs(other, "fused", options, seeds=(1,))
    (unet,) = (tmp_path / "base/unet").glob("*.safetensors")
    weights = method.UNet2DConditionModel.from_pretrained(tmp_path / "base/unet")
    with torch.no_grad():
        weights.conv_in.weight.mul_(2)
    weights.save_pretrained(tmp_path / "base/unet")
    assert unet.is_file()
    with pytest.raises(FusionError, match="over another base model"):
        train_designs(profile, "fused", options, seeds=(1,))
    with pytest.raises(FusionError, match="over other frozen weights"):
        train_designs(profile, "fused", replace(options, out=tmp_path / "new"), seeds=(1,))
    again = replace(options, resume=False)
    assert train_designs(profile, "fused", again, seeds=(1,)) == []
    assert weights_of(tmp_path / "all" / name) != first
    assert train_designs(profile, "fused", options, seeds=(1,)) == []


def test_the_study_lists_every_training_and_where_its_weights_will_be(profile: Profile) -> None:
    declared = load_declaration(ROOT / "data/studies/trainings.yaml")
    listed = [(entry.method, entry.name, entry.options["trained"]) for entry in declared.methods]
    planned = planned_trainings()
    assert len(planned) == len(DESIGNS) * 5 * len(LENGTHS) == 30
    folder = trainings_folder(load_profile("embedded_gpu"))
    wanted = [(each.design, each.name, str(folder / each.folder)) for each in planned]
    assert sorted(listed) == sorted(wanted)
    for kind, name, _ in listed:
        training = read_training(name)
        assert training is not None and training.design == kind


def test_trained_weights_are_painted_and_missing_ones_reported(
    profile: Profile, tmp_path: Path
) -> None:
    train_designs(profile, options=RunOptions(tmp_path / "all", steps=2), seeds=(1,))
    sampling = {"num_inference_steps": 2, "guidance_scale": 3.0}
    models = Models(profile, "cpu", "float32", 1, sampling)
    hashes = set()
    for each in planned_trainings(None, (1,), (2,)):
        place = {"trained": str(tmp_path / "all" / each.folder)}
        built = build_method(each.design, models, name=each.name, **place)
        assert built.name == each.name
        hashes.add(json.dumps(built.settings["weights"], sort_keys=True))
        with pytest.raises(FusionError, match=r"no weights of .*`fusionlib train designs`"):
            build_method(each.design, models, name=each.name, trained=str(tmp_path / "none"))
    assert len(hashes) == 3
    study = {
        "name": "t", "profile": str(tmp_path / "small.yaml"), "prompts": ["a face"],
        "people": {"names": ["nobody"]},
        "methods": [
            {"method": one.design, "name": one.name, "trained": str(tmp_path / "all" / one.folder)}
            for one in planned_trainings("ip-adapter", (1, 2), (2,))
        ],
    }  # fmt: skip
    there, missing = Declaration.model_validate(study).available("cpu")
    assert [one.name for one in there.methods] == ["ip-adapter, 2 steps, seed 1"]
    assert list(missing) == ["ip-adapter, 2 steps, seed 2"]
