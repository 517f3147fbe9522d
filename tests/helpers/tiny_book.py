"""The smallest repository that `reproduce` accepts: one page, and notebooks of one cell each."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat


def make_repository(
    root: Path,
    sources: str | Mapping[str, str],
    *,
    after: Mapping[str, Sequence[str]] | None = None,
    parameters: str = 'profile = "none"\nout = "."',
) -> Path:
    """Write it.

    Args:
        root: folder to write it to.
        sources: code of each notebook, by name; of one alone, which is then called ``tiny``.
        after: what each says that it comes after.
        parameters: what every notebook declares.
    """
    sources = {"tiny": sources} if isinstance(sources, str) else sources
    for folder in ("notebooks", "book", "fusionlib", "data"):
        (root / folder).mkdir(parents=True)
    (root / "requirements.lock").write_text("pip==1\n")
    (root / "_config.yml").write_text(
        'title: Tiny\nonly_build_toc_files: true\nexecute: {execute_notebooks: "off"}\n'
    )
    chapters = "".join(f"  - file: notebooks/{name}\n" for name in sources)
    (root / "_toc.yml").write_text(f"format: jb-book\nroot: book/intro\nchapters:\n{chapters}")
    first = next(iter(sources))
    (root / "book" / "intro.md").write_text(f"# Tiny\n\n{{doc}}`../notebooks/{first}`\n")
    for name, source in sources.items():
        write_notebook(root, name, source, parameters, (after or {}).get(name, ()))
    return root


def write_notebook(
    root: Path, name: str, source: str, parameters: str, after: Sequence[str] = ()
) -> None:
    """Write one notebook: a title, its parameters, and a cell of code."""
    declaration = nbformat.v4.new_code_cell(parameters)
    declaration.metadata["tags"] = ["parameters"]
    title = nbformat.v4.new_markdown_cell(f"# A number of {name}")
    cells = [title, declaration, nbformat.v4.new_code_cell(source)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "language": "python",
        "display_name": "Python 3",
    }
    if after:
        notebook.metadata["fusionlib"] = {"after": list(after)}
    nbformat.write(notebook, root / "notebooks" / f"{name}.ipynb")
