"""The book: its sources laid out beside the executed notebooks, its pages, and one PDF of them all.

Nothing is executed here. A page whose notebook failed, or was never run, says so under its title
and shows the notebook as far as it got.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from companion.figures.display import publish_alt
from companion.publishing.exports import drop_exported
from companion.publishing.notebooks import failed_copy, failing_cell, read_source
from companion.publishing.page_checks import broken_pages
from companion.publishing.tasks import Stage, read_stamp, write_stamp
from companion.publishing.toc import prune_toc, toc_notebooks, toc_pages, unlink
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT
from fusionlib.support.files import (
    check_apart,
    check_folder,
    locked,
    replacing,
    short,
    write_bytes,
)
from fusionlib.support.provenance import sha256_folder

LAST_LINES = 6
"""Number of last lines of a build's log that an error message repeats."""

WIDGET = "application/vnd.jupyter.widget-view+json"
"""Kind of a widget, which needs a kernel: progress bars are left out, stills are kept."""

BROWSERS = (
    *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"),
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
"""Programs that print a page as PDF: names on the PATH, and where macOS keeps them."""

PLAYWRIGHT = ("chromium-*/chrome-linux*/chrome", "chromium-*/chrome-mac*/*.app/Contents/MacOS/*")
"""Where ``playwright install chromium`` puts one, in each of its folders for browsers."""


SOURCES = ("book", "notebooks", "fusionlib", "companion", "data", "tests")
"""Folders of the repository that are read."""

BUILT = {
    "book": ["stamps/book.json"],
    "book.pdf": ["stamps/pdf.json"],
    "book-source": ["stamps", "executed"],
    "book-build": ["stamps", "executed"],
    "manifest.json": ["stamps", "executed"],
}
"""What is replaced in the folder of a reproduction, and one of what is beside it if it made it."""


def check_build(out: str | Path, root: Path) -> Path:
    """Return the folder of everything that is built, after a look at whether it may be written.

    Raises:
        FusionError: It is one of the repository's sources, cannot be written, or holds what a
            reproduction did not make and would replace.
    """
    folder = check_folder(out, None, whole=False)
    for name in SOURCES:
        check_apart(folder, root / name, around=False)
        check_apart(folder / name, root / name, around=False)
    for name, signs in BUILT.items():
        if (folder / name).exists() and not any((folder / sign).exists() for sign in signs):
            raise FusionError(
                f"The output {out} holds {name}, which no reproduction made here and which would "
                f"be replaced: give a folder of its own, {short(folder / 'build')} for example."
            )
    (folder / "stamps").mkdir(parents=True, exist_ok=True)
    return folder


def build_book(
    out: str | Path = Path("build"),
    *,
    root: Path = ROOT,
    force: bool = False,
    partial: bool = False,
    left_out: Mapping[str, str] | None = None,
    label: str = "book",
) -> Stage:
    """Build the book into ``out/book`` from the pages and the executed notebooks.

    The sources are assembled in ``out/book-source``, with each notebook replaced by its executed
    copy. A warning of the book's builder, such as a broken reference, is an error, and so is a dead
    link or a picture without words (`companion.publishing.page_checks.broken_pages`). If a notebook
    failed or was not run they are no errors, since pages may refer to what it did not make. The
    pages on disk are replaced only by a complete new set.

    Args:
        out: Folder of everything that is built, with the executed notebooks.
        root: Root of the repository.
        force: Whether to build it even if nothing changed.
        partial: Whether some notebooks may never have been run.
        left_out: Notebooks left out of this book, by name, and why: see `Profile.left_out`.
        label: Name in progress messages.

    Raises:
        FusionError: A notebook was not executed yet, or the book does not build.
    """
    out = check_build(out, root)
    with locked(out / "book-source"):
        return _build_book(out, root, force, partial, left_out, label)


def _build_book(
    out: Path,
    root: Path,
    force: bool,
    partial: bool,
    left_out: Mapping[str, str] | None,
    label: str,
) -> Stage:
    source = assemble_book(out, root, partial=partial, left_out=left_out)
    digest = sha256_folder(source)
    known = read_stamp(out, "book")
    pages = out / "book"
    if not force and (pages / "index.html").exists() and known and known.digest == digest:
        print(f"{label}: unchanged (built in {known.seconds:.0f} s)", flush=True)
        return known

    print(f"{label}: building", flush=True)
    started = time.perf_counter()
    built = _run_builder(out, source, "html")
    if not unfinished(out, source) and (wrong := broken_pages(built)):
        raise FusionError(f"The book is not fit to publish: {'; '.join(wrong[:LAST_LINES])}")
    with replacing(pages) as new:
        shutil.move(built, new)
    shutil.rmtree(out / "book-build")
    publish_manifest(out)
    seconds = time.perf_counter() - started
    print(f"{label}: done in {seconds:.0f} s", flush=True)
    return write_stamp(out, Stage("book", digest, round(seconds, 1), reused=False))


def publish_manifest(out: Path) -> None:
    """Copy ``out/manifest.json``, if there is one, beside the pages for their readers."""
    if (out / "manifest.json").exists() and (out / "book").is_dir():
        write_bytes(out / "book" / "manifest.json", (out / "manifest.json").read_bytes())


def build_pdf(
    out: str | Path = Path("build"),
    *,
    root: Path = ROOT,
    left_out: Mapping[str, str] | None = None,
    label: str = "pdf",
) -> Path:
    """Print the whole book to ``out/book.pdf``, through one long page and a Chromium.

    Args:
        out: Folder of everything that is built, with the executed notebooks.
        root: Root of the repository.
        left_out: Notebooks left out, see `build_book`.
        label: Name in progress messages.

    Returns:
        The PDF.

    Raises:
        FusionError: There is no Chromium, a notebook was not executed yet, or either step fails.
    """
    out = check_build(out, root)
    browser = find_browser()
    with locked(out / "book-source"):
        return _build_pdf(out, root, browser, left_out, label)


def _build_pdf(
    out: Path, root: Path, browser: str, left_out: Mapping[str, str] | None, label: str
) -> Path:
    source = assemble_book(out, root, left_out=left_out)
    pdf = out / "book.pdf"
    digest = sha256_folder(source)
    known = read_stamp(out, "pdf")
    if pdf.exists() and known and known.digest == digest:
        print(f"{label}: unchanged (built in {known.seconds:.0f} s): {short(pdf)}", flush=True)
        return pdf

    print(f"{label}: building", flush=True)
    started = time.perf_counter()
    pages = _run_builder(out, source, "singlehtml")
    page = pages / "index.html"  # the paths on the page are relative to this folder
    text = (pages / f"{toc_pages(root)[0]}.html").read_text(encoding="utf-8")
    page.write_text(one_page(text), encoding="utf-8")
    print_page(page, out / ".book.partial.pdf", browser, log=out / "pdf.log")
    os.replace(out / ".book.partial.pdf", pdf)
    shutil.rmtree(out / "book-build")
    seconds = time.perf_counter() - started
    print(f"{label}: done in {seconds:.0f} s: {short(pdf)}", flush=True)
    write_stamp(out, Stage("pdf", digest, round(seconds, 1), reused=False))
    return pdf


def one_page(html: str) -> str:
    """Turn links to other pages into links within the one page that holds them all.

    Args:
        html: HTML of the single page, in which each page begins at ``#document-NAME``.
    """
    link = r'href="\.\./((?:book|notebooks)/[\w/-]+)\.html(#[^"]+)?"'
    return re.sub(link, lambda found: f'href="{found[2] or "#document-" + found[1]}"', html)


def find_browser() -> str:
    """A program that prints pages: what ``CHROME_PATH`` names, or else the first that is found.

    Raises:
        FusionError: There is none.
    """
    if named := os.environ.get("CHROME_PATH"):
        if found := shutil.which(named):
            return found
        raise FusionError(f"CHROME_PATH names {named}, which is no program: correct or unset it.")
    caches = [
        Path.home() / ".cache" / "ms-playwright",
        Path.home() / "Library/Caches/ms-playwright",
    ]
    if own := os.environ.get("PLAYWRIGHT_BROWSERS_PATH"):
        caches.insert(0, Path(own))
    installed = [
        str(path)
        for cache in caches
        for kind in PLAYWRIGHT
        for path in sorted(cache.glob(kind), reverse=True)
    ]
    for name in (*BROWSERS, *installed):
        if found := shutil.which(name):
            return found
    raise FusionError(
        "The PDF is printed by Chromium, and there is none on this machine's PATH or of "
        "Playwright: install it (Debian: apt install chromium), name it by CHROME_PATH, or read "
        "the same book in build/book/index.html."
    )


def print_page(page: Path, pdf: Path, browser: str, *, log: Path) -> None:
    """Print a page on disk to a PDF, after its equations are typeset.

    Raises:
        FusionError: The browser failed.
    """
    command = [browser, "--headless=new", "--disable-gpu", "--no-sandbox", "--hide-scrollbars"]
    command += ["--no-pdf-header-footer", "--generate-pdf-document-outline"]
    command += [f"--user-data-dir={pdf.parent / 'book-build' / 'browser'}"]
    command += ["--virtual-time-budget=120000", f"--print-to-pdf={pdf}", page.as_uri()]
    pdf.unlink(missing_ok=True)
    with log.open("w", encoding="utf-8") as stream:
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT)
    if done.returncode != 0 or not pdf.exists():
        raise FusionError(f"{browser} did not print {short(page)}: {_complaints(log)}")


