"""What the API page needs beyond autodoc: links in the docstrings, the source of every method.

A docstring reads as well in a terminal as here, so it names things in plain ``literals`` and says
"Eq. 7". On the page, the names of public things become links to their entries, and equations links
to where the method's page explains them. There, the same functions are shown as code, without the
examples that this page has.
"""

import inspect
import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

import fusionlib

EXAMPLE = re.compile(r'\n\n *Example:\n.*?(?=\n *""")', re.DOTALL)
"""The example at the end of a docstring."""

EQUATIONS = {
    **dict.fromkeys("1", "text-attention"),
    **dict.fromkeys("2", "the-reference-stream"),
    **dict.fromkeys("3456", "fused-attention"),
    **dict.fromkeys("7", "several-identities"),
}
"""Each equation's section of ``book/method.md``, by its label."""


def target(literal: str, entry: str) -> str | None:
    """The full name of the public class, function or method that a literal names, if it does.

    Args:
        literal: What stands between the backticks.
        entry: The full name of the entry whose docstring it is; its class's methods go by their
            names alone.
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
    """Turn names and equations into links, in place, outside of the examples."""

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
    """Say ``torch.device``, not ``device``, and what a context manager is annotated for."""
    wrapped = getattr(obj, "__wrapped__", None)
    if inspect.isgeneratorfunction(wrapped) and not inspect.isgeneratorfunction(obj):
        returns = "~contextlib.AbstractContextManager[None]"
    return (signature or "").replace("~torch.d", "torch.d"), returns


def find_source(app: Sphinx, module: str) -> tuple[str, dict[str, Any]] | None:
    """Tell viewcode where the methods are that the pipelines share."""
    if module != "fusionlib.pipeline":
        return None
    analyzer = ModuleAnalyzer.for_module(module)
    analyzer.find_tags()
    shared = {tag: at for tag, at in analyzer.tags.items() if tag.startswith("FusionMixin.")}
    own = {tag.replace("FusionMixin", "FusionPipeline"): at for tag, at in shared.items()}
    return analyzer.code, analyzer.tags | own


def leave_out_examples(app: Sphinx, page: nodes.document) -> None:
    """Take the examples out of the functions that a page includes from source files."""
    for block in page.findall(nodes.literal_block):
        if block.get("source", "").endswith(".py"):
            code = EXAMPLE.sub("", block.astext())
            block.rawsource, block.children = code, []
            block += nodes.Text(code)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect these to Sphinx."""
    app.connect("autodoc-process-docstring", link)
    app.connect("autodoc-process-signature", sign)
    app.connect("viewcode-find-source", find_source)
    app.connect("doctree-read", leave_out_examples)
    return {"parallel_read_safe": True}
