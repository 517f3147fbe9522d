"""Every public name is on the book's API page and does what its docstring says and shows."""

import ast
import dataclasses
import doctest
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from docutils import nodes
from docutils.utils import new_document

import fusionlib
from companion.publishing.toc import toc_pages
from fusionlib.profiles import ROOT
from tests.helpers.scripts import import_script

PAGE = (ROOT / "book" / "api.md").read_text()
ENTRIES = re.findall(
    r"^\.\. auto\w+:: fusionlib\.(\w+)\n(?: +:members: (.*)\n)?", PAGE, flags=re.MULTILINE
)
MEMBERS = {name: members.split(", ") if members else [] for name, members in ENTRIES}


def documented() -> Iterator[tuple[str, Any]]:
    """Yield everything with an entry on the page, with its name there."""
    for name, members in MEMBERS.items():
        public = getattr(fusionlib, name)
        yield name, public
        for member in members:
            yield f"{name}.{member}", getattr(public, member)


FUNCTIONS = {name: thing for name, thing in documented() if inspect.isroutine(thing)}


def sections(thing: Any) -> dict[str, str]:
    """Split a docstring in Google's style into its sections, by heading; the summary's is ""."""
    parts = re.split(r"^(\w+):\n(?= )", inspect.getdoc(thing) or "", flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], map(textwrap.dedent, parts[2::2]), strict=True))}


def named(section: str) -> list[str]:
    """List the names that a section explains, one at the start of each entry."""
    return re.findall(r"^(\*{0,2}\w+):", section, flags=re.MULTILINE)


