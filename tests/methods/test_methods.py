"""The compared systems: published layouts load, and who it is reaches the picture."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.embeddings import MultiIPAdapterImageProjection
from PIL import Image, ImageOps
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from companion.faces.arcface import FaceEmbedder, align
from companion.methods import CONTROLS, KNOWN, Method, Models, build_method
from companion.methods.common import pipeline_key, read_adapter
from companion.methods.counterparts import ABLATIONS
from companion.methods.dreambooth import FineTuning, Student
from companion.methods.instantid import COLOURS, draw_points
from companion.person import Person
from companion.studies.costs import cost_table, training_record
from companion.studies.study import Study, run_study
from fusionlib.errors import FusionError, NoFaceError
from fusionlib.profiles import ROOT, load_profile
from fusionlib.profiles.loading import load_stock
from fusionlib.support.provenance import sha256_json
from tests.helpers.insightface_files import write_packs
from tests.helpers.published import write_arc2face, write_faceid, write_instantid, write_ip_adapter
from tests.helpers.tiny import write_tiny_checkpoint, write_tiny_xl_checkpoint

SAMPLING = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 64, "width": 64}
SYSTEMS = [kind for kind in KNOWN if kind not in ("text-only", "fused", *CONTROLS, *ABLATIONS)]
each = pytest.mark.parametrize("kind", SYSTEMS)


def person(seed: int) -> Image.Image:
    """Somebody: dim colours, and the bright spot that the detector takes for a face."""
    colours = np.random.default_rng(seed).integers(0, 110, (10, 10, 3), np.uint8)
    image = Image.fromarray(colours).resize((160, 160), Image.Resampling.NEAREST)
    image.paste((255, 255, 255), (72 + 4 * seed, 64, 76 + 4 * seed, 68))
    return image


class Hub:
    """Everything that the systems load, in folders, and methods built from it once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sd = write_tiny_checkpoint(root / "sd")
        self.xl = write_tiny_xl_checkpoint(root / "xl")
        xl_unet = UNet2DConditionModel.from_pretrained(self.xl, subfolder="unet")
        self.ip_adapter = write_ip_adapter(root / "ip-adapter")
        self.faceid = write_faceid(root / "faceid", xl_unet)
        self.instantid = write_instantid(root / "instantid", xl_unet)
        shutil.copytree(self.sd, root / "sd-id")
        self.arc2face = write_arc2face(root / "arc2face", root / "sd-id")
        self.packs = write_packs(root / "insightface")
        changes = {"base_model": str(self.sd), "counterparts": None}  # the published weights
        profile = load_profile("embedded").model_copy(update=changes)
        self.models = Models(profile, "cpu", "float32", 1, SAMPLING)
        buffalo, antelope = str(self.packs / "buffalo_l"), str(self.packs / "antelopev2")
        faceid = {"weights": str(self.faceid), "faces": buffalo}
        self.options: dict[str, dict[str, Any]] = {
            "ip-adapter": {"weights": str(self.ip_adapter)},
            "ip-adapter-plus": {"weights": str(self.ip_adapter)},
            "faceid": faceid,
            "faceid-plus": faceid | {"clip": str(self.ip_adapter)},
            "faceid-sdxl": faceid | {"base_model": str(self.xl)},
            "faceid-portrait": faceid,
            "instantid": {
                "weights": str(self.instantid),
                "faces": antelope,
                "base_model": str(self.xl),
            },
            "arc2face": {
                "weights": str(self.arc2face),
                "faces": antelope,
                "base_model": str(root / "sd-id"),
            },
            "dreambooth": {
                "cache": str(root / "dreambooth"),
                "steps": 4,
                "rank": 2,
                "learning_rate": 0.05,
                "prior_images": 2,
            },
        }
        self._built: dict[str, Method] = {}

    def build(self, kind: str, **options: Any) -> Method:
        """A method of its own with further options, or the one that tests share without any."""
        if options:
            return build_method(kind, self.models, **self.options.get(kind, {}) | options)
        if kind not in self._built:
            self._built[kind] = build_method(kind, self.models, **self.options.get(kind, {}))
        return self._built[kind]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    return Hub(tmp_path_factory.mktemp("hub"))


def paint(method: Method, *people: int, prompt: str = "a face of a person", seed: int = 0):  # type: ignore[no-untyped-def]
    prepared = method.prepare([person(number) for number in people])
    return method.generate(prompt, prepared, seed)


