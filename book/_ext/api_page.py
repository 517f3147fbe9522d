"""What the API page needs in addition to autodoc: links in docstrings, the source of every method.

Docstrings are also read in terminals, so they use plain ``literals`` and write "Eq. 7". On the API
page, the names of public objects become links to their entries, and equations become links to the
sections of the method's page that explain them. Pages that show source code show only the first
paragraph of each docstring, because the API page has the rest.
"""

import inspect
import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

import fusionlib

DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)

SHARED = {"fusionlib.pipeline": "FusionMixin", "fusionlib.pipeline_loading": "FusionLoadingMixin"}
"""The modules with the methods that all pipelines inherit, and the class there that has them."""

EQUATIONS = {
    **dict.fromkeys("1", "text-attention"),
    **dict.fromkeys("2", "the-reference-stream"),
    **dict.fromkeys("3456", "fused-attention"),
    **dict.fromkeys("7", "several-identities"),
}
"""Label of the section of ``book/method.md`` that explains an equation, by the number."""


def target(literal: str, entry: str) -> str | None:
    """Find the full name of the public class, function or method that a literal refers to.

    Args:
        literal: Text between the backticks.
        entry: Full name of the entry with this docstring; it may refer to other methods of its
            class by their names alone.
    """
    owner = entry.split(".")[1]
    for name in (literal, f"{owner}.{literal}"):
        head, *members = name.split(".")
        if head not in fusionlib.__all__ or f"fusionlib.{name}" == entry:
            continue
        named = getattr(fusionlib, head)
        for member in members:
            named = None if member.startswith("_") else getattr(named, member, None)
        if callable(named) and (named.__module__ or "").startswith("fusionlib."):
            return f"fusionlib.{name}"
    return None


def link(app: Sphinx, what: str, entry: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn names and equations into links, in place, but not in examples."""

    def name(found: re.Match[str]) -> str:
        full = target(found[1], entry)
        return found[0] if full is None else f":py:obj:`{found[1]} <{full}>`"

    def equation(found: re.Match[str]) -> str:
        return f":ref:`{found[0]} <{EQUATIONS[found[1]]}>`"

    example = False
    for index, line in enumerate(lines):
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        if not example:
            line = re.sub(r"(?<!`)``([A-Za-z][\w.]*)``(?!`)", name, line)
            lines[index] = re.sub(r"\bEq\. ([1-7])(?: (?:to|and) [1-7])*", equation, line)


def sign(
    app: Sphinx, what: str, entry: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, str]:
    """Write ``torch.device`` instead of ``device``, and give context managers their return type."""
    wrapped = getattr(obj, "__wrapped__", None)
    if inspect.isgeneratorfunction(wrapped) and not inspect.isgeneratorfunction(obj):
        returns = "~contextlib.AbstractContextManager[None]"
    return (signature or "").replace("~torch.d", "torch.d"), returns


def find_source(app: Sphinx, module: str) -> tuple[str, dict[str, Any]] | None:
    """Show viewcode the methods that ``FusionPipeline`` inherits as its own."""
    if module not in SHARED:
        return None
    analyzer = ModuleAnalyzer.for_module(module)
    analyzer.find_tags()
    mixin = f"{SHARED[module]}."
    inherited = {
        f"FusionPipeline.{tag.removeprefix(mixin)}": place
        for tag, place in analyzer.tags.items()
        if tag.startswith(mixin)
    }
    return analyzer.code, analyzer.tags | inherited


def shorten_docstrings(app: Sphinx, page: nodes.document) -> None:
    """Cut docstrings to their first paragraph where a page includes code from source files."""

    def first_paragraph(docstring: re.Match[str]) -> str:
        summary = docstring[1].partition("\n\n")[0].rstrip()
        return f'"""{summary}"""'

    for block in page.findall(nodes.literal_block):
        if block.get("source", "").endswith(".py"):
            code = DOCSTRING.sub(first_paragraph, block.astext())
            block.rawsource, block.children = code, []
            block += nodes.Text(code)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the handlers with Sphinx."""
    app.connect("autodoc-process-docstring", link)
    app.connect("autodoc-process-signature", sign)
    app.connect("viewcode-find-source", find_source)
    app.connect("doctree-read", shorten_docstrings)
    return {"parallel_read_safe": True}
