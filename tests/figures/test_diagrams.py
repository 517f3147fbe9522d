"""The drawings and the maps of attention: what they show is what was measured."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.measure import label as components

from companion.evaluation.attention_maps import AttentionShares
from companion.figures.attention import (
    attention_film,
    layer_table,
    overlay,
    paint_watched,
    share_map,
    word_maps,
    words_of,
)
from companion.figures.diagrams import (
    FACE,
    TRAINED,
    Layer,
    pipeline_drawing,
    read_layers,
    short_count,
)
from companion.figures.display import VectorFigure
from companion.methods.published_sizes import published_weights
from companion.pages.reference_order import order_effect, reversal_effect, zero_strength_effect
from fusionlib import FusionPipeline
from fusionlib.errors import FusionError
from fusionlib.inputs.images import load_image
from fusionlib.profiles import ROOT, load_profile
from tests.helpers.scripts import import_script

PROMPT = "a photo of a laughing person in the snow"


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def patches(image: Image.Image, colour: str, least: int = 50) -> int:
    """How many patches of one colour a picture has."""
    same = (np.abs(np.asarray(image.convert("RGB")).astype(int) - rgb(colour)) < 4).all(-1)
    _, sizes = np.unique(components(same), return_counts=True)
    return int((sizes[1:] >= least).sum())


@pytest.fixture(scope="module")
def painted() -> tuple[Any, Image.Image, list[AttentionShares]]:
    """A picture of the small model and what its queries looked at."""
    torch.set_num_threads(1)
    pipeline = FusionPipeline.from_pretrained(ROOT / "data/models/embedded")
    pipeline.set_progress_bar_config(disable=True)
    cache = pipeline.encode_references([load_image(ROOT / "data/heldout/0000_0.jpg")])
    picture, gazes = paint_watched(pipeline, PROMPT, cache, of="keys", num_inference_steps=2)
    return pipeline, picture, gazes


def test_layers_are_those_of_the_model_and_their_weights_are_all_that_is_trained(
    painted: Any,
) -> None:
    pipeline, _, gazes = painted
    layers = read_layers(pipeline, gazes, (8, 8))
    assert sum(layer.trained for layer in layers) == pipeline.adapter.num_parameters()
    assert {layer.name: (layer.width, layer.heads[0] * layer.heads[1]) for layer in layers} == {
        name: tuple(sizes) for name, sizes in pipeline.adapter.config.layers.items()
    }
    for layer in layers:
        assert layer.tokens == (pipeline.tokenizer.model_max_length, np.prod(layer.size))
        assert 0 < layer.face < 1
    places = [layer.place for layer in layers]
    assert len(set(places)) == len(places) and places[2] == "mid"
    table = layer_table(layers, "A run.").data
    assert list(table["width C"]) == [str(layer.width) for layer in layers]


def test_the_drawing_has_a_trained_box_for_each_layer(painted: Any) -> None:
    pipeline, picture, gazes = painted
    grey = Image.new("RGB", (8, 8), "grey")
    layers = read_layers(pipeline, gazes, (8, 8))
    drawing = pipeline_drawing(layers, reference=grey, noise=grey, painted=picture, prompt=PROMPT)
    assert patches(drawing, TRAINED, least=1500) == len(layers)


def test_a_pipeline_without_faces_has_no_layers_to_draw(painted: Any) -> None:
    pipeline, _, _ = painted
    _, gazes = paint_watched(pipeline, PROMPT, num_inference_steps=1)
    assert gazes and all(gaze.tokens == (32,) for gaze in gazes)
    with pytest.raises(FusionError, match="No layer saw a face"):
        read_layers(pipeline, gazes, (8, 8))


def test_words_are_found_again_in_their_tokens(painted: Any) -> None:
    tokenizer = painted[0].tokenizer
    words = words_of(tokenizer, PROMPT)
    assert list(words) == ["a", "photo", "of", "laughing", "person", "in", "the", "snow"]
    ids = tokenizer(PROMPT).input_ids
    for word, numbers in words.items():
        for number in numbers if word != "a" else []:
            assert tokenizer.decode([ids[number]]).strip() in word
    assert len(words["a"]) == 2


def gaze(weights: list[list[float]], tokens: tuple[int, ...], layer: str = "x") -> AttentionShares:
    return AttentionShares(layer, 5.0, torch.tensor([weights]), tokens)


def test_maps_are_means_and_coarse_ones_are_enlarged() -> None:
    fine = gaze([[0.9, 0.1], [0.6, 0.4], [1.0, 0.0], [0.5, 0.5]], (3, 4))
    coarse = gaze([[0.8, 0.2]], (3, 1))
    expected = torch.tensor([[0.15, 0.3], [0.1, 0.35]])
    torch.testing.assert_close(share_map([fine, coarse], [1], (2, 2)), expected)
    with pytest.raises(FusionError, match="does not lead to a layer of 4"):
        share_map([fine], [1], (3, 5))
    with pytest.raises(FusionError, match="No attention was recorded"):
        share_map([], [1], (2, 2))


def test_an_overlay_is_coloured_where_the_share_is() -> None:
    share = torch.zeros(2, 2)
    share[0, 1] = 0.5
    made = np.asarray(overlay(Image.new("RGB", (64, 64), "white"), share, FACE, top=0.5))
    assert (made[:80, :80] == 255).all(), "nothing here"
    np.testing.assert_allclose(made[20, -20], 0.9 * rgb(FACE) + 25.5, atol=1)


def test_film_and_word_maps_show_each_layer_and_word(painted: Any) -> None:
    pipeline, picture, gazes = painted
    layers = read_layers(pipeline, gazes, (8, 8))
    film = attention_film(picture, gazes, layers, (8, 8), frames=2)
    assert film.height > 192 * len(layers)
    words = {"snow": words_of(pipeline.tokenizer, PROMPT)["snow"]}
    shown = word_maps({"one": (picture, gazes)}, words, (8, 8))
    more = word_maps({"one": (picture, gazes)}, {**words, "photo": [2]}, (8, 8))
    assert 180 < more.width - shown.width < 260


def test_orders_differ_by_rounding_and_a_missing_reference_by_more() -> None:
    pipeline = FusionPipeline.from_pretrained(ROOT / "data/models/embedded")
    pipeline.set_progress_bar_config(disable=True)
    faces = [load_image(ROOT / f"data/heldout/{person}_0.jpg") for person in ("0000", "0014")]
    effect = order_effect(pipeline, PROMPT, faces, num_inference_steps=1)
    assert list(effect.index) == ["2, 1", "control"]
    assert effect["largest"]["2, 1"] < 1e-4 < 1e-2 < effect["largest"]["control"]
    assert effect["grey_levels"]["2, 1"] <= 1 < effect["grey_levels"]["control"]
    assert effect["differing"]["2, 1"] < effect["differing"]["control"] < effect["count"].iloc[0]
    with pytest.raises(FusionError, match="two references or more"):
        order_effect(pipeline, PROMPT, faces[:1])

    paths = [ROOT / f"data/heldout/{person}_0.jpg" for person in ("0000", "0014")]
    turned = reversal_effect(pipeline, PROMPT, paths, num_inference_steps=1)
    assert turned == pytest.approx(255 * effect["largest"]["2, 1"], rel=1e-6)
    assert zero_strength_effect(pipeline, PROMPT, paths, num_inference_steps=1) == 0
    with pytest.raises(FusionError, match="two references or more"):
        reversal_effect(pipeline, PROMPT, paths[:1])


@pytest.fixture(scope="module")
def systems() -> Any:
    """The script of the systems' drawings."""
    return import_script("book/images/systems.py")


