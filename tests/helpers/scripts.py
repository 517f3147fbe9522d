"""Python files outside of the packages, imported for a test."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from fusionlib.profiles import ROOT


def import_script(path: str | Path) -> Any:
    """Import a file, named relative to the repository, under its own name."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
