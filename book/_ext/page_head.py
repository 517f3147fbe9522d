"""What a page says in its head: to search engines, and to who shows a card beside its address.

A page's description is its first paragraph, or what its front matter says (``myst: html_meta:
description:``). Addresses begin with ``html_baseurl``; where that is
not set, it is where GitHub publishes the repository that ``_config.yml`` names.
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
    """Where GitHub Pages shows a repository, with a slash at the end.

    Args:
        repository: its address on GitHub.
    """
    owner, name = urlsplit(repository).path.strip("/").removesuffix(".git").split("/")
    root = f"https://{owner.lower()}.github.io/"
    return root if root == f"https://{name.lower()}/" else f"{root}{name}/"


def description(doctree: nodes.document) -> str:
    """A page's first paragraph, without its citations, in at most 200 characters."""
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
    # Jupyter Book loads Thebe on every page, and twice, which is an error in the browser's console.
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
    """Called by Sphinx."""
    app.connect("config-inited", _set_address)
    app.connect("html-page-context", _write_head)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
