"""Outputs in the notebooks: small, the same in every run, of the present source, and compared."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from companion.publishing.book import assemble_book
from companion.publishing.notebooks import read_source, run_notebook
from companion.publishing.stored_outputs import (
    CHECKED,
    JPEG_WIDTH,
    LARGE_DRAWING,
    LARGE_PNG,
    MOST_BYTES_OF_ALL,
    MOST_SHADES,
    has_outputs,
    output_faults,
    smaller_picture,
    source_digest,
    store_outputs,
    tidy_outputs,
)
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT
from tests.helpers.tiny_book import make_repository

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


# --- the notebooks of the repository ----------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_have_no_fault(path: Path) -> None:
    assert not output_faults(path.read_text(encoding="utf-8"), path.stem)


def test_every_notebook_has_outputs() -> None:
    bare = [path.stem for path in NOTEBOOKS if not has_outputs(nbformat.read(path, as_version=4))]
    assert not bare, f"without outputs: run `make notebooks ARGS='{' '.join(bare)}'`"


def test_all_notebooks_together_are_small() -> None:
    assert sum(path.stat().st_size for path in NOTEBOOKS) <= MOST_BYTES_OF_ALL


def test_a_compared_cell_says_what_it_shows() -> None:
    compared = [
        (path.stem, cell)
        for path in NOTEBOOKS
        for cell in nbformat.read(path, as_version=4).cells
        if CHECKED in cell.metadata.get("tags", [])
    ]
    assert compared
    for name, cell in compared:
        assert cell.metadata.get("fusionlib", {}).get("states"), f"{name}: {cell.source}"


# --- storing ----------------------------------------------------------------------------------

SHOWN = """
import sys
import numpy as np
import pandas as pd
from IPython.display import display
from PIL import Image
from companion.figures.display import with_alt_text
from companion.figures.tables import marked_table
print("this is passing by", file=sys.stderr)
print(object(), __import__("os").path.abspath("../data"))
noise = np.random.default_rng(0).normal(128, 20, (32, 32, 3)).clip(0, 255).astype("uint8")
display(with_alt_text(Image.fromarray(noise).resize((512, 512)), "Soft noise."))
marked_table(pd.DataFrame({"share": ["12%"], "number": [42]}), "Measured here.")
"""
STATES = "the answer is 42"


def tagged(notebook: Path) -> None:
    """Mark the last cell as one whose output is compared."""
    node = nbformat.read(notebook, as_version=4)
    node.cells[-1].metadata |= {"tags": [CHECKED], "fusionlib": {"states": STATES}}
    nbformat.write(node, notebook)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, bytes]:
    """A repository whose outputs were stored, what the command said, and a notebook that fails."""
    root = tmp_path_factory.mktemp("stored") / "repository"
    make_repository(root, {"fails": "1 / 0", "shown": SHOWN}, after={"shown": ["fails"]})
    tagged(root / "notebooks" / "shown.ipynb")
    before = (root / "notebooks" / "fails.ipynb").read_bytes()
    with pytest.raises(FusionError) as caught:
        store_outputs(out=root.parent / "build", root=root)
    return root, str(caught.value), before


def test_a_notebook_that_fails_is_named_and_left_as_it_was(stored: tuple[Path, str, bytes]) -> None:
    root, message, before = stored
    assert message.startswith("1 of 2 notebooks were left as they were.")
    assert "fails.ipynb failed at In [2], which begins with `1 / 0`: ZeroDivision" in message
    assert (root / "notebooks" / "fails.ipynb").read_bytes() == before
    assert (root.parent / "build" / "stored" / "fails.failed.ipynb").exists()
    assert {path.name for path in (root / "notebooks").iterdir()} == {"fails.ipynb", "shown.ipynb"}


def test_a_notebook_whose_outputs_have_a_fault_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_repository(tmp_path / "repository", "1")
    notebook = root / "notebooks" / "tiny.ipynb"
    before = notebook.read_bytes()

    def execute(source: Path, executed: Path, *_: object, **__: object) -> None:
        node = nbformat.read(source, as_version=4)
        node.cells[-1].outputs = [nbformat.v4.new_output("stream", text="see /home/me/x.png")]
        executed.parent.mkdir(parents=True)
        nbformat.write(node, executed)

    monkeypatch.setattr("companion.publishing.stored_outputs.execute_notebook", execute)
    with pytest.raises(FusionError, match=r"1 of 1 notebooks(.|\n)*the path /home/me/x\.png"):
        store_outputs(out=tmp_path / "build", root=root)
    assert notebook.read_bytes() == before


def test_what_is_stored_is_tidy_and_of_the_source(stored: tuple[Path, str, bytes]) -> None:
    path = stored[0] / "notebooks" / "shown.ipynb"
    node = nbformat.read(path, as_version=4)
    assert [cell.get("execution_count") for cell in node.cells] == [None, 1, 2]
    printed, picture, table = node.cells[-1].outputs
    assert printed.text == "<object object> data\n"
    assert "T_00000_row0_col1" in table.data["text/html"] and "42" in table.data["text/html"]
    assert table.data["text/plain"] == "<pandas.io.formats.style.Styler>"
    assert set(table.data) == {"text/html", "text/plain"} and table.metadata == {}
    assert set(picture.data) == {"image/jpeg", "text/plain"}
    assert picture.metadata == {"image/jpeg": {"alt": "Soft noise."}}
    assert node.metadata.keys() == {"kernelspec", "fusionlib"}
    assert node.metadata.fusionlib == {"after": ["fails"], "stored": source_digest(node)}
    assert not any("papermill" in cell.metadata for cell in node.cells)
    assert not output_faults(path.read_text(), "shown")


def nbval(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a folder's notebooks under nbval with the settings of the repository's notebooks."""
    shutil.copy(ROOT / "notebooks" / "conftest.py", folder)
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-q"]
    command += ["-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_stored_output_that_is_no_longer_so_fails_and_is_named(
    stored: tuple[Path, str, bytes], tmp_path: Path
) -> None:
    """Another picture, share, address or table id is no difference; another number is."""
    same, wrong = tmp_path / "same.ipynb", tmp_path / "wrong.ipynb"
    text = (stored[0] / "notebooks" / "shown.ipynb").read_text()
    text = text.replace("T_00000", "T_0000f").replace("12%", "13%").replace("Soft", "Rough")
    text = text.replace("object> data", f"object> {tmp_path.parent / 'data'}")
    text = re.sub(r'"after": \[[^]]*\],\s*', "", text)  # of a notebook that is not here
    same.write_text(text)
    wrong.write_text(text.replace(">42<", ">43<"))
    done = nbval(tmp_path)
    assert done.returncode == 1 and "1 failed, 3 passed" in done.stdout, done.stdout
    assert "wrong.ipynb" in done.stdout and "outputs differ" in done.stdout
    assert f"Broken: {STATES}." in done.stdout
    assert 'make notebooks ARGS="wrong"' in done.stdout
    assert same.read_text() == text, "a comparison changes no file"


