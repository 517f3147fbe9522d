"""The studio without a browser: its traits are set as a page sets them, and Python answers."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from typer.testing import CliRunner

from companion.person import Person
from companion.studio.interactive import COLORS, Studio, open_studio
from fusionlib.cli import app
from fusionlib.errors import FusionError
from fusionlib.inputs.images import load_image, read_metadata
from fusionlib.inputs.layout import masks_from_boxes
from fusionlib.pipeline import FusionPipeline
from fusionlib.profiles import ROOT, Profile, load_profile
from fusionlib.profiles.loading import load_pipeline

HELDOUT = ROOT / "data" / "heldout"
SIDE = 32  # pixels, of the tiny checkpoint
PEOPLE = [Person(str(n), (HELDOUT / f"{n:04d}_0.jpg",)) for n in range(4)]


@pytest.fixture(scope="module")
def profile(tiny_profile: Path) -> Profile:
    return load_profile(str(tiny_profile))


@pytest.fixture(scope="module")
def pipeline(profile: Profile) -> FusionPipeline:
    return load_pipeline(profile, device="cpu")


@pytest.fixture
def room(pipeline: FusionPipeline, profile: Profile, tmp_path: Path) -> Studio:
    return open_studio(pipeline, PEOPLE, profile=profile, folder=tmp_path / "saved")


def click(room: Studio, name: str, argument: Any = None, **typed: Any) -> None:
    """What a page sends at a click: all that was typed since the last one, and the command."""
    count = (room.command or [0])[0] + 1
    room.set_state({**typed, "command": [count, name, argument]})


def picture(url: str) -> np.ndarray:
    """A picture that the page shows."""
    head, data = url.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def seen_masks(monkeypatch: pytest.MonkeyPatch, room: Studio) -> list[Any]:
    """The masks that the adapter is given from now on, one entry for each picture."""
    seen: list[Any] = []
    adapter = room.pipeline.adapter
    conditioned = adapter.conditioned

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append((kwargs["identity_masks"], kwargs["reference_identity"]))
        return conditioned(*args, **kwargs)

    monkeypatch.setattr(adapter, "conditioned", spy)
    return seen


def test_a_click_shows_the_picture_that_the_pipeline_makes(room: Studio) -> None:
    click(room, "paint", chosen=[1], prompt="a laughing face", seed=5, guidance_scale=2.0)
    expected = room.pipeline(
        "a laughing face",
        references=[load_image(HELDOUT / "0001_0.jpg")],
        guidance_scale=2.0,
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    assert not room.failed and not room.busy and room.progress == 1
    assert np.array_equal(picture(room.shown["image"]), np.asarray(expected))
    assert "seed 5" in room.shown["caption"] and "a laughing face" in room.shown["caption"]
    (reference,) = room.shown["references"]
    reduced = load_image(HELDOUT / "0001_0.jpg").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    assert np.array_equal(picture(reference), np.asarray(reduced))


def test_references_are_encoded_again_for_other_weights_and_only_then(
    room: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    encode = room.pipeline.encode_references

    def spy(pictures: Any) -> Any:
        encoded.append(len(pictures))
        return encode(pictures)

    monkeypatch.setattr(room.pipeline, "encode_references", spy)
    room.paint()
    room.paint()
    assert encoded == [1], "the same people and weights"
    unet, adapter = room.pipeline.unet, room.pipeline.adapter
    for weight in (next(adapter.parameters()), unet.conv_in.weight):
        before = weight.detach().clone()
        try:
            with torch.no_grad():
                weight.mul_(1.5)
            other = np.asarray(room.paint())
            room._encoded.clear()
            assert np.array_equal(other, np.asarray(room.paint())), "as a new studio paints"
        finally:
            with torch.no_grad():
                weight.copy_(before)
    encoded.clear()
    room.paint()
    assert encoded == [1]


def test_progress_goes_up_step_by_step_while_it_is_busy(room: Studio) -> None:
    told = []
    room.observe(lambda change: told.append((change.new, room.busy)), "progress")
    room.paint()
    assert told == [(pytest.approx(n / 3), True) for n in (1, 2, 3)]


def test_what_is_drawn_is_the_mask_that_the_pipeline_gets(
    room: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.chosen = [2, 0]
    drawn = np.zeros((SIDE, SIDE), np.uint8)
    drawn[2:9, 20:30] = 1  # the first person: in the upper right
    drawn[16:31, 1:12] = 2  # the second one: in the lower left
    seen = seen_masks(monkeypatch, room)
    click(room, "paint", places=memoryview(drawn.tobytes()))
    assert not room.failed, room.message
    ((masks, identity),) = seen
    boxes = [(20, 2, 30, 9), (1, 16, 12, 31)]
    assert torch.equal(masks, masks_from_boxes(boxes, (SIDE, SIDE))) and identity == [0, 1]
    shown = picture(room.shown["places"])
    assert tuple(shown[5, 25]) == ImageColor.getrgb(COLORS[0])
    assert tuple(shown[20, 5]) == ImageColor.getrgb(COLORS[1])
    assert len(room.shown["levels"]) == len(room.pipeline.unet.config.block_out_channels)
    first = picture(room.shown["levels"][0])
    assert tuple(first[18, 5]) == ImageColor.getrgb(COLORS[1])


def test_the_person_of_one_half_changes_and_the_other_half_changes_less(room: Studio) -> None:
    """A face seen on the right only touches the left through what the layers share, not more."""
    room.chosen, room.wide = [0, 1], True
    room.share()
    before = np.asarray(room.paint()).astype(float)
    room.strengths = [1.0, 0.0]
    difference = np.abs(np.asarray(room.paint()) - before).mean(axis=(0, 2))
    room.places = bytes(len(room.places))
    room.strengths = [1.0, 1.0]
    everywhere = np.abs(np.asarray(room.paint()) - before).mean()
    assert difference[SIDE:].mean() > 1.2 * difference[:SIDE].mean() > 0
    assert everywhere > 0


def test_places_go_with_their_people_and_to_the_width(room: Studio) -> None:
    room.chosen = [0, 1, 2]
    room.share()
    room.strengths = [0.1, 0.2, 0.3]
    room.chosen = [0, 2]
    places = np.frombuffer(room.places, np.uint8).reshape(SIDE, SIDE)
    assert room.strengths == [0.1, 0.3]
    assert places[0, [0, SIDE // 2, SIDE - 1]].tolist() == [1, 0, 2]
    room.wide = True
    wide = np.frombuffer(room.places, np.uint8).reshape(SIDE, 2 * SIDE)
    assert room.size == [SIDE, 2 * SIDE] and np.array_equal(wide[:, ::2], places)
    assert room.paint().size == (2 * SIDE, SIDE)
    room.wide = False
    assert np.array_equal(np.frombuffer(room.places, np.uint8).reshape(SIDE, SIDE), places)


@pytest.mark.parametrize("drawing", ["none", "halves", "by hand", "a pixel"])
def test_the_code_that_is_shown_makes_the_same_picture(room: Studio, drawing: str) -> None:
    room.chosen, room.strengths, room.seed = [0, 1], [0.5, 1.0], 3
    room.prompt = 'a "face" \\ é'
    places = np.zeros((SIDE, SIDE), np.uint8)
    if drawing == "halves":
        room.share()
        assert "masks_from_boxes" in room.request().code()
    elif drawing == "by hand":
        rows, columns = np.mgrid[:SIDE, :SIDE]
        places[np.hypot(rows - 10, columns - 8) < 7] = 1
        places[rows + columns > 45] = 2
    elif drawing == "a pixel":
        places[0, 0], places[1, 1] = 1, 2
    if places.any():
        room.places = places.tobytes()
        assert "masks_from_colors" in room.request().code()
    image = room.paint()
    names: dict[str, Any] = {"pipeline": room.pipeline}
    exec(room.shown["code"], names)
    assert names["image"] == image
    assert image != room.pipeline("another", num_inference_steps=3).images[0]


def test_nobody_chosen_is_the_base_model(room: Studio) -> None:
    room.chosen = []
    noise = torch.Generator().manual_seed(0)
    base = room.pipeline(
        room.prompt, num_inference_steps=3, guidance_scale=room.guidance_scale, generator=noise
    ).images[0]
    assert room.paint() == base
    names: dict[str, Any] = {"pipeline": room.pipeline}
    exec(room.shown["code"], names)
    assert names["image"] == base


def test_mistakes_are_one_sentence_on_the_page_and_the_last_picture_stays(room: Studio) -> None:
    click(room, "save")
    assert room.failed and "Nothing was painted yet" in room.message
    click(room, "paint")
    shown = room.shown
    click(room, "paint", prompt="  ")
    assert room.failed and room.message == "The prompt is empty: say what to paint."
    assert room.shown == shown and not room.busy
    with pytest.raises(FusionError, match="prompt is empty"):
        room.paint()
    room.prompt = "a face"
    room.chosen = [0, 1]
    drawn = np.zeros((SIDE, SIDE), np.uint8)
    drawn[:, :9] = 1
    click(room, "paint", places=drawn.tobytes())
    assert room.failed and "Person 2 has no place" in room.message and "\n" not in room.message
    click(room, "paint", chosen=[0, 1, 2, 3])
    assert room.failed and "choose three at most" in room.message
    room.chosen = [0]
    click(room, "paint")
    assert not room.failed and room.message == ""


def test_what_the_library_warns_of_is_said(room: Studio) -> None:
    click(room, "paint", prompt="a face " * 40)
    assert not room.failed and "was cut" in room.message and room.shown["image"]


def test_history_shows_and_recalls_former_pictures(room: Studio) -> None:
    room.chosen = [3, 1]
    room.share()
    room.prompt, room.seed = "first", 1
    first = room.paint()
    room.chosen, room.wide, room.prompt, room.seed = [0], True, "second", 2
    room.paint()
    assert [shot["text"].split(",")[0] for shot in room.history] == ["“second”", "“first”"]
    click(room, "show", 1)
    assert np.array_equal(picture(room.shown["image"]), np.asarray(first))
    click(room, "recall")
    assert (room.chosen, room.wide, room.prompt, room.seed) == ([3, 1], False, "first", 1)
    assert room.paint() == first


def test_a_saved_picture_says_of_itself_what_the_command_says(
    room: Studio, tiny_profile: Path, tmp_path: Path
) -> None:
    room.chosen, room.strengths, room.prompt, room.seed = [0, 1], [1.0, 0.5], "a face", 4
    room.share()
    click(room, "paint")
    click(room, "save")
    (saved,) = (tmp_path / "saved").iterdir()
    assert saved.name in room.message and not room.failed

    files = []
    for side in (0, 1):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[:, side * SIDE // 2 : (side + 1) * SIDE // 2] = 255
        files.append(tmp_path / f"{side}.png")
        Image.fromarray(mask).save(files[-1])
    arguments: list[Any] = ["--profile", tiny_profile, "--prompt", "a face", "--seed", 4]
    for person, file, strength in zip(PEOPLE, files, (1.0, 0.5), strict=False):
        arguments += ["--reference", person.references[0], "--crop", "none"]
        arguments += ["--mask", file, "--strength", strength]
    arguments += ["--device", "cpu", "--out", tmp_path / "command.png"]
    done = CliRunner().invoke(app, ["generate", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    pixels = [np.asarray(Image.open(path)) for path in (saved, tmp_path / "command.png")]
    assert np.array_equal(*pixels)
    ours, theirs = read_metadata(saved), read_metadata(tmp_path / "command.png")
    for options in ("base_model", "adapter", "negative_prompt"):  # of the command only
        del theirs[options]
    assert ours.pop("python") == room.shown["code"]
    masks = [picture(f"data:image/png;base64,{mask['png']}") for mask in ours["identity_masks"]]
    for mask, file in zip(masks, files, strict=True):
        assert np.array_equal(mask, np.asarray(Image.open(file).convert("RGB")))
    del ours["identity_masks"], theirs["identity_masks"]
    assert ours == theirs


def test_a_page_without_a_kernel_gets_a_still(room: Studio) -> None:
    assert "image/png" not in room._repr_mimebundle_()[0]
    room.chosen = [0, 1]
    room.share()
    painted = room.paint()
    data, _ = room._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    still = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    above = still.crop((0, 0, still.width, still.width * painted.height // painted.width))
    small = np.asarray(above.resize(painted.size, Image.Resampling.BOX)).astype(float)
    assert np.abs(small - np.asarray(painted)).mean() < 12
    colours = {colour for _, colour in still.getcolors(1 << 20)}
    assert {ImageColor.getrgb(colour) for colour in COLORS[:2]} <= colours


def test_a_studio_needs_people(pipeline: FusionPipeline) -> None:
    with pytest.raises(FusionError, match="at least one person"):
        open_studio(pipeline, [])
