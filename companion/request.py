"""A picture as it is asked for: the pipeline's arguments, the Python that makes it, its record."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from companion.person import Person
from fusionlib import __version__
from fusionlib.checks import check_guidance_scale, check_steps
from fusionlib.errors import FusionError
from fusionlib.support.provenance import git_commit, sha256_file

if TYPE_CHECKING:
    from fusionlib.pipeline import FusionPipeline

MOST_PEOPLE = 3
"""A picture of more is refused: at this size nobody would be told from another."""


@dataclass(frozen=True, eq=False)
class Request:
    """All that determines a picture, given a pipeline.

    Attributes:
        prompt: what to paint.
        people: whose faces to show; all of a person's references are seen.
        strengths: lambda of each person, 0 or more.
        places: 0 where nobody in particular shall be, 1 for the first person and so on,
            ``(height, width)``; None lets everybody be seen everywhere.
        size: ``(height, width)`` in pixels; None is the model's own.
        guidance_scale: how strongly to follow prompt and faces.
        steps: of the sampler.
        seed: of the noise.
    """

    prompt: str
    people: tuple[Person, ...] = ()
    strengths: tuple[float, ...] = ()
    places: NDArray[np.uint8] | None = None
    size: tuple[int, int] | None = None
    guidance_scale: float = 3.0
    steps: int = 20
    seed: int = 0

    @property
    def files(self) -> list[Path]:
        """The references of all people, in their order."""
        return [path for person in self.people for path in person.references]

    @property
    def identities(self) -> list[int]:
        """The person whom each of the references shows."""
        return [index for index, person in enumerate(self.people) for _ in person.references]

    @property
    def masks(self) -> Tensor | None:
        """The place of each person, boolean ``(people, height, width)``.

        Raises:
            FusionError: somebody has a place and somebody else has none.
        """
        if self.places is None:
            return None
        masks = torch.from_numpy(np.stack([self.places == n + 1 for n in range(len(self.people))]))
        for index, mask in enumerate(masks):
            if not mask.any():
                raise FusionError(
                    f"Person {index + 1} has no place in the picture: draw one, or clear the "
                    "places, and everybody is seen everywhere."
                )
        return masks

    def arguments(self) -> dict[str, Any]:
        """Of the pipeline's call, besides the prompt, the references and the noise.

        Raises:
            FusionError: as `masks`.
        """
        given: dict[str, Any] = {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
        }
        if self.files:
            given["strengths"] = [self.strengths[index] for index in self.identities]
        if (masks := self.masks) is not None:
            given["identity_masks"] = masks
            given["reference_identity"] = self.identities
        if self.size is not None:
            given["height"], given["width"] = self.size
        return given

    def check(self) -> None:
        """See that a picture can be painted, in the words of the page rather than of the pipeline.

        Raises:
            FusionError: something is missing or out of its range.
        """
        if not self.prompt.strip():
            raise FusionError("The prompt is empty: say what to paint.")
        if len(self.people) > MOST_PEOPLE:
            raise FusionError(f"{len(self.people)} people are too many: choose three at most.")
        if len(self.strengths) != len(self.people):
            raise FusionError(
                f"{len(self.strengths)} strengths do not fit {len(self.people)} people: give one "
                "for each."
            )
        for strength in self.strengths:
            if not (math.isfinite(strength) and strength >= 0):
                raise FusionError(f"The strength {strength} must be a number of 0 or more.")
        check_guidance_scale(self.guidance_scale)
        check_steps(self.steps)
        if not 0 <= self.seed < 2**63:
            raise FusionError(f"The seed {self.seed} is not a number from 0 to 2^63 - 1.")
        self.arguments()

    def code(self) -> str:
        """Python that makes the same picture as ``image``, where ``pipeline`` is the same one."""
        imports, before, call = ["import torch"], [], [_quoted(self.prompt)]
        if self.files:
            imports.append("from fusionlib.inputs.images import load_image")
            before = ["files = [", *(f"    {_quoted(nearest(f))}," for f in self.files), "]"]
            call.append("references=[load_image(file) for file in files]")
        for name, value in self.arguments().items():
            if name == "identity_masks" and self.places is not None:
                needed, lines = _masks_code(self.places, len(self.people))
                imports, before, value = [*imports, *needed], [*before, *lines], "masks"
            call.append(f"{name}={value}")
        call.append(f'generator=torch.Generator("cpu").manual_seed({self.seed})')
        body = [*before, "image = pipeline(", *(f"    {line}," for line in call), ").images[0]"]
        return "\n".join([*_sorted(imports), "", *body]) + "\n"

    def record(
        self, pipeline: FusionPipeline, profile: str | None = None, threads: int | None = None
    ) -> dict[str, Any]:
        """What a saved picture says of itself: as ``fusionlib generate`` does, and the code.

        Args:
            pipeline: which made it; its weights are hashed.
            profile: the name of the profile that it was loaded by.
            threads: of the CPU, with which it was made.
        """
        from companion.methods.fusion import fused, text_only

        settings = self.arguments()
        masks = settings.pop("identity_masks", None)
        strengths = settings.pop("strengths", [])
        method = (
            fused(pipeline, strengths=strengths, threads=threads, **settings)
            if self.files
            else text_only(pipeline, threads=threads, **settings)
        )
        record = {
            "prompt": self.prompt,
            "seed": self.seed,
            "references": [
                {"file": path.name, "sha256": sha256_file(path), "crop": "none", "face": None}
                for path in self.files
            ],
            "profile": profile,
            "dtype": str(pipeline.dtype).removeprefix("torch."),
            "fusionlib": __version__,
            "commit": git_commit(),
            "python": self.code(),
            **method.settings,
        }
        if masks is not None:
            pictures = [np.asarray(mask, np.uint8) * 255 for mask in masks.numpy()]
            record["identity_masks"] = [{"png": encoded(Image.fromarray(p))} for p in pictures]
        return record


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
    """The standard library's, others' and this library's, as isort would have it."""

    def group(line: str) -> int:
        return 2 if "fusionlib" in line else 1 if line.split()[1] in ("torch", "PIL") else 0

    lines = sorted(imports, key=lambda line: (group(line), line.startswith("from"), line))
    groups = ["\n".join(same) for _, same in groupby(lines, key=group)]
    return "\n\n".join(groups).splitlines()


def _masks_code(places: NDArray[np.uint8], people: int) -> tuple[list[str], list[str]]:
    """What to import, and code that makes ``masks`` of these places: boxes where they suffice."""
    boxes = []
    for owner in range(1, people + 1):
        rows, columns = np.nonzero(places == owner)
        box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        boxes.append(tuple(int(edge) for edge in box))
    filled = all(
        (right - left) * (bottom - top) == np.count_nonzero(places == owner)
        for owner, (left, top, right, bottom) in enumerate(boxes, start=1)
    )
    if filled and all(max(box) > 1 for box in boxes):  # else they would be read as fractions
        made = f"masks = masks_from_boxes({boxes}, size={places.shape})"
        return ["from fusionlib import masks_from_boxes"], [made]
    lines = textwrap.wrap(encoded(Image.fromarray(places)), 76)
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
            f"masks = masks_from_colors(drawing, {list(range(1, people + 1))})",
        ],
    )