def unfinished(out: Path, source: Path) -> dict[str, str]:
    """A notice about each notebook of a book's sources that failed or never ran, by name."""
    said = {}
    for name in toc_notebooks(source):
        if failed_copy(out, name).exists():
            where = failing_cell(failed_copy(out, name))
            said[name] = f"Its notebook failed at {where}. It is shown as far as it ran."
        elif not (out / "executed" / f"{name}.ipynb").exists():
            said[name] = "Its notebook was not run: the code below has no results yet."
    return said


def assemble_book(
    out: Path,
    root: Path = ROOT,
    *,
    partial: bool = False,
    left_out: Mapping[str, str] | None = None,
) -> Path:
    """Lay out the book's sources in ``out/book-source``: configuration, pages, executed notebooks.

    The sources of fusionlib come along, because the pages show parts of them beside the equations.
    Where notebooks are left out, the first page says which and why, and links to them become words.

    Raises:
        FusionError: A notebook of the table of contents was not executed yet, and `partial` is
            not set.
    """
    import nbformat

    source = out / "book-source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    shutil.copy2(root / "_config.yml", source / "_config.yml")
    left_out = left_out or {}
    files = {name: root / "notebooks" / f"{name}.ipynb" for name in left_out}
    titles = {name: _title(file) for name, file in files.items() if file.is_file()}
    toc = yaml.safe_dump(prune_toc(root, titles), sort_keys=False, allow_unicode=True)
    (source / "_toc.yml").write_text(toc, encoding="utf-8")
    for folder in ("book", "fusionlib", "companion"):
        if (root / folder).exists():
            ignore = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree(root / folder, source / folder, ignore=ignore)
    (source / "notebooks").mkdir()
    notices = unfinished(out, source)
    for name in toc_notebooks(source):
        path = out / "executed" / f"{name}.ipynb"
        if failed_copy(out, name).exists():
            path = failed_copy(out, name)
        if path.exists():
            notebook = nbformat.read(path, as_version=4)
        elif partial:  # what is stored in the repository is of other parameters
            notebook = read_source(root / "notebooks" / f"{name}.ipynb")
        else:
            raise FusionError(
                f"notebooks/{name}.ipynb was not executed yet: run `make reproduce`, which does."
            )
        fit_page(notebook, notices.get(name))
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = unlink(cell.source, f"notebooks/{name}", titles)
        nbformat.write(notebook, source / "notebooks" / f"{name}.ipynb")
    if titles:
        for page in (source / "book").rglob("*.md"):
            place = page.relative_to(source).with_suffix("").as_posix()
            text = unlink(page.read_text(encoding="utf-8"), place, titles)
            if place == toc_pages(source)[0]:
                reasons = {title: left_out[name] for name, title in titles.items()}
                text = _with_notice(text, reasons)
            page.write_text(text, encoding="utf-8")
    return source


