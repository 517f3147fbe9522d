"""What a reference takes away of the denoising error, on a tiny random checkpoint."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image

from companion.pages import reference_gains as gains
from companion.pages.data_and_model_cards import gains_table
from companion.pages.reference_gains import reference_gains, trained_adapters
from companion.person import Person
from fusionlib.adapter import FusionAdapter
from fusionlib.errors import FusionError
from fusionlib.profiles import Profile, load_profile
from fusionlib.profiles.loading import load_pipeline
from fusionlib.reference import encode_references
from tests.helpers.tiny import RESOLUTION
from tests.helpers.training_data import disc


@pytest.fixture
def profile(tiny_checkpoint: Path, tmp_path: Path) -> Profile:
    return load_profile("embedded").model_copy(
        update={
            "base_model": str(tiny_checkpoint),
            "adapter": str(tiny_checkpoint / "adapter"),
            "resolution": RESOLUTION,
            "counterparts": str(tmp_path / "methods"),
        }
    )


def somebody(folder: Path, name: str, reference: int, other: int) -> Person:
    paths = []
    for number in (reference, other):
        paths.append(folder / f"{number}.png")
        disc(number).resize((RESOLUTION, RESOLUTION)).save(paths[-1])
    return Person(name, (paths[0],), (paths[1],))


@pytest.fixture
def people(tmp_path: Path) -> list[Person]:
    return [somebody(tmp_path, name, 2 * n, 2 * n + 1) for n, name in enumerate("abc")]


def naive(profile: Profile, person: Person, shown: Path | None, timestep: int, row: int) -> float:
    """The squared error of one picture, by the pipeline's parts, one person at a time."""
    pipeline: Any = load_pipeline(profile)

    def latents(path: Path) -> torch.Tensor:
        pixels = pipeline.image_processor.preprocess(Image.open(path).convert("RGB"))
        scale = pipeline.vae.config.scaling_factor
        return pipeline.vae.encode(pixels).latent_dist.mode() * scale

    text, _ = pipeline.encode_prompt("", "cpu", 1, False)
    target = latents(Path(person.others[0]))
    noise = torch.randn(
        (2, 3, *target.shape[1:]), generator=torch.Generator().manual_seed(timestep)
    )[0, row : row + 1]
    alpha = pipeline.scheduler.alphas_cumprod[timestep]
    noisy = alpha.sqrt() * target + (1 - alpha).sqrt() * noise
    goal = noise
    if pipeline.scheduler.config.prediction_type == "v_prediction":
        goal = alpha.sqrt() * noise - (1 - alpha).sqrt() * target
    faces = []
    if shown is not None:
        faces = [pipeline.adapter.project(encode_references(pipeline.unet, latents(shown), text))]
    with pipeline.adapter.conditioned(faces):
        predicted = pipeline.unet(noisy, timestep, text).sample
    return float((predicted - goal).square().mean())


@torch.no_grad()
def test_shares_are_those_of_one_picture_at_a_time(
    profile: Profile, people: list[Person], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gains, "BATCH", 2)
    monkeypatch.setattr(gains, "TIMESTEPS", (600, 980))
    found = reference_gains(profile, people).set_index(["person", "prompt"])
    assert len(found) == 6 and set(found["method"]) == {"fused"}
    own, another = Path(people[1].references[0]), Path(people[0].references[0])
    none = naive(profile, people[1], None, 980, 1)
    row = found.loc[("b", "t = 980")]
    assert row["own"] == pytest.approx(1 - naive(profile, people[1], own, 980, 1) / none, abs=1e-4)
    expected = 1 - naive(profile, people[1], another, 980, 1) / none
    assert row["another"] == pytest.approx(expected, abs=1e-4)
    assert row["identity"] == pytest.approx(row["own"] - row["another"])
    assert abs(row["identity"]) > 1e-4


def test_people_of_one_reference_have_nothing_to_tell_them_apart(
    profile: Profile, people: list[Person]
) -> None:
    same = [Person(p.name, people[0].references, p.others) for p in people]
    found = reference_gains(profile, same)
    assert found["identity"].abs().max() < 1e-5 < found["own"].abs().max()


def test_ablations_are_found_and_shown_their_references_in_their_own_way(
    profile: Profile, people: list[Person]
) -> None:
    pipeline = load_pipeline(profile)
    for name in ("fused-shared", "fused-caption", "fused-mid"):
        layers = ["mid"] if name == "fused-mid" else None
        made = FusionAdapter.from_unet(pipeline.unet, layers=layers)
        made.save_pretrained(Path(str(profile.counterparts)) / name)
    assert list(trained_adapters(profile)) == [
        "fused", "fused-shared", "fused-caption", "fused-mid",
    ]  # fmt: skip
    found = reference_gains(profile, people[:2]).groupby("method")["own"].mean()
    assert found.nunique() == 4


def test_each_adapter_is_compared_with_what_it_is_an_ablation_of() -> None:
    rows = [
        {"method": name, "person": str(person), "prompt": "t", "seed": 0}
        | {"own": own + person / 100, "another": 0.0, "identity": own + person / 100}
        for name, own in (("fused", 0.5), ("decoupled", 0.2), ("fused-mid", 0.1))
        for person in range(6)
    ]
    table = gains_table(pd.DataFrame(rows), "a run").data
    assert list(table["compared with"]) == ["–", "fused", "fused-short"]
    assert table.loc["decoupled", "more about the person"].startswith("-0.300")
    assert table.loc["fused-mid", "more about the person"] == "–", "fused-short was not trained"
    assert table.loc["fused", "own reference"].startswith("0.525 [")
    few = gains_table(pd.DataFrame(rows[:4] + rows[6:10]), "a run").data
    assert few.loc["decoupled", "more about the person"] == "fewer than 5 people"


def test_one_person_is_not_enough(profile: Profile, people: list[Person]) -> None:
    with pytest.raises(FusionError, match="two people at least"):
        reference_gains(profile, people[:1])
    with pytest.raises(FusionError, match="an other"):
        reference_gains(profile, [people[0], Person("x", people[0].references)])
