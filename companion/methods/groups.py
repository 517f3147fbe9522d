"""Several people in one picture: each in a place of their own (Eq. 7), or all over it (Eq. 6).

A group is a `companion.person.Person` whose references are the faces of its members from left to
right, then a picture of their masks, then, for a ControlNet, a depth map. So studies make, name and
find group pictures as they do portraits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from companion.csv_tables import read_table
from companion.methods import Method, Models
from companion.methods.common import as_recorded, paint
from companion.methods.fusion import fusion_key
from companion.person import Person, load_people
from fusionlib.errors import FusionError
from fusionlib.inputs.layout import masks_from_colors


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
        pipeline: A `fusionlib.FusionPipeline` or, with `depth`, a
            `fusionlib.FusionControlNetPipeline`.
        members: Number of people in each picture.
        name: Name in tables.
        masked: Whether each query sees only the identity in whose mask it lies (Eq. 7); if not,
            every query sees the keys of all people (Eq. 6).
        depth: Scale of the ControlNet that follows the group's depth map; None follows none.
        threads: CPU threads for each picture, as in `companion.methods.fusion.fused`.
        settings: Arguments of the pipeline's call, such as ``num_inference_steps``.

    Raises:
        FusionError: A depth map is to be followed, and the pipeline has no ControlNet.
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
        return paint(pipeline, threads, noise_seed, prompt=prompt, **given, **settings)

    further = {} if depth is None else {"controlnet": control}
    key = fusion_key(pipeline, threads, code=("methods/groups.py",), **further)
    return Method(
        name=name,
        generate=generate,
        settings={**settings, "members": members, "masked": masked, "depth": depth, **key},
        references=members + (1 if depth is None else 2),
        prepare=prepare,
        citation="mohamed2024fusion",
    )


def build_posed(models: Models, *, depth: float = 1.0, **options: Any) -> Method:
    """One person in the pose of another, whose depth map a ControlNet follows, for a study's file.

    Args:
        models: Profile, device and what a study's methods share; its people are `posed`.
        depth: Scale of the ControlNet.
        options: Options of `fused_group`.
    """
    settings = {"threads": models.threads, **(models.sampling or {}), **options}
    return fused_group(models.controlled, 1, masked=False, depth=depth, **settings)


def load_groups(
    folder: str | Path, heldout: str | Path, members: int, count: int | None = None
) -> list[Person]:
    """Read groups of one size, with the references of each member.

    Args:
        folder: Folder of pictures with ``index.csv``, ``.mask.png`` and ``.depth.png``, as
            `fusionlib people render --groups --files` writes them.
        heldout: Folder of the people whose names are in the index.
        members: Number of people in a picture.
        count: Number of groups to read, from the first on; None reads all.

    Returns:
        People named ``group N``: their references are the faces, the masks and the depth map; the
        only other picture is the rendered group itself, which no method sees.

    Raises:
        FusionError: There is no such index, it has too few groups of this size, or it names a
            person who is not in `heldout`.
    """
    folder = Path(folder)
    known = {one.name: one.references[0] for one in load_people(heldout, others=0)}
    try:
        table = read_table(folder / "index.csv")
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
        faces = [known[person] for person in who]
        groups.append(Person(f"group {number}", (*faces, *_maps(picture)), (picture,)))
    if count is not None and count > len(groups):
        raise FusionError(
            f"{folder} holds {len(groups)} groups of {members}, fewer than the {count} asked for."
        )
    return groups[:count]


def posed_like_the_next(people: Sequence[Person]) -> list[Person]:
    """Give each person the depth map of the next one, for `fused_group` with one member.

    A ControlNet that follows it takes pose and shape from another head, and so pulls away from the
    person of the reference.

    Args:
        people: Two or more people whose references have ``.mask.png`` and ``.depth.png`` beside
            them.

    Returns:
        The same people, each with their first reference and the mask and the depth map of the next
        person's; the first person follows the last.

    Raises:
        FusionError: There are fewer than two people, or such a file is missing.
    """
    if len(people) < 2:
        raise FusionError("One person alone has nobody else to be posed like: take two or more.")
    posed = []
    for person, other in zip(people, (*people[1:], people[0]), strict=True):
        maps = _maps(other.references[0])
        for path in maps:
            if not path.is_file():
                raise FusionError(f"There is no {path}, which {person.name!r} would be posed by.")
        posed.append(replace(person, references=(person.references[0], *maps)))
    return posed


def _maps(picture: Path) -> tuple[Path, Path]:
    """The mask and the depth map that were rendered with a picture."""
    return picture.with_suffix(".mask.png"), picture.with_suffix(".depth.png")
