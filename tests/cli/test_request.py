"""A picture as it is asked for: its Python paints the same, its record says what it was made of."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from companion.request import Reference, Request
from fusionlib.errors import FusionError
from fusionlib.pipeline import FusionPipeline
from fusionlib.profiles import ROOT, load_profile
from fusionlib.profiles.loading import load_pipeline
from fusionlib.support.provenance import sha256_file

FACE = ROOT / "data" / "heldout" / "0000_0.jpg"
REFERENCES = (
    Reference(FACE),
    Reference(FACE, crop="face", face="largest"),
    Reference(FACE, crop=(0.0, 0.0, 0.5, 0.5)),
)


@pytest.fixture(scope="module")
def pipeline(tiny_profile: Path) -> FusionPipeline:
    return load_pipeline(load_profile(str(tiny_profile)), device="cpu")


@pytest.mark.parametrize("reference", REFERENCES)
def test_the_code_of_a_reference_cuts_it_out_alike(reference: Reference) -> None:
    names: dict[str, Any] = {}
    exec("from fusionlib import prepare_photo", names)
    exec("from fusionlib.inputs.images import load_image", names)
    assert eval(reference.code(), names) == reference.load()


def test_method_code_and_record_are_of_the_same_picture(pipeline: FusionPipeline) -> None:
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, :, :16] = masks[1, :, 16:] = True
    request = Request(
        prompt='a "face"',
        references=REFERENCES,
        strengths=(1.0, 0.5, 0.5),
        masks=masks,
        identities=(0, 1, 1),
        guidance_scale=2.0,
        steps=2,
        seed=3,
        further={"negative_prompt": "hands"},
    )
    request.check()
    method = request.method(pipeline, threads=1)
    shown = method.prepare([reference.load() for reference in request.references])
    image = method.generate(request.prompt, shown, request.seed)
    names: dict[str, Any] = {"pipeline": pipeline}
    exec(request.code(), names)
    assert isinstance(image, Image.Image) and names["image"] == image

    record = request.record(method, profile="tiny")
    assert "identity_masks" not in record and record["reference_identity"] == [0, 1, 1]
    assert record["strengths"] == [1.0, 0.5, 0.5] and record["negative_prompt"] == "hands"
    cuts = [(entry["sha256"], entry["crop"], entry["face"]) for entry in record["references"]]
    digest = sha256_file(FACE)
    box = (0.0, 0.0, 0.5, 0.5)
    assert cuts == [(digest, "none", None), (digest, "face", "largest"), (digest, box, None)]
    assert {"torch", "dlib-bin"} <= record["versions"].keys()
    assert request.record(method, identity_masks=["left", "right"])["identity_masks"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"seed": -1}, "seed -1"),
        ({"strengths": (float("nan"),)}, "strength nan"),
        ({"steps": 0}, "from 1 to 1000"),
        ({"guidance_scale": -1.0}, "guidance scale -1.0"),
    ],
)
def test_what_cannot_be_painted_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(FusionError, match=says):
        Request(**{"prompt": "a face"} | changes).check()
