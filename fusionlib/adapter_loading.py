"""How an adapter is written and read: safetensors only, and refused if it is not whole."""

from __future__ import annotations

import os
import warnings
from typing import Any, Self

import torch
from diffusers import ModelMixin
from torch import Tensor

from fusionlib.errors import FusionError, first_line


class AdapterLoadingMixin(ModelMixin):
    """Saving and loading as any diffusers model does, with this library's errors."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> Self:
        """Load what ``save_pretrained`` wrote.

        Args:
            pretrained_model_name_or_path: A folder with ``config.json`` and
                ``diffusion_pytorch_model.safetensors``, or a hub id.
            **kwargs: As for ``ModelMixin.from_pretrained`` of diffusers, such as ``dtype``.

        Returns:
            The adapter, not yet attached.

        Raises:
            FusionError: If there is no adapter, or its file is damaged or lacks weights.
        """
        source = str(pretrained_model_name_or_path)
        try:
            adapter, found = super().from_pretrained(
                pretrained_model_name_or_path,
                **(kwargs | {"use_safetensors": True, "output_loading_info": True}),
            )
        except Exception as error:  # diffusers, safetensors and the hub have errors of their own
            reason = first_line(error)
            raise FusionError(
                f"The adapter {source!r} cannot be loaded; pretrained_model_name_or_path must be a "
                "folder with config.json and diffusion_pytorch_model.safetensors, or a hub id "
                f"({reason})."
            ) from error
        broken = (n for n, weight in adapter.named_parameters() if not _finite(weight))
        wrong = [
            *found["missing_keys"],
            *found["unexpected_keys"],
            *found["mismatched_keys"],
            *broken,
        ]
        if wrong:
            raise FusionError(
                f"The adapter {source!r} given as pretrained_model_name_or_path is damaged: its "
                f"weights are not those that its config.json names, or not numbers ({wrong[0]})."
            )
        if kwargs.get("output_loading_info"):
            return adapter, found  # type: ignore[return-value]
        return adapter

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        **kwargs: Any,
    ) -> None:
        """Write ``config.json`` and the weights, which are always in safetensors files.

        Args:
            save_directory: Folder to write to.
            safe_serialization: Must be True; False is passed over with a warning.
            variant: Word in the names of the weights' files, such as ``"fp16"``.
            max_shard_size: Size above which the weights are divided into several files.
            **kwargs: As for ``ModelMixin.save_pretrained`` of diffusers, such as ``push_to_hub``.

        Warns:
            UserWarning: If ``safe_serialization`` is False.
        """
        if not safe_serialization:
            warnings.warn(
                "The adapter is written as safetensors: safe_serialization=False has no effect on "
                "it, for pickled weights are never loaded.",
                stacklevel=2,
            )
        super().save_pretrained(
            save_directory, variant=variant, max_shard_size=max_shard_size, **kwargs
        )


def _finite(weight: Tensor) -> bool:
    """Whether a weight holds numbers only; it is not read where it is offloaded or quantised."""
    readable = not weight.is_meta and weight.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return not readable or bool(weight.isfinite().all())
