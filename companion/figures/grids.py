"""Grids of pictures: a study's rows and columns, with their labels."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from PIL import Image, ImageDraw, ImageFont, ImageOps

from companion.evaluation.scale import systems_of, without_anchors
from companion.figures.display import with_alt_text
from companion.figures.style import INK, QUIET
from companion.person import Person
from fusionlib.errors import FusionError
from fusionlib.inputs.images import load_image


def picture_grid(
    rows: Sequence[Sequence[Image.Image | None]],
    *,
    columns: Sequence[str] = (),
    labels: Sequence[str] = (),
    references: int = 0,
    groups: Sequence[tuple[str, int]] = (),
    upscale: int = 2,
) -> Image.Image:
    """Lay pictures out with labels, enlarged by a whole factor so that they stay sharp.

    Args:
        rows: Rows of pictures of one size; ``None`` leaves a place empty.
        columns: Label above each column.
        labels: Label left of each row.
        references: Number of columns on the left that show inputs, framed and set apart.
        groups: Labels above runs of the other columns, each with the number of its columns.
        upscale: Factor by which each picture is enlarged (Lanczos).

    Returns:
        One picture, which a notebook shows by itself, with the labels as alternative text.
    """
    widths = {len(row) for row in rows}
    sizes = {image.size for row in rows for image in row if image is not None}
    if len(widths) != 1 or len(sizes) != 1:
        raise FusionError("A picture grid needs rows of one length and pictures of one size.")
    (count,), ((width, height),) = widths, sizes
    width, height = width * upscale, height * upscale
    gap, apart = max(width // 32, 2), max(width // 10, 4)
    size = max(count * width // 50, 14)  # legible however wide the whole is on a page
    words = [word for text in columns for word in text.split()]
    longest = max((label_font(size).getlength(word) for word in words), default=0)
    if longest > width:  # words are not broken, and must not run into each other
        size = max(int(size * width / longest), 14)
    font, line = label_font(size), round(size * 1.3)

    spans = [(text, span * (width + gap) - gap) for text, span in groups]
    titles = [_wrapped(text, font, span) for text, span in spans]
    heads = [_wrapped(text, font, width) for text in columns]
    bottoms = []  # of the two lines of headings
    top = 0
    for texts in (titles, heads):
        top += max((text.count("\n") + 1 for text in texts), default=0) * line
        top += gap if texts else 0
        bottoms.append(top)

    starts = {references} if references else set()
    starts |= {references + sum(span for _, span in groups[:n]) for n in range(1, len(groups))}
    lefts = [round(size * 8.5) if labels else 0]
    for column in range(1, count + 1):
        lefts.append(lefts[-1] + width + gap + (apart if column in starts else 0))
    canvas = Image.new("RGB", (lefts[count] - gap, top + len(rows) * (height + gap) - gap), "white")
    draw = ImageDraw.Draw(canvas)

    at = references
    for text, (_, span) in zip(titles, groups, strict=True):
        middle = (lefts[at] + lefts[at + span - 1] + width) // 2
        above = (middle, bottoms[0] - gap)
        draw.multiline_text(above, text, fill=INK, font=font, anchor="md", align="center")
        at += span
    for column, text in enumerate(heads):
        above = (lefts[column] + width // 2, bottoms[1] - gap)
        colour = QUIET if column < references else INK
        draw.multiline_text(above, text, fill=colour, font=font, anchor="md", align="center")
    for row, pictures in enumerate(rows):
        y = top + row * (height + gap)
        if labels:
            text = _wrapped(labels[row], font, lefts[0] - gap * 2)
            beside = (lefts[0] - gap * 2, y + height // 2)
            draw.multiline_text(beside, text, fill=INK, font=font, anchor="rm", align="right")
        for column, picture in enumerate(pictures):
            if picture is None:
                continue
            x = lefts[column]
            canvas.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (x, y))
            if column < references:
                frame = (x, y, x + width - 1, y + height - 1)
                draw.rectangle(frame, outline=QUIET, width=max(gap // 3, 1))
    alt = _grid_words(
        len(rows), count, heads=columns, labels=labels, references=references, groups=groups
    )
    return with_alt_text(canvas, alt)


def _grid_words(
    rows: int,
    columns: int,
    *,
    heads: Sequence[str] = (),
    labels: Sequence[str] = (),
    references: int = 0,
    groups: Sequence[tuple[str, int]] = (),
) -> str:
    """Describe in words what `picture_grid` shows, from its labels."""
    words = [f"Pictures in {_count(rows, 'row')} and {_count(columns, 'column')}."]
    if any(labels):
        words.append(f"Rows from the top: {_listed(labels)}.")
    if any(heads):
        texts = [_listed(heads[:references])] if references else []
        at = references
        for title, span in groups or [("", columns - references)]:
            run = _listed(heads[at : at + span])
            texts.append(f"under {title}: {run}" if title else run)
            at += span
        words.append(f"From left to right: {'; '.join(filter(None, texts))}.")
    elif references:
        words.append(f"On the left: {_count(references, 'column')} of references.")
    return " ".join(words)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(filter(None, texts))


def label_font(size: int) -> ImageFont.FreeTypeFont:
    """The font of labels on pictures, which matplotlib brings along."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    letters = max(int(width / (font.getlength("n" * 20) / 20)), 1)
    return "\n".join(textwrap.wrap(text, letters, break_long_words=False))


