"""Notebooks: finding them, their order, and running one unless nothing changed.

A notebook's metadata may say which others it comes after, because it reads what they leave:
``{"fusionlib": {"after": ["table1_identity"]}}``, or ``["*"]`` for all that do not say so too. It
then waits for them, and is run again when one of them was run on something new. With
``"reads": ["../book/records"]`` it is run again when something in such a folder changes.
"""

from __future__ import annotations

import ast
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from companion.publishing.exports import export_notebook, remove_exports
from companion.publishing.tasks import Stage, read_stamp, write_stamp
from companion.publishing.toc import toc_notebooks
from fusionlib.errors import FusionError
from fusionlib.support.files import check_apart, short
from fusionlib.support.provenance import sha256_folder, sha256_json
from fusionlib.support.signals import Stopped, received

if TYPE_CHECKING:
    from nbformat import NotebookNode

LAST_LINES = 6
"""Number of last lines of a failing cell's error that a message repeats."""

ALL = "*"
"""Entry in a notebook's metadata that stands for all other notebooks."""


def find_notebooks(root: Path) -> list[Path]:
    """The repository's notebooks: first those of the table of contents, in its order.

    Raises:
        FusionError: There are none, or one of the table of contents does not exist.
    """
    present = sorted((root / "notebooks").glob("*.ipynb"))
    if not present:
        raise FusionError(
            f"There are no notebooks in {root / 'notebooks'}: run this from a checkout of the "
            "repository, with fusionlib installed by `make env` or `pip install -e .`."
        )
    listed = [root / "notebooks" / f"{name}.ipynb" for name in toc_notebooks(root)]
    for notebook in listed:
        if notebook not in present:
            raise FusionError(f"_toc.yml lists {notebook.relative_to(root)}, which does not exist.")
    return listed + [notebook for notebook in present if notebook not in listed]


def choose_notebooks(notebooks: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """The named notebooks, in the order of `notebooks`; all of them if no name is given.

    Args:
        notebooks: Notebooks to choose from.
        names: File stems, or beginnings that only one notebook has.

    Raises:
        FusionError: A name fits no notebook, or several.
    """
    chosen = set()
    for name in names:
        stem = Path(name).name.removesuffix(".ipynb")
        exact = [notebook for notebook in notebooks if notebook.stem == stem]
        found = exact or [notebook for notebook in notebooks if notebook.stem.startswith(stem)]
        if len(found) != 1:
            known = ", ".join(notebook.stem for notebook in found or notebooks)
            problem = "could be any of" if found else "is no notebook; there are"
            raise FusionError(f"The name {name} {problem} {known}.")
        chosen |= set(found)
    return [notebook for notebook in notebooks if not names or notebook in chosen]


def read_source(notebook: Path) -> NotebookNode:
    """A notebook as its author wrote it: without the outputs that are stored in it.

    Whatever depends on a notebook depends on this, so that storing outputs runs nothing again.
    """
    import nbformat

    node = nbformat.read(notebook, as_version=4)
    for cell in node.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    node.metadata.get("fusionlib", {}).pop("stored", None)
    if not node.metadata.get("fusionlib", True):
        del node.metadata["fusionlib"]
    return node


def comes_after(notebooks: Sequence[Path]) -> dict[str, list[str]]:
    """The notebooks that each notebook comes after, by name.

    Raises:
        FusionError: A notebook's metadata names one that does not exist.
    """
    import nbformat

    said: dict[str, list[str]] = {}
    for notebook in notebooks:
        metadata = nbformat.read(notebook, as_version=4).metadata
        said[notebook.stem] = list(metadata.get("fusionlib", {}).get("after", []))
    last = [name for name, others in said.items() if ALL in others]
    after = {}
    for name, others in said.items():
        for other in others:
            if other != ALL and other not in said:
                raise FusionError(
                    f"{name}.ipynb says in its metadata that it comes after '{other}', which is no "
                    f"notebook; there are {', '.join(said)}."
                )
        wanted = {o for o in others if o != ALL}
        wanted |= {o for o in said if o not in last} if name in last else set()
        after[name] = [other for other in said if other in wanted]
    return after


def reads(notebook: Path) -> dict[str, str]:
    """Content hashes of the folders that a notebook alone reads, by name.

    Raises:
        FusionError: Its metadata names one that does not exist.
    """
    import nbformat

    named = nbformat.read(notebook, as_version=4).metadata.get("fusionlib", {}).get("reads", [])
    for name in named:
        if not (notebook.parent / name).is_dir():
            raise FusionError(
                f"{notebook.name} says in its metadata that it reads {name}: no folder."
            )
    return {name: sha256_folder(notebook.parent / name) for name in named}


def declared_parameters(notebook: Path) -> dict[str, Any]:
    """The parameters of a notebook with their defaults; None for one that is no literal.

    Args:
        notebook: Notebook whose cell tagged ``parameters`` is read; nothing is run.
    """
    import papermill

    values = {}
    for name, parameter in papermill.inspect_notebook(str(notebook)).items():
        try:
            values[name] = ast.literal_eval(parameter["default"])
        except (ValueError, SyntaxError):
            values[name] = None
    return values


KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}
"""Names of the types that a parameter may have."""


