"""Diagrams in one style: what is frozen is grey, what is trained has the one strong colour.

A few pencils on a white card, which the drawings of the compared systems use, too
(``book/images/systems.py``), and the paper's Figure 2: the pipeline, drawn from the loaded models.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from companion.evaluation.attention_maps import AttentionShares
from companion.figures.display import VectorFigure
from fusionlib.errors import FusionError

INK, QUIET, LINE = "#1f2937", "#5b6472", "#8b94a3"
FROZEN, CARD = "#eceff3", "#ffffff"
TRAINED, TEXT, FACE = "#b3125c", "#3f72b8", "#e08a1e"
"""Colours of trained modules, of the text and of faces."""

INCH = 10.4
"""Drawing units in an inch."""


def short_count(number: int) -> str:
    """A number to three digits, in millions or thousands: 24.8 M."""
    value, unit = (number / 1e6, "M") if number >= 1e6 else (number / 1e3, "k")
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"


def box(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    text: str = "",
    *,
    trained: bool = False,
    fill: str = FROZEN,
    size: float = 10,
) -> None:
    """A module: grey if it is frozen, in the one strong colour if it is trained."""
    style = f"round,pad=0,rounding_size={min(1.2, height / 4)}"
    colour = TRAINED if trained else fill
    edge = TRAINED if trained else LINE
    axes.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle=style, facecolor=colour, edgecolor=edge, linewidth=1
        )
    )
    ink = "white" if trained else INK
    axes.text(
        x + width / 2, y + height / 2, text, color=ink, fontsize=size, ha="center",
        va="center_baseline" if "\n" not in text else "center", linespacing=1.35,
    )  # fmt: skip


def label(axes: Axes, x: float, y: float, text: str, **look: Any) -> None:
    """Text beside a part of the drawing."""
    settings: dict[str, Any] = {"fontsize": 9.5, "color": QUIET, "va": "center"}
    axes.text(x, y, text, **(settings | look))


def arrow(axes: Axes, *points: tuple[float, float], colour: str = LINE) -> None:
    """A line through points, with a head at the last one."""
    for start, end in zip(points, points[1:-1], strict=False):
        axes.plot(*zip(start, end, strict=True), color=colour, linewidth=1.6, zorder=3)
    axes.annotate(
        "",
        points[-1],
        points[-2],
        arrowprops={
            "arrowstyle": "-|>,head_width=0.22,head_length=0.45",
            "color": colour,
            "linewidth": 1.6,
            "shrinkA": 0,
            "shrinkB": 0,
        },
        zorder=3,
    )


def squares(
    axes: Axes, x: float, y: float, colours: Sequence[str], *, side: float = 2.0, gap: float = 0.5
) -> float:
    """Keys as squares in a row; returns the x at which the row ends."""
    for number, colour in enumerate(colours):
        axes.add_patch(
            FancyBboxPatch(
                (x + number * (side + gap), y), side, side,
                boxstyle="round,pad=0,rounding_size=0.35", facecolor=colour, edgecolor="none",
            )
        )  # fmt: skip
    return x + len(colours) * (side + gap) - gap


def softmax(axes: Axes, x: float, y: float, width: float, height: float) -> None:
    """A dashed frame: the weights of what is inside add up to 1."""
    axes.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0,rounding_size=1.2", facecolor="none",
            edgecolor=INK, linewidth=1.3, linestyle=(0, (4, 2.5)),
        )
    )  # fmt: skip


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A white card with round corners, readable on light and on dark pages."""
    figure = Figure(figsize=(width / INCH, height / INCH), dpi=160)
    figure.patch.set_alpha(0)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.axis("off")
    axes.add_patch(
        FancyBboxPatch(
            (0.3, 0.3), width - 0.6, height - 0.6, boxstyle="round,pad=0,rounding_size=2",
            facecolor=CARD, edgecolor="#d5dae1", linewidth=1,
        )
    )  # fmt: skip
    return figure, axes


@dataclass(frozen=True)
class Layer:
    """One cross-attention layer, as it was recorded while painting.

    Attributes:
        name: Name in the UNet.
        size: Height and width in positions.
        width: Width of its hidden states, C.
        heads: Number of heads, and the width of each.
        tokens: Number of text tokens N_text, then N_f of each reference.
        trained: Number of weights of its Linear_kf and Linear_vf.
        face: Share of its attention that the references have, from 0 to 1.
    """

    name: str
    size: tuple[int, int]
    width: int
    heads: tuple[int, int]
    tokens: tuple[int, ...]
    trained: int
    face: float

    @property
    def place(self) -> str:
        """Its place in the UNet, in short: ``down 0``, ``mid``, ``up 1.0``."""
        way, *numbers = self.name.removesuffix(".attn2").split(".")
        block, each = (numbers[0], numbers[2]) if way != "mid_block" else ("", numbers[1])
        inner = self.name.split("transformer_blocks.")[1].split(".")[0]
        parts = [part for part in (block, each, inner) if part]
        while len(parts) > 1 and parts[-1] == "0":
            parts.pop()
        return f"{way.split('_')[0]} {'.'.join(parts)}" if block else "mid"


