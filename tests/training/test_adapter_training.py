"""Training the adapter on a checkpoint of Stable Diffusion's layout: `train adapter --profile`."""

import functools
import json
import multiprocessing
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from diffusers import DDIMScheduler
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from test_training_data import malformed
from typer.testing import CliRunner

from companion.evaluation.training_monitor import face_attention
from companion.pages import training_lesson as lesson
from companion.person import load_people
from fusionlib import FusionAdapter, FusionPipeline
from fusionlib.cli import app
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT, Recipe, load_profile
from fusionlib.reference import encode_references
from fusionlib.training import adapter, cached
from fusionlib.training.denoising import banded, min_snr_weights, noised
from fusionlib.training.encoders import Encoders
from fusionlib.training.loop import Batch, _optimizer, fit, step_generator
from fusionlib.training.pairs import Pairing
from fusionlib.training.pictures import load_pictures
from fusionlib.training.runs import RunOptions
from fusionlib.training.shards import index_samples
from fusionlib.unet_layers import cross_attention_layers, split_heads
from tests.helpers import training_worker
from tests.helpers.tiny import tiny_unet
from tests.helpers.training_data import SIDE, write_profile, write_set, write_tar

HELDOUT = ROOT / "data" / "heldout"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_set(tmp_path / "shards", 12, people=4)


def first_batch(size: int = 4) -> Batch:
    return Batch(0, range(size), size, step_generator(0))