def _title(notebook: Path) -> str:
    """The first heading of a notebook."""
    import nbformat

    heading = re.compile(r"^# (.+)", re.MULTILINE)
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "markdown" and (found := heading.search(cell.source)):
            return str(found[1]).strip()
    return notebook.stem


def _with_notice(text: str, reasons: Mapping[str, str]) -> str:
    """A page with a notice under its title that lists what the book leaves out, and why."""
    items = "".join(f"- *{title}*: {why}.\n" for title, why in reasons.items())
    said = (
        "The text of these pages was written beside the `embedded` profile. Numbers and pictures "
        "name the profile that they were made under. Left out are\n\n"
    )
    title, rest = text.split("\n", 1)
    return f"{title}\n\n```{{admonition}} Another profile\n{said}{items}```\n{rest}"


def fit_page(notebook: Any, notice: str | None = None) -> None:
    """Make an executed notebook (an `nbformat` node) a page, in place.

    Args:
        notebook: Executed notebook, whose outputs lose what no page shows.
        notice: Why it is not finished, to be said under its title.
    """
    import nbformat

    marks = "papermill-error-cell-tag"  # papermill's own, in raw HTML, before the title
    notebook.metadata.pop("widgets", None)  # their state is useless without a kernel
    notebook.cells = [c for c in notebook.cells if marks not in c.metadata.get("tags", [])]
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):  # the run's own are shown
            cell.metadata.tags.append("hide-input")
            cell.metadata["mystnb"] = {"code_prompt_show": "Show the default parameters"}
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if not is_widget_only(output)]
        for output in cell.get("outputs", []):
            drop_exported(output)
            data = output.get("data", {})
            if "image/png" in data:
                data.pop("image/jpeg", None)
    publish_alt(notebook)
    if notice:
        text = f"```{{admonition}} This page is not finished\n:class: danger\n{notice}\n```"
        notebook.cells.insert(1, nbformat.v4.new_markdown_cell(text))