def test_a_cell_that_breaks_names_the_claims_that_rest_on_it() -> None:
    path = ROOT / "notebooks" / "conftest.py"
    spec = importlib.util.spec_from_file_location("of_notebooks", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cell = nbformat.v4.new_code_cell('record_claim(out, "morphing", gains)')
    assert module.broken(cell, "fig3_references").startswith("The claim 'morphing' (")
    other = module.broken(nbformat.v4.new_code_cell("x = 1"), "fig3_references")
    assert "'one-image'" in other and "rests on fig3_references" in other
    pairs = nbformat.v4.new_code_cell('systems.record_claims("identity-faceid")')
    page = "table1_identity"
    assert module.broken(pairs, page).startswith("The claim 'identity-faceid' (")
    assert "'identity-instantid'" in module.broken(nbformat.v4.new_code_cell("x = 1"), page)
    assert "No claim" in module.broken(nbformat.v4.new_code_cell("x = 1"), "data_card")


# --- what depends on a notebook depends on its source -----------------------------------------


def with_output(notebook: Path, text: str) -> None:
    """Store an output by hand."""
    node = nbformat.read(notebook, as_version=4)
    node.cells[-1].outputs = [nbformat.v4.new_output("stream", text=text)]
    node.cells[-1].execution_count = 2
    node.metadata["fusionlib"] = {"stored": source_digest(node)}
    nbformat.write(node, notebook)


def test_storing_outputs_is_no_reason_to_run_a_notebook(tmp_path: Path) -> None:
    count = "from pathlib import Path\nprint(1, file=(Path(out) / 'runs.txt').open('a'))"
    root, out = make_repository(tmp_path / "repository", count), tmp_path / "out"
    notebook = root / "notebooks" / "tiny.ipynb"
    source = read_source(notebook)
    first = run_notebook(notebook, {}, out, {})
    with_output(notebook, "stored")
    assert read_source(notebook) == source
    again = run_notebook(notebook, {}, out, {})
    assert again.reused and again.digest == first.digest
    assert (out / "study" / "runs.txt").read_text() == "1\n"


def test_a_page_that_was_not_run_shows_nothing_that_was_stored(tmp_path: Path) -> None:
    root = make_repository(tmp_path / "repository", "pass")
    with_output(root / "notebooks" / "tiny.ipynb", "of another size")
    page = assemble_book(tmp_path / "out", root, partial=True) / "notebooks" / "tiny.ipynb"
    assert not has_outputs(nbformat.read(page, as_version=4))


# --- what can be wrong ------------------------------------------------------------------------

Change = Callable[[nbformat.NotebookNode], object]


def fine() -> nbformat.NotebookNode:
    """A notebook whose stored outputs have no fault."""
    alt = {"image/png": {"alt": "A dot."}}
    picture = nbformat.v4.new_output("display_data", {"image/png": "AAAA"}, metadata=alt)
    words = nbformat.v4.new_output("stream", text="see data/heldout and https://a.org/home/me\n")
    cell = nbformat.v4.new_code_cell("x", outputs=[picture, words], execution_count=1)
    node = nbformat.v4.new_notebook(cells=[cell])
    node.metadata["fusionlib"] = {"stored": source_digest(node)}
    return node


def add(node: nbformat.NotebookNode, **output: object) -> None:
    node.cells[0].outputs.append(nbformat.v4.new_output(**output))


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda n: n.cells[0].update(source="y"), 'changed since .* run `make notebooks ARGS="n"`'),
        (lambda n: n.metadata.clear(), "changed since its outputs were stored"),
        (lambda n: add(n, output_type="error", ename="Bad", evalue="", traceback=[]), "error, Bad"),
        (lambda n: add(n, output_type="stream", text="in /home/me/x.py"), "path /home/me/x.py"),
        (
            lambda n: add(n, output_type="display_data", data={"text/html": '<a href="/work/x">'}),
            "path /work/x",
        ),
        (lambda n: n.cells[0].outputs[0].metadata.clear(), "a picture without words"),
        (lambda n: add(n, output_type="stream", text="x" * 1_600_000), "1.60 MB with its outputs"),
        (
            lambda n: n.cells.append(nbformat.v4.new_code_cell(metadata={"tags": [CHECKED]})),
            "nothing that could be compared",
        ),
    ],
)
def test_each_fault_is_found(change: Change, sentence: str) -> None:
    node = fine()
    assert not output_faults(nbformat.writes(node), "n")
    change(node)
    if "changed" not in sentence:
        node.metadata["fusionlib"] = {"stored": source_digest(node)}
    found = output_faults(nbformat.writes(node), "n")
    assert len(found) == 1 and re.search(sentence, found[0]), found


