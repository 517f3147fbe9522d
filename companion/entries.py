"""YAML files that list entries of one schema, such as claims or benchmark targets."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from fusionlib.errors import FusionError, explain_validation
from fusionlib.support.paths import user_path
from fusionlib.support.texts import read_text
from fusionlib.support.yaml_text import load_yaml

Entry = TypeVar("Entry", bound=BaseModel)


def read_entries(
    path: str | Path,
    schema: type[Entry],
    kind: str,
    field: str,
    key: str | None = None,
    part: str | None = None,
) -> dict[str, Entry]:
    """Read and check the entries of a YAML file.

    Args:
        path: A file that holds a list, or several lists by their names.
        schema: Schema of each entry.
        kind: Name of one entry in messages, such as ``claim``.
        field: Field that names an entry in messages.
        key: Attribute that differs from entry to entry; None means ``field``.
        part: Name of the list in the file; None where the file is one list.

    Returns:
        The entries by their keys, in the file's order.

    Raises:
        FusionError: The file cannot be read, or an entry does not fit; names the file, and the
            entry by number and key.
    """
    try:
        listed = load_yaml(read_text(user_path(path)))
    except (OSError, FusionError, yaml.YAMLError) as error:
        raise FusionError(f"The {kind}s in {path} cannot be read: {error}.") from error
    if part is not None:
        if not isinstance(listed, dict):
            raise FusionError(f"{path} has to hold a list of {kind}s under `{part}:`.")
        listed = listed.get(part)
    if not isinstance(listed, list) or not listed:
        where = f" under `{part}:`" if part else ""
        raise FusionError(f"{path} has to be a list of {kind}s{where}, each with `{field}`.")
    entries: dict[str, Entry] = {}
    for number, values in enumerate(listed, start=1):
        name = values.get(field, "?") if isinstance(values, dict) else "?"
        try:
            entry = schema.model_validate(values)
        except ValidationError as error:
            raise FusionError(
                f"{kind.capitalize()} {number} ({name}) in {path} does not fit: "
                f"{explain_validation(error)}"
            ) from error
        own = getattr(entry, key or field)
        if own in entries:
            raise FusionError(f"{kind.capitalize()} {number} in {path} is there twice: {own}.")
        entries[own] = entry
    return entries
