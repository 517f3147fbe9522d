"""Under pytest, too, a notebook that reads what others record comes after them."""

import json
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the cells of notebooks that say ``"after": ["*"]`` in their metadata last."""
    items.sort(key=lambda item: item.path.suffix == ".ipynb" and _comes_last(item.path))


def _comes_last(path: Path) -> bool:
    metadata = json.loads(path.read_text(encoding="utf-8"))["metadata"]
    return "*" in metadata.get("fusionlib", {}).get("after", [])