def _check_kinds(notebook: str, former: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse values of other types than the defaults, with which a cell would fail later."""
    for name, value in given.items():
        kind = type(former[name])
        taken = {float: (int, float)}.get(kind, (kind,))
        if kind in KINDS and type(value) not in taken:
            raise FusionError(
                f"The parameter {name!r} of {notebook}.ipynb is {KINDS[kind]} ({former[name]!r} "
                f"unless another is given), not {value!r}: correct the -p or the profile that "
                "gives it."
            )


def fit_parameters(
    notebooks: Sequence[Path],
    of_profile: Mapping[str, Mapping[str, Any]],
    given: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """Parameters for each notebook: the profile's values, and over them the given ones.

    Args:
        notebooks: Notebooks that are to be run.
        of_profile: Values by notebook name; the notebook has to declare each.
        given: Values for every notebook that declares them; at least one has to.

    Raises:
        FusionError: A parameter is not declared, or a value is of another type than the one
            that it stands for.
    """
    declared = {notebook.stem: declared_parameters(notebook) for notebook in notebooks}
    for name, taken in declared.items():
        if unknown := ({"profile", "out"} | of_profile.get(name, {}).keys()) - taken.keys():
            raise FusionError(
                f"{name}.ipynb takes no parameter '{min(unknown)}': declare it in the cell tagged "
                "`parameters`, or take it out of the profile."
            )
    # These two are the command's own.
    free = set().union(*declared.values()) - {"profile", "out"}
    if unknown := given.keys() - free:
        raise FusionError(
            f"No notebook that is to run takes a parameter '{min(unknown)}' by -p; "
            f"the parameters of {', '.join(declared)}: {', '.join(sorted(free)) or 'none'}."
        )
    fitting = {}
    for name, taken in declared.items():
        profiled = of_profile.get(name, {})
        own = {key: value for key, value in given.items() if key in taken}
        _check_kinds(name, taken, profiled)
        # The notebook's own None can be had back, whatever the profile puts in its place.
        typed = {k: v for k, v in own.items() if (v, taken[k]) != (None, None)}
        _check_kinds(name, {**taken, **profiled}, typed)
        fitting[name] = {**profiled, **own}
    return fitting


def run_notebook(
    notebook: Path,
    parameters: Mapping[str, Any],
    out: Path,
    inputs: Mapping[str, str],
    *,
    after: Mapping[str, str] | None = None,
    force: bool = False,
    progress: bool = True,
    label: str = "",
) -> Stage:
    """Run one notebook into ``out/executed``, unless it was run before with the same inputs.

    The notebook runs in its own folder, as JupyterLab would run it, and is handed the parameter
    `out` besides the given ones: the folder ``out/study``, where it keeps what it generates. The
    executed copy appears under its name only when every cell succeeded, and its figures and tables
    under ``out/exports``. Of a failure, ``NAME.failed.ipynb`` is left instead.

    Args:
        notebook: Notebook to run; it is not changed.
        parameters: Values for its cell tagged ``parameters``, which declares them.
        out: Folder of everything that is built.
        inputs: Content hashes of what the notebook depends on besides itself.
        after: Digests of the notebooks that it comes after, by name.
        force: Whether to run it even if nothing changed.
        progress: Whether to show a progress bar in a terminal.
        label: Name in progress messages.

    Raises:
        FusionError: A cell failed; the message names it and repeats the error's last lines.
    """
    label = label or notebook.name
    name = notebook.stem
    executed = out / "executed" / notebook.name
    failed = failed_copy(out, name)
    parameters = {**parameters, "out": os.path.relpath(out / "study", notebook.parent)}
    source = sha256_json(read_source(notebook))
    made_from = {"notebook": source, "inputs": inputs, "parameters": parameters}
    further = {"after": dict(after or {}), "reads": reads(notebook)}
    digest = sha256_json(made_from | {what: value for what, value in further.items() if value})
    record = {"digest": digest, "parameters": parameters}
    known = read_stamp(out, name)
    if not force and executed.exists() and known and known.digest == digest:
        print(f"{label}: unchanged (ran {known.seconds:.0f} s)", flush=True)
        failed.unlink(missing_ok=True)  # of something that was taken back since
        export_notebook(executed, out, record, again=False)
        return known

    (out / "study").mkdir(parents=True, exist_ok=True)
    print(f"{label}: running", flush=True)
    started = time.perf_counter()
    try:
        execute_notebook(notebook, executed, failed, parameters, progress=progress)
    except FusionError:
        remove_exports(out, name)  # those of an earlier run would be taken for this one's
        print(f"{label}: failed at {failing_cell(failed)}", flush=True)
        raise
    seconds = time.perf_counter() - started
    export_notebook(executed, out, record)
    print(f"{label}: done in {seconds:.0f} s", flush=True)
    return write_stamp(out, Stage(name, digest, round(seconds, 1), reused=False))


def execute_notebook(
    notebook: Path,
    executed: Path,
    failed: Path,
    parameters: Mapping[str, Any] | None = None,
    *,
    progress: bool = False,
) -> None:
    """Run a notebook by papermill in a fresh kernel and its own folder, as JupyterLab would.

    Args:
        notebook: Notebook to run; it is not changed.
        executed: File of the copy with outputs, written only if every cell succeeded.
        failed: File of a copy as far as it ran, if a cell failed; removed otherwise.
        parameters: Values in place of the notebook's own.
        progress: Whether to show a progress bar in a terminal.

    Raises:
        FusionError: A cell failed; the message names it and repeats the error's last lines.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    for folder in (executed.parent, failed.parent):
        folder.mkdir(parents=True, exist_ok=True)
    check_apart(executed, notebook)
    partial = executed.with_name(f".{notebook.stem}.{os.getpid()}.partial.ipynb")
    try:
        papermill.execute_notebook(
            str(notebook),
            str(partial),
            dict(parameters or {}),
            kernel_name="python3",
            # Not `cwd`: papermill would change the folder of this process, other threads and all.
            resources={"metadata": {"path": str(notebook.parent)}},
            progress_bar=progress and sys.stderr.isatty(),
            extra_arguments=["--log-level=ERROR"],  # of the kernel: it warns of plain TCP each time
        )
        os.replace(partial, executed)
    except (PapermillExecutionError, RuntimeError) as error:  # the latter from a kernel's death
        if stop := received():
            raise Stopped(stop) from error
        os.replace(partial, failed)
        said = f"{error}, as kernels do when memory runs out"
        if isinstance(error, PapermillExecutionError):
            said = f"{error.ename}: {error.evalue}"
        message = "\n".join(said.strip().splitlines()[-LAST_LINES:])
        raise FusionError(
            f"{notebook.name} failed at {failing_cell(failed)}: {message} "
            f"(the notebook as far as it ran, with the traceback: {short(failed)})"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    failed.unlink(missing_ok=True)


def failed_copy(out: Path, name: str) -> Path:
    """File of a failed notebook as far as it ran; it exists until the notebook succeeds."""
    return out / "executed" / f"{name}.failed.ipynb"


def failing_cell(path: Path) -> str:
    """The last cell that papermill started in a notebook, and its first line."""
    import nbformat

    cells = nbformat.read(path, as_version=4).cells
    started = [
        (number, cell)
        for number, cell in enumerate((c for c in cells if c.cell_type == "code"), start=1)
        if cell.metadata.get("papermill", {}).get("start_time")
    ]
    if not started:
        return "its start"
    number, cell = started[-1]
    lines = cell.source.strip().splitlines() or [""]
    return f"In [{cell.execution_count or number}], which begins with `{lines[0]}`"