def test_without_outputs_there_is_nothing_to_find() -> None:
    node = fine()
    node.cells[0].outputs, node.cells[0].source = [], "changed"
    assert not output_faults(nbformat.writes(node), "n")


def test_widgets_and_progress_are_left_out_and_a_still_stays() -> None:
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "a1"}, "text/plain": "W()"}
    still = BytesIO()
    Image.new("RGB", (8, 8)).save(still, "PNG")
    drawn = {"image/png": b64encode(still.getvalue()).decode(), "application/pdf": "JVBE"}
    outputs = [
        nbformat.v4.new_output("display_data", dict(widget)),
        nbformat.v4.new_output("stream", name="stderr", text="100%|###|"),
        nbformat.v4.new_output("display_data", widget | drawn),
    ]
    (kept,) = tidy_outputs(outputs)
    assert set(kept.data) == {"image/png", "text/plain"}


def test_drawings_stay_to_the_pixel_and_photographs_become_small() -> None:
    rng = np.random.default_rng(0)
    shades = np.kron(rng.integers(0, 2000, (300, 300)), np.ones((4, 1), int))  # of one colour
    lines = np.stack([shades % 200, shades // 200, shades * 0], axis=-1).astype(np.uint8)
    blocks = np.kron(rng.integers(0, 2, (60, 60, 1)) * 255, np.ones((10, 10, 3))).astype(np.uint8)
    soft = Image.fromarray(rng.integers(0, 256, (40, 40, 3)).astype(np.uint8))
    for picture, kind, most in (
        (Image.fromarray(blocks), "image/png", 0),
        (Image.fromarray(lines), "image/png", 5),
        (soft.resize((600, 600)), "image/jpeg", 5),
        (soft.resize((2400, 100)), "image/jpeg", 5),
    ):
        before = BytesIO()
        picture.save(before, "PNG", compress_level=0)
        assert len(before.getvalue()) > LARGE_PNG
        found, content = smaller_picture(before.getvalue())
        shown = Image.open(BytesIO(content))
        assert found == kind and len(content) < len(before.getvalue()) / 5
        assert shown.width == min(picture.width, JPEG_WIDTH)
        wanted = picture.resize(shown.size)
        assert (
            np.abs(np.asarray(shown.convert("RGB"), int) - np.asarray(wanted, int)).mean() <= most
        )


@pytest.mark.parametrize(
    ("shades", "side", "kept"),
    [(1000, 160, 256), (MOST_SHADES + 900, 160, None), (1000, 60, None)],
    ids=["a drawing", "a photograph", "a small one"],
)
def test_only_a_drawing_of_some_size_keeps_256_shades(
    shades: int, side: int, kept: int | None
) -> None:
    colours = np.random.default_rng(0).integers(0, shades, (side, side))
    colours.flat[:shades] = np.arange(shades)[: side * side]
    pixels = np.stack([colours % 70, colours // 70, colours * 0], axis=-1).astype(np.uint8)
    before = BytesIO()
    Image.fromarray(pixels).save(before, "PNG")
    assert (len(before.getvalue()) > LARGE_DRAWING) == (side == 160)
    assert len(before.getvalue()) < LARGE_PNG
    kind, content = smaller_picture(before.getvalue())
    shown = np.asarray(Image.open(BytesIO(content)).convert("RGB"), int)
    assert kind == "image/png" and len(content) <= len(before.getvalue())
    if kept is None:
        assert np.array_equal(shown, pixels)
    else:
        assert len(np.unique(shown.reshape(-1, 3), axis=0)) <= kept
        assert len(content) < len(before.getvalue()) and np.abs(shown - pixels).mean() < 5