def text_only(pipeline: Any, prompt: str, **arguments: Any) -> Image.Image:
    """The picture of one of diffusers' own pipelines, which no method has touched."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline(prompt, generator=generator, **SAMPLING | arguments).images[0]


@each
def test_the_same_noise_gives_the_same_bytes_and_another_person_another_picture(
    hub: Hub, kind: str
) -> None:
    method = hub.build(kind)
    first = paint(method, 1)
    assert first.size == (64, 64) and np.asarray(first).std() > 0
    other = paint(method, 2)
    assert first.tobytes() != other.tobytes()
    assert first.tobytes() == paint(method, 1).tobytes()  # what was in between left no trace
    assert first.tobytes() != paint(method, 1, seed=1).tobytes()
    same_text = paint(method, 1, prompt="of a face").tobytes() == first.tobytes()
    assert same_text == (kind == "arc2face")  # it knows nothing of the prompt


@each
def test_two_processes_would_name_a_picture_alike_and_changes_anew(hub: Hub, kind: str) -> None:
    method, again = hub.build(kind), hub.build(kind, name="again")
    assert again.settings == method.settings and method.citation and method.needs
    assert all((Path(need).exists() or "/" in need) for need in method.needs)
    assert hub.build(kind, num_inference_steps=3).settings != method.settings
    bibliography = (ROOT / "book" / "references.bib").read_text()
    assert f"{{{method.citation}," in bibliography
    pictures = [paint(built, 1).tobytes() for built in (method, again)]
    assert pictures[0] == pictures[1]


def test_a_study_loops_over_them_without_a_special_case(hub: Hub, tmp_path: Path) -> None:
    person(1).save(tmp_path / "ada.png")
    people = [Person("ada", (tmp_path / "ada.png",))]
    kinds = ["ip-adapter", "faceid", "dreambooth"]
    study = Study("all", [hub.build(kind) for kind in kinds], people, ["a face"], [0])
    index = run_study(study, tmp_path / "store", progress=False)
    pictures = {Path(path).read_bytes() for path in index["image"]}
    assert list(index["method"]) == kinds and len(pictures) == len(kinds)


@pytest.mark.parametrize("kind", ["faceid-plus", "instantid", "arc2face", "dreambooth"])
def test_in_16_bits(hub: Hub, kind: str) -> None:
    models = replace(hub.models, dtype="bfloat16")
    method = build_method(kind, models, **hub.options[kind])
    first = paint(method, 1)
    assert np.asarray(first).std() > 0 and first.tobytes() == paint(method, 1).tobytes()
    assert method.settings["weights"] != hub.build(kind).settings["weights"]
    rounded = np.asarray(first, int) - np.asarray(paint(hub.build(kind), 1), int)
    assert 0 < np.abs(rounded).mean() < 40


def test_published_settings(hub: Hub) -> None:
    settings = {kind: hub.build(kind).settings for kind in SYSTEMS}
    tokens = {kind: s["tokens"] for kind, s in settings.items() if "tokens" in s}
    assert tokens == {
        "ip-adapter": 4,
        "ip-adapter-plus": 16,
        "faceid": 4,
        "faceid-plus": 4,
        "faceid-sdxl": 4,
        "faceid-portrait": 16,
        "instantid": 16,
    }
    scales = {kind: s["scale"] for kind, s in settings.items() if "scale" in s}
    own = {"ip-adapter": 0.5, "ip-adapter-plus": 0.5, "instantid": 0.8}
    assert scales == {kind: 1.0 for kind in tokens} | own
    assert settings["faceid-plus"]["shortcut"] and settings["faceid-plus"]["shortcut_scale"] == 1
    assert settings["instantid"]["identity_net_scale"] == 0.8
    assert settings["instantid"]["guidance_scale"] == 5
    assert settings["arc2face"]["guidance_scale"] == 3
    assert settings["arc2face"]["scheduler"]["class"] == "DPMSolverMultistepScheduler"
    assert settings["faceid"]["guidance_scale"] == SAMPLING["guidance_scale"]  # the study's
    used = {kind: list(s["face_models"]) for kind, s in settings.items() if "face_models" in s}
    assert used["faceid"] == ["det_10g.onnx", "w600k_r50.onnx"]
    assert used["instantid"] == ["scrfd_10g_bnkps.onnx", "glintr100.onnx"]
    assert used["arc2face"] == ["scrfd_10g_bnkps.onnx", "arcface.onnx"]


def test_the_key_of_a_picture_holds_all_that_determines_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever of it changes, an old picture is not taken for the one that is asked for now."""
    package, own = tmp_path / "fusionlib", tmp_path / "method.py"
    (package / "inputs").mkdir(parents=True)
    sources = [package / "attention.py", package / "inputs" / "layout.py", own]
    for source in sources:
        source.write_text("x = 1")
    monkeypatch.setattr("fusionlib.__file__", str(package / "__init__.py"))

    def key(scheduler: Any, weights: str = "a", device: str = "cpu", threads: int = 1) -> str:
        pipeline = SimpleNamespace(scheduler=scheduler, device=torch.device(device))
        return sha256_json(pipeline_key(pipeline, {"base_model": weights}, threads, [str(own)]))

    found = [key(DDIMScheduler()), key(DDIMScheduler(num_train_timesteps=500))]
    found += [key(DDPMScheduler()), key(DDIMScheduler(), "b"), key(DDIMScheduler(), threads=2)]
    found.append(key(DDIMScheduler(), device="meta"))
    assert key(DDIMScheduler(), device="meta", threads=2) == found[-1], "threads are of the CPU"
    for source in sources:
        source.write_text("x = 2")
        found.append(key(DDIMScheduler()))
    (package / "training").mkdir()
    (package / "training" / "loop.py").write_text("x = 1")
    assert key(DDIMScheduler()) == found[-1], "training paints nothing"
    monkeypatch.setattr("companion.methods.common.package_versions", lambda _: {"torch": "3"})
    found.append(key(DDIMScheduler()))
    assert len(set(found)) == 10 and key(DDIMScheduler()) == found[-1]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("arc2face", {"sentence": "a face of a id person"}),
        ("arc2face", {"word": "photo"}),
        ("instantid", {"thickness": 0.5}),
        ("dreambooth", {"identifier": "face"}),
    ],
)
def test_an_option_that_changes_a_picture_is_among_its_settings(
    hub: Hub, kind: str, options: dict[str, Any]
) -> None:
    assert hub.build(kind, **options).settings != hub.build(kind).settings