def same_files(one: Path, other: Path) -> bool:
    return (one / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()


def test_one_command_trains_logs_and_exports(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The command of the book's page, its profile naming a folder for the hub's checkpoint."""
    folder, _, bad = malformed(tmp_path / "shards")
    profile = write_profile(
        tmp_path / "small.yaml", tiny_checkpoint, folder,
        training={"sample_every": 3, "sample_prompts": ["a face", "a laughing face"]},
        recipe={"gradient_accumulation": 2},
    )  # fmt: skip
    result = CliRunner().invoke(app, ["train", "adapter", "--profile", str(profile)])
    assert result.exit_code == 0, result.output

    out, runs = tmp_path / "small-adapter", tmp_path / "runs" / "small" / "adapter"
    run = json.loads((runs / "run.json").read_text())
    assert (run["steps"], run["samples"]) == (4, 16) and run["peak_memory_mb"] > 0
    card = ModelCard.load(out / "README.md")
    assert card.data.base_model == str(tiny_checkpoint) and card.data.library_name == "diffusers"
    # In four steps of four samples not every bad one need come up; the index knows these three.
    counted = int(card.text.partition("damaged | ")[2].partition(",")[0])
    assert 3 <= counted <= len(bad) + 1 and ", 1 |" in card.text
    assert "| attention | concatenated, in all layers |" in card.text

    trained = FusionAdapter.from_pretrained(out)
    start = FusionAdapter.from_unet(tiny_unet_of(tiny_checkpoint))
    assert all(
        not torch.equal(a, b.half().float())
        for a, b in zip(trained.parameters(), start.parameters(), strict=True)
    )
    pipeline = FusionPipeline.from_pretrained(tiny_checkpoint, adapter=out)
    face = Image.new("RGB", (SIDE, SIDE), "red")
    assert pipeline("a face", references=[face], num_inference_steps=1).images[0].width == SIDE

    sheet = Image.open(runs / "samples" / "sheet-0000003.png")
    assert sheet.size == (3 * (SIDE + 2) - 2, 4 * (SIDE + 2) - 2), "reference and two prompts"
    lines = (runs / "samples.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "0", "3", "4"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(runs / "tensorboard"))
    board.Reload()
    tags = set(board.Tags()["scalars"])
    assert {"loss", "lr", "grad_norm", "memory_mb", "samples_per_second", "clip_score"} <= tags
    assert tags & {f"mse_t{250 * n}" for n in range(4)}
    layers = start.config["layers"]
    assert {f"grad_norm/adapter.{name}.to_k_f.weight" for name in layers} <= tags
    assert {f"face_attention/{name}" for name in layers} <= tags
    assert board.Tags()["images"] == ["sheet"]
    for name in layers:
        shares = [board.Scalars(f"{kind}_attention/{name}")[0].value for kind in ("face", "text")]
        assert sum(shares) == pytest.approx(1) and 0 < shares[0] < 1


def tiny_unet_of(checkpoint: Path) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(checkpoint / "unet")


def test_only_the_two_projections_receive_gradients_and_the_reference_has_no_graph(
    tiny_checkpoint: Path, tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    @functools.wraps(encode_references)
    def spy(*args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        states = encode_references(*args, **kwargs)
        seen.extend(states.values())
        return states

    monkeypatch.setattr(adapter, "encode_references", spy)
    profile = write_profile(
        tmp_path / "p.yaml", tiny_checkpoint, shards, recipe={"mixed_precision": "bf16"}
    )
    task = adapter.prepare(load_profile(profile))
    with torch.autocast("cpu", torch.bfloat16):
        terms = task.loss(task.network, first_batch())
    terms["loss"].backward()
    assert seen and all(h.grad_fn is None and not h.requires_grad for h in seen)
    for name, parameter in task.network.named_parameters():
        if name.startswith("adapter."):
            assert parameter.dtype == torch.float32 and parameter.grad is not None, name
            assert name.endswith((".to_k_f.weight", ".to_v_f.weight"))
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None and not parameter.requires_grad, name
            assert parameter.dtype == torch.bfloat16, name


@pytest.mark.parametrize("change", ["checkpointing", "shared", "workers"])
def test_what_may_not_change_the_gradients_and_what_must(
    tiny_checkpoint: Path, tmp_path: Path, shards: Path, change: str
) -> None:
    changes: dict[str, dict[str, Any]] = {
        "checkpointing": {"recipe": {"gradient_checkpointing": True}},
        "shared": {"training": {"reference_timestep": "shared"}},
        "workers": {"training": {"workers": 2}},
    }
    found = []
    for name, settings in (("plain", {}), (change, changes[change])):
        file = write_profile(tmp_path / f"{name}.yaml", tiny_checkpoint, shards, **settings)
        task = adapter.prepare(load_profile(file))
        task.network.train()
        task.loss(task.network, first_batch())["loss"].backward()
        found.append(training_worker.gradients(task))
    apart = distance(*found)
    assert apart > 1e-3 if change == "shared" else apart < 1e-5


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The distance between two sets of tensors, relative to the first."""
    assert one.keys() == other.keys()
    apart = sum(float((one[key] - other[key]).square().sum()) for key in one)
    return (apart / sum(float(value.square().sum()) for value in one.values())) ** 0.5


@pytest.fixture(scope="module")
def server() -> Any:
    """Starts processes that have the libraries imported, but not used yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fusionlib.training.adapter"])
    return context


def movement(folder: Path, start: FusionAdapter) -> dict[str, torch.Tensor]:
    """The change of each weight by training."""
    before = start.state_dict()
    return {name: value.float() - before[name] for name, value in load_file(folder).items()}


def test_two_processes_are_one_with_twice_the_batch(
    tiny_checkpoint: Path, tmp_path: Path, shards: Path, server: Any
) -> None:
    profile = write_profile(tmp_path / "two.yaml", tiny_checkpoint, shards)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [(rank, port, profile, tmp_path) for rank in range(2)]
    processes = [server.Process(target=training_worker.two_processes, args=a) for a in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0

    moved = []
    start = FusionAdapter.from_unet(tiny_unet_of(tiny_checkpoint))
    for name, recipe in (
        ("double", {"batch_size": 4}), ("twice", {"gradient_accumulation": 2}),
    ):  # fmt: skip
        file = write_profile(tmp_path / f"{name}.yaml", tiny_checkpoint, shards, recipe=recipe)
        if name == "double":
            task = adapter.prepare(load_profile(file))
            task.loss(task.network, first_batch())["loss"].backward()
            both = torch.load(tmp_path / "gradients.pt", weights_only=True)
            assert distance(training_worker.gradients(task), both) < 1e-5
        adapter.train(load_profile(file))
        moved.append(movement(tmp_path / f"{name}-adapter" / WEIGHTS, start))
    moved.append(movement(tmp_path / "adapter" / WEIGHTS, start))
    # Files are float16, and Adam divides by gradients that may be next to nothing.
    assert distance(moved[0], moved[1]) < 0.02 and distance(moved[0], moved[2]) < 0.02


def killed_at(server: Any, profile: Path, out: Path, moments: list[Any]) -> int:
    """Train to the end, killed at each moment; returns the number of kills that really happened."""
    kills = 0
    for moment in [*moments, "never"]:
        process = server.Process(target=training_worker.train_and_die, args=(profile, out, moment))
        process.start()
        process.join(1800)
        assert process.exitcode in (0, -9)
        kills += process.exitcode == -9
    return kills


def test_kills_change_nothing(
    tiny_checkpoint: Path, tmp_path: Path, shards: Path, server: Any
) -> None:
    recipe = {"steps": 12, "checkpoint_minutes": 1e-9}
    files = [
        write_profile(
            tmp_path / f"{name}.yaml", tiny_checkpoint, shards, recipe=recipe,
            training={"workers": 1},
        )
        for name in ("whole", "broken")
    ]  # fmt: skip
    assert killed_at(server, files[0], tmp_path / "whole-out", []) == 0
    assert killed_at(server, files[1], tmp_path / "broken-out", ["writing", 0.3]) >= 1
    assert same_files(tmp_path / "whole-out", tmp_path / "broken-out")
    logs = [(tmp_path / "runs" / n / "adapter/loss.csv").read_text() for n in ("whole", "broken")]
    columns = [[line.split(",")[::3] for line in log.splitlines()] for log in logs]
    assert columns[0] == columns[1], "step and loss, not seconds"


@pytest.mark.slow
def test_ten_kills_of_an_embedded_run_change_nothing(tmp_path: Path, server: Any) -> None:
    """The embedded profile itself, on a few people; each session gets a few steps further."""
    folder = tmp_path / "people"
    folder.mkdir()
    for file in (ROOT / "data/heldout").glob("000[0-9]_*"):
        shutil.copy(file, folder)
    files = []
    for name in ("whole", "broken"):
        file = tmp_path / f"{name}.yaml"
        file.write_text(
            json.dumps(
                {
                    "extends": "embedded",
                    "name": name,
                    "training": {
                        "shards": str(folder),
                        "runs": str(tmp_path / "runs"),
                        "stream": True,
                        "augment": True,
                        "workers": 1,
                        "sample_every": 0,
                        "adapter": {"steps": 40, "batch_size": 4, "checkpoint_minutes": 1e-9},
                    },
                }
            )
        )
        files.append(file)
    assert killed_at(server, files[0], tmp_path / "whole-out", []) == 0
    run = json.loads((tmp_path / "runs/whole/adapter/run.json").read_text())
    moments: list[Any] = training_worker.random_moments(9, 0.2 * run["seconds"])
    moments.insert(4, "writing")
    assert killed_at(server, files[1], tmp_path / "broken-out", moments) == 10
    assert same_files(tmp_path / "whole-out", tmp_path / "broken-out")


def test_latents_on_disk_are_those_of_the_encoders(
    tiny_checkpoint: Path, tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached, "CHUNK", 5)
    file = write_profile(
        tmp_path / "c.yaml", tiny_checkpoint, shards,
        training={"cached_variants": 2, "augment": True},
    )  # fmt: skip
    task = adapter.prepare(load_profile(file))
    stored = task.source(first_batch(12))
    samples = index_samples(shards).samples
    pairing = Pairing([s.person for s in samples], [True] * 12, 0, alone=True)
    encoders = Encoders.load(tiny_checkpoint, torch.device("cpu"), torch.float32)
    for number in range(12):
        target = samples[pairing.choose(number)[0]]
        pixels = torch.from_numpy(np.array(target.picture()))
        both = encoders.encode(torch.stack([pixels, pixels.flip(1)]))  # mirrored, or not
        apart = (both - stored.latents[number]).abs().amax(dim=(1, 2, 3))
        assert apart.min() < 1e-2 < apart.max(), "float16 on the disk"
        text = encoders.embed(target.captions)[0]
        torch.testing.assert_close(stored.text[number].float(), text, atol=1e-2, rtol=1e-2)
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs/c/crops").iterdir()}
    assert len(files) == 3
    again = adapter.prepare(load_profile(file)).source(first_batch(12))
    assert {p: p.stat().st_mtime_ns for p in files} == files
    assert torch.equal(again.latents, stored.latents)
    adapter.train(load_profile(file), RunOptions(steps=2))


def test_attention_shares_are_those_of_the_softmax_and_change_nothing() -> None:
    torch.manual_seed(0)
    unet = tiny_unet()
    fusion = FusionAdapter.from_unet(unet, init="random")
    fusion.attach(unet)
    latents, text = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 16)
    with torch.no_grad():
        faces = [fusion.project(encode_references(unet, latents, text[:1]))]
        inputs: dict[str, Any] = {}
        name, layer = next(iter(cross_attention_layers(unet).items()))
        handle = layer.register_forward_pre_hook(lambda _, args: inputs.update(hidden=args[0]))
        with fusion.conditioned(faces, strengths=[2.0]):
            before = unet(latents, 10, text).sample
            with face_attention(unet) as shares:
                during = unet(latents, 10, text).sample
        handle.remove()
        assert torch.equal(before, during) and shares.keys() == cross_attention_layers(unet).keys()
        query = split_heads(layer.to_q(inputs["hidden"]), layer.heads)
        keys = [split_heads(k, layer.heads) for k in (layer.to_k(text), faces[0][name][0])]
        logits = query @ torch.cat(keys, 2).transpose(2, 3) / query.shape[3] ** 0.5
        weights = logits.exp() * torch.cat([torch.ones(7), torch.full((64,), 2.0)])
        share = (weights[..., 7:].sum(-1) / weights.sum(-1)).mean()
    assert shares[name][0] == pytest.approx(share.item(), rel=1e-4)


def test_min_snr_weights_are_those_of_the_paper() -> None:
    timesteps = torch.tensor([1, 300, 600, 990])
    for kind in ("epsilon", "v_prediction", "sample"):
        scheduler = DDIMScheduler(prediction_type=kind)
        alpha = scheduler.alphas_cumprod[timesteps]
        snr = alpha / (1 - alpha)
        per_clean = torch.minimum(snr, torch.tensor(5.0))  # the weight of the error of x_0
        by = {"epsilon": snr, "v_prediction": 1 / (1 - alpha), "sample": torch.ones(4)}[kind]
        found = min_snr_weights(scheduler, timesteps, 5.0)
        torch.testing.assert_close(found, per_clean / by, rtol=1e-4, atol=1e-6)


def test_errors_fall_into_their_bands() -> None:
    error, timesteps = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 249, 999])
    bands = banded(error, timesteps, 1000)
    assert list(bands) == ["mse_t0", "mse_t250", "mse_t500", "mse_t750"]
    assert bands["mse_t0"] == 1.5 and bands["mse_t750"] == 4 and bands["mse_t250"].isnan()


def test_a_sample_is_drawn_alike_in_every_batch() -> None:
    latents = torch.randn(4, 2, 3, 3)
    scheduler = DDIMScheduler()
    whole = noised(scheduler, latents, first_batch(4).sample_generators(), timestep_power=2.0)
    half = Batch(0, range(2, 4), 4, step_generator(0))
    part = noised(scheduler, latents[2:], half.sample_generators(), timestep_power=2.0)
    for one, other in zip(whole, part, strict=True):
        assert torch.equal(one[2:], other)


def test_an_optimiser_that_is_not_there_is_named() -> None:
    recipe = Recipe(steps=1, batch_size=1, learning_rate=1, optimizer="adamw8bit")
    with pytest.raises(FusionError, match="adamw8bit"):
        _optimizer(recipe, {"x": torch.nn.Parameter(torch.zeros(1))}, torch.device("cpu"))


def test_the_monitor_sees_the_average_and_leaves_the_weights(tmp_path: Path) -> None:
    network = torch.nn.Linear(3, 1)
    recipe = Recipe(
        steps=6, batch_size=4, learning_rate=0.1, warmup_steps=1, ema_decay=0.9,
        mixed_precision="no", cooldown=0,
    )  # fmt: skip

    def loss(net: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": (net(torch.ones(4, 3)) - 1).square().mean()}

    seen: list[torch.Tensor] = []

    def monitor(step: int) -> dict[str, float]:
        seen.append(network.weight.detach().clone())
        return {"x": float(step)}

    torch.manual_seed(0)
    network.reset_parameters()
    fit(network, loss, recipe, tmp_path / "watched", monitor=monitor, monitor_every=2)
    final = network.weight.detach().clone()
    torch.manual_seed(0)
    network.reset_parameters()
    fit(network, loss, recipe, tmp_path / "alone")
    assert torch.equal(network.weight, final), "watching changes nothing"
    assert len(seen) == 4 and torch.equal(seen[3], final), "the last look is at what is exported"


def test_a_lesson_is_of_people_whom_its_strangers_are_not_among(tmp_path: Path) -> None:
    profile = load_profile("embedded")
    before = profile.model_dump()
    taken = lesson.make_lesson(profile, tmp_path, people=3, steps=8, shown=2)
    assert profile.model_dump() == before, "the profile is used by other pages, too"
    pictures = load_pictures(taken.profile.training.shards, profile.resolution)
    assert len(pictures) == taken.pictures and len(set(pictures.person.tolist())) == 3
    assert pictures.masks.reshape(len(pictures), -1).any(1).all(), "faces have their masks"

    def is_learned(face: Image.Image) -> bool:
        return any(np.array_equal(face, other) for other in pictures.pixels)

    assert len(taken.learned) == len(taken.strangers) == 2
    assert all(map(is_learned, taken.learned)) and not any(map(is_learned, taken.strangers))
    recipe = taken.profile.recipe("adapter")
    assert (recipe.steps, recipe.warmup_steps) == (8, 2)
    assert taken.adapter.is_relative_to(tmp_path) and taken.profile.heldout is None
    left = len(load_people(profile.heldout)) - lesson.FIRST_PERSON
    for people in (1, left + 1):
        with pytest.raises(FusionError, match=f"people must be from 2 to {left}, not {people}"):
            lesson.make_lesson(profile, tmp_path, people=people, steps=8)
    with pytest.raises(FusionError, match="no held-out people to take a lesson with"):
        lesson.make_lesson(taken.profile, tmp_path, people=3, steps=8)


def test_a_lesson_is_looked_at_before_and_after(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[FusionAdapter] = []

    def sheets(_profile: Any, _unet: Any, fusion: FusionAdapter, faces: Any) -> Any:
        shown.append(fusion)
        return lambda step: {"clip_score": len(faces), "sheet": step}

    monkeypatch.setattr(lesson, "make_sheets", sheets)
    trained = tiny_checkpoint / "adapter"
    profile = load_profile("embedded").model_copy(
        update={"base_model": str(tiny_checkpoint), "adapter": str(trained)}
    )
    faces = [Image.new("RGB", (SIDE, SIDE))] * 2
    taken = lesson.Lesson(profile, faces, [], 4)
    looks = {
        kind: lesson.sample_sheet(taken, faces, trained=kind == "after")
        for kind in ("before", "after")
    }
    fresh = FusionAdapter.from_unet(tiny_unet_of(tiny_checkpoint)).state_dict()
    saved = FusionAdapter.from_pretrained(trained).state_dict()
    for fusion, expected in zip(shown, (fresh, saved), strict=True):
        assert all(torch.equal(value, expected[n]) for n, value in fusion.state_dict().items())
    table = lesson.likeness_table(taken, looks).data
    assert list(table.index) == ["before", "after"] and (table["CLIP score"] == "2.000").all()


def test_curves_are_drawn_now_and_then_and_of_bands_only(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    live = lesson.LiveCurves(every=3600)
    monkeypatch.setattr(live, "show", lambda log, **_: drawn.append(len(log)))
    rows = [{"step": 1}]
    live(rows)
    live(rows * 2)
    assert drawn == [1], "the second comes too soon"
    log = pd.DataFrame({"step": [1, 2], "loss": 1.0, "grad_norm": 1.0, "mse": [9.0, 8.0]})
    log = log.assign(mse_t0=[3.0, 2.0], mse_t250=4.0, mse_t500=5.0, mse_t750=6.0)
    assert lesson.curves(log).tobytes() == lesson.curves(log.drop(columns="mse")).tobytes()


def test_profiles_extend_others(tmp_path: Path) -> None:
    one, two = load_profile("paper"), load_profile("paper-v2")
    assert two.training.adapter.steps > one.training.adapter.steps
    assert two.training.shards != one.training.shards
    assert (two.base_model, two.training.adapter.batch_size) == (one.base_model, 1)
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {tmp_path / other}.yaml\n")
    with pytest.raises(FusionError, match="extends itself"):
        load_profile(tmp_path / "a.yaml")


@pytest.fixture(autouse=True)
def one_process() -> Iterator[None]:
    """Reset accelerate's state after each test."""
    yield
    AcceleratorState._reset_state()
    PartialState._reset_state()


def embedded(file: Path, samples: list[str], recipe: dict[str, Any], **training: Any) -> Path:
    """The embedded profile on a few of the held-out pictures, named by their stems."""
    folder = file.parent / f"{file.stem}-shards"
    pictures = {
        stem: {p.name.partition(".")[2]: p.read_bytes() for p in HELDOUT.glob(f"{stem}.*")}
        for stem in samples
    }
    write_tar(folder / "00000.tar", pictures)
    settings = {"shards": str(folder), "runs": str(file.parent / "runs"), "sample_every": 0}
    settings |= training | {"adapter": recipe}
    adapter = str(file.parent / f"{file.stem}-adapter")
    content = {"extends": "embedded", "name": file.stem, "adapter": adapter, "training": settings}
    file.write_text(json.dumps(content))
    return file


def photographs(person: int) -> list[str]:
    """The stems of a held-out person's photographs; the first one is the reference."""
    stems = [f"{person:04d}_{view}" for view in range(6)]
    return [s for s in stems if json.loads((HELDOUT / f"{s}.json").read_text())["style"] == "photo"]


@pytest.mark.slow
def test_the_loss_falls_on_synthetic_people(tmp_path: Path) -> None:
    """The same 64 samples, noise and timesteps before and after a short run on 24 people."""
    stems = [stem for person in range(60, 84) for stem in photographs(person)]
    recipe = {"steps": 120, "batch_size": 16, "learning_rate": 1e-3, "warmup_steps": 10}
    profile = load_profile(embedded(tmp_path / "falls.yaml", stems, recipe))
    fixed = Batch(1, range(10_000, 10_064), 64, step_generator(1))

    def loss(start: Path | None) -> float:
        task = adapter.prepare(profile, RunOptions(start_from=start))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return float(task.loss(task.network, fixed)["loss"])

    before = loss(None)
    adapter.train(profile)
    after = loss(Path(profile.adapter))
    print(f"loss of the same samples: {before:.4f} before, {after:.4f} after")
    assert after < 0.99 * before


@pytest.mark.slow
def test_overfitting_one_pair_reproduces_that_person(tmp_path: Path) -> None:
    """The painted faces are nearer to the one that was learned than to those of 19 other people.

    To the target, that is: the recogniser has two pictures of one person apart by as much as two
    people, if one laughs. All as the autoencoder shows them: what it loses, no adapter brings back.
    """
    from companion.evaluation.identity import cosine_distance
    from companion.evaluation.quality import reconstruct
    from companion.faces.recognisers import embed_faces

    pair = photographs(60)[:2]
    recipe = {"steps": 1000, "batch_size": 8, "learning_rate": 2e-3, "warmup_steps": 10}
    none = dict.fromkeys(("text_dropout", "reference_dropout", "both_dropout"), 0.0)
    profile = load_profile(embedded(tmp_path / "pair.yaml", pair, recipe, **none))
    others = [stem for number in range(40, 59) for stem in photographs(number)[:2]]
    known = [Image.open(HELDOUT / f"{stem}.jpg") for stem in (pair[1], *others)]
    reference = Image.open(HELDOUT / f"{pair[0]}.jpg")
    pipeline = FusionPipeline.from_pretrained(profile.base_model)
    faces = embed_faces(reconstruct(pipeline, known))
    prompt = (HELDOUT / f"{pair[1]}.txt").read_text()

    def ranks(pipeline: FusionPipeline) -> tuple[float, int]:
        """Mean distance to the target's face, and how many others are nearer on average."""
        images = pipeline(
            [prompt] * 4, references=reference, num_inference_steps=20, guidance_scale=3.0,
            generator=[torch.Generator().manual_seed(seed) for seed in range(4)],
        ).images  # fmt: skip
        painted = embed_faces(images)
        assert not np.isnan(painted).any(axis=1).all()
        mean = np.nanmean(cosine_distance(painted[:, None], faces[None]), axis=0)
        return float(mean[0]), int((mean[1:] < mean[0]).sum())

    pipeline.load_adapter_weights(FusionAdapter.from_unet(pipeline.unet))
    before = ranks(pipeline)
    adapter.train(profile)
    pipeline.load_adapter_weights(profile.adapter)
    after = ranks(pipeline)
    print(f"distance and pictures nearer: {before} before, {after} after")
    assert after[1] == 0 and after[0] < before[0]
