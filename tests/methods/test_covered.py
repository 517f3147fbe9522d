"""Covered references: what is hidden and what is not, and who takes part."""

import numpy as np
import pytest
from PIL import Image

from companion.methods import Method, Models, build_method
from companion.methods.covered import CLOTH, cover_face
from companion.person import load_people
from fusionlib.errors import NoFaceError
from fusionlib.inputs.images import load_image
from fusionlib.profiles import load_profile


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_the_cloth_lies_below_the_eyes_whichever_way_the_face_is_turned(turn: int) -> None:
    white = Image.new("RGB", (101, 101), "white")
    straight = np.array(cover_face(white, ((40.0, 30.0), (60.0, 30.0))))
    hidden = (straight == CLOTH).all(axis=-1)
    rows, columns = np.nonzero(hidden)
    assert rows.min() > 30 + 5 and 65 < rows.max() < 75
    assert (columns.min() + columns.max()) / 2 == 50 and hidden[50, 35:66].all()
    assert (straight[:30] == 255).all(), "eyes and brows stay open"
    corner = np.array([50, 50])
    angle = np.radians(turn)
    spin = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    eyes = [tuple((np.array(eye) - corner) @ spin.T + corner) for eye in ((40, 30), (60, 30))]
    turned = np.array(cover_face(white, (eyes[0], eyes[1])))
    differs = np.abs(turned.astype(int) - np.rot90(straight, turn // 90))
    assert differs.max() < 64 and differs.mean() < 0.5, "but for a part of a pixel at its edge"


def test_only_the_first_reference_is_covered_and_who_has_no_face_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    profile = load_profile("embedded")
    (person,) = load_people(profile.heldout, 1, references=2, only={"style": "photo"})
    before = [load_image(path) for path in person.references]
    plain = Method("fused", lambda *_: before[0], {"strengths": [1, 1]}, references=2)
    monkeypatch.setattr("companion.methods.covered.build_fused", lambda models, **_: plain)
    method = build_method("covered", Models(profile))
    assert method.settings == {"strengths": [1, 1], "covered": "dlib"} and method.references == 2
    first, second = (np.array(image) for image in method.prepare(before))
    assert (second == np.array(before[1])).all()
    changed = (first != np.array(before[0])).any(axis=-1)
    assert 0.05 < changed.mean() < 0.5 and (first == CLOTH).all(axis=-1).mean() > 0.05
    with pytest.raises(NoFaceError, match="Reference 1 shows no face"):
        method.prepare([Image.new("RGB", (128, 128)), before[1]])
