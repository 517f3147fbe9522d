"""Draw how each compared system feeds a face to the UNet: `systems/*.svg`, all in one style.

All drawings have the same layout: the reference on the left, the prompt on top, and on the right
one cross-attention layer with the keys that its queries see. A dashed frame is one softmax, whose
weights sum to 1. Trained parts are filled with one colour. Their numbers of weights are counted:
at the published size from the shapes of the modules, and for the small model from the networks
that `fusionlib train method` trains.

    python book/images/systems.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

from companion.figures.diagrams import (
    CARD,
    FACE,
    FROZEN,
    INK,
    LINE,
    QUIET,
    TEXT,
    TRAINED,
    arrow,
    box,
    canvas,
    label,
    short_count,
    softmax,
    squares,
)
from companion.methods.published_sizes import published_weights
from fusionlib.inputs.images import load_image
from fusionlib.profiles import Profile, load_profile

FOLDER = Path(__file__).with_name("systems")
PERSON = "0014"  # a held-out person
WIDTH, HEIGHT = 100.0, 46.5  # of the canvas, in units


Keys = Literal["text", "shared", "apart", "word"]
"""Where a layer's queries find the face: nowhere, in the text's softmax, in its own softmax, or in
place of a word."""


@dataclass(frozen=True)
class System:
    """The content of one system's drawing.

    Attributes:
        title: Title of the drawing.
        keys: Place where the queries find the face.
        readers: Frozen networks that read the reference, each with its output.
        projection: Trained modules between the readers and the keys.
        face_keys: Number of keys of one reference, in words.
        squares: Number of face keys that are drawn.
        count: Name in `published_weights`; None if nothing is trained.
        base: Base model of the published weights.
        unet: State of the UNet: frozen, with a trained LoRA, or trained as a whole.
        encoder_trained: Whether the text encoder is trained.
        identity_net: Whether there is a ControlNet that attends only to the face's keys.
        pictures: Number of pictures of the person, drawn as a stack.
        for_whom: People that it is trained for, in words.
        trained_here: Whether `fusionlib train method` trains a counterpart for the small model.
    """

    title: str
    keys: Keys
    readers: tuple[tuple[str, str], ...] = ()
    projection: str = ""
    face_keys: str = ""
    squares: int = 0
    count: str | None = None
    base: str = "SD 1.5"
    unet: Literal["frozen", "lora", "trained"] = "frozen"
    encoder_trained: bool = False
    identity_net: bool = False
    pictures: int = 1
    for_whom: str = "once, for everybody"
    trained_here: bool = True


ARCFACE = ("ArcFace", "one vector")
FUSED = System(
    "Fused attention: the paper’s",
    "shared",
    readers=(("the same UNet", "$h_f$ of this layer"),),
    projection="Linear$_{kf}$\nLinear$_{vf}$",
    face_keys="$N_f$ face keys a reference",
    squares=11,
    count="fused",
)
IP_ADAPTER = System(
    "IP-Adapter",
    "apart",
    readers=(("CLIP", "one embedding"),),
    projection="projection\n$W'_k$, $W'_v$",
    face_keys="4 image keys",
    squares=4,
    count="ip-adapter",
)
PLUS = replace(
    IP_ADAPTER,
    title="IP-Adapter Plus",
    readers=(("CLIP", "all patches"),),
    projection="resampler\n$W'_k$, $W'_v$",
    face_keys="16 image keys",
    squares=8,
    count="ip-adapter-plus",
)
FACEID = replace(
    IP_ADAPTER,
    title="IP-Adapter-FaceID",
    readers=(ARCFACE,),
    face_keys="4 face keys",
    count="faceid",
    unet="lora",
)
SYSTEMS = {
    "text_only": System("Text only: the base model", "text", pictures=0),
    "fused": FUSED,
    "decoupled": replace(
        FUSED, title="Decoupled: the same keys, a softmax of their own", keys="apart"
    ),
    "ip_adapter": IP_ADAPTER,
    "ip_adapter_plus": PLUS,
    "faceid": FACEID,
    "faceid_plus": replace(
        FACEID,
        title="IP-Adapter-FaceID-Plus v2",
        readers=(ARCFACE, *PLUS.readers),
        projection="projection +\nresampler\n$W'_k$, $W'_v$",
        count="faceid-plus",
    ),
    "faceid_portrait": replace(
        FACEID,
        title="IP-Adapter-FaceID-Portrait",
        readers=(("ArcFace", "a vector each"),),
        face_keys="16 face keys a picture",
        squares=8,
        count="faceid-portrait",
        unet="frozen",
        pictures=5,
    ),
    "instantid": replace(
        PLUS,
        title="InstantID",
        readers=(ARCFACE, ("landmarks", "five points, drawn")),
        face_keys="16 face keys",
        count="instantid",
        base="SDXL",
        identity_net=True,
    ),
    "arc2face": System(
        "Arc2Face",
        "word",
        readers=(ARCFACE,),
        squares=1,
        count="arc2face",
        unet="trained",
        encoder_trained=True,
    ),
    "dreambooth": System(
        "DreamBooth",
        "text",
        count="dreambooth",
        unet="lora",
        pictures=4,
        for_whom="for each person anew",
        trained_here=False,
    ),
}
"""The systems by their names in `fusionlib train method`, with _ for -."""


# ------------------------------------------------------------------------------ one drawing

TOP, MIDDLE = 36.0, 22.0  # heights of the rows of the prompt and of the reference
LAYER = (53.5, 3.5, 43.5, 29.5)  # the card of one cross-attention layer: x, y, width, height
ROWS = (25.0, 14.0)  # heights of the keys of the text and of the face
LEFT, RIGHT = 55.3, 87.5  # edges of a frame
WORDS = 7  # text keys that are drawn, of 77 in Stable Diffusion


def draw(system: System, faces: Sequence[Any], numbers: tuple[str, str]) -> Figure:
    """Draw one system.

    Args:
        system: System to draw.
        faces: Pictures of one person, the reference first.
        numbers: Numbers of trained weights, at the published size and in the small model.
    """
    figure, axes = canvas(WIDTH, HEIGHT)
    axes.text(4, HEIGHT - 3.6, system.title, fontsize=14, color=INK, weight="bold", va="center")
    _layer(axes, system)
    _prompt(axes, system)
    _reference(axes, system, faces)
    _trained(axes, system, numbers)
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))  # drawing pictures has changed them
    return figure


def _prompt(axes: Axes, system: System) -> None:
    look = {"color": TEXT, "fontsize": 10.5, "style": "italic"}
    y = TOP + 2
    if system.keys == "word":
        label(axes, 41.6, y, "“photo of a", ha="right", **look)
        squares(axes, 42.2, y - 1, [FACE])
        label(axes, 44.9, y, "person”", **look)
    else:
        name = "sks " if system.title == "DreamBooth" else ""
        label(axes, 52, y, f"“a photo of a laughing {name}person”", ha="right", **look)
    arrow(axes, (52.7, y), (56, y))
    box(axes, 56, TOP, 15, 4, "text encoder", trained=system.encoder_trained)
    arrow(axes, (63.5, TOP), (63.5, ROWS[0] + 2.6), colour=TEXT)


def _reference(axes: Axes, system: System, faces: Sequence[Any]) -> None:
    if not system.pictures:
        axes.add_patch(
            FancyBboxPatch(
                (4, MIDDLE - 7), 14, 14, boxstyle="round,pad=0,rounding_size=1", facecolor="none",
                edgecolor=LINE, linestyle=(0, (2, 2)),
            )
        )  # fmt: skip
        label(axes, 11, MIDDLE, "no reference", ha="center")
        return
    for number in reversed(range(system.pictures)):
        x, y = 4 + 0.8 * number, MIDDLE - 7 + 0.8 * number
        above = 10 - number
        axes.imshow(faces[number], extent=(x, x + 14, y, y + 14), zorder=above)
        corners = [x, x + 14, x + 14, x, x], [y, y, y + 14, y + 14, y]
        axes.plot(*corners, color=CARD, linewidth=1.4, zorder=above)
    some = {1: "reference", 4: "3 to 5 references", 5: "1 to 5 references"}[system.pictures]
    label(axes, 11, MIDDLE - 9, some, ha="center")
    right = 18.4 + 0.8 * (system.pictures - 1)
    if not system.readers:
        arrow(axes, (right, MIDDLE), (LAYER[0] - 0.4, MIDDLE), colour=TRAINED)
        for lines, words in ((2.2, "gradients of the denoising loss"), (-2.2, "into the weights")):
            middle = (right + LAYER[0]) / 2
            label(axes, middle, MIDDLE + lines, words, ha="center", color=TRAINED, fontsize=10)
        return
    rows = (MIDDLE,) if len(system.readers) == 1 else (MIDDLE + 5.5, MIDDLE - 4.5)
    for y, (reader, result) in zip(rows, system.readers, strict=True):
        arrow(axes, (right, y), (21.8, y))
        box(axes, 21.8, y - 2.4, 12, 4.8, reader, size=9.5)
        label(axes, 27.8, y - 4, result, ha="center", fontsize=9)
        if "UNet" in reader:
            label(axes, 27.8, y + 4, "$t$ = 0, prompt “”", ha="center", fontsize=9)
    if system.keys == "word":
        arrow(axes, (33.8, MIDDLE), (43.2, MIDDLE), (43.2, TOP + 0.6), colour=FACE)
        label(axes, 42.4, MIDDLE + 7, "in place of\na word’s\nembedding", color=FACE, ha="right")
        return
    feeding = rows[:1] if system.identity_net else rows
    middle = sum(feeding) / len(feeding)
    tall = 9.6 if system.projection.count("\n") > 1 else 6.4
    for y in feeding:
        arrow(axes, (33.8, y), (38, y)) if y == middle else arrow(
            axes, (33.8, y), (35.8, y), (35.8, middle), (38, middle)
        )
    box(axes, 38, middle - tall / 2, 11.6, tall, system.projection, trained=True, size=9.5)
    key = ROWS[1] + 1
    arrow(axes, (49.6, middle), (51.6, middle), (51.6, key), (LEFT + 0.9, key), colour=FACE)
    if system.identity_net:
        _identity_net(axes, rows[1], middle - tall / 2)


def _identity_net(axes: Axes, y: float, below: float) -> None:
    """Draw InstantID's ControlNet, which sees landmarks and attends to the face's keys."""
    arrow(axes, (33.8, y), (38, y))
    box(axes, 38, y - 2.4, 11.6, 4.8, "IdentityNet", trained=True, size=9.5)
    arrow(axes, (43.8, below), (43.8, y + 2.6), colour=FACE)
    label(axes, 43.1, (below + y + 2.4) / 2, "as its text", ha="right", color=FACE, fontsize=9)
    arrow(axes, (43.8, y - 2.4), (43.8, 9.5), (LAYER[0] - 0.2, 9.5), colour=TRAINED)
    label(axes, 43.1, 10.6, "added to the\nUNet’s features", ha="right", color=TRAINED, fontsize=9)


def _layer(axes: Axes, system: System) -> None:
    x, y, width, height = LAYER
    tuned = system.unet != "frozen"
    axes.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0,rounding_size=1.6", facecolor=FROZEN,
            edgecolor=TRAINED if tuned else LINE, linewidth=3.5 if tuned else 1,
        )
    )  # fmt: skip
    what = {
        "frozen": "a cross-attention layer of the UNet, frozen",
        "lora": "a cross-attention layer of the UNet, with a LoRA",
        "trained": "a cross-attention layer of the UNet, all of it trained",
    }[system.unet]
    label(axes, x + 1.8, y + 1.9, what, fontsize=9, color=TRAINED if tuned else QUIET)

    start, (text, faces) = LEFT + 1.5, ROWS
    words = [FACE if system.keys == "word" and n == 3 else TEXT for n in range(WORDS)]
    squares(axes, start, text, words)
    label(axes, start, text - 1.6, "77 text keys", color=TEXT, fontsize=9)
    if system.squares and system.keys != "word":
        squares(axes, start, faces, [FACE] * system.squares)
        label(axes, start, faces - 1.6, system.face_keys, color=FACE, fontsize=9)
    floor = text - 2.9
    if system.keys == "apart":
        _frame(axes, faces - 2.9, text + 2.6 - floor)
    elif system.keys == "shared":
        floor = faces - 2.9
    _frame(axes, floor, text + 2.6 - floor)
    _answers(axes, system, (text + 2.6 + floor) / 2)

    lowest = faces - 2.9 if system.keys in ("apart", "shared") else floor
    arrow(axes, (start + 1, y + 4), (start + 1, lowest - 0.2))
    asked = "queries: each place of the picture" + (", twice" if system.keys == "apart" else "")
    label(axes, start + 2.2, y + 4.9, asked, fontsize=9)


def _frame(axes: Axes, floor: float, height: float) -> None:
    """Draw the frame of one softmax, with its label."""
    softmax(axes, LEFT, floor, RIGHT - LEFT, height)
    label(axes, RIGHT - 1, floor + 1.3, "one softmax", ha="right", fontsize=9, color=INK)


def _answers(axes: Axes, system: System, middle: float) -> None:
    """Draw the output of the layer: one attention, or the sum of two."""
    end = LAYER[0] + LAYER[2]
    out = (ROWS[0] + ROWS[1]) / 2 + 1
    if system.keys != "apart":
        arrow(axes, (RIGHT, middle), (end + 1.8, middle))
        label(axes, end - 2.2, middle + 2, "$h'$", ha="center", color=INK, fontsize=11)
        return
    plus, lower = RIGHT + 3.6, ROWS[1] - 0.15
    for y in (middle, lower):
        axes.plot([RIGHT, plus, plus], [y, y, out], color=LINE, linewidth=1.6, zorder=3)
    label(axes, RIGHT + 0.9, lower - 1.7, "× λ", fontsize=9.5, color=INK)
    disc = Circle((plus, out), 1.3, facecolor=CARD, edgecolor=INK, linewidth=1, zorder=5)
    axes.add_patch(disc)
    label(axes, plus, out, "+", ha="center", va="center_baseline", color=INK, zorder=6)
    arrow(axes, (plus + 1.3, out), (end + 1.8, out))
    label(axes, end - 2.2, out + 2, "$h'$", ha="center", color=INK, fontsize=11)


def _trained(axes: Axes, system: System, numbers: tuple[str, str]) -> None:
    """Write how many weights are trained, and for which people, in the lower left corner."""
    if system.count is None:
        label(axes, 4, 6, "nothing is trained", fontsize=11.5)
        return
    published, small = numbers
    label(axes, 4, 7, f"trained: {published}", fontsize=11.5, color=TRAINED, weight="bold")
    here = f";  {small} in the small model" if small else ""
    label(axes, 4, 4.2, system.for_whom + here, fontsize=9)


# ------------------------------------------------------------------- all systems in one table


def overview(published: Mapping[str, int]) -> Figure:
    """Draw a row for each system: what it reads, what a query sees, how many weights it trains."""
    step, top = 6.6, 7.0
    height = top + step * len(SYSTEMS) + 1.5
    figure, axes = canvas(WIDTH, height)
    heads = ((3, "system"), (27, "reads"), (41, "a query sees"), (90.2, "trained"))
    for x, words in heads:
        label(axes, x, height - 4, words, fontsize=10)
    for x, colour, words in ((54, TEXT, "text keys"), (66.5, FACE, "face keys")):
        squares(axes, x, height - 4.75, [colour], side=1.5)
        label(axes, x + 2.3, height - 4, words, color=colour, fontsize=9.5)
    softmax(axes, 79, height - 5, 2.6, 2)
    label(axes, 82.2, height - 4, "softmax", color=INK, fontsize=9)
    for row, system in enumerate(SYSTEMS.values()):
        y = height - top - step * (row + 0.5)
        axes.plot([3, 97], [y + step / 2] * 2, color="#e3e7ec", linewidth=0.8)
        name = system.title.split(":")[0].replace("IP-Adapter-FaceID-", "FaceID-")
        ours = system.title.startswith("Fused")
        label(axes, 3, y, name, fontsize=11, color=INK, weight="bold" if ours else "normal")
        reads = [reader for reader, _ in system.readers] or ["pictures" if system.pictures else "–"]
        label(axes, 27, y, "\n".join(reads), color=INK, linespacing=1.3)
        _strip(axes, system, y)
        if system.count:
            label(
                axes, 96.5, y, short_count(published[system.count]), ha="right", color=TRAINED,
                fontsize=11, weight="bold",
            )  # fmt: skip
        else:
            label(axes, 96.5, y, "–", ha="right")
        if system.count == "dreambooth":
            label(axes, 96.5, y - 2.1, "a person", ha="right", color=TRAINED, fontsize=8.5)
    return figure


def _strip(axes: Axes, system: System, y: float) -> None:
    """Draw the keys of one layer in a row, each softmax in a frame."""
    side, low, x = 1.5, y - 0.75, 42.1
    words = [FACE if system.keys == "word" and n == 3 else TEXT for n in range(WORDS)]
    end = squares(axes, x, low, words, side=side, gap=0.35)
    apart = system.keys == "apart"
    if apart:
        softmax(axes, x - 1.1, low - 1, end - x + 2.2, side + 2)
        label(axes, end + 2.35, y, "+", ha="center", va="center_baseline", color=INK, fontsize=12)
        x = end + 4.7
    else:
        end += 0.9
    if apart or system.keys == "shared":
        first = x if apart else end
        end = squares(axes, first, low, [FACE] * system.squares, side=side, gap=0.35)
    elif system.keys != "shared":
        end -= 0.9
    softmax(axes, x - 1.1, low - 1, end - x + 2.2, side + 2)
    aside = {"lora": "LoRA", "trained": "UNet"}.get(system.unet, "")
    aside = "ControlNet" if system.identity_net else aside
    if aside:
        label(axes, end + 2, y, f"+ {aside}", color=TRAINED, fontsize=9)


def write(figure: Figure, path: Path) -> None:
    """Save a drawing as SVG with letters as paths, so that the file is reproducible."""
    path.parent.mkdir(exist_ok=True)
    settings = {
        "svg.hashsalt": "fusionlib",
        "svg.fonttype": "path",
        "mathtext.fontset": "dejavusans",
    }
    with matplotlib.rc_context(settings):
        figure.savefig(path, dpi=100, metadata={"Date": None, "Creator": None})


def trained_here(profile: Profile) -> dict[str, int]:
    """Count the weights that each counterpart trains in the small model."""
    from companion.methods.counterpart_training import budgets

    return {str(name): int(count) for name, count in budgets(profile)["parameters"].items()}


def drawings(profile: Profile) -> dict[str, Callable[[], Figure]]:
    """Return a function for each drawing, by the name of its file."""
    published, small = published_weights(), trained_here(profile)
    folder = Path(profile.heldout or "")
    faces = [load_image(folder / f"{PERSON}_{view}.jpg").resize((96, 96)) for view in range(5)]

    def make(name: str, system: System) -> Callable[[], Figure]:
        large = short_count(published[system.count]) if system.count else ""
        own = small[name.replace("_", "-")] if system.count and system.trained_here else None
        here = short_count(own) if own is not None else ""
        return lambda: draw(system, faces, (f"{large} weights ({system.base})", here))

    return {
        "overview": lambda: overview(published),
        **{name: make(name, system) for name, system in SYSTEMS.items()},
    }


def main(folder: Path = FOLDER) -> None:
    """Write all drawings to a folder."""
    for name, make in drawings(load_profile("embedded")).items():
        write(make(), folder / f"{name}.svg")


if __name__ == "__main__":
    main()
