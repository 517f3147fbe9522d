"""Fusion Is All You Need: face identity for Stable Diffusion, reproduced.

The names below are loaded when they are first used, so that ``import fusionlib`` and the command
line's help stay quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusionlib.adapter import FusionAdapter
    from fusionlib.attention import FusedAttnProcessor, fused_attention
    from fusionlib.errors import FusionError
    from fusionlib.masking import (
        QueryGroups,
        group_queries,
        identity_attention_mask,
        scale_identity_masks,
    )
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
    from fusionlib.reference import ReferenceCache, encode_references

__version__ = "0.1.0"
__all__ = [
    "FusedAttnProcessor",
    "FusionAdapter",
    "FusionError",
    "FusionControlNetImg2ImgPipeline",
    "FusionControlNetPipeline",
    "FusionImg2ImgPipeline",
    "FusionPipeline",
    "FusionXLControlNetImg2ImgPipeline",
    "FusionXLControlNetPipeline",
    "FusionXLImg2ImgPipeline",
    "FusionXLPipeline",
    "QueryGroups",
    "ReferenceCache",
    "encode_references",
    "fused_attention",
    "group_queries",
    "identity_attention_mask",
    "scale_identity_masks",
]

_HOME = {
    "FusedAttnProcessor": "attention",
    "FusionAdapter": "adapter",
    "FusionError": "errors",
    "FusionControlNetImg2ImgPipeline": "pipeline",
    "FusionControlNetPipeline": "pipeline",
    "FusionImg2ImgPipeline": "pipeline",
    "FusionPipeline": "pipeline",
    "FusionXLControlNetImg2ImgPipeline": "pipeline",
    "FusionXLControlNetPipeline": "pipeline",
    "FusionXLImg2ImgPipeline": "pipeline",
    "FusionXLPipeline": "pipeline",
    "QueryGroups": "masking",
    "ReferenceCache": "reference",
    "encode_references": "reference",
    "fused_attention": "attention",
    "group_queries": "masking",
    "identity_attention_mask": "masking",
    "scale_identity_masks": "masking",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
