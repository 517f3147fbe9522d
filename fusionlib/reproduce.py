"""From the notebooks to the book: run what changed, assemble the pages, build.

Every notebook is run by papermill into ``build/executed``, and the book is built from the executed
copies, so the notebooks in git hold no output. A notebook is run again only when something that can
change its output changed: its own text, the sources of fusionlib, the data and weights, the profile
or the lock file. Those are compared by content, never by time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fusionlib.errors import FusionError
from fusionlib.manifest import manifest, sha256_file, sha256_folder, sha256_json
from fusionlib.profiles import ROOT, Profile, load_profile

LAST_LINES = 6
"""How much of a failing cell's or build's output an error message repeats."""


@dataclass(frozen=True)
class Stage:
    """One step of a reproduction.

    Attributes:
        name: the notebook's, or ``book``.
        digest: hash of what it was made from.
        seconds: how long it took when it was last run.
        reused: whether that was an earlier run.
    """

    name: str
    digest: str
    seconds: float
    reused: bool


def reproduce(
    profile: str = "embedded",
    *,
    out: str | Path = Path("build"),
    force: bool = False,
    root: Path = ROOT,
) -> Path:
    """Run every notebook under a profile and build the book from the results.

    Args:
        profile: name of a profile in ``fusionlib/profiles``, or the path of a profile's YAML file.
        out: folder for everything that is built. What the notebooks generate goes to ``study/``,
            the executed notebooks to ``executed/``, the pages to ``book/``, and ``manifest.json``
            says what they were made from.
        force: run and build everything, whether or not anything changed.
        root: the repository to reproduce.

    Returns:
        The book's first page.

    Raises:
        FusionError: if there are no notebooks, a notebook fails or the book does not build.
    """
    out = Path(out).resolve()
    root = Path(root).resolve()
    settings = load_profile(profile)
    if Path(profile).is_file():  # the notebooks run in another folder
        profile = str(Path(profile).resolve())
    notebooks = find_notebooks(root)
    inputs = _shared_inputs(root, settings)
    started = time.perf_counter()
    stages = []
    with _environment(_offline(inputs)):
        for number, notebook in enumerate(notebooks, start=1):
            label = f"[{number}/{len(notebooks) + 1}] {notebook.relative_to(root)}"
            parameters = {"profile": profile, **settings.notebooks.get(notebook.stem, {})}
            stages.append(run_notebook(notebook, parameters, out, inputs, force=force, label=label))
    label = f"[{len(notebooks) + 1}/{len(notebooks) + 1}] book"
    stages.append(build_book(out, root=root, force=force, label=label))

    record = manifest(
        profile=profile,
        files=inputs,
        stages=[vars(stage) for stage in stages],
    )
    _write(out / "manifest.json", json.dumps(record, indent=2) + "\n")
    page = out / "book" / "index.html"
    print(f"what it was made from: {_short(out / 'manifest.json')}")
    print(f"done in {time.perf_counter() - started:.0f} s; open the book: {page.as_uri()}")
    return page


def find_notebooks(root: Path) -> list[Path]:
    """The repository's notebooks: first those of the table of contents, in its order.

    Raises:
        FusionError: if there are none, or one of the table of contents does not exist.
    """
    present = sorted((root / "notebooks").glob("*.ipynb"))
    if not present:
        raise FusionError(
            f"There are no notebooks in {root / 'notebooks'}: run this from a checkout of the "
            "repository, with fusionlib installed by `make env` or `pip install -e .`."
        )
    listed = [root / f"{page}.ipynb" for page in toc_pages(root) if page.startswith("notebooks/")]
    for notebook in listed:
        if notebook not in present:
            raise FusionError(f"_toc.yml lists {notebook.relative_to(root)}, which does not exist.")
    return listed + [notebook for notebook in present if notebook not in listed]


def toc_pages(root: Path) -> list[str]:
    """Pages of ``_toc.yml`` in reading order, as it names them: without their file extension."""

    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, list):
            for item in node:
                yield from walk(item)
        elif isinstance(node, dict):
            if "root" in node or "file" in node:
                yield node.get("root") or node["file"]
            for key in ("parts", "chapters", "sections"):
                yield from walk(node.get(key, []))

    return list(walk(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))))


def run_notebook(
    notebook: Path,
    parameters: dict[str, Any],
    out: Path,
    inputs: dict[str, str],
    *,
    force: bool = False,
    label: str = "",
) -> Stage:
    """Run one notebook into ``out/executed``, unless it was run before with the same inputs.

    The notebook runs in its own folder, as JupyterLab would run it, and is handed the parameter
    `out` besides the given ones: the folder ``out/study``, where it keeps what it generates. The
    executed copy appears under its name only when every cell succeeded.

    Args:
        notebook: the notebook to run; it is not changed.
        parameters: values for its cell tagged ``parameters``.
        out: folder of everything that is built.
        inputs: content hashes of what the notebook depends on besides itself.
        force: run it even if nothing changed.
        label: what to call it in progress messages.

    Raises:
        FusionError: if the notebook does not declare a parameter, or if a cell fails: names the
            cell and repeats the error's last lines.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    label = label or notebook.name
    executed = out / "executed" / notebook.name
    parameters = parameters | {"out": os.path.relpath(out / "study", notebook.parent)}
    digest = sha256_json(
        {"notebook": sha256_file(notebook), "inputs": inputs, "parameters": parameters}
    )
    known = _read_stamp(out, notebook.stem)
    if not force and executed.exists() and known and known.digest == digest:
        print(f"{label}: unchanged (ran {known.seconds:.0f} s)", flush=True)
        return known

    unknown = parameters.keys() - papermill.inspect_notebook(str(notebook)).keys()
    if unknown:
        raise FusionError(
            f"{notebook.name} takes no parameter '{min(unknown)}': declare it in the cell tagged "
            "`parameters`, or take it out of the profile."
        )
    executed.parent.mkdir(parents=True, exist_ok=True)
    (out / "study").mkdir(exist_ok=True)
    partial = executed.with_name(f".{notebook.stem}.{os.getpid()}.partial.ipynb")
    print(f"{label}: running", flush=True)
    started = time.perf_counter()
    try:
        papermill.execute_notebook(
            str(notebook),
            str(partial),
            parameters,
            kernel_name="python3",
            cwd=str(notebook.parent),
            progress_bar=sys.stderr.isatty(),
            extra_arguments=["--log-level=ERROR"],  # of the kernel: it warns of plain TCP each time
        )
        os.replace(partial, executed)
    except PapermillExecutionError as error:
        failed = executed.with_suffix(".failed.ipynb")
        os.replace(partial, failed)
        message = "\n".join(f"{error.ename}: {error.evalue}".strip().splitlines()[-LAST_LINES:])
        raise FusionError(
            f"{notebook.name} failed at In [{error.exec_count}], which begins with "
            f"`{error.source.strip().splitlines()[0]}`: {message} "
            f"(the notebook as far as it ran, with the traceback: {_short(failed)})"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    seconds = time.perf_counter() - started
    print(f"{label}: done in {seconds:.0f} s", flush=True)
    return _write_stamp(out, Stage(notebook.stem, digest, round(seconds, 1), reused=False))


def build_book(
    out: str | Path = Path("build"),
    *,
    root: Path = ROOT,
    force: bool = False,
    label: str = "book",
) -> Stage:
    """Build the book into ``out/book`` from the pages and the executed notebooks.

    The sources are assembled in ``out/book-source``, with each notebook replaced by its executed
    copy, so nothing is executed here. A warning of the book's builder, such as a broken reference,
    is an error. The pages on disk are replaced only by a complete new set.

    Args:
        out: folder of everything that is built; holds the executed notebooks.
        root: the repository.
        force: build it even if nothing changed.
        label: what to call it in progress messages.

    Raises:
        FusionError: if a notebook was not executed yet, or the book does not build.
    """
    out = Path(out).resolve()
    source = assemble_book(out, root)
    digest = sha256_folder(source)
    known = _read_stamp(out, "book")
    pages = out / "book"
    if not force and (pages / "index.html").exists() and known and known.digest == digest:
        print(f"{label}: unchanged (built in {known.seconds:.0f} s)", flush=True)
        return known

    print(f"{label}: building", flush=True)
    started = time.perf_counter()
    work = out / "book-build"
    shutil.rmtree(work, ignore_errors=True)
    run_builder = "from jupyter_book.cli.main import main; main()"  # it has no `python -m`
    command = [sys.executable, "-c", run_builder, "build", str(source)]
    command += ["--path-output", str(work), "--warningiserror", "--keep-going"]
    # The docstrings shown are those of the sources beside the pages, not of an installed fusionlib.
    path = os.pathsep.join(filter(None, [str(source), os.environ.get("PYTHONPATH")]))
    plain = os.environ | {"NO_COLOR": "1", "PYTHONPATH": path}
    log = out / "book.log"
    with log.open("w", encoding="utf-8") as stream:
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, cwd=out, env=plain)
    built = work / "_build" / "html"
    if done.returncode != 0 or not (built / "index.html").exists():
        raise FusionError(f"The book did not build: {_complaints(log)} (whole log: {_short(log)})")
    shutil.rmtree(pages, ignore_errors=True)
    os.replace(built, pages)
    shutil.rmtree(work)
    seconds = time.perf_counter() - started
    print(f"{label}: done in {seconds:.0f} s", flush=True)
    return _write_stamp(out, Stage("book", digest, round(seconds, 1), reused=False))


