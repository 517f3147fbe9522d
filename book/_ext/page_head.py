"""The metadata in a page's head, for search engines and for cards beside shared links.

A page's description is its first paragraph, unless its front matter has one (``myst: html_meta:
description:``). Addresses begin with ``html_baseurl``; if that is not set, it is the address at
which GitHub publishes the repository that ``_config.yml`` names.
"""

import re
import textwrap
from html import escape
from typing import Any
from urllib.parse import urlsplit

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

CARD = "_static/card.jpg"
CARD_ALT = "Three synthetic people: a reference picture of each, and three pictures made of it."


def published_at(repository: str) -> str:
    """Return the address at which GitHub Pages publishes a repository, with a slash at the end.

    Args:
        repository: Address of the repository on GitHub.
    """
    owner, name = urlsplit(repository).path.strip("/").removesuffix(".git").split("/")
    root = f"https://{owner.lower()}.github.io/"
    return root if root == f"https://{name.lower()}/" else f"{root}{name}/"


def description(doctree: nodes.document) -> str:
    """Return a page's first paragraph without citations, in at most 200 characters."""
    for paragraph in doctree.findall(nodes.paragraph):
        if isinstance(paragraph.parent, nodes.section):
            text = re.sub(r" ?\[[^][]*\]", "", paragraph.astext())
            return textwrap.shorten(text, 200, placeholder=" …")
    return ""


def _set_address(app: Sphinx, config: Config) -> None:
    repository = config.html_theme_options.get("repository_url")
    if repository and not config.html_baseurl:
        config.html_baseurl = published_at(repository)


def _write_head(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    # Jupyter Book loads Thebe twice on every page, which is an error in the browser's console.
    scripts = [(s, f"{s.filename} {s.attributes.get('body')}") for s in context["script_files"]]
    context["script_files"] = [s for s, text in scripts if "thebe" not in text.lower()]
    if doctree is None:
        return
    root = app.config.html_baseurl
    own = re.search(r'<meta content="([^"]*)"[^>]* name="description"', context["metatags"])
    summary = own[1] if own else escape(description(doctree))
    about = {
        "og:type": "article",
        "og:site_name": escape(app.config.html_title),
        "og:title": re.sub(r"<[^>]*>", "", context["title"]),
        "og:description": summary,
        "og:url": root + app.builder.get_target_uri(page),
        "og:image": root + CARD,
        "og:image:alt": CARD_ALT,
        "og:image:width": "1200",
        "og:image:height": "630",
    }
    tags = [f'<meta property="{key}" content="{text}">' for key, text in about.items()]
    tags.append('<meta name="twitter:card" content="summary_large_image">')
    if not own:
        tags.append(f'<meta name="description" content="{summary}">')
    context["metatags"] += "\n".join(["", *tags])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the handlers with Sphinx."""
    app.connect("config-inited", _set_address)
    app.connect("html-page-context", _write_head)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
