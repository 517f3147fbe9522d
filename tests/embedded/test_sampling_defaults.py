"""Every way in uses the small model's own steps and guidance, from one source."""

import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from diffusers import DDIMScheduler, StableDiffusionPipeline

from companion.request import usual_sampling
from companion.studies.declaration import load_models
from companion.studio.interactive import open_studio
from fusionlib import FusionImg2ImgPipeline, FusionInpaintPipeline, FusionPipeline
from fusionlib.profiles import load_profile
from fusionlib.profiles.loading import load_pipeline

ROOT = Path(__file__).parents[2]
OWN = {"num_inference_steps": 20, "guidance_scale": 3.0}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What diffusers' pipeline is asked for, which is not painted."""
    calls: list[dict[str, Any]] = []

    @functools.wraps(StableDiffusionPipeline.__call__)
    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append({name: kwargs.get(name) for name in OWN})
        return SimpleNamespace(images=[None])

    monkeypatch.setattr(StableDiffusionPipeline, "__call__", noted)
    return calls


def test_the_profile_and_the_checkpoint_agree() -> None:
    profile = load_profile("embedded")
    index = json.loads(Path(profile.base_model, "model_index.json").read_text("utf-8"))
    assert profile.sampling == index["sampling_defaults"] == OWN


def test_the_call_in_the_readme(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    (code,) = [block for block in readme.split("```python\n")[1:] if "references=" in block]
    code = code.split("```")[0].replace("photograph.jpg", "data/heldout/0014_0.jpg")
    monkeypatch.chdir(ROOT)
    exec(code, {})
    assert asked == [OWN]


def test_a_call_may_say_otherwise(asked: list[dict[str, Any]]) -> None:
    pipeline = FusionPipeline.from_pretrained(ROOT / "data/models/embedded")
    pipeline("a face", num_inference_steps=4, guidance_scale=7.5)
    pipeline("a face", guidance_scale=2.0)
    assert [tuple(call.values()) for call in asked] == [(4, 7.5), (20, 2.0)]


@pytest.mark.parametrize("cls", [FusionImg2ImgPipeline, FusionInpaintPipeline])
def test_the_other_pipelines_have_them_too(cls: Any) -> None:
    pipeline = FusionPipeline.from_pretrained(ROOT / "data/models/embedded")
    assert cls.from_pipe(pipeline).sampling_defaults == OWN
    assert cls.from_pretrained(ROOT / "data/models/embedded").sampling_defaults == OWN


def test_studies_and_the_studio_ask_for_the_same() -> None:
    profile = load_profile("embedded")
    pipeline = load_pipeline(profile, device="cpu")
    assert load_models("embedded").sampling == OWN
    people = [SimpleNamespace(references=(ROOT / "data/heldout/0000_0.jpg",))]
    for given in (profile, None):
        assert usual_sampling(pipeline, given) == OWN
        room = open_studio(pipeline, people, profile=given)
        assert (room.steps, room.max_steps, room.guidance_scale) == (20, 20, 3.0)


def test_without_any_they_are_diffusers_own(tiny_checkpoint: Path) -> None:
    pipeline = FusionPipeline.from_pretrained(tiny_checkpoint)
    stock = {"num_inference_steps": 50, "guidance_scale": 7.5}
    assert pipeline.sampling_defaults == {} and usual_sampling(pipeline) == stock
    profile = load_profile("embedded").model_copy(update={"guidance_scale": 5.0})
    assert usual_sampling(pipeline, profile) == OWN | {"guidance_scale": 5.0}


def test_they_belong_to_the_name_of_a_picture(tiny_checkpoint: Path) -> None:
    from companion.methods.fusion import text_only

    pipeline = FusionPipeline.from_pretrained(tiny_checkpoint)
    without = text_only(pipeline).settings
    pipeline.register_to_config(sampling_defaults=OWN)
    assert text_only(pipeline).settings == without | {"sampling_defaults": OWN}
    assert isinstance(pipeline.scheduler, DDIMScheduler)
