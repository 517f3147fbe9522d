"""The repository as a whole: one set of versions, a book whose parts exist, and its builder."""

import ast
import json
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import pytest
import yaml

from companion.publishing.book import build_book
from companion.publishing.notebooks import find_notebooks
from companion.publishing.reproduce import reproduce
from companion.publishing.toc import toc_pages
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT
from tests.helpers.tiny_book import make_repository

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def locked() -> dict[str, str]:
    """Versions of the lock file by normalised name."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    for line in pins:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._]+", line), f"not pinned: {line}"
    return {normal(name): version for name, version in (line.split("==") for line in pins)}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: Iterable[str]) -> set[str]:
    """Normalised names of the packages in a list of requirements."""
    return {normal(re.split(r"[<>=!~;\[ ]", line)[0]) for line in requirements}


def test_conda_users_get_the_locked_set() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert "python=3.11" in environment["dependencies"]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    pairs = [line.split("==") for line in pip]
    assert {normal(name): version for name, version in pairs} == locked()


def test_the_lock_holds_every_declared_dependency_and_satisfies_it() -> None:
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    pins = locked()
    for requirement in map(Requirement, lines):
        assert requirement.specifier.contains(pins[normal(requirement.name)], prereleases=True), (
            f"{requirement} is not met by the lock file"
        )


def imported_packages(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield every third-party package that a source file in the folder imports, anywhere in it."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
            for package in {module.split(".")[0] for module in modules}:
                if package not in (*sys.stdlib_module_names, "fusionlib", "companion"):
                    yield path, package


@pytest.mark.parametrize("package", ["fusionlib", "companion"])
def test_every_imported_package_is_declared(package: str) -> None:
    """What fusionlib needs is always installed; what companion needs may be an extra.

    Masks from regions and faces in photographs are optional in fusionlib: without scipy or dlib
    they raise an error that names the package to install.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    allowed = declared(project["dependencies"])
    allowed |= (
        {"dlib-bin", "scipy"} if package == "fusionlib" else declared(sum(extras.values(), []))
    )
    # The wheel dlib-bin names its module only by the file, which importlib.metadata overlooks.
    distributions = {"dlib": ["dlib-bin"], **packages_distributions()}
    for path, imported in imported_packages(ROOT / package):
        providers = {normal(name) for name in distributions[imported]}
        assert providers & allowed, f"{path.name} imports {imported}: not in pyproject.toml"


def test_ci_runs_what_a_reader_runs() -> None:
    script = ROOT / ".ci" / "run"
    assert "make test" in script.read_text()
    assert script.stat().st_mode & 0o111, ".ci/run is not executable"


def test_every_page_of_the_book_exists() -> None:
    for page in toc_pages(ROOT):
        assert any((ROOT / f"{page}.{kind}").exists() for kind in ("md", "ipynb")), page


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_path_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    paths = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    folders = "fusionlib|companion|benchmarks|notebooks|tests|data|docs|book"
    paths += re.findall(rf"(?<![\w/.:-])((?:{folders})/[\w./-]*\w)", text)
    assert paths
    for path in paths:
        assert (ROOT / path).exists(), f"{page} names {path}, which does not exist"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_have_parameters(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert "profile" in tagged[0].source and "out" in tagged[0].source


COUNT_RUNS = """
from pathlib import Path
runs = Path(out) / "runs.txt"
runs.write_text((runs.read_text() if runs.exists() else "") + profile + "\\n")
print("the number is", 6 * 7)
"""


def test_reproduce_runs_what_changed_and_builds_the_book_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = make_repository(tmp_path / "repository", COUNT_RUNS), tmp_path / "build"
    runs = out / "study" / "runs.txt"

    page = reproduce("embedded", out=out, root=root)
    assert page.as_uri() in capsys.readouterr().out
    assert page.exists() and runs.read_text() == "embedded\n"
    assert "the number is 42" in (out / "book" / "notebooks" / "tiny.html").read_text()
    record = json.loads((out / "manifest.json").read_text())
    assert record["profile"] == "embedded"
    assert [stage["reused"] for stage in record["stages"]] == [False, False]

    built = page.stat().st_mtime_ns
    reproduce("embedded", out=out, root=root)
    assert runs.read_text() == "embedded\n" and page.stat().st_mtime_ns == built
    assert capsys.readouterr().out.count("unchanged") == 2

    (root / "data" / "faces.csv").write_text("a new face\n")
    (root / "book" / "intro.md").write_text("# Tiny\n\n{doc}`no-such-page`\n")
    with pytest.raises(FusionError, match="no-such-page"):
        reproduce("embedded", out=out, root=root)
    assert runs.read_text() == "embedded\n" * 2
    assert page.stat().st_mtime_ns == built, "the last good book stays"

    (root / "book" / "intro.md").write_text("# Tiny\n\nAnother word.\n")
    reproduce("embedded", out=out, root=root)
    assert runs.read_text() == "embedded\n" * 2, "a page's text is no reason to run a notebook"
    assert "Another word." in (out / "book" / "book" / "intro.html").read_text()


def test_the_book_shows_the_docstrings_of_the_repository_it_is_built_from(tmp_path: Path) -> None:
    root, out = make_repository(tmp_path / "repository", "pass"), tmp_path / "build"
    (root / "_toc.yml").write_text("format: jb-book\nroot: book/intro\n")
    (root / "_config.yml").write_text(
        "title: Tiny\nonly_build_toc_files: true\n"
        "sphinx: {extra_extensions: [sphinx.ext.autodoc]}\n"
    )
    (root / "book" / "intro.md").write_text(
        "# Tiny\n\n```{eval-rst}\n.. autofunction:: fusionlib.hello\n```\n"
    )
    module = root / "fusionlib" / "__init__.py"
    for greeting in ("Say hello.", "Say good bye."):
        module.write_text(f'def hello() -> None:\n    """{greeting}"""\n')
        build_book(out, root=root)
        assert greeting in (out / "book" / "book" / "intro.html").read_text()


def test_a_parameter_that_the_notebook_does_not_declare_is_an_error(tmp_path: Path) -> None:
    root = make_repository(tmp_path / "repository", "pass")
    profile = yaml.safe_load((ROOT / "fusionlib/profiles/embedded.yaml").read_text())
    profile["notebooks"] = {"tiny": {"num_poeple": 3}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(profile))
    with pytest.raises(FusionError, match="num_poeple"):
        reproduce(str(tmp_path / "mine.yaml"), out=tmp_path / "build", root=root)


def test_a_folder_without_notebooks_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FusionError, match="no notebooks"):
        find_notebooks(tmp_path)
