"""Fusion Is All You Need: face identity for Stable Diffusion, reproduced.

The names below are loaded when they are first used, so that ``import fusionlib`` and the command
line's help stay quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusionlib.adapter import FusionAdapter
    from fusionlib.attention import decoupled_attention, fused_attention
    from fusionlib.errors import FusionError
    from fusionlib.layout import (
        masks_from_boxes,
        masks_from_colors,
        masks_from_faces,
        masks_from_files,
        masks_from_regions,
        warn_of_overlaps,
    )
    from fusionlib.masking import (
        QueryGroups,
        group_queries,
        identity_attention_mask,
        scale_identity_masks,
    )
    from fusionlib.photos import Face, find_faces, prepare_photo
    from fusionlib.pipeline import (
        FusionControlNetImg2ImgPipeline,
        FusionControlNetPipeline,
        FusionImg2ImgPipeline,
        FusionPipeline,
        FusionXLControlNetImg2ImgPipeline,
        FusionXLControlNetPipeline,
        FusionXLImg2ImgPipeline,
        FusionXLPipeline,
    )
    from fusionlib.processor import FusedAttnProcessor
    from fusionlib.reference import ReferenceCache, encode_references

__version__ = "0.1.0"
__all__ = [
    "Face",
    "FusedAttnProcessor",
    "FusionAdapter",
    "FusionControlNetImg2ImgPipeline",
    "FusionControlNetPipeline",
    "FusionError",
    "FusionImg2ImgPipeline",
    "FusionPipeline",
    "FusionXLControlNetImg2ImgPipeline",
    "FusionXLControlNetPipeline",
    "FusionXLImg2ImgPipeline",
    "FusionXLPipeline",
    "QueryGroups",
    "ReferenceCache",
    "decoupled_attention",
    "encode_references",
    "find_faces",
    "fused_attention",
    "group_queries",
    "identity_attention_mask",
    "masks_from_boxes",
    "masks_from_colors",
    "masks_from_faces",
    "masks_from_files",
    "masks_from_regions",
    "prepare_photo",
    "scale_identity_masks",
    "warn_of_overlaps",
]

_HOME = {
    "Face": "photos",
    "FusedAttnProcessor": "processor",
    "FusionAdapter": "adapter",
    "FusionControlNetImg2ImgPipeline": "pipeline",
    "FusionControlNetPipeline": "pipeline",
    "FusionError": "errors",
    "FusionImg2ImgPipeline": "pipeline",
    "FusionPipeline": "pipeline",
    "FusionXLControlNetImg2ImgPipeline": "pipeline",
    "FusionXLControlNetPipeline": "pipeline",
    "FusionXLImg2ImgPipeline": "pipeline",
    "FusionXLPipeline": "pipeline",
    "QueryGroups": "masking",
    "ReferenceCache": "reference",
    "decoupled_attention": "attention",
    "encode_references": "reference",
    "find_faces": "photos",
    "fused_attention": "attention",
    "group_queries": "masking",
    "identity_attention_mask": "masking",
    "masks_from_boxes": "layout",
    "masks_from_colors": "layout",
    "masks_from_faces": "layout",
    "masks_from_files": "layout",
    "masks_from_regions": "layout",
    "prepare_photo": "photos",
    "scale_identity_masks": "masking",
    "warn_of_overlaps": "layout",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
