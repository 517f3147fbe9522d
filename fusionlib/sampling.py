"""What users say of the sampler: how many steps, and how strongly guided. Checked in one place."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

from fusionlib.errors import FusionError
from fusionlib.photos import is_real


def check_steps(steps: Any) -> None:
    """Refuse a number of denoising steps that no sampler takes.

    Raises:
        FusionError: it is no whole number from 1 to 1000.
    """
    if not (isinstance(steps, Integral) and is_real(steps) and 1 <= int(steps) <= 1000):
        raise FusionError(f"The number of steps must be from 1 to 1000, not {steps!r}.")


def check_guidance_scale(scale: Any) -> None:
    """Refuse a scale of classifier-free guidance that is none.

    Raises:
        FusionError: it is no finite number of 0 or more.
    """
    if not (is_real(scale) and scale >= 0):
        raise FusionError(f"The guidance scale {scale!r} must be a number of 0 or more.")


CHECKS = {"num_inference_steps": check_steps, "guidance_scale": check_guidance_scale}
"""By the name of the argument of a pipeline's call."""


def check_sampling(options: Mapping[str, Any], whose: str) -> None:
    """Refuse arguments of a pipeline's call that would fail in its middle.

    Args:
        options: of the call; those that nothing is known of here are passed over.
        whose: to call them by.

    Raises:
        FusionError: one is wrong; names it and whose it is.
    """
    for name, check in CHECKS.items():
        if name in options:
            try:
                check(options[name])
            except FusionError as error:
                raise FusionError(f"{name} of {whose}: {error}") from error