def read_layers(
    pipeline: Any, recorded: Sequence[AttentionShares], size: tuple[int, int]
) -> list[Layer]:
    """The layers that see faces, in the order in which the UNet runs them.

    Args:
        pipeline: Pipeline with a ``FusionAdapter``.
        recorded: Attention that `companion.evaluation.attention_maps.record_attention` recorded.
        size: Height and width of the latents.

    Raises:
        FusionError: No layer saw a face.
    """
    layers = []
    for name in dict.fromkeys(each.layer for each in recorded):
        mine = [each for each in recorded if each.layer == name and len(each.tokens) > 1]
        if not mine:
            continue
        height, width = size
        while height * width > mine[0].weights.shape[1]:
            height, width = -(-height // 2), -(-width // 2)
        attention = pipeline.unet.get_submodule(name)
        added = pipeline.adapter.get_submodule(name)
        layers.append(
            Layer(
                name,
                (height, width),
                attention.query_dim,
                (attention.heads, attention.inner_dim // attention.heads),
                mine[0].tokens,
                sum(weight.numel() for weight in added.parameters()),
                float(np.mean([each.faces.mean().item() for each in mine])),
            )
        )
    if not layers:
        raise FusionError("No layer saw a face: record a pipeline that is given references.")
    return layers


def pipeline_drawing(
    layers: Sequence[Layer],
    *,
    reference: Image.Image,
    noise: Image.Image,
    painted: Image.Image,
    prompt: str,
) -> Image.Image:
    """The paper's Figure 2: two passes through one UNet, and what is trained between them.

    Args:
        layers: Layers of `read_layers`.
        reference: Picture of the face.
        noise: Picture of the noise that sampling starts from.
        painted: Picture that results.
        prompt: Text prompt.
    """
    width, height = 112.0, 66.0
    figure, axes = canvas(width, height)
    first, last = 22.0, 93.0
    step = (last - first) / len(layers)
    bar = min(step * 0.78, 9.0)
    small = 7.0 if len(layers) > 10 else 9.5
    tops = {"reference": 48.5, "image": 19.0}  # the middles of the two passes
    middle = 35.4

    pictures = (
        (reference, 3.0, tops["reference"], "reference"),
        (noise, 3.0, tops["image"], "noise"),
        (painted, 97.0, tops["image"], "picture"),
    )
    for image, x, y, name in pictures:
        axes.imshow(np.asarray(image.convert("RGB")), extent=(x, x + 12, y - 6, y + 6), zorder=2)
        label(axes, x + 6, y - 7.7, name, ha="center")
    axes.set(xlim=(0, width), ylim=(0, height))
    label(axes, 3, height - 3.6, "The reference’s pass", fontsize=12, color=INK, weight="bold")
    label(axes, 27.2, height - 3.6, "the frozen UNet, $t$ = 0, empty prompt")
    label(axes, 3, 29.6, "The picture’s pass", fontsize=12, color=INK, weight="bold")
    label(axes, 3, 26.8, "the same frozen UNet", fontsize=9)
    arrow(axes, (15.4, tops["reference"]), (first - 0.5, tops["reference"]))
    arrow(axes, (15.4, tops["image"]), (first - 0.5, tops["image"]))
    arrow(axes, (last - (step - bar) / 2 + 0.6, tops["image"]), (96.6, tops["image"]))
    label(axes, 95, tops["reference"], "only $h_f$\nis kept", linespacing=1.4)

    sides = [max(layer.size) for layer in layers]
    for number, layer in enumerate(layers):
        x = first + step * number + (step - bar) / 2
        centre = x + bar / 2
        name = layer.place.replace(" ", "\n")
        tall = 5.4 + 2.6 * float(np.log2(max(layer.size) / min(sides)))
        for y in tops.values():
            box(axes, x, y - tall / 2, bar, tall)
            if number:
                axes.plot([x - (step - bar), x], [y, y], color=LINE, linewidth=1.6, zorder=2)
            positions = "×".join(map(str, layer.size))
            label(axes, centre, y + 1.1, positions, ha="center", color=INK, fontsize=small)
            label(axes, centre, y - 1.3, f"{layer.width}", ha="center", fontsize=small - 0.5)
        label(axes, centre, tops["reference"] + 10, name, ha="center", fontsize=small)
        arrow(axes, (centre, tops["reference"] - tall / 2), (centre, middle + 2.9), colour=FACE)
        box(axes, x, middle - 2.7, bar, 5.4, "", trained=True)
        look = {"ha": "center", "color": "white", "zorder": 4}
        label(axes, centre, middle + 1.0, "$K_f$, $V_f$", fontsize=small + 0.5, **look)
        label(axes, centre, middle - 1.2, short_count(layer.trained), fontsize=small - 1, **look)
        arrow(axes, (centre, middle - 2.7), (centre, tops["image"] + tall / 2 + 0.2), colour=FACE)
        arrow(axes, (centre, 8.8), (centre, tops["image"] - tall / 2 - 0.2), colour=TEXT)
        text, *faces = layer.tokens
        label(axes, centre, 5.6, f"{text}", ha="center", color=TEXT, fontsize=small)
        label(axes, centre, 3.4, f"+ {sum(faces)}", ha="center", color=FACE, fontsize=small)
    axes.plot([18.5, last - step / 2], [8.8, 8.8], color=TEXT, linewidth=1.6, zorder=1)
    words = textwrap.fill(f"“{prompt}”", 20)
    label(axes, 3, 6.2, words, color=TEXT, style="italic", fontsize=9, linespacing=1.3)
    label(axes, last + 1.5, 5.6, "text keys", color=TEXT, fontsize=9)
    label(axes, last + 1.5, 3.4, "face keys", color=FACE, fontsize=9)
    total = sum(layer.trained for layer in layers)
    label(axes, 3, middle + 1.9, f"trained: {short_count(total)}", color=TRAINED, weight="bold")
    label(axes, 3, middle - 0.9, "in all layers", fontsize=9)
    return VectorFigure(figure)
