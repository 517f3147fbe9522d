"""The public names of fusionlib, and where each is defined."""

from .adapter import FusionAdapter as FusionAdapter
from .attention import (
    decoupled_attention as decoupled_attention,
)
from .attention import (
    fused_attention as fused_attention,
)
from .errors import FusionError as FusionError
from .inputs.layout import (
    masks_from_boxes as masks_from_boxes,
)
from .inputs.layout import (
    masks_from_colors as masks_from_colors,
)
from .inputs.layout import (
    masks_from_faces as masks_from_faces,
)
from .inputs.layout import (
    masks_from_files as masks_from_files,
)
from .inputs.layout import (
    masks_from_regions as masks_from_regions,
)
from .inputs.layout import (
    warn_of_overlaps as warn_of_overlaps,
)
from .inputs.photos import (
    Face as Face,
)
from .inputs.photos import (
    find_faces as find_faces,
)
from .inputs.photos import (
    prepare_photo as prepare_photo,
)
from .kernels import QueryGroups as QueryGroups
from .kernels import group_queries as group_queries
from .masking import (
    identity_attention_mask as identity_attention_mask,
)
from .masking import (
    scale_identity_masks as scale_identity_masks,
)
from .pipeline import FusionPipeline as FusionPipeline
from .pipeline_inpainting import (
    FusionControlNetInpaintPipeline as FusionControlNetInpaintPipeline,
)
from .pipeline_inpainting import (
    FusionInpaintPipeline as FusionInpaintPipeline,
)
from .pipeline_inpainting import (
    FusionXLControlNetInpaintPipeline as FusionXLControlNetInpaintPipeline,
)
from .pipeline_inpainting import (
    FusionXLInpaintPipeline as FusionXLInpaintPipeline,
)
from .pipeline_variants import (
    FusionControlNetImg2ImgPipeline as FusionControlNetImg2ImgPipeline,
)
from .pipeline_variants import (
    FusionControlNetPipeline as FusionControlNetPipeline,
)
from .pipeline_variants import (
    FusionImg2ImgPipeline as FusionImg2ImgPipeline,
)
from .pipeline_variants import (
    FusionXLControlNetImg2ImgPipeline as FusionXLControlNetImg2ImgPipeline,
)
from .pipeline_variants import (
    FusionXLControlNetPipeline as FusionXLControlNetPipeline,
)
from .pipeline_variants import (
    FusionXLImg2ImgPipeline as FusionXLImg2ImgPipeline,
)
from .pipeline_variants import (
    FusionXLPipeline as FusionXLPipeline,
)
from .processor import FusedAttnProcessor as FusedAttnProcessor
from .reference import encode_references as encode_references
from .reference_cache import ReferenceCache as ReferenceCache

__version__: str