WIDEST = 9
"""Most pictures of one person side by side; more would be too small to look at."""


def study_grid(
    index: pd.DataFrame,
    people: Sequence[Person],
    *,
    prompts: Sequence[str],
    references: int = 1,
    called: Sequence[str] = (),
    seed: int = 0,
    labels: Sequence[str] = (),
) -> Image.Image:
    """Show a study: a row for each person, the references first, then every prompt and method.

    The anchors of the scale (`companion.evaluation.scale.ANCHORS`) are no methods, and left out.
    Where that makes more than `WIDEST` pictures, each method has a row of its own and each prompt a
    column; with several references each prompt has a band of its own, and with one prompt the
    methods stand in several. Pictures of several sizes are all shown as large as the largest; where
    a method left a person out, the place stays empty.

    Args:
        index: Index of the study, as `companion.studies.study.run_study` returns it.
        people: People to show.
        prompts: Prompts to show, side by side.
        references: Number of a person's references to show.
        called: Names of the references, if not their numbers.
        seed: Seed to show.
        labels: Label left of each row, if a person has one row.

    Raises:
        FusionError: The study has no picture of a prompt with this seed.
    """
    of_seed = index[index["seed"] == seed]
    unknown = set(prompts) - set(of_seed["prompt"])
    if unknown:
        raise FusionError(f"The study has no pictures of {', '.join(map(repr, sorted(unknown)))}.")
    images = of_seed.set_index(["method", "person", "prompt"])["image"]
    methods = systems_of(of_seed)
    heads = list(called) or [
        f"reference {n}" if references > 1 else "reference" for n in range(1, references + 1)
    ]

    made_once = without_anchors(of_seed).drop_duplicates("method")
    firsts = [load_image(path) for path in made_once["image"]]
    largest = max((image.size for image in firsts), key=lambda size: size[0])

    def row(person: Person, cells: Sequence[tuple[str, str]], first: bool) -> list[Any]:
        made = [images.get((method, person.name, prompt)) for method, prompt in cells]
        paths = [*(person.references[:references] if first else ()), *made]
        shown = [
            path and ImageOps.fit(load_image(path), largest, Image.Resampling.LANCZOS)
            for path in paths
        ]
        return shown if first else [*[None] * references, *shown]

    quoted = [f"“{prompt}”" for prompt in prompts]
    by_prompt = [[(method, prompt) for method in methods] for prompt in prompts]
    cells = [cell for part in by_prompt for cell in part]
    wide = references + len(cells) > WIDEST
    if wide and references <= 1 and len(methods) > 1 and len(prompts) > 1:
        by_method = [[(method, prompt) for prompt in prompts] for method in methods]
        rows = [
            row(person, part, first=number == 0)
            for person in people
            for number, part in enumerate(by_method)
        ]
        return picture_grid(
            rows,
            columns=[*heads, *quoted],
            labels=methods * len(people),
            references=references,
        )
    bands: list[tuple[Sequence[tuple[str, str]], bool]]
    if not wide:
        bands = [(cells, True)]
    elif len(prompts) > 1:
        bands = [(part, True) for part in by_prompt]
    else:
        bands = _bands(cells, references)
    columns = max(len(part) + references * shown for part, shown in bands)
    grids = []
    for part, shown in bands:
        seen = references if shown else 0
        free = columns - seen - len(part)
        rows = [row(person, part, first=shown) for person in people]
        titles = [f"“{prompt}”" for prompt in dict.fromkeys(prompt for _, prompt in part)]
        grids.append(
            picture_grid(
                [[*(each if shown else each[references:]), *[None] * free] for each in rows],
                columns=[*heads[:seen], *(method for method, _ in part), *[""] * free],
                labels=labels,
                references=seen,
                groups=[(text, len(part) // len(titles)) for text in titles] if shown else (),
                upscale=1 if len(bands) > 1 else 2,  # many pictures: as large as they were made
            )
        )
    return grids[0] if len(grids) == 1 else stacked(grids)


def _bands(
    cells: Sequence[tuple[str, str]], references: int
) -> list[tuple[Sequence[tuple[str, str]], bool]]:
    """Cells of each band, and whether the references stand beside them.

    One reference is repeated beside each band; several stand in the first band only.
    """
    if references <= 1:
        size = math.ceil(len(cells) / math.ceil(len(cells) / (WIDEST - references)))
        return [(cells[at : at + size], True) for at in range(0, len(cells), size)]
    whole = len(cells) + references
    size = math.ceil(whole / math.ceil(whole / WIDEST))
    first = max(size - references, 1)
    rest = range(first, len(cells), size)
    return [(cells[:first], True), *((cells[at : at + size], False) for at in rest)]


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other, as one, with the alternative texts of all."""
    apart = max(picture.width for picture in pictures) // 40
    height = sum(picture.height + apart for picture in pictures) - apart
    canvas = Image.new("RGB", (max(picture.width for picture in pictures), height), "white")
    top = 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height + apart
    return with_alt_text(canvas, " ".join(picture.info["alt"] for picture in pictures))


def prompt_grid(index: pd.DataFrame, *, columns: int = 8) -> Image.Image:
    """Show a study of one method: a row for each prompt, its first pictures side by side."""
    rows = [
        [load_image(path) for path in index.loc[index["prompt"] == prompt, "image"][:columns]]
        for prompt in index["prompt"].unique()
    ]
    return picture_grid(rows, labels=[f"“{prompt}”" for prompt in index["prompt"].unique()])


def pairs_grid(index: pd.DataFrame, people: Sequence[Person]) -> Image.Image:
    """Show a study in which each person has their own prompt: the reference, then each method.

    The anchors of the scale are left out, as `study_grid` does.

    Args:
        index: Index of the study; of several prompts or seeds of a person the first is shown.
        people: People to show.
    """
    methods = systems_of(index)
    rows, labels = [], []
    for person in people:
        mine = index[index["person"] == person.name].drop_duplicates("method").set_index("method")
        paths = mine["image"].to_dict()
        if not set(paths) & set(methods):
            continue  # no method has this person
        made = [load_image(paths[name]) if name in paths else None for name in methods]
        size = next(image.size for image in made if image)
        seen = load_image(person.references[0])
        rows.append([ImageOps.fit(seen, size, Image.Resampling.LANCZOS), *made])
        labels.append(f"“{mine['prompt'].iloc[0]}”")
    return picture_grid(rows, columns=["reference", *methods], labels=labels, references=1)