LORA = [
    f"0.to_{part}_lora.{way}.weight" for part in ("q", "k", "v", "out") for way in ("down", "up")
]
ATTENTION = ["1.to_k_ip.weight", "1.to_v_ip.weight", "3.to_k_ip.weight"]
FACE = [f"{layer}.{kind}" for layer in ("proj.0", "proj.2", "norm") for kind in ("weight", "bias")]
RESAMPLER = [
    "proj_in.weight",
    "proj_out.bias",
    "norm_out.weight",
    "layers.0.0.norm1.weight",
    "layers.0.0.norm2.bias",
    "layers.0.0.to_q.weight",
    "layers.0.0.to_kv.weight",
    "layers.0.0.to_out.weight",
    "layers.3.1.0.weight",
    "layers.3.1.1.weight",
    "layers.3.1.3.weight",
]
PLUS = [f"perceiver_resampler.{name}" for name in RESAMPLER]
LAYOUTS = {
    "ip-adapter/models/ip-adapter_sd15.bin": (
        ["proj.weight", "proj.bias", "norm.weight", "norm.bias"],
        ATTENTION,
    ),
    "faceid/ip-adapter-faceid_sd15.bin": (FACE, ATTENTION + LORA),
    "faceid/ip-adapter-faceid-plusv2_sd15.bin": (FACE + PLUS, ATTENTION + LORA),
    "faceid/ip-adapter-faceid_sdxl.bin": (FACE, ATTENTION + LORA),
    "faceid/ip-adapter-faceid-portrait_sd15.bin": (FACE, ATTENTION),
    "ip-adapter/models/ip-adapter-plus_sd15.safetensors": (["latents", *RESAMPLER], ATTENTION),
    "instantid/ip-adapter.bin": (["latents", *RESAMPLER], ATTENTION),
}


@pytest.mark.parametrize("file", LAYOUTS)
def test_the_files_have_the_published_keys(hub: Hub, file: str) -> None:
    projection, attention = LAYOUTS[file]
    state = read_adapter(hub.root / file)
    assert set(projection) <= set(state["image_proj"])
    assert set(attention) <= set(state["ip_adapter"])
    assert any("lora" in key for key in state["ip_adapter"]) == any("lora" in k for k in attention)
    if "plus" not in file and "instantid" not in file:
        assert set(projection) == set(state["image_proj"])


def test_both_formats_of_the_adapter_are_one(hub: Hub) -> None:
    pickled = hub.build("ip-adapter", file="models/ip-adapter_sd15.bin")
    assert paint(pickled, 1).tobytes() == paint(hub.build("ip-adapter"), 1).tobytes()


