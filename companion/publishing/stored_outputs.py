"""Outputs in the notebooks themselves, so that they can be read where the repository is hosted.

Every notebook is run at its own small default parameters, and its outputs are stored in it without
what differs from run to run or is useless without a kernel. `make reproduce` takes no notice of
them; `make test` runs every notebook and compares the cells that are tagged ``nbval-check-output``.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from companion.publishing.book import WIDGET, is_widget_only
from companion.publishing.exports import drop_exported
from companion.publishing.notebooks import (
    choose_notebooks,
    comes_after,
    execute_notebook,
    find_notebooks,
    read_source,
)
from companion.publishing.tasks import run_in_order
from fusionlib.errors import FusionError
from fusionlib.inputs.images import to_rgb
from fusionlib.profiles import ROOT
from fusionlib.support.files import check_folder, locked, short, write_text
from fusionlib.support.provenance import sha256_json

if TYPE_CHECKING:
    from nbformat import NotebookNode

CHECKED = "nbval-check-output"
"""Tag of a cell whose output is the same in every run and on every machine: nbval compares it."""

MOST_BYTES = 1_500_000
"""Largest size of a notebook with its outputs in bytes; GitHub shows no large ones."""

MOST_BYTES_OF_ALL = 12_000_000
"""Largest size of all notebooks together in bytes."""

LARGE_PNG = 150_000
"""Size of a PNG in bytes above which a JPEG may replace it."""

LARGE_DRAWING = 20_000
"""Size of a PNG in bytes above which a drawing is reduced to 256 colours."""

LARGE_JPEG = 300_000
"""Size of a JPEG in bytes above which the next lower quality is used."""

JPEG_QUALITIES = (80, 70)

MOST_SHADES = 4096
"""Most colours of a drawing with smoothed lines; a photograph has more."""

JPEG_WIDTH = 1600
"""Largest width of a JPEG in pixels; the column in which GitHub shows it is narrower."""

UNSTORED = ("image/jpeg", WIDGET)
"""Kinds of outputs that are left out: a PNG, or a JPEG made of it, stands for them."""

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""Address of an object in memory, in its ``repr``."""

TABLE_ID = re.compile(r"\bT_[0-9a-f]{5}")
"""Id of a table by pandas, new for each run."""

PICTURES = ("image/png", "image/jpeg")

_ELSEWHERE = re.compile(
    r"(?<![\w.:/<])/(?:home|root|work|Users|tmp|private|var|usr|opt|mnt)/[^\s<]*"
)


def store_outputs(
    only: Sequence[str] = (), *, out: str | Path = Path("build"), root: Path = ROOT
) -> list[Path]:
    """Run notebooks at their own default parameters and store their outputs in them.

    Each runs in a fresh kernel and its own folder, and is replaced in one step. One that fails
    stops no other and is left as it was.

    Args:
        only: Names of notebooks, or beginnings that only one notebook has; by default all.
        out: Folder of everything that is built; a notebook that fails leaves a copy in ``stored``.
        root: Root of the repository.

    Returns:
        The notebooks that were written.

    Raises:
        FusionError: A name is unknown, or, once everything else is done, notebooks failed:
            names each with its failing cell.
    """
    folder = Path(out).resolve() / "stored"
    root = Path(root).resolve()
    notebooks = find_notebooks(root)
    chosen = {path.stem: path for path in choose_notebooks(notebooks, only)}
    after = comes_after(notebooks)
    order = {name: [other for other in after[name] if other in chosen] for name in chosen}

    def run(name: str, _: Mapping[str, Path | FusionError]) -> Path:
        print(f"{short(chosen[name])}: running", flush=True)
        executed = folder / f"{name}.ipynb"
        execute_notebook(chosen[name], executed, folder / f"{name}.failed.ipynb", progress=True)
        text = with_outputs(chosen[name], executed, root)
        if wrong := output_faults(text, name):
            raise FusionError(f"{'; '.join(wrong)} (with its outputs: {short(executed)})")
        write_text(chosen[name], text)
        print(f"{short(chosen[name])}: stored, {len(text.encode()) / 1000:.0f} kB", flush=True)
        return chosen[name]

    check_folder(folder, None, whole=False)
    with locked(folder):
        outcomes = run_in_order(order, run, jobs=1)
    failed = [str(outcome) for outcome in outcomes.values() if isinstance(outcome, FusionError)]
    if failed:
        raise FusionError(
            f"{len(failed)} of {len(chosen)} notebooks were left as they were.\n"
            + "\n".join(failed)
        )
    return list(chosen.values())


def with_outputs(notebook: Path, executed: Path, root: Path = ROOT) -> str:
    """The text of a notebook's file with tidied outputs of an executed copy.

    Args:
        notebook: Notebook as its author wrote it; outputs that it has are not kept.
        executed: Executed copy with the same cells.
        root: Root of the repository; paths in outputs are written relative to it.
    """
    import nbformat

    node = read_source(notebook)
    ran = nbformat.read(executed, as_version=4)
    for cell, done in zip(node.cells, ran.cells, strict=True):
        if cell.cell_type == "code":
            cell.execution_count = done.execution_count
            cell.outputs = list(tidy_outputs(done.outputs, root))
    _number_tables(node)
    node.metadata.setdefault("fusionlib", {})["stored"] = source_digest(node)
    text: str = nbformat.writes(node)
    return text.rstrip("\n") + "\n"


def source_digest(node: NotebookNode) -> str:
    """Hash of the sources of a notebook's code cells, which its outputs depend on."""
    return sha256_json([cell.source for cell in node.cells if cell.cell_type == "code"])


