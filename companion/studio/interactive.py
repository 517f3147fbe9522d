"""A studio in the notebook: choose people, write a prompt, draw where each person goes, and look.

What a browser shows is in ``interactive.js`` and ``interactive.css`` beside this file; every
decision is made here. The two share the traits of `Studio` and nothing else, so the widget can be
used, and tested, from Python.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import torch
import traitlets
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps
from torch import Tensor

from companion.methods.common import as_recorded
from companion.person import Person
from companion.request import Reference, Request, encoded, nearest, usual_sampling
from fusionlib.errors import FusionError
from fusionlib.inputs.images import load_image, save_png
from fusionlib.masking import scale_identity_masks
from fusionlib.pipeline_inputs import prepare_reference
from fusionlib.reference_cache import fingerprint_of_unet
from fusionlib.support.provenance import sha256_json

if TYPE_CHECKING:
    from fusionlib.pipeline import FusionPipeline
    from fusionlib.profiles import Profile

COLORS = ("#0072b2", "#d55e00", "#9b4f96")
"""A colour for each chosen person; colour-blind readers can tell them apart, too."""

MOST_PEOPLE = len(COLORS)
"""Number of people beyond which a picture is refused: at this size they would look alike."""

KEPT = 12
"""Number of former pictures in the strip."""

PROMPTS = (
    "a photo of a person",
    "a photo of a laughing person",
    "a photo of an angry person in the snow",
    "a line drawing of a person",
    "a black and white photo of a person in a library",
    "a watercolor painting of a person in a forest",
)
"""Suggested prompts, in words that the embedded model has learnt."""

ASKED = ("wide", "chosen", "places", "strengths", "prompt", "seed", "guidance_scale", "steps")
"""Traits that determine a picture. Set in this order, none of them changes one before it."""


@dataclass(frozen=True, eq=False)
class Shot:
    """A picture and what it was made from.

    Attributes:
        request: What was asked for.
        page: The traits of the page that asked for it.
        image: The picture.
        seconds: Time it took, with the encoding of the references.
        record: What its PNG says of it.
        notes: Warnings of the library.
    """

    request: Request
    page: dict[str, Any]
    image: Image.Image
    seconds: float
    record: dict[str, Any]
    notes: tuple[str, ...] = ()

    def references(self, size: tuple[int, int]) -> list[Image.Image]:
        """The references as a model of this ``(height, width)`` saw them."""
        return [prepare_reference(each.load(), *size) for each in self.request.references]

    def masks(self, factor: int, levels: int) -> list[Image.Image]:
        """The places in their colours: as drawn, and as each level of the UNet sees them.

        Args:
            factor: Pixels of the picture for each position of the latents.
            levels: Number of the UNet's levels; each halves the sides of the one before.

        Returns:
            Pictures of the size of the image; none if no places were given.
        """
        masks = self.request.masks
        if masks is None:
            return []
        height, width = masks.shape[1] // factor, masks.shape[2] // factor
        pictures = [_painted(masks, self.image.size)]
        for _ in range(levels):
            pictures.append(_painted(scale_identity_masks(masks, (height, width)), self.image.size))
            height, width = -(-height // 2), -(-width // 2)
        return pictures


class Studio(anywidget.AnyWidget):
    """The widget that `studio` returns. In Python: set its traits, then call `paint` or `save`.

    Attributes:
        chosen: Numbers of the chosen people, three at most.
        prompt: What to paint.
        strengths: Lambda of each chosen person.
        guidance_scale: How strongly to follow prompt and faces.
        steps: Number of denoising steps.
        seed: Seed of the noise.
        wide: Whether the picture is twice as wide as high.
        places: Person at each pixel, row by row, a byte each: 0 is no one in particular, 1 the
            first of the chosen people. With fewer than two people it changes nothing.
        message: A sentence for the reader; ``failed`` says whether it is an error.
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")

    # What the reader sets.
    chosen = traitlets.List(traitlets.Int()).tag(sync=True)
    prompt = traitlets.Unicode(PROMPTS[0]).tag(sync=True)
    strengths = traitlets.List(traitlets.Float()).tag(sync=True)
    guidance_scale = traitlets.Float(1.0).tag(sync=True)
    steps = traitlets.Int(1).tag(sync=True)
    seed = traitlets.Int(0).tag(sync=True)
    wide = traitlets.Bool(False).tag(sync=True)
    places = traitlets.CBytes().tag(sync=True)
    command: Any = traitlets.List().tag(sync=True)  # [count, name, argument]: what was clicked

    # What the page shows.
    faces = traitlets.List(traitlets.Unicode()).tag(sync=True)
    colors = traitlets.List(traitlets.Unicode(), list(COLORS)).tag(sync=True)
    suggestions = traitlets.List(traitlets.Unicode()).tag(sync=True)
    max_steps = traitlets.Int(1).tag(sync=True)
    size = traitlets.List(traitlets.Int()).tag(sync=True)
    busy = traitlets.Bool(False).tag(sync=True)
    progress = traitlets.Float(0.0).tag(sync=True)
    message = traitlets.Unicode("").tag(sync=True)
    failed = traitlets.Bool(False).tag(sync=True)
    shown = traitlets.Dict().tag(sync=True)
    history: Any = traitlets.List().tag(sync=True)

    def __init__(
        self,
        pipeline: FusionPipeline,
        people: Sequence[Person],
        *,
        profile: Profile | None = None,
        prompts: Sequence[str] = PROMPTS,
        folder: str | Path = "try-it",
    ) -> None:
        if not people or not prompts:
            raise FusionError("A studio needs at least one person and one prompt to suggest.")
        self.pipeline = pipeline
        self.people = tuple(people)
        self.folder = Path(folder)
        self.shots: list[Shot] = []
        self._profile = profile.name if profile is not None else None
        self._threads = torch.get_num_threads()  # clicks may come in another thread, with others
        self._encoded: dict[Any, Any] = {}
        self._at: Shot | None = None
        self._own_size = height, width = pipeline.image_size()
        usual = usual_sampling(pipeline, profile)
        steps = usual["num_inference_steps"]
        super().__init__(
            faces=[_url(_thumbnail(load_image(person.references[0]))) for person in people],
            chosen=[0],
            strengths=[1.0],
            prompt=prompts[0],
            suggestions=list(prompts),
            steps=steps,
            max_steps=steps,
            guidance_scale=usual["guidance_scale"],
            size=[height, width],
            places=bytes(height * width),
        )
        self.observe(self._on_chosen, "chosen")
        self.observe(self._on_wide, "wide")
        self.observe(self._on_command, "command")

    def request(self) -> Request:
        """What the page asks for now.

        Raises:
            FusionError: It cannot be painted; the message says what to change.
        """
        height, width = self.size
        places = np.frombuffer(self.places, np.uint8)
        if len(places) != height * width:
            raise FusionError(
                f"places holds {len(places)} bytes, not one for each of {height} x {width} pixels."
            )
        people = [self.people[index] for index in self.chosen]
        if len(people) > MOST_PEOPLE:
            raise FusionError(f"{len(people)} people are too many: choose three at most.")
        if len(self.strengths) != len(people):
            raise FusionError(
                f"{len(self.strengths)} strengths do not fit {len(people)} people: give one for "
                "each."
            )
        identities = [slot for slot, person in enumerate(people) for _ in person.references]
        drawn = len(people) > 1 and places.any()
        request = Request(
            prompt=self.prompt,
            references=tuple(Reference(path) for person in people for path in person.references),
            strengths=tuple(self.strengths[slot] for slot in identities),
            masks=_masks(places.reshape(height, width), len(people)) if drawn else None,
            identities=tuple(identities),
            size=None if (height, width) == self._own_size else (height, width),
            guidance_scale=self.guidance_scale,
            steps=self.steps,
            seed=self.seed,
        )
        request.check()
        return request

    def paint(self) -> Image.Image:
        """Paint what the page asks for, and show it there.

        Returns:
            The picture, as ``pipeline(...)`` makes it.

        Raises:
            FusionError: The request does not fit; the message says what to change.
        """
        self.message, self.failed, self.progress, self.busy = "", False, 0.0, True
        try:
            request = self.request()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", UserWarning)
                started = time.perf_counter()
                image = self._made(request)
                seconds = time.perf_counter() - started
            notes = tuple(str(w.message) for w in caught if w.category is UserWarning)
            page = {trait: getattr(self, trait) for trait in ASKED}
            if request.masks is None:
                page["places"] = bytes(len(self.places))
            shot = Shot(request, page, image, seconds, self._record(request), notes)
            self.shots = [shot, *self.shots[: KEPT - 1]]
            self.history = [
                {"image": _url(_thumbnail(shot.image)), "text": _caption(shot)}
                for shot in self.shots
            ]
            self.show(0)
            return image
        finally:
            self.busy = False

    def show(self, number: int) -> None:
        """Show one of the last pictures again: 0 is the newest."""
        if not 0 <= number < len(self.shots):
            raise FusionError(f"There is no picture {number}: {len(self.shots)} were painted.")
        self._at = shot = self.shots[number]
        drawn = [_url(image) for image in shot.masks(*self._grid())]
        self.shown = {
            "number": number,
            "wide": shot.image.width > shot.image.height,
            "image": _url(shot.image),
            "references": [_url(image) for image in shot.references(self._own_size)],
            "identities": list(shot.request.identities),
            "places": drawn[0] if drawn else None,
            "levels": drawn[1:],
            "caption": _caption(shot),
            "code": shot.request.code(),
        }
        self.message, self.failed = " ".join(shot.notes), False

    def save(self) -> Path:
        """Save the picture that is shown, with the record of how it was made.

        Returns:
            The PNG, in the studio's folder, named after prompt and seed.

        Raises:
            FusionError: Nothing was painted yet, or the folder cannot be written.
        """
        shot = self._current()
        record = shot.record
        words = re.sub(r"\W+", "-", shot.request.prompt.lower()).strip("-")[:40]
        name = f"{words}-{shot.request.seed}-{sha256_json(record)[:8]}.png"
        path = save_png(shot.image, self.folder / name, record)
        self.message, self.failed = f"Saved as {nearest(path)}", False
        return path

    def recall(self) -> None:
        """Set the page to what the picture that is shown was made from."""
        for trait, value in self._current().page.items():
            setattr(self, trait, value)

    def share(self) -> None:
        """Give each of the chosen people an upright part of the picture, from left to right."""
        height, width = self.size
        owners = np.arange(width) * len(self.chosen) // width + 1
        self.places = np.tile(owners.astype(np.uint8), (height, 1)).tobytes()

    def still(self) -> Image.Image:
        """The picture, and under it what it was made from: for pages without a kernel.

        Raises:
            FusionError: Nothing was painted yet.
        """
        from companion.figures.grids import picture_grid

        shot = self._current()
        names = [f"person {index + 1}" for index in shot.request.identities] + ["who is where"]
        inputs = [*shot.references(self._own_size), *shot.masks(*self._grid())[:1]]
        if not inputs:
            return shot.image
        height, width = self._own_size
        fitted = [ImageOps.pad(image, (width, height), color="#ebebeb") for image in inputs]
        row = picture_grid([fitted], columns=names[: len(inputs)])
        scale = row.width / shot.image.width
        above = shot.image.resize((row.width, round(shot.image.height * scale)))
        sheet = Image.new("RGB", (row.width, above.height + row.height + 8), "white")
        sheet.paste(above, (0, 0))
        sheet.paste(row, (0, above.height + 8))
        return sheet

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Beside the live widget, a still of it: what a page without a kernel can show."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is not None and self.shots:
            bundle[0]["image/png"] = encoded(self.still())
        return bundle

    def _record(self, request: Request) -> dict[str, Any]:
        """What a saved picture says of itself: as that of ``fusionlib generate``, and the code."""
        more = {}
        if request.masks is not None:
            drawings = [Image.fromarray(np.uint8(255 * mask)) for mask in request.masks.numpy()]
            more["identity_masks"] = [{"png": encoded(drawing)} for drawing in drawings]
        return request.record(
            request.method(self.pipeline, self._threads),
            profile=self._profile,
            dtype=str(self.pipeline.dtype).removeprefix("torch."),
            python=request.code(),
            **more,
        )

    def _made(self, request: Request) -> Image.Image:
        def tick(pipeline: Any, step: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
            self.progress = (step + 1) / steps
            return state

        steps = request.steps or self.max_steps
        generator = torch.Generator("cpu").manual_seed(request.seed)
        with as_recorded(self._threads):
            made: Any = self.pipeline(
                request.prompt,
                references=self._encode(request) if request.references else None,
                generator=generator,
                callback_on_step_end=tick,
                **request.arguments(),
            )
        image: Image.Image = made.images[0]
        return image

    def _encode(self, request: Request) -> Any:
        """K_f and V_f of the references, encoded once for each choice of people and weights."""
        adapter, unet = self.pipeline.adapter, self.pipeline.unet
        marks = (adapter.fingerprint() if adapter else None, fingerprint_of_unet(unet))
        weights = (None if mark is None else mark.numpy().tobytes() for mark in marks)
        key = (self.pipeline.vae, *weights, *request.references)
        if key not in self._encoded:
            pictures = [reference.load() for reference in request.references]
            self._encoded[key] = self.pipeline.encode_references(pictures)
            for oldest in list(self._encoded)[:-KEPT]:
                del self._encoded[oldest]
        return self._encoded[key]

    def _grid(self) -> tuple[int, int]:
        """Pixels for each position of the latents, and levels of the UNet."""
        unet: Any = self.pipeline.unet
        return self.pipeline.vae_scale_factor, len(unet.config.block_out_channels)

    def _current(self) -> Shot:
        if self._at is None:
            raise FusionError("Nothing was painted yet: paint a picture first.")
        return self._at

    def _on_chosen(self, change: Any) -> None:
        """Move strengths and places along with their people, and drop those of people who left."""
        numbers = dict.fromkeys(n for n in change.new if 0 <= n < len(self.people))
        if list(numbers) != change.new:
            self.chosen = list(numbers)
            return
        weights = dict(zip(change.old, self.strengths, strict=False))
        self.strengths = [weights.get(number, 1.0) for number in change.new]
        former = {number: slot for slot, number in enumerate(change.old)}
        renamed = np.zeros(256, np.uint8)
        for slot, number in enumerate(change.new):
            if number in former:
                renamed[former[number] + 1] = slot + 1
        self.places = renamed[np.frombuffer(self.places, np.uint8)].tobytes()

    def _on_wide(self, change: Any) -> None:
        """Stretch the places to the new width, or press them together."""
        height, width = self._own_size
        places = np.frombuffer(self.places, np.uint8).reshape(height, -1)
        stretched = places.repeat(2, axis=1) if change.new else places[:, ::2]
        self.size = [height, 2 * width if change.new else width]
        self.places = stretched.tobytes()

    def _on_command(self, change: Any) -> None:
        """Do what was clicked; a mistake that a reader can put right becomes one sentence."""
        _, name, argument = change.new
        try:
            if name == "show":
                self.show(argument)
            else:
                actions = {
                    "paint": self.paint,
                    "save": self.save,
                    "recall": self.recall,
                    "share": self.share,
                }
                actions[name]()
        except FusionError as error:
            self.message, self.failed = " ".join(str(error).split()), True
        except Exception as error:
            # A browser's click loses errors: the page shows this one, and the log has the rest.
            self.message, self.failed = f"{type(error).__name__}: {error}", True
            raise


def open_studio(
    pipeline: FusionPipeline,
    people: Sequence[Person],
    *,
    profile: Profile | None = None,
    prompts: Sequence[str] = PROMPTS,
    folder: str | Path = "try-it",
) -> Studio:
    """A page to try the method on: choose people, draw where each goes, paint, look, save.

    Args:
        pipeline: Pipeline with an adapter.
        people: People to choose from, shown by their first reference.
        profile: Profile with the guidance scale and steps to begin with, and the most steps; by
            default 3 and 20.
        prompts: Suggestions; the page begins with the first.
        folder: Folder in which pictures are saved.

    Returns:
        A widget, which a notebook shows by itself; `Studio` describes its use from Python.

    Raises:
        FusionError: There is no person to choose, or a reference cannot be read.
    """
    return Studio(pipeline, people, profile=profile, prompts=prompts, folder=folder)


def _caption(shot: Shot) -> str:
    return f"“{shot.request.prompt}”, seed {shot.request.seed}, {shot.seconds:.1f} s"


def _masks(places: NDArray[np.uint8], people: int) -> Tensor:
    """The place of each person, boolean ``(people, height, width)``."""
    masks = torch.from_numpy(np.stack([places == number + 1 for number in range(people)]))
    for number, mask in enumerate(masks, start=1):
        if not mask.any():
            raise FusionError(
                f"Person {number} has no place in the picture: draw one, or clear the places, and "
                "everybody is seen everywhere."
            )
    return masks


def _painted(masks: Tensor, size: tuple[int, int]) -> Image.Image:
    """Masks in their people's colours on light grey, enlarged to ``(width, height)``."""
    canvas = np.full((*masks.shape[1:], 3), 235, np.uint8)
    for mask, color in zip(masks.numpy(), COLORS, strict=False):
        canvas[mask] = ImageColor.getrgb(color)
    return Image.fromarray(canvas).resize(size, Image.Resampling.NEAREST)


def _thumbnail(image: Image.Image, height: int = 72) -> Image.Image:
    return image.resize((round(image.width * height / image.height), height))


def _url(image: Image.Image) -> str:
    return f"data:image/png;base64,{encoded(image)}"
