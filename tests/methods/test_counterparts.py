"""Counterparts: each system trained alike, saved as published, read back by the same loader."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from companion.faces import arcface as face_embedding
from companion.faces.arcface import TEMPLATE, FoundFace
from companion.methods import Models, build_method, counterparts
from companion.methods import counterpart_training as method
from companion.methods import reference_views as views
from companion.methods.common import read_adapter
from companion.methods.counterparts import ABLATIONS, FILE
from companion.methods.instantid import over_the_unet
from companion.methods.ip_adapter import add_adapter
from companion.methods.reference_views import Views
from companion.studies.costs import cost_table, write_costs
from companion.studies.declaration import load_declaration
from fusionlib.cli import app
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT, Profile, load_profile
from fusionlib.profiles.loading import load_stock
from fusionlib.training import adapter
from fusionlib.training.loop import Batch, step_generator
from fusionlib.training.runs import RunOptions
from fusionlib.training.sources import first_people
from tests.helpers.training_data import disc, write_profile, write_set

SAMPLING = {"num_inference_steps": 2, "guidance_scale": 3.0}
WORDS = {"sentence": "a face", "word": "face"}


class Recogniser:
    """Stands for dlib's, which finds no face in a disc: eight numbers of a picture's colours."""

    width, needs, fingerprint = 8, "dlib", {"colours": "1"}

    def find(self, image: Image.Image, what: str = "") -> FoundFace:
        return FoundFace(np.zeros(4), TEMPLATE * (image.width / 112), 1.0)

    def embed(self, image: Image.Image, face: FoundFace | None = None) -> np.ndarray:
        small = np.asarray(image.convert("RGB").resize((3, 1)), np.float32).ravel()[:8]
        return small - 100


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    for module in (face_embedding, views, method):
        monkeypatch.setattr(module, "DlibEmbedder", Recogniser)
    monkeypatch.setattr(method, "SENTENCE", WORDS["sentence"])
    monkeypatch.setattr(method, "WORD", WORDS["word"])
    yield
    AcceleratorState._reset_state()
    PartialState._reset_state()


def small_profile(folder: Path, checkpoint: Path, **training: Any) -> Profile:
    shards = folder / "shards"
    if not shards.exists():
        write_set(shards, 12, people=4)
    file = write_profile(
        folder / "small.yaml", checkpoint, shards,
        training={"stream": False, "cache_references": True, **training},
        counterparts=str(folder / "methods"), guidance_scale=3.0,
    )  # fmt: skip
    return load_profile(file)


def built(profile: Profile, name: str, **options: Any) -> Any:
    words = WORDS if name == "arc2face" else {}
    models = Models(profile, "cpu", "float32", 1, SAMPLING)
    return build_method(name, models, **words | options)


def paint(chosen: Any, number: int) -> bytes:
    return chosen.generate("a face", chosen.prepare([disc(number)]), 0).tobytes()


@pytest.mark.parametrize("name", [*method.BUILDERS, "decoupled", "fused-up", "fused-caption"])
def test_each_is_trained_saved_loaded_and_paints_a_reference(
    name: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    profile = small_profile(tmp_path, tiny_checkpoint)
    with pytest.raises(FusionError, match=f"train method {name}"):
        built(profile, name)
    run = method.train_method(profile, name, RunOptions(steps=2))
    record = json.loads((tmp_path / "methods/training" / f"{name}.json").read_text())
    assert record["steps"] == 2 and record["parameters"] == run.parameters > 0
    chosen = built(profile, name)
    assert chosen.name == name and (tmp_path / "methods" / name / "config.json").is_file()
    assert chosen.settings.items() >= SAMPLING.items() and chosen.needs  # as all others paint
    first = paint(chosen, 1)
    assert first == paint(chosen, 1) != paint(chosen, 2)
    table = cost_table(profile, [chosen], [disc(1)], repeats=1)
    assert table.loc[name, "parameters"] == run.parameters and table.loc[name, "picture_s"] > 0
    write_costs(table, tmp_path / "records" / "costs.csv")
    plain = replace(chosen, name="text-only")  # without training
    both = cost_table(profile, [plain, chosen], [disc(1)], repeats=1)
    assert list(both.index) == ["text-only", name] and both["picture_s"].notna().all()
    assert np.isnan(both.loc["text-only", "parameters"])
    kept = cost_table(profile, [], [], record=tmp_path / "records" / "costs.csv")
    pd.testing.assert_frame_equal(kept, table, check_names=False, atol=1e-4)
    new = replace(chosen, name="new")
    more = cost_table(profile, [new], [], record=tmp_path / "records" / "costs.csv")
    assert list(more.index) == [name, "new"] and np.isnan(more.loc["new", "picture_s"])


@pytest.mark.parametrize("name", [n for n in method.BUILDERS if n != "arc2face"])
def test_what_is_saved_is_read_by_diffusers_as_it_was(
    name: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Every weight is drawn at random, so that none can be left out or exchanged unnoticed."""
    profile = small_profile(tmp_path, tiny_checkpoint)
    network = method.build_network(profile, name)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in [network.projection.parameters(), *(
            processor.parameters() for processor in network.unet.attn_processors.values()
            if isinstance(processor, torch.nn.Module)
        )]:  # fmt: skip
            for parameter in weights:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_((0.3 * drawn).bfloat16().float())
    network.save(tmp_path)
    pipeline = load_stock(StableDiffusionPipeline, str(tiny_checkpoint), "cpu", "float32")
    add_adapter(pipeline, read_adapter(tmp_path / FILE), 1.0, name)
    noisy, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, 16)
    shapes = {"embedding": (16,), "patches": (17, 16), "vector": (8,), "face_patches": (17, 16)}
    seen = {
        view: torch.randn(2, *shapes[view], generator=generator)
        for view in network.views if view != "drawing"
    }  # fmt: skip
    (projection,) = pipeline.unet.encoder_hid_proj.image_projection_layers
    embeds = seen[network.views[0]][:, None]
    if name == "faceid-plus":
        projection.shortcut = True
        projection.clip_embeds = seen["face_patches"][:, None]
    if name == "instantid":
        embeds = embeds[:, :, None]  # its loader gives the resampler a sequence of one
        network._control = lambda *given: {}
    with torch.no_grad():
        added = {"image_embeds": [embeds]}
        read = pipeline.unet(noisy, 10, text, added_cond_kwargs=added).sample
        times = torch.full((2,), 10)
        wrote = network(noisy, times, text, seen)
        base = UNet2DConditionModel.from_pretrained(tiny_checkpoint / "unet")(noisy, 10, text)
    torch.testing.assert_close(read, wrote, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(read, base.sample, atol=1e-2)


def test_an_identity_net_is_its_trained_layers_and_the_unet(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    network: Any = method.build_network(small_profile(tmp_path, tiny_checkpoint), "instantid")
    with torch.no_grad():
        for parameter in network.controlnet.parameters():
            if parameter.requires_grad:
                # Eight significant bits, none of them below those of float16.
                parameter.copy_(torch.randint_like(parameter, -127, 128) / 64)
    network.save(tmp_path)
    read = over_the_unet(str(tmp_path), str(tiny_checkpoint), torch.float32).state_dict()
    wrote = network.controlnet.state_dict()
    assert read.keys() == wrote.keys()
    assert all(torch.equal(read[name], wrote[name]) for name in wrote)
    file = tmp_path / "ControlNetModel" / "diffusion_pytorch_model.safetensors"
    layers = load_file(file)
    assert 0 < sum(map(torch.numel, layers.values())) < sum(map(torch.numel, wrote.values()))
    layers.pop("controlnet_mid_block.weight")
    save_file(layers, file)
    with pytest.raises(FusionError, match=r"or does not fit the UNet of .*controlnet_mid_block"):
        over_the_unet(str(tmp_path), str(tiny_checkpoint), torch.float32)
    file.write_bytes(b"not weights")
    with pytest.raises(FusionError, match="is damaged"):
        over_the_unet(str(tmp_path), str(tiny_checkpoint), torch.float32)


def test_a_run_that_is_cut_off_goes_on(tiny_checkpoint: Path, tmp_path: Path) -> None:
    profile = small_profile(tmp_path, tiny_checkpoint)
    options = RunOptions(tmp_path / "whole" / "x", steps=3)
    whole = method.train_method(profile, "ip-adapter", options)
    for _ in range(3):  # each session makes one step
        options = RunOptions(tmp_path / "broken" / "x", minutes=1e-9, steps=3)
        broken = profile.model_copy(update={"name": "broken"})
        last = method.train_method(broken, "ip-adapter", options)
    assert last.steps == whole.steps == 3 and last.finished
    files = [(tmp_path / part / "x" / FILE).read_bytes() for part in ("whole", "broken")]
    assert files[0] == files[1]


def test_budgets_are_comparable_at_the_embedded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least as many as the adapter, as `book/methods.md` says, and the base model frozen."""
    monkeypatch.setattr(Recogniser, "width", 128)
    monkeypatch.setattr(method, "SENTENCE", counterparts.SENTENCE)
    monkeypatch.setattr(method, "WORD", counterparts.WORD)
    profile = load_profile("embedded")
    base = UNet2DConditionModel.from_pretrained(Path(profile.base_model) / "unet")
    ours = adapter.FusionAdapter.from_unet(base).num_parameters()
    for name in method.BUILDERS:
        network = method.build_network(profile, name)
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
        more = 3.4 if name in ("faceid-plus", "faceid-portrait", "instantid", "arc2face") else 2
        assert 1 <= trained / ours < more, name
        weights = {n: p for n, p in network.unet.named_parameters() if "processor" not in n}
        assert not any(weights[name].requires_grad for name, _ in base.named_parameters())


def test_the_table_of_budgets_is_printed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    small_profile(tmp_path, tiny_checkpoint)
    command = ["train", "method", "--profile", str(tmp_path / "small.yaml")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line.split()[1:3] for line in result.output.splitlines() if line}
    assert {"fused", *method.NAMES} <= rows.keys()
    assert rows["decoupled"] == rows["fused"] and float(rows["fused-mid"][1]) < 0.5


def test_ablations_change_one_thing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    profile = small_profile(tmp_path, tiny_checkpoint)
    before = profile.training.model_dump()
    for name, changes in ABLATIONS.items():
        after = method.changed(profile, name).training.model_dump()
        differs = {key for key in before if before[key] != after[key]}
        wanted = set(changes) - {"steps_share"} | (
            {"adapter"} if "steps_share" in changes else set()
        )
        assert differs == wanted, name
    assert method.changed(profile, "fused-v1").training.adapter.steps == 1  # of four
    assert first_people(["a", "b", None, "a", None, "c"], 0.4) == [0, 1, 3]
    half = adapter.prepare(method.changed(profile, "fused-v1"))
    numbers = Batch(0, range(64), 64, step_generator(0))
    rows = half.source(numbers).rows
    assert rows is not None
    assert {int(row) % 12 % 4 for row in rows.flatten()} == {0, 1}, "two of the four people"


def test_references_are_shown_under_their_own_captions(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    first = Batch(0, range(4), 4, step_generator(0))
    states = {}
    for said in ("empty", "caption"):
        for cached in (True, False):
            profile = small_profile(
                tmp_path, tiny_checkpoint, reference_prompt=said, cache_references=cached
            )
            task = adapter.prepare(profile)
            inputs = task.source(first)
            assert (inputs.reference_text is None) == (said == "empty")
            if cached:
                assert isinstance(inputs.reference, dict)
                states[said] = inputs.reference
                continue
            assert isinstance(inputs.reference, torch.Tensor)
            text = task.empty_prompt if said == "empty" else inputs.reference_text
            again = adapter.encode_references(task.network.unet, inputs.reference, text)
            for name, kept in states[said].items():
                torch.testing.assert_close(kept.float(), again[name], atol=0.05, rtol=0.05)
    assert not all(torch.equal(states["empty"][n], states["caption"][n]) for n in states["empty"])


def test_a_mirrored_target_has_mirrored_landmarks() -> None:
    points = torch.from_numpy(TEMPLATE * (64 / 112)).float()[None]
    shown = Views({"drawing": points}, {"drawing": torch.zeros(5, 2)}, 64, torch.device("cpu"))
    none = torch.tensor([False, False])
    plain, mirrored = shown.of(torch.tensor([0, 1]), torch.tensor([0, 0]), none)["drawing"]
    red, green = (torch.tensor(colour)[:, None, None] for colour in ([1, 0, 0], [0, 1, 0]))

    def column(picture: torch.Tensor, colour: torch.Tensor) -> float:
        """Where the dot of a colour lies; sticks are darker."""
        dot = ((picture - colour).abs() < 0.05).all(dim=0)
        return float(dot.nonzero()[:, 1].float().mean())

    # The eye on the picture's left is red in both, and lies where the right one was.
    assert column(plain, red) < 32 < column(plain, green)
    assert column(mirrored, red) == pytest.approx(63 - column(plain, green), abs=1.1)
    assert column(mirrored, green) == pytest.approx(63 - column(plain, red), abs=1.1)


def test_no_reference_is_what_diffusers_gives_the_unconditional_branch() -> None:
    rows = {"patches": torch.ones(3, 2, 4), "vector": torch.ones(3, 5)}
    absent = {"patches": torch.full((2, 4), 7.0), "vector": torch.zeros(5)}
    shown = Views(rows, absent, 8, torch.device("cpu"))
    seen = shown.of(torch.tensor([0, 1]), torch.tensor([2, 5]), torch.tensor([False, True]))
    assert (seen["patches"][0] == 1).all() and (seen["patches"][1] == 7).all()
    assert (seen["vector"][0] == 1).all() and (seen["vector"][1] == 0).all()


def test_mistakes_end_in_one_sentence(tiny_checkpoint: Path, tmp_path: Path) -> None:
    profile = small_profile(tmp_path, tiny_checkpoint)
    with pytest.raises(FusionError, match="no method 'ipadapter'"):
        method.train_method(profile, "ipadapter")
    with pytest.raises(FusionError, match="learns each person"):
        method.train_method(profile, "dreambooth")
    with pytest.raises(FusionError, match="names no folder"):
        method.train_method(profile.model_copy(update={"counterparts": None}), "faceid")
    with pytest.raises(FusionError, match="stream: false"):
        streamed = profile.training.model_copy(update={"stream": True})
        method.train_method(profile.model_copy(update={"training": streamed}), "faceid")
    with pytest.raises(FusionError, match="begin with their first weights"):
        method.train_method(profile, "faceid", RunOptions(start_from=tmp_path))
    with pytest.raises(FusionError, match="needs an adapter"):
        built(profile.model_copy(update={"counterparts": None}), "decoupled")
    of_weights = ["--start-from", "x"]
    for arguments in (
        ["adapter", "faceid"], ["method", "faceid", *of_weights], ["method", *of_weights],
    ):  # fmt: skip
        assert CliRunner().invoke(app, ["train", *arguments]).exit_code == 1


def test_an_ablation_may_name_its_adapter(tiny_checkpoint: Path, tmp_path: Path) -> None:
    profile = small_profile(tmp_path, tiny_checkpoint).model_copy(update={"counterparts": None})
    made = adapter.FusionAdapter.from_unet(
        UNet2DConditionModel.from_pretrained(tiny_checkpoint / "unet"), attention="decoupled"
    )
    made.save_pretrained(tmp_path / "mine")
    chosen = built(profile, "decoupled", adapter=str(tmp_path / "mine"), strengths=[0.5])
    assert chosen.settings["strengths"] == [0.5] and chosen.name == "decoupled"
    assert paint(chosen, 1) != paint(chosen, 2)
    shared = built(profile, "fused-shared", adapter=str(tmp_path / "mine"))
    assert shared.settings["timestep_mode"] == "shared"


STUDIES = sorted((ROOT / "data" / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_declared_studies_fit_the_schema_and_the_held_out_people(path: Path) -> None:
    declared = load_declaration(path)
    assert declared.name == path.stem.replace("_", "-")
    people = declared._people(load_profile(declared.profile).heldout)
    wanted = max(len((m.model_extra or {}).get("strengths", [1])) for m in declared.methods)
    assert people and all(len(person.references) >= wanted for person in people)