def is_widget_only(output: Any) -> bool:
    """Whether an output is a widget that shows nothing without a kernel."""
    data = output.get("data", {})
    return WIDGET in data and not data.keys() & {"image/png", "text/html"}


def _run_builder(out: Path, source: Path, kind: str) -> Path:
    """Run Jupyter Book; returns the folder of what it made.

    Raises:
        FusionError: It failed.
    """
    work = out / "book-build"
    shutil.rmtree(work, ignore_errors=True)
    run = "from jupyter_book.cli.main import main; main()"  # it has no `python -m`
    command = [sys.executable, "-c", run, "build", str(source), "--path-output", str(work)]
    command += ["--keep-going", *([] if unfinished(out, source) else ["--warningiserror"])]
    command += _builder_options(kind)
    # The docstrings shown are those of the sources beside the pages, not of an installed fusionlib.
    path = os.pathsep.join(filter(None, [str(source), os.environ.get("PYTHONPATH")]))
    plain = os.environ | {"NO_COLOR": "1", "PYTHONPATH": path}
    log = out / ("book.log" if kind == "html" else "pdf.log")
    with log.open("w", encoding="utf-8") as stream:
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, cwd=out, env=plain)
    built = work / "_build" / kind
    if done.returncode != 0 or not built.exists():
        raise FusionError(f"The book did not build: {_complaints(log)} (whole log: {short(log)})")
    return built


def _builder_options(kind: str) -> Sequence[str]:
    return [] if kind == "html" else ["--builder", "custom", "--custom-builder", kind]


def _complaints(log: Path) -> str:
    """The lines of a log that say what was wrong, or its last ones."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    wrong = [line for line in lines if "WARNING" in line or "ERROR" in line]
    return "; ".join((wrong or lines)[-LAST_LINES:])
