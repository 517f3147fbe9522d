"""Controls of systems: the reference itself, what is left of it, and another person's pose."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from companion.evaluation.quality import reconstruct
from companion.methods import Models, build_method
from companion.person import load_people
from companion.studies.declaration import load_declaration
from companion.studies.study import cells
from fusionlib.inputs.images import load_image
from fusionlib.profiles import ROOT, load_profile


@pytest.fixture(scope="module")
def models() -> Models:
    return Models(load_profile("embedded"), device="cpu", threads=1)


@pytest.fixture(scope="module")
def reference(models: Models) -> Image.Image:
    (person,) = load_people(models.profile.heldout, 1, only={"style": "photo"})
    return load_image(person.references[0])


def test_the_ends_of_the_scale_show_the_reference_whatever_is_asked_for(
    models: Models, reference: Image.Image
) -> None:
    plain = build_method("reference", models)
    restored = build_method("restored", models)
    for method in (plain, restored):
        shown = method.prepare([reference])
        one, other = method.generate("a photo", shown, 0), method.generate("line art", shown, 9)
        assert one.size == (128, 128) and one.tobytes() == other.tobytes()
        assert method.settings["weights"] == {} or "autoencoder" in method.settings["weights"]
    same = plain.generate("", plain.prepare([reference]), 0)
    assert same.tobytes() == reference.tobytes(), "a picture of the profile's size is left alone"
    left = restored.generate("", restored.prepare([reference]), 0)
    assert left.tobytes() == reconstruct(models.pipeline, [reference])[0].tobytes()
    difference = np.abs(np.asarray(left, float) - np.asarray(reference, float)).mean()
    assert 0.5 < difference < 12
    wide = plain.prepare([reference.resize((256, 128))])
    assert plain.generate("", wide, 0).size == (128, 128)


def test_everybody_is_posed_like_the_next_and_the_face_is_their_own(tmp_path: Path) -> None:
    declared = load_declaration(ROOT / "data" / "studies" / "controlnet.yaml")
    few = declared.people.model_copy(update={"count": 3})
    study = declared.model_copy(update={"people": few}).study("cpu")
    names = [method.name for method in study.methods]
    assert names == ["depth 1", "depth 0.75", "depth 0.5", "depth 0.25", "depth 0"]
    assert [method.references for method in study.methods] == [3, 3, 3, 3, 1]
    first, second, third = study.people
    assert first.references[2].stem.removesuffix(".depth") == second.references[0].stem
    assert third.references[2].stem.removesuffix(".depth") == first.references[0].stem
    grid = cells(replace(study, seeds=[0]))
    assert len({cell.key for cell in grid}) == len(grid) == 5 * 3 * 2
