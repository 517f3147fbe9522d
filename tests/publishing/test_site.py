"""Publishing the book: its address, workflows, Binder, Colab, and the metadata of pages."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
import yaml
from PIL import Image

from companion.publishing.book import build_book
from companion.publishing.notebooks import read_source
from companion.publishing.toc import toc_pages
from fusionlib.profiles import ROOT

CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
URL = CONFIG["repository"]["url"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

COLAB = f"""\
import os
import sys

if "google.colab" in sys.modules:  # Colab opens a notebook alone: fetch what it belongs to
    !git clone -q --depth 1 {URL} /content/fusionlib
    %pip install --quiet -e /content/fusionlib[evaluation] anywidget myst-nb
    sys.path.insert(0, "/content/fusionlib")
    %cd -q /content/fusionlib/notebooks

if os.path.isdir("notebooks"):  # papermill runs a notebook where it was called
    os.chdir("notebooks")"""


@pytest.fixture(scope="module")
def head() -> ModuleType:
    spec = importlib.util.spec_from_file_location("page_head", ROOT / "book/_ext/page_head.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_published_address_follows_from_the_repository(head: ModuleType) -> None:
    assert head.published_at("https://github.com/Ada/book") == "https://ada.github.io/book/"
    assert head.published_at("https://github.com/Ada/book.git/") == "https://ada.github.io/book/"
    assert head.published_at("https://github.com/Ada/ada.github.io") == "https://ada.github.io/"


def test_the_readme_leads_to_the_repository_that_the_book_names(head: ModuleType) -> None:
    text, slug = (ROOT / "README.md").read_text(), URL.removeprefix("https://github.com/")
    clone = f"git clone --depth 1 {URL}\ncd {slug.split('/')[1]}\n"
    assert clone in text and clone in (ROOT / "book/intro.md").read_text()
    branch = CONFIG["repository"]["branch"]
    links = re.findall(r"\]\((https?://[^)]+)\)", text)
    assert head.published_at(URL) in links
    binder, colab = CONFIG["launch_buttons"]["binderhub_url"], CONFIG["launch_buttons"]["colab_url"]
    assert any(link.startswith(f"{binder}/v2/gh/{slug}/{branch}?") for link in links)
    opened = f"{colab}/github/{slug}/blob/{branch}/"
    (notebook,) = [link.removeprefix(opened) for link in links if link.startswith(opened)]
    assert (ROOT / notebook).is_file()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_that_colab_opens_fetches_the_repository_first(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    first = next(cell for cell in cells if cell.cell_type == "code")
    assert first.source == COLAB, "the first code cell is not the text of COLAB in this test"
    assert first.metadata.get("tags") == ["remove-cell"], "the page need not show it"


def test_workflows_run_what_a_reader_runs() -> None:
    assert [path.stem for path in WORKFLOWS] == ["ci", "pages"]
    makefile = (ROOT / "Makefile").read_text()
    commands = {}
    for path in WORKFLOWS:
        workflow: dict[Any, Any] = yaml.safe_load(path.read_text())
        assert workflow[True], "YAML reads the key `on` as true"
        assert workflow["permissions"] == {"contents": "read"} and workflow["concurrency"]["group"]
        steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
        for step in steps:
            assert ("uses" in step) != ("run" in step)
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/x@v1"))
        commands[path.stem] = [step["run"] for step in steps if "run" in step]
    assert commands == {"ci": ["make test"], "pages": ["make reproduce", "make browser"]}
    for command in sum(commands.values(), []):
        assert re.search(rf"^{command.split()[1]}:", makefile, re.M), command


def test_binder_installs_the_locked_set_and_the_checkout() -> None:
    lines = (ROOT / "binder/requirements.txt").read_text().splitlines()
    wanted = [line for line in lines if not line.startswith("#")]
    assert (ROOT / "binder" / "../requirements.lock").is_file()
    assert wanted[1:] == ["-r ../requirements.lock", "-e ."]
    assert (ROOT / "binder/runtime.txt").read_text() == "python-3.11\n"


def test_the_card_has_the_size_that_pages_announce(head: ModuleType) -> None:
    with Image.open(ROOT / "book" / head.CARD) as card:
        assert card.size == (1200, 630) and card.format == "JPEG"


def test_the_software_is_cited_alike_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    entry = (ROOT / "book/references.bib").read_text().split("@software{fusionlib,")[1]
    for field in ("title", "version", "license"):
        assert f"{{{citation[field]}}}" in entry.split("\n}")[0], field


PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)


def dot() -> nbformat.NotebookNode:
    """An output with a picture of one pixel and its alternative text."""
    metadata = {"image/png": {"alt": "A dot."}}
    return nbformat.v4.new_output("display_data", {"image/png": PNG}, metadata=metadata)


def word(name: str) -> nbformat.NotebookNode:
    """An output that is glued under a name."""
    metadata = {"scrapbook": {"name": name, "mime_prefix": ""}}
    data = {"text/html": "<b>a word</b>", "text/plain": "a word"}
    return nbformat.v4.new_output("display_data", data, metadata=metadata)


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages, with every notebook as it is, and a dot in place of each figure."""
    out = tmp_path_factory.mktemp("build")
    (out / "executed").mkdir()
    pages = "\n".join(page.read_text() for page in sorted((ROOT / "book").glob("*.md")))
    glued = re.findall(r"notebooks/(\w+)\.ipynb::(\w+):s", pages)
    blocks = re.findall(r"\{glue\} (\w+)\n:doc: \.\./notebooks/(\w+)\.ipynb", pages)
    glued += [(name, key) for key, name in blocks]
    for path in NOTEBOOKS:
        notebook = read_source(path)
        words = [word(key) for name, key in glued if name == path.stem]  # shown on pages
        notebook.cells.append(nbformat.v4.new_code_cell(outputs=words))
        for cell in notebook.cells:
            if "figure" in cell.metadata.get("mystnb", {}):
                cell.outputs = [dot()]
        nbformat.write(notebook, out / "executed" / path.name)
    build_book(out)  # checks links and alternative texts, too
    return out / "book"


