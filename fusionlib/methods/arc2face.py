"""Arc2Face: a Stable Diffusion retrained to paint the face that an ArcFace vector stands for.

The vector takes the place of one word's embedding in a fixed sentence, which a retrained CLIP text
encoder turns into the UNet's condition. What a study's prompt asks for is not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from torch import Tensor

from fusionlib.errors import FusionError
from fusionlib.face_embedding import FaceEmbedder
from fusionlib.loading import load_stock, torch_place
from fusionlib.methods import Method, Models
from fusionlib.methods.common import load_part, make_method

WEIGHTS = "FoivosPar/Arc2Face"

SENTENCE, WORD = "photo of a id person", "id"

PUBLISHED = {"guidance_scale": 3.0, "num_inference_steps": 25}
"""The authors' own, over what a study's methods share."""


def build_arc2face(
    models: Models,
    *,
    name: str = "arc2face",
    weights: str = WEIGHTS,
    faces: str | None = None,
    base_model: str = "stable-diffusion-v1-5/stable-diffusion-v1-5",
    references: int = 1,
    **sampling: Any,
) -> Method:
    """Arc2Face. Its pictures do not depend on the prompt.

    Args:
        models: the profile, the device and what a study's methods share.
        name: in tables.
        weights: folder or hub id, laid out as ``FoivosPar/Arc2Face``: ``arc2face/`` (the UNet) and
            ``encoder/`` (the text encoder).
        faces: folder of insightface's ``antelopev2`` with Arc2Face's ``arcface.onnx``; by default
            where insightface puts it.
        base_model: folder or hub id of Stable Diffusion 1.5: autoencoder and tokenizer are used.
        references: how many are seen: unit vectors are averaged, and made one again.
        sampling: further arguments of the pipeline's call.

    Raises:
        FusionError: a file or package is missing, or the parts do not fit each other.
    """
    from transformers import CLIPTextModel

    _, dtype = torch_place(models.device, models.dtype)
    unet = load_part(UNet2DConditionModel, weights, "arc2face", "Arc2Face", dtype)
    encoder = load_part(CLIPTextModel, weights, "encoder", "Arc2Face", dtype)
    embedder = FaceEmbedder("arc2face", faces)
    pipeline = load_stock(
        StableDiffusionPipeline,
        base_model,
        models.device,
        models.dtype,
        unet=unet,
        text_encoder=encoder,
    )
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)

    def prepare(images: Sequence[Image.Image]) -> Tensor:
        vectors = []
        for number, image in enumerate(images):
            face = embedder.find(image, f"Reference {number + 1}")
            vectors.append(F.normalize(torch.from_numpy(embedder.embed(image, face)), dim=0))
        return encode_face(pipeline, F.normalize(torch.stack(vectors).mean(0), dim=0))

    return make_method(
        name,
        models,
        pipeline,
        call=lambda prompt, embeds: {"prompt_embeds": embeds},
        prepare=prepare,
        sampling={**PUBLISHED, **sampling},
        settings={
            "sentence": SENTENCE,
            "references": references,
            "face_models": embedder.fingerprint,
        },
        code=("face_embedding.py", "methods/arc2face.py"),
        needs=(base_model, f"{weights}/arc2face", f"{weights}/encoder", str(embedder.folder)),
        citation="paraperas2024arc2face",
        references=references,
    )


@torch.no_grad()
def encode_face(pipeline: Any, vector: Tensor) -> Tensor:
    """The sentence's hidden states with a face vector in the place of one word's embedding.

    Args:
        pipeline: whose tokenizer and text encoder are used.
        vector: ``(512,)``, normalised; zeros fill it up to the encoder's width.

    Returns:
        ``(1, tokens, width)``.

    Raises:
        FusionError: the tokenizer has no such word, or the encoder is narrower than the vector.
    """
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
    width = encoder.config.hidden_size
    word = tokenizer.encode(WORD, add_special_tokens=False)
    if len(word) != 1 or width < len(vector):
        raise FusionError(
            f"Arc2Face needs a CLIP tokenizer that knows the word {WORD!r} and a text encoder "
            f"of a width of at least {len(vector)}, not {width}: use Stable Diffusion 1.5."
        )
    ids = tokenizer(
        SENTENCE,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids.to(pipeline.device)

    def put_face(_: Any, __: Any, embeddings: Tensor) -> Tensor:
        face = F.pad(vector, (0, width - len(vector))).to(embeddings)
        return torch.where((ids == word[0])[..., None], face, embeddings)

    hook = encoder.get_input_embeddings().register_forward_hook(put_face)
    try:
        hidden_states: Tensor = encoder(ids)[0]
    finally:
        hook.remove()
    return hidden_states