def assemble_book(out: Path, root: Path = ROOT) -> Path:
    """Lay out the book's sources in ``out/book-source``: configuration, pages, executed notebooks.

    The sources of fusionlib come along, because the pages show parts of them beside the equations.

    Raises:
        FusionError: if a notebook of the table of contents was not executed yet.
    """
    import nbformat

    source = out / "book-source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy2(root / name, source / name)
    for folder in ("book", "fusionlib"):
        if (root / folder).exists():
            ignore = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree(root / folder, source / folder, ignore=ignore)
    (source / "notebooks").mkdir()
    for page in toc_pages(root):
        if not page.startswith("notebooks/"):
            continue
        name = f"{page.removeprefix('notebooks/')}.ipynb"
        if not (out / "executed" / name).exists():
            raise FusionError(
                f"notebooks/{name} was not executed yet: run `make reproduce`, which does."
            )
        notebook = nbformat.read(out / "executed" / name, as_version=4)
        notebook.metadata.pop("widgets", None)  # their state serves nobody without a kernel
        for cell in notebook.cells:  # the run's own parameters are shown, the defaults on a click
            if "parameters" in cell.metadata.get("tags", []):
                cell.metadata.tags.append("hide-input")
                cell.metadata["mystnb"] = {"code_prompt_show": "Show the default parameters"}
        nbformat.write(notebook, source / "notebooks" / name)
    return source


