"""Covered references: what is hidden and what is not, and who takes part."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from companion.pages.covered_faces import CLOTH, cover_face, cover_first
from companion.person import Person, load_people
from fusionlib.errors import FusionError
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
    tmp_path: Path,
) -> None:
    people = load_people(
        load_profile("embedded").heldout or "", 2, references=2, only={"style": "photo"}
    )
    Image.new("RGB", (128, 128)).save(tmp_path / "nobody.png")
    nobody = Person("nobody", (tmp_path / "nobody.png",))
    covered = cover_first([people[0], nobody, people[1]], tmp_path / "covered")
    assert [person.name for person in covered] == [person.name for person in people]
    for before, after in zip(people, covered, strict=True):
        assert after.references[1:] == before.references[1:] and after.others == before.others
        whole, hidden = (np.array(load_image(each.references[0])) for each in (before, after))
        changed = (whole != hidden).any(axis=-1)
        assert 0.05 < changed.mean() < 0.5 and (hidden == CLOTH).all(axis=-1).mean() > 0.05
    with pytest.raises(FusionError, match="No face was found in the first reference of 1 people"):
        cover_first([nobody], tmp_path / "covered")