def tidy_outputs(outputs: Sequence[Any], root: Path = ROOT) -> Iterator[Any]:
    """Outputs of one cell, made small, without what differs between runs or machines.

    Left out are what was written to stderr, such as progress, widgets, and all but one kind of each
    picture. Addresses in memory go, and paths are written as seen from the repository.

    Args:
        outputs: `nbformat` nodes, which are changed in place.
        root: Root of the repository.
    """
    for output in outputs:
        if output.get("name") == "stderr" or is_widget_only(output):
            continue
        if "text" in output:
            output.text = _tidy_text(output.text, root)
        drop_exported(output)
        data = output.get("data", {})
        for kind in UNSTORED:
            data.pop(kind, None)
        for kind, value in data.items():
            if isinstance(value, str) and kind != "image/png":
                data[kind] = _tidy_text(value, root)
        if "image/png" in data:
            kind, content = smaller_picture(b64decode(data.pop("image/png")))
            data[kind] = b64encode(content).decode("ascii") + "\n"
            words = output.metadata.pop("image/png", None)
            if words:
                output.metadata[kind] = words
        yield output


def smaller_picture(png: bytes) -> tuple[str, bytes]:
    """The same picture in fewer bytes: its MIME type and its content.

    Anything small stays a PNG, to the pixel; a drawing of many shades keeps 256 of them. A large
    picture of which a JPEG takes less than half becomes one, no wider than `JPEG_WIDTH`: such are
    grids of photographs.
    """
    with Image.open(BytesIO(png)) as opened:
        opened.load()
    tight = BytesIO()
    opened.save(tight, "PNG", optimize=True)
    smallest = min(tight.getvalue(), png, key=len)
    if len(smallest) > LARGE_PNG:
        reduced = to_rgb(opened)
        reduced.thumbnail((JPEG_WIDTH, reduced.height), Image.Resampling.LANCZOS)
        for quality in JPEG_QUALITIES:
            jpeg = BytesIO()  # with colours at full resolution: labels stay sharp
            reduced.save(jpeg, "JPEG", quality=quality, optimize=True, subsampling=0)
            if len(jpeg.getvalue()) <= LARGE_JPEG:
                break
        if 2 * len(jpeg.getvalue()) < len(smallest):
            return "image/jpeg", jpeg.getvalue()
    if len(smallest) > LARGE_DRAWING:
        plain = to_rgb(opened)
        if plain.getcolors(MOST_SHADES):
            few = BytesIO()
            plain.quantize(256, dither=Image.Dither.NONE).save(few, "PNG", optimize=True)
            smallest = min(few.getvalue(), smallest, key=len)
    return "image/png", smallest


def output_faults(text: str, name: str) -> list[str]:
    """Problems of the outputs stored in a notebook, one sentence each.

    They must belong to the present source, hold no error and no path of the machine that they were
    made on, show no picture without words, and be small. A notebook without outputs has no fault.

    Args:
        text: Content of the notebook's file.
        name: Name of the notebook, for the messages.
    """
    import nbformat

    node = nbformat.reads(text, as_version=4)
    if not has_outputs(node):
        return []
    again = f'run `make notebooks ARGS="{name}"`'
    found = []
    if node.metadata.get("fusionlib", {}).get("stored") != source_digest(node):
        found.append(f"{name}.ipynb: a code cell changed since its outputs were stored: {again}")
    if len(text.encode()) > MOST_BYTES:
        size, most = len(text.encode()) / 1e6, MOST_BYTES / 1e6
        found.append(f"{name}.ipynb has {size:.2f} MB with its outputs: {most:g} MB are the most")
    for number, cell in enumerate(node.cells):
        where = f"{name}.ipynb, cell {number}"
        options = cell.metadata.get("mystnb", {})
        words = options.get("image", {}).get("alt") or options.get("figure", {}).get("caption")
        if CHECKED in cell.metadata.get("tags", []) and not cell.outputs:
            found.append(f"{where} is tagged {CHECKED}, but shows nothing that could be compared")
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                found.append(f"{where} holds an error, {output.ename}: mend it, then {again}")
            data = output.get("data", {})
            readable = [output.get("text", ""), *(data[k] for k in data if k not in PICTURES)]
            found += [
                f"{where} shows the path {path}, which is of one machine alone"
                for path in _ELSEWHERE.findall(" ".join(map(str, readable)))
            ]
            for kind in PICTURES:
                if kind in data and not words and not output.metadata.get(kind, {}).get("alt"):
                    found.append(
                        f"{where} shows a picture without words: see companion.figures.display"
                    )
    return found


def has_outputs(node: NotebookNode) -> bool:
    """Whether a notebook holds any output."""
    return any(cell.get("outputs") for cell in node.cells)


def _tidy_text(text: str, root: Path) -> str:
    text = text.replace(f"{root}/", "").replace(str(root), ".").replace(str(Path.home()), "~")
    return ADDRESS.sub("", text)


def _number_tables(node: NotebookNode) -> None:
    """Number the ids of pandas' tables by their order; they are random otherwise."""
    numbers: dict[str, str] = {}

    def numbered(found: re.Match[str]) -> str:
        return numbers.setdefault(found[0], f"T_{len(numbers):05d}")

    for cell in node.cells:
        for output in cell.get("outputs", []):
            if "text/html" in output.get("data", {}):
                output.data["text/html"] = TABLE_ID.sub(numbered, output.data["text/html"])