def parameters(function: Callable[..., Any]) -> list[str]:
    """List a signature's parameters as a docstring names them."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    # A pipeline's call has its own parameters and those of diffusers', which describes them.
    signature = inspect.signature(inspect.unwrap(function)).parameters.values()
    return [stars.get(p.kind, "") + p.name for p in signature if p.name not in ("self", "cls")]


def raises_fusion_error(function: Callable[..., Any], seen: frozenset[Any] = frozenset()) -> bool:
    """Tell whether a function raises a FusionError, itself or through functions of this library.

    Calls are followed by plain names and by methods of ``self``: checks are imported by name.
    """
    function = inspect.unwrap(getattr(function, "__func__", function))
    if function in seen or not (function.__module__ or "").startswith("fusionlib."):
        return False
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    called = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and "FusionError" in ast.unparse(node):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            called.append(function.__globals__.get(node.func.id))
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("self."):
            owner = function.__globals__.get(function.__qualname__.split(".")[0])
            called.append(getattr(owner, ast.unparse(node.func).removeprefix("self."), None))
    return any(
        raises_fusion_error(each, seen | {function}) for each in called if inspect.isroutine(each)
    )


def examples(name: str) -> list[doctest.DocTest]:
    """Collect the examples in the docstrings of a name and of its members on the page.

    Examples start with no names defined: like a reader, they have to import what they use.
    """
    find = doctest.DocTestFinder(recurse=False).find
    return [
        test
        for title, thing in documented()
        if title.split(".")[0] == name and not isinstance(thing, property)
        for test in find(thing, title, globs={})
        if test.examples
    ]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Provide a folder that looks like the repository's root, so that what examples write is lost.

    On a busy machine, one thread is much faster than two that wait for each other.
    """
    root, threads = tmp_path_factory.mktemp("repository"), torch.get_num_threads()
    (root / "data").symlink_to(ROOT / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.syspath_prepend(ROOT)
        torch.set_num_threads(1)
        yield root
        torch.set_num_threads(threads)


def test_the_page_has_one_entry_for_each_public_name() -> None:
    assert sorted(name for name, _ in ENTRIES) == sorted(fusionlib.__all__)
    assert "book/api" in toc_pages(ROOT)


@pytest.mark.parametrize("name", fusionlib.__all__)
def test_examples_run_and_show_what_they_say(name: str, repository: Path) -> None:
    tests = examples(name)
    assert name in [test.name for test in tests], f"the docstring of {name} has no example"
    report: list[str] = []
    for test in tests:
        assert any(example.want for example in test.examples), f"{test.name} shows no result"
        runner = doctest.DocTestRunner(verbose=False)
        runner.run(test, out=report.append)
    assert not report, "".join(report)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_are_documented_under_the_names_of_the_signature(name: str) -> None:
    documented_names = named(sections(FUNCTIONS[name]).get("Args", ""))
    assert documented_names == parameters(FUNCTIONS[name])


@pytest.mark.parametrize(
    "name", ["Face", "FusedAttnProcessor", "FusionAdapter", "QueryGroups", "ReferenceCache"]
)
def test_what_a_class_is_made_of_is_documented(name: str) -> None:
    made = getattr(fusionlib, name)
    if dataclasses.is_dataclass(made):
        fields = [field.name for field in dataclasses.fields(made) if field.init]
        assert named(sections(made)["Attributes"]) == fields
    else:
        assert named(sections(made)["Args"]) == parameters(made.__init__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors_and_results_are_documented(name: str) -> None:
    described = sections(FUNCTIONS[name])
    if raises_fusion_error(FUNCTIONS[name]):
        assert "FusionError" in named(described.get("Raises", ""))
    returned = inspect.signature(FUNCTIONS[name]).return_annotation
    if returned not in (None, "None") and "Iterator" not in str(returned):
        assert "Returns" in described


def test_errors_are_found_through_the_functions_that_are_called() -> None:
    """Most public functions leave it to a private one to raise; others have no reason to."""
    found = {name for name, function in FUNCTIONS.items() if raises_fusion_error(function)}
    assert {"masks_from_files", "fused_attention", "FusionAdapter.attach"} <= found
    assert {"QueryGroups.to", "ReferenceCache.to", "FusionAdapter.fingerprint"}.isdisjoint(found)


@pytest.fixture(scope="module")
def extension() -> Any:
    """The Sphinx extension of the page."""
    return import_script("book/_ext/api_page.py")


def test_code_beside_the_equations_is_shown_with_short_docstrings(extension: Any) -> None:
    source = inspect.getsource(inspect.unwrap(fusionlib.encode_references))
    small = 'def f():\n    """One."""\n\n    x = 1\n\ndef g():\n    """Two.\n\n    More.\n    """\n'
    page = new_document("method")
    page += nodes.literal_block(source, source, source="fusionlib/reference.py")
    page += nodes.literal_block(small, small, source="small.py")
    page += nodes.literal_block(small, small)  # not from a file
    extension.shorten_docstrings(None, page)
    block, shortened, untouched = page.children
    before, summary, body = source.split('"""')
    shown = before + '"""' + summary.split("\n\n")[0] + '"""' + body
    assert block.astext() == block.rawsource == shown
    assert ">>>" not in shown and "Args:" not in shown and "return hidden_states" in shown
    assert shortened.astext() == small.replace(".\n\n    More.\n    ", ".")
    assert untouched.astext() == small


def test_the_source_of_every_method_that_pipelines_share_is_found(extension: Any) -> None:
    for method in MEMBERS["FusionPipeline"]:
        module = getattr(fusionlib.FusionPipeline, method).__module__
        code, tags = extension.find_source(None, module)
        kind, first, last = tags[f"FusionPipeline.{method}"]
        assert kind == "def" and f"def {method}(" in "\n".join(code.splitlines()[first - 1 : last])
    assert extension.find_source(None, "fusionlib.attention") is None


def test_the_page_links_names_and_equations_but_not_in_examples(extension: Any) -> None:
    lines = [
        "See ``attach``, ``FusionError`` and ``unet``; not ``project`` itself (Eq. 4 and 5).",
        ">>> ``attach``",
        "the output of (Eq. 7)",
        "",
        "After it: Eq. 7.",
    ]
    extension.link(None, "method", "fusionlib.FusionAdapter.project", None, None, lines)
    assert lines == [
        "See :py:obj:`attach <fusionlib.FusionAdapter.attach>`, "
        ":py:obj:`FusionError <fusionlib.FusionError>` and ``unet``; not ``project`` itself "
        "(:ref:`Eq. 4 and 5 <fused-attention>`).",
        ">>> ``attach``",
        "the output of (Eq. 7)",
        "",
        "After it: :ref:`Eq. 7 <several-identities>`.",
    ]
    method = (ROOT / "book" / "method.md").read_text()
    for label in extension.EQUATIONS.values():
        assert f"({label})=" in method