def test_every_page_has_a_head_of_its_own(book: Path, head: ModuleType) -> None:
    seen = set()
    for page in toc_pages(ROOT):
        text = (book / f"{page}.html").read_text()
        found = dict(re.findall(r'<meta property="og:(\S+)" content="([^"]*)"', text))
        assert found["url"] == f"{head.published_at(URL)}{page}.html"
        assert f'<link rel="canonical" href="{found["url"]}"' in text
        assert found["image"].startswith(head.published_at(URL))
        assert (book / found["image"].removeprefix(head.published_at(URL))).is_file()
        assert 60 < len(found["description"]) < 300, page
        (plain,) = re.findall(r'<meta (?:content="[^"]*" )?name="description"[^>]*>', text)
        assert found["description"] in plain
        seen.add(found["description"])
    assert len(seen) == len(toc_pages(ROOT)), "two pages are described alike"


def test_a_notebook_can_be_launched_and_its_executed_copy_downloaded(book: Path) -> None:
    slug = URL.removeprefix("https://github.com/")
    for page in toc_pages(ROOT):
        if page.startswith("notebooks/"):
            text = (book / f"{page}.html").read_text()
            assert f"/github/{slug}/blob/main/{page}.ipynb" in text, page
            assert f"mybinder.org/v2/gh/{slug}/main?urlpath=lab/tree/{page}.ipynb" in text, page
            assert f'href="../_sources/{page}.ipynb"' in text, page
            copy = nbformat.read(book / "_sources" / f"{page}.ipynb", as_version=4)
            assert any(cell.get("outputs") for cell in copy.cells), page


def test_pages_ask_nothing_of_other_machines(book: Path) -> None:
    """Links may lead elsewhere, but what a page loads must be in the book's folder."""
    for file in book.rglob("*.html"):
        if "_static" not in file.parts:
            loads = re.findall(
                r'<(?:script|img|iframe)[^>]* src="(https?:[^"]*)"', file.read_text()
            )
            assert not loads, f"{file.name} loads {loads}"