@pytest.mark.parametrize("kind", ["ip-adapter", "faceid-portrait", "instantid"])
def test_at_scale_0_it_is_the_base_model(hub: Hub, kind: str) -> None:
    prompt = "a face of a person"
    off = {"scale": 0} | ({"identity_net_scale": 0} if kind == "instantid" else {})
    painted = paint(hub.build(kind, **off), 1, prompt=prompt)
    if kind == "instantid":
        base = text_only(
            StableDiffusionXLPipeline.from_pretrained(hub.xl), prompt, guidance_scale=5.0
        )
    else:
        base = text_only(StableDiffusionPipeline.from_pretrained(hub.sd), prompt)
    assert painted.tobytes() == base.tobytes()
    assert paint(hub.build(kind), 1, prompt=prompt).tobytes() != base.tobytes()


def test_without_guidance_no_unconditional_branch_is_asked_for(hub: Hub) -> None:
    for kind in ("ip-adapter", "faceid-plus", "instantid"):
        method = hub.build(kind, guidance_scale=1.0)
        assert paint(method, 1).tobytes() != paint(method, 2).tobytes()


def test_faceids_lora_is_in_the_checkpoint_or_beside_it(hub: Hub, tmp_path: Path) -> None:
    name = "ip-adapter-faceid_sd15.bin"
    state = torch.load(hub.faceid / name, weights_only=True)
    bare = {key: w for key, w in state["ip_adapter"].items() if "lora" not in key}
    torch.save({"image_proj": state["image_proj"], "ip_adapter": bare}, tmp_path / name)
    with pytest.raises(FusionError, match="ip-adapter-faceid_sd15_lora.safetensors"):
        hub.build("faceid", weights=str(tmp_path))
    lora = "ip-adapter-faceid_sd15_lora.safetensors"
    shutil.copy(hub.faceid / lora, tmp_path / lora)
    beside, within = hub.build("faceid", weights=str(tmp_path)), hub.build("faceid")
    difference = np.asarray(paint(beside, 1), int) - np.asarray(paint(within, 1), int)
    assert np.abs(difference).max() <= 1

    # At scale 0 the LoRA stays: the base model with the products added to its weights.
    base = StableDiffusionPipeline.from_pretrained(hub.sd)
    for index, attention in enumerate(list(base.unet.attn_processors)):
        layers = base.unet.get_submodule(attention.removesuffix(".processor"))
        for part in ("q", "k", "v", "out"):
            layer = layers.to_out[0] if part == "out" else getattr(layers, f"to_{part}")
            key = f"{index}.to_{part}_lora"
            down, up = (state["ip_adapter"][f"{key}.{way}.weight"] for way in ("down", "up"))
            layer.weight.data += up @ down
    merged = np.asarray(text_only(base, "a face of a person"), int)
    painted = np.asarray(paint(hub.build("faceid", scale=0), 1), int)
    without = StableDiffusionPipeline.from_pretrained(hub.sd)
    unlike = np.asarray(text_only(without, "a face of a person"), int)
    assert np.abs(painted - merged).max() <= 1 < np.abs(painted - unlike).mean()


def naive_tokens(state: dict[str, Any], vector: torch.Tensor) -> torch.Tensor:
    """FaceID's tokens, from its definition."""
    w = state["image_proj"]
    hidden = torch.nn.functional.gelu(w["proj.0.weight"] @ vector + w["proj.0.bias"])
    tokens = (w["proj.2.weight"] @ hidden + w["proj.2.bias"]).reshape(-1, len(w["norm.weight"]))
    return torch.nn.functional.layer_norm(
        tokens, tokens.shape[-1:], w["norm.weight"], w["norm.bias"]
    )