def _shared_inputs(root: Path, profile: Profile) -> dict[str, str]:
    """Content hashes of everything besides itself that a notebook's output can depend on.

    The sources, the data, the lock file and the profile; of the profile's models, the hash of a
    folder that lies outside ``data/``, and the name of a model that comes from a hub.
    """
    files = [root / "requirements.lock"]
    files += [f for f in (root / "fusionlib").rglob("*") if f.suffix in (".py", ".yaml")]
    files += [f for f in (root / "data").rglob("*") if f.is_file()]
    inputs = {f.relative_to(root).as_posix(): sha256_file(f) for f in sorted(files) if f.exists()}
    inputs["profile"] = sha256_json(profile.model_dump(mode="json"))
    for field in ("base_model", "adapter", "clip_model"):
        name = getattr(profile, field)
        if not Path(name).is_dir():
            inputs[f"hub:{field}"] = name
        elif root / "data" not in Path(name).resolve().parents:
            inputs[f"folder:{field}"] = sha256_folder(name)
    return inputs


def _offline(inputs: dict[str, str]) -> dict[str, str]:
    """Without a model from a hub there is nothing to ask a hub for: say so to its client."""
    from_hub = any(name.startswith("hub:") for name in inputs)
    return {} if from_hub else {"HF_HUB_OFFLINE": "1"}


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Set environment variables, which the notebooks' kernels inherit, for a while."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _complaints(log: Path) -> str:
    """The lines of a build log that say what was wrong, or its last ones."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    wrong = [line for line in lines if "WARNING" in line or "ERROR" in line]
    return "; ".join((wrong or lines)[-LAST_LINES:])


def _read_stamp(out: Path, name: str) -> Stage | None:
    """What was recorded when this stage last succeeded, if it did."""
    try:
        record = json.loads((out / "stamps" / f"{name}.json").read_text(encoding="utf-8"))
        return Stage(**(record | {"reused": True}))
    except (OSError, ValueError, TypeError):
        return None


def _write_stamp(out: Path, stage: Stage) -> Stage:
    _write(out / "stamps" / f"{stage.name}.json", json.dumps(vars(stage)) + "\n")
    return stage


def _write(path: Path, text: str) -> None:
    """Write a file so that a reader never meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _short(path: Path) -> str:
    """A path as seen from the current folder, where that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)
