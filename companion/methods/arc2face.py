"""Arc2Face: a Stable Diffusion retrained to paint the face of an ArcFace vector.

The vector takes the place of one word's embedding in a fixed sentence, which a retrained CLIP text
encoder turns into the UNet's condition. The prompts of a study have no effect.
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

from companion.faces.arcface import load_embedder
from companion.methods import Method, Models
from companion.methods.common import load_part, make_method, read_faces
from fusionlib.errors import FusionError
from fusionlib.profiles.loading import load_stock, torch_place

WEIGHTS = "FoivosPar/Arc2Face"

SENTENCE, WORD = "photo of a id person", "id"

PUBLISHED = {"guidance_scale": 3.0, "num_inference_steps": 25}
"""The authors' own settings, which override those that a study's methods share."""


def build_arc2face(
    models: Models,
    *,
    name: str = "arc2face",
    weights: str = WEIGHTS,
    faces: str | None = None,
    base_model: str = "stable-diffusion-v1-5/stable-diffusion-v1-5",
    own_unet: bool = True,
    own_sampling: bool = True,
    sentence: str = SENTENCE,
    word: str = WORD,
    references: int = 1,
    **sampling: Any,
) -> Method:
    """Arc2Face. Its pictures do not depend on the prompt.

    Args:
        models: Profile, device and what a study's methods share.
        name: Name in tables.
        weights: Folder or hub id, laid out as ``FoivosPar/Arc2Face``: ``arc2face/`` (the UNet) and
            ``encoder/`` (the text encoder).
        faces: Folder of insightface's ``antelopev2`` with Arc2Face's ``arcface.onnx``, by default
            where insightface puts it; or ``dlib``.
        base_model: Folder or hub id of Stable Diffusion 1.5, for autoencoder and tokenizer.
        own_unet: Whether ``weights`` holds a retrained UNet; if not, the base model's is used.
        own_sampling: Whether to use the authors' own steps, guidance and scheduler.
        sentence: Text that takes the place of a prompt.
        word: Word of the sentence whose embedding the face replaces.
        references: Number of references that are seen: their unit vectors are averaged, and the
            mean is normalised again.
        sampling: Further arguments of the pipeline's call.

    Raises:
        FusionError: A file or package is missing, or the parts do not fit each other.
    """
    from transformers import CLIPTextModel

    _, dtype = torch_place(models.device, models.dtype)
    parts: dict[str, Any] = {}
    if own_unet:
        parts["unet"] = load_part(UNet2DConditionModel, weights, "arc2face", "Arc2Face", dtype)
    encoder = load_part(CLIPTextModel, weights, "encoder", "Arc2Face", dtype)
    embedder = load_embedder("arc2face", faces)
    pipeline = load_stock(
        StableDiffusionPipeline,
        base_model,
        models.device,
        models.dtype,
        text_encoder=encoder,
        **parts,
    )
    if own_sampling:
        solver = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
        pipeline.scheduler = solver

    def prepare(images: Sequence[Image.Image]) -> Tensor:
        _, vectors = read_faces(embedder, images)
        mean = torch.stack([F.normalize(vector, dim=0) for vector in vectors]).mean(0)
        return encode_face(pipeline, F.normalize(mean, dim=0), sentence, word)

    return make_method(
        name,
        models,
        pipeline,
        call=lambda prompt, embeds: {"prompt_embeds": embeds},
        prepare=prepare,
        sampling={**(PUBLISHED if own_sampling else {}), **sampling},
        settings={"sentence": sentence, "word": word},
        references=references,
        code=("methods/arc2face.py",),
        needs=(
            base_model,
            *([f"{weights}/arc2face"] if own_unet else []),
            f"{weights}/encoder",
        ),
        citation="paraperas2024arc2face",
        embedder=embedder,
    )


@torch.no_grad()
def encode_face(
    pipeline: Any, vector: Tensor, sentence: str = SENTENCE, word: str = WORD
) -> Tensor:
    """The sentence's hidden states with a face vector in the place of one word's embedding.

    Args:
        pipeline: Pipeline with the tokenizer and the text encoder.
        vector: ``(512,)``, normalised; zeros fill it up to the encoder's width.
        sentence: The sentence.
        word: Word of the sentence.

    Returns:
        ``(1, tokens, width)``.

    Raises:
        FusionError: The tokenizer has no such word, or the encoder is narrower than the vector.
    """
    place = Sentence(pipeline.tokenizer, sentence, word)
    return place.encode(pipeline.text_encoder, vector[None].to(pipeline.device))


class Sentence:
    """A sentence in which a face takes the place of one word.

    Args:
        tokenizer: Tokenizer of CLIP.
        text: The sentence.
        word: Word of the sentence.

    Raises:
        FusionError: The tokenizer has no such word.
    """

    def __init__(self, tokenizer: Any, text: str, word: str) -> None:
        self._word = tokenizer.encode(word, add_special_tokens=False)
        if len(self._word) != 1:
            raise FusionError(
                f"Arc2Face needs a CLIP tokenizer that knows the word {word!r}: use Stable "
                "Diffusion 1.5."
            )
        self.ids: Tensor = tokenizer(
            text,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids

    def encode(self, encoder: Any, vectors: Tensor) -> Tensor:
        """Hidden states of the sentence for each face.

        Args:
            encoder: A ``CLIPTextModel``.
            vectors: Normalised vectors, ``(faces, numbers)``; zeros fill them up to the encoder's
                width.

        Returns:
            ``(faces, tokens, width)``.

        Raises:
            FusionError: The encoder is narrower than the vectors.
        """
        width = encoder.config.hidden_size
        if width < vectors.shape[1]:
            raise FusionError(
                f"Arc2Face needs a text encoder of a width of at least {vectors.shape[1]}, not "
                f"{width}: use Stable Diffusion 1.5."
            )
        ids = self.ids.to(vectors.device).expand(len(vectors), -1)

        def put_face(_: Any, __: Any, embeddings: Tensor) -> Tensor:
            faces = F.pad(vectors, (0, width - vectors.shape[1])).to(embeddings)
            return torch.where((ids == self._word[0])[..., None], faces[:, None], embeddings)

        hook = encoder.get_input_embeddings().register_forward_hook(put_face)
        try:
            hidden_states: Tensor = encoder(ids)[0]
        finally:
            hook.remove()
        return hidden_states