def naive_resampler(w: dict[str, Any], latents: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The resampler of Plus and InstantID, from its definition, with one head of 64."""

    def norm(tokens: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
        return torch.nn.functional.layer_norm(tokens, weight.shape, weight, bias)

    x = x @ w["proj_in.weight"].T + w["proj_in.bias"]
    for layer in range(4):
        a, f = f"layers.{layer}.0", f"layers.{layer}.1"
        own = norm(latents, f"{a}.norm2")
        queries = own @ w[f"{a}.to_q.weight"].T
        both = torch.cat([norm(x, f"{a}.norm1"), own]) @ w[f"{a}.to_kv.weight"].T
        keys, values = both.chunk(2, dim=1)
        seen = (queries @ keys.T / 8).softmax(-1) @ values
        latents = latents + seen @ w[f"{a}.to_out.weight"].T
        hidden = torch.nn.functional.gelu(norm(latents, f"{f}.0") @ w[f"{f}.1.weight"].T)
        latents = latents + hidden @ w[f"{f}.3.weight"].T
    return norm(latents @ w["proj_out.weight"].T + w["proj_out.bias"], "norm_out")


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What the image projections of diffusers answer, ``(2, references, tokens, width)`` each."""
    seen: list[torch.Tensor] = []
    forward = MultiIPAdapterImageProjection.forward

    def watch(self: Any, embeds: Any) -> Any:
        seen.extend(forward(self, embeds))
        return seen[-1:]

    monkeypatch.setattr(MultiIPAdapterImageProjection, "forward", watch)
    return seen


def arcface(hub: Hub, pack: str) -> torch.Tensor:
    folder = hub.packs / ("buffalo_l" if pack == "buffalo_l" else "antelopev2")
    return torch.from_numpy(FaceEmbedder(pack, folder).embed(person(1)))


def test_faceids_tokens_are_those_of_the_normalised_vector(
    hub: Hub, tokens: list[torch.Tensor]
) -> None:
    paint(hub.build("faceid"), 1)
    vector = arcface(hub, "buffalo_l")
    state = read_adapter(hub.faceid / "ip-adapter-faceid_sd15.bin")
    nobody, somebody = tokens[0]
    assert torch.allclose(somebody[0], naive_tokens(state, vector / vector.norm()), atol=1e-4)
    assert torch.allclose(nobody[0], naive_tokens(state, torch.zeros(512)), atol=1e-4)


@torch.no_grad()
def test_plus_tokens_also_read_clips_view_of_the_aligned_face(
    hub: Hub, tokens: list[torch.Tensor]
) -> None:
    paint(hub.build("faceid-plus", shortcut_scale=0.7), 1)
    vector = arcface(hub, "buffalo_l")
    state = read_adapter(hub.faceid / "ip-adapter-faceid-plusv2_sd15.bin")
    prefix = "perceiver_resampler."
    inner = {k.removeprefix(prefix): w for k, w in state["image_proj"].items() if prefix in k}
    folder = hub.ip_adapter / "models" / "image_encoder"
    encoder = CLIPVisionModelWithProjection.from_pretrained(folder)
    found = FaceEmbedder("buffalo_l", hub.packs / "buffalo_l").find(person(1))
    crop = align(person(1), found.points, 224).resize((32, 32), Image.Resampling.BICUBIC)
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    view = ((np.asarray(crop) / 255 - mean) / deviation).transpose(2, 0, 1).astype(np.float32)
    for sample, pixels, unit in (
        (tokens[0][1], torch.from_numpy(view), vector / vector.norm()),
        (tokens[0][0], torch.zeros(3, 32, 32), torch.zeros(512)),
    ):
        patches = encoder(pixels[None], output_hidden_states=True).hidden_states[-2][0]
        own = naive_tokens(state, unit)
        expected = own + 0.7 * naive_resampler(inner, own, patches)
        assert torch.allclose(sample[0], expected, atol=2e-3)


def test_instantids_tokens_are_those_of_the_vector_as_it_is(
    hub: Hub, tokens: list[torch.Tensor]
) -> None:
    paint(hub.build("instantid"), 1)
    vector = arcface(hub, "antelopev2")
    weights = read_adapter(hub.instantid / "ip-adapter.bin")["image_proj"]
    nobody, somebody = tokens[0]
    for sample, given in ((somebody, vector), (nobody, torch.zeros(512))):
        expected = naive_resampler(weights, weights["latents"][0], given[None])
        assert torch.allclose(sample[0], expected, atol=1e-3)


def test_identity_net_is_told_who_in_place_of_the_text(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, forward = [], ControlNetModel.forward

    def watch(self: Any, *args: Any, **kwargs: Any) -> Any:
        told.append((kwargs["encoder_hidden_states"], kwargs["controlnet_cond"]))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(ControlNetModel, "forward", watch)
    method = hub.build("instantid")
    for text in ("a face", "of"):
        paint(method, 1, prompt=text)
    assert told[0][0].shape[:2] == (2, 16) and len(told) == 4
    assert torch.equal(told[0][0], told[2][0])  # whatever the text
    assert not torch.equal(told[0][0][0], told[0][0][1])
    paint(method, 2)
    assert not torch.equal(told[4][0][1], told[0][0][1])
    assert torch.equal(told[4][0][0], told[0][0][0])  # nobody is the same nobody
    assert told[0][1].shape[2:] == (64, 64) and told[0][1].max() == 1


def test_points_are_drawn_in_their_colours_on_the_picture_as_it_is_cropped() -> None:
    points = np.array([[60.0, 50], [100, 50], [80, 80], [65, 105], [95, 105]])
    drawing = draw_points(points, (160, 160), (320, 320))
    assert [drawing.getpixel((int(2 * x), int(2 * y))) for x, y in points] == list(COLOURS)
    stick = drawing.getpixel((140, 130))  # half way from the nose to the first eye
    assert stick == (153, 0, 0) and drawing.getpixel((10, 10)) == (0, 0, 0)
    wide = draw_points(points, (160, 160), (320, 160))  # the middle half of its height
    assert wide.getpixel((160, 80)) == COLOURS[2]


def test_arc2face_puts_the_face_in_the_place_of_a_word(hub: Hub) -> None:
    prepared = hub.build("arc2face").prepare([person(1)])
    embedder = FaceEmbedder("arc2face", hub.packs / "antelopev2")
    vector = torch.from_numpy(embedder.embed(person(1)))
    encoder = CLIPTextModel.from_pretrained(hub.arc2face, subfolder="encoder")
    tokenizer = CLIPTokenizer.from_pretrained(hub.root / "sd-id", subfolder="tokenizer")
    ids = tokenizer("photo of a id person", padding="max_length", return_tensors="pt").input_ids
    word = tokenizer.encode("id", add_special_tokens=False)
    assert (ids == word[0]).sum() == 1
    with torch.no_grad():  # the word's own row is the face
        encoder.get_input_embeddings().weight[word[0]] = vector / vector.norm()
        expected = encoder(ids)[0]
    assert torch.allclose(prepared, expected, atol=1e-5)


def test_several_references(hub: Hub) -> None:
    for kind in ("ip-adapter", "faceid-portrait", "instantid", "arc2face", "faceid"):
        method = hub.build(kind, references=2)
        assert method.references == 2
        assert paint(method, 1, 2).tobytes() != paint(hub.build(kind), 1).tobytes()
    # In one attention, the same face twice has twice as many keys and the same answer.
    twice = np.asarray(paint(hub.build("faceid-portrait", references=2), 1, 1), int)
    assert np.abs(twice - np.asarray(paint(hub.build("faceid-portrait"), 1), int)).max() <= 1
    for kind, number in (("faceid-plus", 2), ("faceid-portrait", 6)):
        with pytest.raises(FusionError, match="reference"):
            hub.build(kind, references=number)


def test_plus_has_version_2s_shortcut(hub: Hub) -> None:
    first = hub.build("faceid-plus", shortcut=False)
    assert paint(first, 1).tobytes() != paint(hub.build("faceid-plus"), 1).tobytes()


@pytest.mark.parametrize("train", ["lora", "full"])
def test_dreambooth_goes_on_where_it_was_stopped(hub: Hub, tmp_path: Path, train: str) -> None:
    options = {"train": train, "save_every": 2, "learning_rate": 0.02}
    whole = hub.build("dreambooth", cache=str(tmp_path / "whole"), **options)
    stopped = hub.build("dreambooth", cache=str(tmp_path / "stopped"), **options)
    loss, seen = Student._loss, []

    def fails_at_3(self: Any, clean: Any, texts: Any, step: int) -> Any:
        seen.append(step)
        if step == 3 and seen.count(3) == 1:
            raise KeyboardInterrupt
        return loss(self, clean, texts, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Student, "_loss", fails_at_3)
        with pytest.raises(KeyboardInterrupt):
            stopped.prepare([person(1)])
        assert list((tmp_path / "stopped").rglob("*.state"))
        resumed = stopped.prepare([person(1)])
        assert seen == [0, 1, 2, 3, 2, 3]
    learned = whole.prepare([person(1)])
    assert resumed.read_bytes() == learned.read_bytes()
    assert not list((tmp_path / "stopped").rglob("*.state"))
    costs = cost_table(load_profile("embedded"), [whole], [person(1)], repeats=1)
    weights = load_file(learned).values()
    assert costs.loc["dreambooth", "parameters"] == sum(map(torch.numel, weights))
    assert costs.loc["dreambooth", "steps"] == 4
    changed = learned.stat().st_mtime_ns
    assert whole.prepare([person(1)]) == learned and learned.stat().st_mtime_ns == changed


def test_dreambooths_loss_is_the_persons_and_the_classs(hub: Hub, tmp_path: Path) -> None:
    pipeline = load_stock(StableDiffusionPipeline, str(hub.sd), "cpu", "float32")
    recipe = FineTuning("lora", 12, 0.02, rank=4, prior_images=2, prior_weight=0.25)
    student = Student(pipeline, recipe, tmp_path, {"num_inference_steps": 2})
    own, prior = student._encode(student._pixels(person(1))), student._prior[:1]
    assert not torch.equal(student._prior[0], student._prior[1])
    texts = torch.cat([student._text("a sks person"), student._text("a person")])

    @torch.no_grad()
    def error(latents: torch.Tensor, text: torch.Tensor, draws: torch.Generator) -> float:
        """The denoising error by its definition; SD predicts the noise."""
        noise = torch.randn(latents.shape, generator=draws)
        t = torch.randint(1000, (1,), generator=draws)
        kept = pipeline.scheduler.alphas_cumprod[t]
        noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
        predicted = pipeline.unet(noisy, t, encoder_hidden_states=text).sample
        return float((predicted - noise).square().mean())

    generators = [student._generator("step", 7, part) for part in range(2)]
    parts = [
        error(latents, text[None], draws)
        for latents, text, draws in zip((own, prior), texts, generators, strict=True)
    ]
    with torch.no_grad():
        loss = float(student._loss(torch.cat([own, prior]), texts, 7))
    assert loss == pytest.approx(parts[0] + 0.25 * parts[1], rel=1e-4)

    def on_average() -> float:
        draws = [torch.Generator().manual_seed(seed) for seed in range(20)]
        return float(np.mean([error(own, texts[:1], draw) for draw in draws]))

    before = on_average()
    student.become(student.learn([person(1)]))
    assert on_average() < 0.97 * before
    student._set(student._start)
    assert on_average() == pytest.approx(before)  # the base model is still there for the next


def test_what_dreambooth_learned_belongs_to_all_that_it_was_learned_by(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = load_stock(StableDiffusionPipeline, str(hub.sd), "cpu", "float32")

    def folder(painting: dict[str, Any] | None = None, **changes: Any) -> Path:
        recipe = FineTuning(**{"train": "full", "steps": 4, "learning_rate": 0.1} | changes)
        return Student(pipeline, recipe, tmp_path, painting or {})._folder

    found = [folder(), folder({"num_inference_steps": 9}), folder(steps=5), folder(seed=1)]
    assert folder(save_every=7) == found[0], "how often it was saved changes nothing"
    scheduler = pipeline.scheduler
    pipeline.scheduler = DDIMScheduler.from_config(scheduler.config, num_train_timesteps=500)
    found.append(folder())
    pipeline.scheduler = scheduler
    monkeypatch.setattr("companion.methods.dreambooth.sha256_file", lambda _: "other code")
    found.append(folder())
    with torch.no_grad():
        next(pipeline.vae.parameters()).add_(1)
    found.append(folder())
    assert len(set(found)) == 7


def test_seconds_are_of_what_is_done_for_each_person_and_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a clock of the test's own: what is loaded first, and the first picture, do not count."""
    now, prepared = [0.0], []

    def prepare(images: Any) -> list[bytes]:
        now[0] += 1.0 if prepared else 100.0
        prepared.append([image.tobytes() for image in images])
        return prepared[-1]

    def generate(prompt: str, faces: Any, seed: int) -> Image.Image:
        now[0] += 50.0 if seed == 0 else float(seed)
        return person(1)

    monkeypatch.setattr("companion.studies.costs._now", lambda: now[0])
    method = Method("new", generate, {}, references=1, prepare=prepare)
    shown = [person(1), person(2)]
    row = cost_table(load_profile("embedded"), [method], shown, repeats=4).loc["new"]
    assert (row["prepare_s"], row["picture_s"]) == (1.0, 2.5)
    assert prepared == [[ImageOps.mirror(shown[0]).tobytes()], [shown[0].tobytes()]]


def test_a_training_record_is_told_in_minutes(tmp_path: Path) -> None:
    profile = load_profile("embedded").model_copy(
        update={"counterparts": str(tmp_path), "adapter": str(tmp_path / "adapter")}
    )
    (tmp_path / "training").mkdir()
    run = {"steps": 5, "samples": 40, "seconds": 90.0, "machine": "A CPU", "parameters": 7}
    for file in ("faceid", "adapter"):
        (tmp_path / "training" / f"{file}.json").write_text(json.dumps(run))
    for name in ("faceid", "fused"):
        record = training_record(profile, name)
        assert record.pop("minutes") == 1.5 and run.items() > record.items() and len(record) == 4
    assert training_record(profile, "instantid") == {}


def test_dreambooth_names_the_person_in_the_prompt() -> None:
    recipe = FineTuning("lora", 1, 0.1)
    assert recipe.personal("a photo of a laughing person") == "a photo of a laughing sks person"
    assert recipe.personal("a personal view") == "sks person, a personal view"
    with pytest.raises(FusionError, match="steps"):
        FineTuning("lora", 0, 0.1)


NO_FACE = [kind for kind in SYSTEMS if not kind.startswith(("ip-adapter", "dreambooth"))]


@pytest.mark.parametrize("kind", NO_FACE)
def test_a_reference_without_a_face_is_named(hub: Hub, kind: str) -> None:
    with pytest.raises(NoFaceError, match="Reference 1 .* shows no face"):
        hub.build(kind).prepare([Image.new("RGB", (64, 64))])


MISSING: dict[str, tuple[str, str]] = {
    "ip-adapter-plus": ("models/ip-adapter-plus_sd15.safetensors", "hf download h94/IP-Adapter "),
    "ip-adapter": ("models/ip-adapter_sd15.safetensors", "hf download h94/IP-Adapter models/ip-"),
    "faceid": (
        "ip-adapter-faceid_sd15.bin",
        "hf download h94/IP-Adapter-FaceID ip-adapter-faceid_",
    ),
    "faceid-plus": ("ip-adapter-faceid-plusv2_sd15.bin", "h94/IP-Adapter-FaceID"),
    "faceid-sdxl": ("ip-adapter-faceid_sdxl.bin", "h94/IP-Adapter-FaceID"),
    "faceid-portrait": ("ip-adapter-faceid-portrait_sd15.bin", "h94/IP-Adapter-FaceID"),
    "instantid": ("ip-adapter.bin", "hf download InstantX/InstantID ip-adapter.bin"),
    "arc2face": ("arc2face/config.json", "hf download FoivosPar/Arc2Face arc2face/config.json"),
}


@pytest.mark.parametrize("kind", MISSING)
def test_a_missing_file_is_named_with_the_remedy(hub: Hub, kind: str, tmp_path: Path) -> None:
    file, remedy = MISSING[kind]
    with pytest.raises(FusionError, match=f"{file}.*not there"):
        hub.build(kind, weights=str(tmp_path))
    options = {key: value for key, value in hub.options[kind].items() if key != "weights"}
    with pytest.raises(FusionError, match=remedy):  # from the hub, which tests do not reach
        build_method(kind, hub.models, **options)


def test_other_mistakes_end_in_one_sentence(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "models" / "ip-adapter_sd15.safetensors"
    broken.parent.mkdir()
    broken.write_bytes(b"<html>")
    pickled = tmp_path / "evil.bin"
    torch.save({"image_proj": FineTuning("lora", 1, 0.1), "ip_adapter": {}}, pickled)
    xl = torch.load(hub.faceid / "ip-adapter-faceid_sdxl.bin", weights_only=True)
    torch.save(xl, tmp_path / "ip-adapter-faceid_sd15.bin")
    portrait = hub.faceid / "ip-adapter-faceid-portrait_sd15.bin"
    (tmp_path / "other").mkdir()
    shutil.copy(portrait, tmp_path / "other" / "ip-adapter-faceid_sd15.bin")
    makes: list[tuple[Callable[[], Any], str]] = [
        (lambda: hub.build("ip-adapter", weights=str(tmp_path)), "no IP-Adapter checkpoint"),
        (lambda: read_adapter(pickled), "no IP-Adapter checkpoint"),  # never unpickled
        (lambda: hub.build("faceid", weights=str(tmp_path)), "does not fit the base model"),
        (lambda: hub.build("faceid", weights=str(tmp_path / "other")), "another kind of adapter"),
        (lambda: hub.build("ip-adapter", scale=-1), "scale must be"),
        (lambda: hub.build("ip-adapter", references=0), "references must be"),
        (lambda: hub.build("ip-adapter", guidance=2), "no option 'guidance'"),
        (lambda: hub.build("faceid", guidance_scale="2"), "guidance_scale of the method 'faceid'"),
        (lambda: hub.build("faceid", base_model="nowhere"), "no base model folder nowhere"),
        (lambda: hub.build("arc2face", base_model=str(hub.sd)), "knows the word 'id'"),
        (lambda: hub.build("dreambooth", train="all"), 'must be "lora" or "full"'),
        (lambda: hub.build("dreambooth").prepare([]), "give one or more"),
        (lambda: hub.build("faceid", faces=str(tmp_path)), "There is no det_10g.onnx in"),
    ]
    for make, says in makes:
        with pytest.raises(FusionError, match=says):
            built = make()
            built.prepare([person(1)])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(FusionError, match="pip install onnxruntime"):
        hub.build("faceid", name="anew").prepare([person(1)])
