"""Pictures of attention: what the queries of a painted picture look at, laid over it.

Each cell of a map is one query of a layer. The more of its attention goes where the map says, the
stronger the colour: blue for words, orange and green for faces. The number in the corner is the
mean over the whole picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from companion.evaluation.attention_maps import AttentionShares, Columns, record_attention
from companion.figures.diagrams import FACE, INK, TEXT, Layer
from companion.figures.grids import label_font, picture_grid
from companion.figures.tables import marked_table
from fusionlib.errors import FusionError
from fusionlib.masking import identity_attention_mask

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

SECOND = "#17876a"
"""Colour of a second face."""

SIDE = 192
"""Height of a picture in these figures, in pixels."""


def share_map(
    recorded: Sequence[AttentionShares], columns: Sequence[int] | slice, size: tuple[int, int]
) -> Tensor:
    """How much of each query's attention goes to some columns, averaged over records.

    Args:
        recorded: Shares of any layers and calls; coarser maps are enlarged without smoothing.
        columns: Columns of `AttentionShares.weights`, which are summed.
        size: Height and width of the latents.

    Returns:
        Shares from 0 to 1, ``(h, w)``.

    Raises:
        FusionError: No attention was recorded, or a layer's positions do not result from this size.
    """
    maps = []
    for each in recorded:
        shares = each.weights[..., columns].sum(-1).mean(0)
        height, width = size
        while height * width > len(shares) and height * width > 1:
            height, width = -(-height // 2), -(-width // 2)
        if height * width != len(shares):
            raise FusionError(f"size {size} does not lead to a layer of {len(shares)} positions.")
        small = shares.reshape(1, 1, height, width)
        maps.append(torch.nn.functional.interpolate(small, size, mode="nearest")[0, 0])
    if not maps:
        raise FusionError("No attention was recorded: record it while the UNet paints.")
    return torch.stack(maps).mean(0)


def overlay(
    picture: Image.Image,
    share: Tensor,
    colour: str,
    *,
    top: float | None = None,
    label: bool = True,
) -> Image.Image:
    """A grey picture under a map of shares, with their mean in the corner.

    Args:
        picture: Picture of any size.
        share: Shares from 0 to 1, ``(h, w)``.
        colour: Colour of the share ``top``, at full strength.
        top: Share of full strength; None takes the map's own largest.
        label: Whether to write the mean in the corner.
    """
    width = round(SIDE * picture.width / picture.height)
    grey = picture.convert("L").resize((width, SIDE), Image.Resampling.LANCZOS)
    under = np.asarray(grey, np.float32)[..., None].repeat(3, 2) * 0.6 + 255 * 0.4
    strength = (share / max(top or float(share.max()), 1e-6)).clamp(0, 1).numpy()
    cells = Image.fromarray((strength * 255).astype(np.uint8))
    alpha = np.asarray(cells.resize((width, SIDE), Image.Resampling.NEAREST), np.float32) / 255
    ink = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.float32)
    alpha = alpha[..., None] * 0.9
    made = Image.fromarray((under * (1 - alpha) + ink * alpha).round().astype(np.uint8))
    if not label:
        return made
    mean, font, draw = float(share.mean()), label_font(SIDE // 9), ImageDraw.Draw(made)
    text = f"{mean:.0%}" if mean >= 0.0995 else f"{mean:.1%}"
    left, upper, right, lower = draw.textbbox((6, SIDE - 6), text, font=font, anchor="lb")
    draw.rounded_rectangle((left - 4, upper - 4, right + 4, lower + 4), 4, fill="white")
    draw.text((6, SIDE - 6), text, fill=INK, font=font, anchor="lb")
    return made


def attention_film(
    picture: Image.Image,
    recorded: Sequence[AttentionShares],
    layers: Sequence[Layer],
    size: tuple[int, int],
    *,
    frames: int = 5,
) -> Image.Image:
    """The faces' share of every query's attention: a row for each layer, a column for a timestep.

    All maps have one scale, from nothing to all of the attention.

    Args:
        picture: Picture that was painted.
        recorded: Attention recorded while it was painted.
        layers: Layers to show, of `companion.figures.diagrams.read_layers`.
        size: Height and width of the latents.
        frames: Number of timesteps to show, evenly spread.
    """
    times = list(dict.fromkeys(each.timestep for each in recorded))
    chosen = [times[round(i)] for i in np.linspace(0, len(times) - 1, min(frames, len(times)))]
    rows = []
    for layer in layers:
        row: list[Image.Image | None] = []
        for time in chosen:
            now = [g for g in recorded if g.layer == layer.name and g.timestep == time]
            text = 1 if now[0].weights.shape[-1] == len(now[0].tokens) else now[0].tokens[0]
            row.append(overlay(picture, share_map(now, slice(text, None), size), FACE, top=1.0))
        rows.append(row)
    labels = [f"{layer.place} {layer.size[0]}×{layer.size[1]}" for layer in layers]
    heads = [f"t = {time:.0f}" for time in chosen]
    return picture_grid(rows, columns=heads, labels=labels, upscale=1)


def looked_at(
    reference: Image.Image, recorded: Sequence[AttentionShares], layers: Sequence[Layer]
) -> Image.Image:
    """Where the first reference is looked at, layer by layer.

    The strongest cell of a map is the place that is looked at most; the number is the share of a
    query's attention that the whole reference has.

    Args:
        reference: Picture of the reference.
        recorded: Attention to every key, recorded while a picture was painted.
        layers: Layers to show.
    """
    row: list[Image.Image | None] = []
    for layer in layers:
        mine = [each for each in recorded if each.layer == layer.name and len(each.tokens) > 1]
        text, count = mine[0].tokens[:2]
        by_key = torch.stack([g.weights[..., text : text + count].mean((0, 1)) for g in mine])
        places = by_key.mean(0).reshape(layer.size)
        row.append(overlay(reference, places * count, FACE))
    return picture_grid([row], columns=[layer.place for layer in layers], upscale=1)


def words_of(tokenizer: Any, prompt: str) -> dict[str, list[int]]:
    """The words of a prompt, each with the numbers of its tokens; the start token is number 0."""
    found: dict[str, list[int]] = {}
    word = ""
    numbers: list[int] = []
    for number, token in enumerate(tokenizer.tokenize(prompt), start=1):
        word, numbers = word + token.removesuffix("</w>"), [*numbers, number]
        if token.endswith("</w>"):
            found[word] = found.get(word, []) + numbers
            word, numbers = "", []
    return found


def word_maps(
    painted: dict[str, tuple[Image.Image, Sequence[AttentionShares]]],
    words: dict[str, list[int]],
    size: tuple[int, int],
) -> Image.Image:
    """The finest layers' attention to each word, and to the face, if there is one.

    A row's numbers sum to 100%. A column has one scale, so that rows can be compared.

    Args:
        painted: For each row its label, picture and attention to every key.
        words: Words to show, of `words_of`; the others are one column, with the start token, the
            end and the padding.
        size: Height and width of the latents.
    """
    maps: dict[str, dict[str, Tensor]] = {}
    for label, (_, recorded) in painted.items():
        finest = [g for g in recorded if g.weights.shape[1] == size[0] * size[1]]
        text = finest[0].tokens[0]
        shown = [number for numbers in words.values() for number in numbers]
        columns: dict[str, list[int]] = {f"“{word}”": at for word, at in words.items()}
        columns["other text"] = [number for number in range(text) if number not in shown]
        columns["face"] = list(range(text, finest[0].weights.shape[-1]))
        maps[label] = {head: share_map(finest, at, size) for head, at in columns.items() if at}
    heads = list(dict.fromkeys(head for found in maps.values() for head in found))
    tops = {h: max(float(found[h].max()) for found in maps.values() if h in found) for h in heads}
    rows = [
        [
            _plain(picture),
            *(
                overlay(picture, maps[label][h], FACE if h == "face" else TEXT, top=tops[h])
                if h in maps[label]
                else None
                for h in heads
            ),
        ]
        for label, (picture, _) in painted.items()
    ]
    return picture_grid(rows, columns=["picture", *heads], labels=list(painted), upscale=1)


def reference_maps(
    painted: dict[str, tuple[Image.Image, Sequence[AttentionShares]]], size: tuple[int, int]
) -> Image.Image:
    """How pictures of two references share the attention of the finest layers, over all steps.

    Args:
        painted: For each row its label, picture and attention to text and references.
        size: Height and width of the latents.
    """
    found = {}
    for label, (_, recorded) in painted.items():
        finest = [g for g in recorded if g.weights.shape[1] == size[0] * size[1]]
        found[label] = [share_map(finest, [column], size) for column in range(3)]
    top = max(float(share.max()) for maps in found.values() for share in maps[1:])
    rows = [
        [
            _plain(painted[label][0]),
            overlay(painted[label][0], text, TEXT, top=1.0),
            overlay(painted[label][0], first, FACE, top=top),
            overlay(painted[label][0], second, SECOND, top=top),
        ]
        for label, (text, first, second) in found.items()
    ]
    heads = ["picture", "text", "reference 1", "reference 2"]
    return picture_grid(rows, columns=heads, labels=list(painted), upscale=1)


def mask_maps(
    picture: Image.Image, recorded: Sequence[AttentionShares], masks: Tensor, size: tuple[int, int]
) -> Image.Image:
    """For each of two people, where Eq. 7 lets them be seen, and where they are looked at.

    Args:
        picture: Picture of both people.
        recorded: Attention to text and references.
        masks: Boolean masks, ``(2, H, W)``.
        size: Height and width of the latents.
    """
    open_ = identity_attention_mask(masks, [0, 1], size, 1, [1, 1]).float()
    plain = _plain(picture)
    rows = []
    for person, colour in enumerate((FACE, SECOND)):
        may = open_[:, 1 + person].reshape(size)
        does = share_map(recorded, [1 + person], size)
        inside = Image.fromarray(masks[person].numpy()).convert("L").resize(plain.size)
        rows.append(
            [
                Image.composite(plain, overlay(picture, may * 0, colour, label=False), inside),
                overlay(picture, may, colour),
                overlay(picture, does, colour, top=1.0),
            ]
        )
    heads = ["the mask", "may look (Eq. 7)", "looks"]
    return picture_grid(rows, columns=heads, labels=["reference 1", "reference 2"], upscale=1)


def paint_watched(
    pipeline: Any,
    prompt: str,
    references: Any = None,
    *,
    of: Columns = "sources",
    seed: int = 0,
    **arguments: Any,
) -> tuple[Image.Image, list[AttentionShares]]:
    """Paint a picture and record what its queries look at.

    Args:
        pipeline: Pipeline with an adapter.
        prompt: Text prompt.
        references: Result of ``pipeline.encode_references``, whose own pass is thus not recorded;
            None for the text alone.
        of: What the recorded columns stand for.
        seed: Seed of the noise.
        arguments: Further arguments of the pipeline's call.
    """
    noise = torch.Generator("cpu").manual_seed(seed)
    with record_attention(pipeline.unet, of, last=1) as recorded:
        made = pipeline(prompt, references=references, generator=noise, **arguments)
    picture: Image.Image = made.images[0]
    return picture, recorded


def layer_table(layers: Sequence[Layer], run: str) -> Styler:
    """Lay out what each layer is and what it looks at, read while a picture was painted.

    Args:
        layers: Layers of `companion.figures.diagrams.read_layers`.
        run: The run, see `companion.studies.study.run_label`.
    """
    table = pd.DataFrame(
        {
            "positions": ["×".join(map(str, layer.size)) for layer in layers],
            "width C": [str(layer.width) for layer in layers],
            "heads": ["×".join(map(str, layer.heads)) for layer in layers],
            "text keys": [str(layer.tokens[0]) for layer in layers],
            "face keys": [" + ".join(map(str, layer.tokens[1:])) for layer in layers],
            "trained weights": [f"{layer.trained:,}" for layer in layers],
            "attention on the face": [f"{layer.face:.0%}" for layer in layers],
        },
        index=[layer.place.replace(" ", "\u00a0") for layer in layers],
    )
    return marked_table(table, f"Read from the models as they painted. {run}")


def order_table(effect: pd.DataFrame, run: str) -> Styler:
    """Lay out what the order of the references changes.

    Args:
        effect: Result of `companion.pages.reference_order.order_effect`.
        run: The run, see `companion.studies.study.run_label`.
    """
    columns = {
        "largest difference, of 1": "{largest:.1e}",
        "largest difference, of 255": "{grey_levels}",
        "values that differ": "{differing:,} of {count:,}",
    }
    named = effect.rename(index={"control": "the last one left out (a control)"})
    return marked_table(named, f"Measured here, against the order 1, 2, 3 … {run}", columns)


def noise_picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """The noise of a seed, three of its channels shown as colours.

    Args:
        seed: Seed of the noise, as for `paint_watched`.
        size: Height and width of the latents.
    """
    noise = torch.randn(3, *size, generator=torch.Generator("cpu").manual_seed(seed))
    colours = (noise / 4 + 0.5).clamp(0, 1).mul(255).byte().permute(1, 2, 0).numpy()
    return Image.fromarray(colours).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def _plain(picture: Image.Image) -> Image.Image:
    width = round(SIDE * picture.width / picture.height)
    return picture.convert("RGB").resize((width, SIDE), Image.Resampling.LANCZOS)
