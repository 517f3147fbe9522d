"""What published pages must not have: dead links, lost pictures, pictures without words.

Only what lies in the folder is looked at; addresses elsewhere are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

LINKS = {"a": "href", "link": "href", "img": "src", "script": "src", "source": "src"}
"""Elements that name another file, and the attribute that does."""


@dataclass
class Page(HTMLParser):
    """What a page's HTML holds that can be wrong.

    Attributes:
        anchors: Names that a link to the page may end with.
        links: Addresses as written, each once, in their order.
        wordless: Sources of pictures without alternative text.
    """

    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    wordless: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take note of an element."""
        values = dict(attrs)
        self.anchors |= {values[key] or "" for key in ("id", "name") if key in values}
        address = values.get(LINKS.get(tag, ""))
        if address and address not in self.links:
            self.links.append(address)
        if tag == "img":
            source, alt = values.get("src") or "", (values.get("alt") or "").strip()
            # Where an author gave no words, Sphinx writes the file's name instead.
            if not alt or PurePosixPath(alt).name == PurePosixPath(source).name:
                self.wordless.append(source)


def read_page(path: Path) -> Page:
    """Read one HTML file."""
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    return page


def broken_pages(folder: str | Path) -> list[str]:
    """Problems of the pages of a folder, one sentence each.

    A link must lead to a file of the folder, and its ``#anchor`` to an element of that page; a
    picture must have alternative text.

    Args:
        folder: Folder of a built book; ``_static`` holds no pages.
    """
    folder = Path(folder).resolve()
    files = [f for f in sorted(folder.rglob("*.html")) if "_static" not in f.parts]
    pages = {file: read_page(file) for file in files}
    found = []
    for file, page in pages.items():
        name = file.relative_to(folder)
        found += [f"{name}: the picture {it} has no alternative text" for it in page.wordless]
        for address in page.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if target.is_dir():
                target /= "index.html"
            if not target.is_file() or not target.is_relative_to(folder):
                found.append(f"{name}: {address} leads to no file of the book")
                continue
            there = pages.get(target)
            if parts.fragment and there and unquote(parts.fragment) not in there.anchors:
                found.append(f"{name}: {address} leads to no such place on that page")
    return found
