"""Texts and names from other systems: their encodings, and when two names are the same."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from fusionlib.errors import FusionError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark begins in the same way
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte-order marks and the encodings that they announce."""


def decode_text(content: bytes, name: str) -> str:
    """Decode a text: UTF-8, or any encoding that a byte-order mark announces.

    Args:
        content: Bytes of the file.
        name: Name of the file, for an error.

    Raises:
        FusionError: The text has another encoding; names the likely one and the remedy.
    """
    encoding = next((e for mark, e in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        likely = "" if encoding != "utf-8" else ", but perhaps Latin-1 or Windows-1252"
        raise FusionError(
            f"{name} is not {encoding.upper()} text (at byte {error.start}){likely}: save it as "
            "UTF-8"
        ) from error
    if encoding == "utf-8" and "\0" in text:
        raise FusionError(
            f"{name} holds zero bytes, as UTF-16 without a byte-order mark does: save it as UTF-8"
        )
    return text


def read_text(path: str | Path) -> str:
    """Read a text file that a user may have written, in any encoding that `decode_text` knows.

    Raises:
        OSError: The file cannot be read.
        FusionError: The file has another encoding.
    """
    return decode_text(Path(path).read_bytes(), str(path))


def same_name(name: str) -> str:
    """A name in one spelling: an accented letter has several in Unicode, which look the same."""
    return unicodedata.normalize("NFC", name).strip()


def find_name(name: str, names: Iterable[str]) -> str | None:
    """The one among some names that a person would take for a given one, or None.

    An equal name comes first, then one that only Unicode spells otherwise, then one that differs in
    upper and lower case, as long as it is the only one.
    """
    known = list(names)
    for spelled in (str, same_name, lambda text: same_name(text).casefold()):
        found = [one for one in known if spelled(one) == spelled(name)]
        if len(found) == 1:
            return found[0]
    return None


def file_name(name: str) -> str:
    """A name that any file system takes, as like a given one as possible."""
    plain = re.sub(r"[^\w.+-]+", "_", same_name(name)).strip(".") or "_"
    while len(plain.encode()) > 100:
        plain = plain[:-1]
    return plain
