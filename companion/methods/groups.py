"""Several people in one picture: each with a place of their own (Eq. 7), or all over it (Eq. 6).

A group is a `companion.person.Person` whose references are the faces of its members from left to
right, then a picture of their masks, then, where a ControlNet follows it, a depth map. So studies
make, name and find group pictures as they do portraits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image

from companion.methods import Method
from companion.methods.common import as_recorded
from companion.methods.fusion import describe
from companion.person import Person, load_people
from fusionlib.errors import FusionError
from fusionlib.inputs.layout import masks_from_colors
from fusionlib.support.provenance import sha256_modules


def fused_group(
    pipeline: Any,
    members: int,
    *,
    name: str = "fused",
    masked: bool = True,
    depth: float | None = None,
    threads: int | None = None,
    **settings: Any,
) -> Method:
    """Fused attention over several identities at once.

    Args:
        pipeline: a `fusionlib.FusionPipeline` or, with `depth`, a
            `fusionlib.FusionControlNetPipeline`.
        members: people in each picture.
        name: in tables.
        masked: whether each query sees only the identity in whose mask it lies (Eq. 7); without,
            every query sees everybody's keys (Eq. 6).
        depth: scale of the ControlNet that follows the group's depth map; None shows it none.
        threads: see `companion.methods.fusion.fused`.
        settings: arguments of the pipeline's call, such as ``num_inference_steps``.

    Raises:
        FusionError: a depth map is to be followed and the pipeline has no ControlNet.
    """
    threads = threads or torch.get_num_threads()
    control: Any = getattr(pipeline, "controlnet", None)
    if depth is not None and control is None:
        raise FusionError(
            "depth= needs a pipeline with a ControlNet: make one by "
            "FusionControlNetPipeline.from_pipe(pipeline, controlnet=...)."
        )

    def prepare(references: Sequence[Image.Image]) -> dict[str, Any]:
        faces, layout = list(references[:members]), references[members]
        given: dict[str, Any] = {}
        with as_recorded(threads):
            given["references"] = pipeline.encode_references(faces)
        if masked:
            given["identity_masks"] = masks_from_colors(layout)
        if depth is not None:
            given["image"] = references[members + 1]
            given["controlnet_conditioning_scale"] = float(depth)
        return given

    def generate(prompt: str, given: dict[str, Any], noise_seed: int) -> Image.Image:
        generator = torch.Generator("cpu").manual_seed(noise_seed)
        with as_recorded(threads):
            output: Any = pipeline(prompt, **given, generator=generator, **settings)
        image: Image.Image = output.images[0]
        return image

    described = describe(pipeline, code=("methods/groups.py",))
    if depth is not None:
        described["weights"]["controlnet"] = sha256_modules([control])
    if described["device"] == "cpu":
        described["threads"] = threads
    return Method(
        name=name,
        generate=generate,
        settings={**settings, "members": members, "masked": masked, "depth": depth, **described},
        references=members + (1 if depth is None else 2),
        prepare=prepare,
        citation="mohamed2024fusion",
    )


def load_groups(
    folder: str | Path, heldout: str | Path, members: int, count: int | None = None
) -> list[Person]:
    """Read groups of so many people, with the references of each member.

    Args:
        folder: of pictures with ``index.csv``, ``.mask.png`` and ``.depth.png``, as `fusionlib
            people render --groups --files` writes them.
        heldout: folder of the people, whose names stand in the index.
        members: people in a picture.
        count: so many groups only, the first ones.

    Returns:
        People named ``group N``: their references are the faces, the masks and the depth map; the
        only other picture is the rendered group itself, which no method sees.

    Raises:
        FusionError: there is no such index, it has too few groups of this size, or it names
            somebody who is not among the people.
    """
    folder = Path(folder)
    known = {one.name: one.references[0] for one in load_people(heldout, others=0)}
    try:
        table = pd.read_csv(folder / "index.csv", dtype=str)
        rows = list(zip(table["group"], table["file"], table["people"], strict=True))
    except (OSError, KeyError, ValueError) as error:
        raise FusionError(
            f"{folder} needs a file index.csv with the columns group, file and people: {error}."
        ) from error
    groups = []
    for number, file, people in rows:
        who = people.split()
        if len(who) != members:
            continue
        picture = folder / file
        if strangers := [person for person in who if person not in known]:
            raise FusionError(f"{folder} shows the person {strangers[0]}, who is not in {heldout}.")
        faces = tuple(known[person] for person in who)
        more = tuple(picture.with_suffix(suffix) for suffix in (".mask.png", ".depth.png"))
        groups.append(Person(f"group {number}", (*faces, *more), (picture,)))
    if count is not None and count > len(groups):
        raise FusionError(
            f"{folder} holds {len(groups)} groups of {members}, fewer than the {count} asked for."
        )
    return groups[:count]


def posed_like_the_next(people: Sequence[Person]) -> list[Person]:
    """Give everybody the depth map of somebody else, for `fused_group` with one member.

    A ControlNet that follows it is told the pose and the shape of another head: it pulls away from
    the person of the reference.

    Args:
        people: two or more, whose references have ``.mask.png`` and ``.depth.png`` beside them.

    Returns:
        The same people: their references are their first one, then the mask and the depth map of
        the next person's first one; the last person's next is the first.

    Raises:
        FusionError: there are fewer than two people, or such a file is missing.
    """
    if len(people) < 2:
        raise FusionError("One person alone has nobody else to be posed like: take two or more.")
    posed = []
    for person, other in zip(people, (*people[1:], people[0]), strict=True):
        more = tuple(
            other.references[0].with_suffix(suffix) for suffix in (".mask.png", ".depth.png")
        )
        for path in more:
            if not path.is_file():
                raise FusionError(f"There is no {path}, which {person.name!r} would be posed by.")
        posed.append(replace(person, references=(person.references[0], *more)))
    return posed
