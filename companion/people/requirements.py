"""The packages that rendering needs, which belong to an extra of the project."""

from __future__ import annotations

import importlib.util

from fusionlib.errors import FusionError


def require(*packages: str) -> None:
    """Check that packages are installed, without importing them.

    Raises:
        FusionError: If one of them is missing.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise FusionError(
                f"Rendering people needs the package '{package}', which is not installed: "
                "install the extra with pip install 'fusionlib[people]'."
            )