def test_weights_are_counted_as_published(systems: Any) -> None:
    found = published_weights()
    widths = {320: 5, 640: 5, 1280: 6}  # of the cross-attention layers of Stable Diffusion 1.5
    assert found["fused"] == sum(2 * width**2 * layers for width, layers in widths.items())
    new = sum(2 * width * 768 * layers for width, layers in widths.items())
    assert found["ip-adapter"] == new + 1024 * 3072 + 3072 + 2 * 768
    # The published file of IP-Adapter Plus, in float16, has about 98 MB.
    assert found["ip-adapter-plus"] * 2 / 1e6 == pytest.approx(98, rel=0.01)
    # Down and up of a LoRA on eight linear layers of a block, two of which read the text.
    lora = sum(128 * (6 * 2 * w + 2 * (w + 768)) * layers for w, layers in widths.items())
    project = 512 * 1024 + 1024 + 1024 * 3072 + 3072 + 2 * 768
    assert found["faceid"] == new + project + lora
    drawing = VectorFigure(systems.overview(found))
    assert patches(drawing, systems.FACE, least=100) == 1 + sum(  # one in the legend
        system.squares for system in systems.SYSTEMS.values()
    )
    few = ["fused", "ip-adapter"]
    assert published_weights(few) == {name: found[name] for name in few}
    with pytest.raises(FusionError, match="'arcface' is not known: there are ip-adapter, "):
        published_weights(["fused", "arcface"])


def test_the_drawings_of_the_book_are_of_the_models_at_hand(systems: Any, tmp_path: Path) -> None:
    for name, make in systems.drawings(load_profile("embedded")).items():
        drawn, committed = tmp_path / f"{name}.svg", systems.FOLDER / f"{name}.svg"
        systems.write(make(), drawn)
        assert drawn.read_bytes() == committed.read_bytes(), f"{name}: run systems.py"


def test_every_system_that_a_study_can_name_is_drawn_and_shown(systems: Any) -> None:
    pages = "".join(path.read_text() for path in (ROOT / "book").rglob("*.md"))
    for name in ("overview", *systems.SYSTEMS):
        assert (systems.FOLDER / f"{name}.svg").is_file() and f"systems/{name}.svg" in pages


def test_numbers_are_said_in_three_digits() -> None:
    assert [short_count(n) for n in (24_780_800, 1_674_000_000, 622_592, 3_188_736)] == [
        "24.8 M",
        "1,674 M",
        "623 k",
        "3.19 M",
    ]


def test_places_are_short_and_tell_layers_apart() -> None:
    names = [
        "down_blocks.0.attentions.1.transformer_blocks.0.attn2",
        "mid_block.attentions.0.transformer_blocks.0.attn2",
        "up_blocks.0.attentions.2.transformer_blocks.9.attn2",
    ]
    made = [Layer(name, (1, 1), 1, (1, 1), (1, 1), 1, 0.0).place for name in names]
    assert made == ["down 0.1", "mid", "up 0.2.9"]
