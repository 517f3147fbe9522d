"""Prompt alignment: the CLIP score, and whether a classifier sees what the prompt asks for.

CLIP score (Section 4.2 of the paper): 100 x the cosine between the embeddings of picture and
prompt, by any checkpoint of transformers that has both. Accuracy: the share of pictures whose most
probable class is the one that the prompt names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fusionlib.evaluation.faces import AlignedFace
from fusionlib.loading import load_quietly
from fusionlib.manifest import sha256_modules


class ClipScorer:
    """Embeds pictures and prompts; an instrument of `fusionlib.evaluation.observe`.

    Args:
        checkpoint: folder or hub id of a CLIP model with its processor.

    Raises:
        FusionError: there is no such checkpoint.
    """

    name = "clip"
    needs_face = False

    def __init__(self, checkpoint: str) -> None:
        from transformers import AutoModel, AutoProcessor

        self._model, self._processor = load_quietly(
            checkpoint, "CLIP model", AutoModel, AutoProcessor
        )
        self.fingerprint = sha256_modules([self._model])
        self.dimension = self.embed_texts([""]).shape[1]

    def read(self, image: Image.Image, face: AlignedFace | None) -> NDArray[np.float32]:
        """The embedding ``(dimension,)`` of a whole picture."""
        inputs = self._processor(images=image, return_tensors="pt")
        return self._call(self._model.get_image_features, **inputs)[0]

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The embeddings ``(texts, dimension)`` of prompts, cut to what the model can read."""
        rows = [  # each by itself: padding must not matter
            self._call(
                self._model.get_text_features,
                **self._processor(text=[text], return_tensors="pt", truncation=True),
            )
            for text in texts
        ]
        return np.concatenate(rows)

    def scores(self, images: NDArray[np.float32], prompts: Sequence[str]) -> NDArray[np.float64]:
        """100 x the cosine of each picture's embedding and its prompt's; NaN stays NaN.

        Args:
            images: ``(pictures, dimension)``, as `read` returns them.
            prompts: one for each picture.
        """
        known = {text: self.embed_texts([text])[0] for text in dict.fromkeys(prompts)}
        texts = np.stack([known[text] for text in prompts]).astype(np.float64)
        images = images.astype(np.float64)
        norms = np.linalg.norm(images, axis=1) * np.linalg.norm(texts, axis=1)
        scores: NDArray[np.float64] = 100 * (images * texts).sum(axis=1) / norms
        return scores

    def _call(self, function: Any, **inputs: Any) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            features = function(**inputs)
        # Until transformers 5 the embedding itself came back.
        embedding: NDArray[np.float32] = getattr(features, "pooler_output", features).numpy()
        return embedding


class Classifier:
    """An image classifier of transformers; an instrument of `fusionlib.evaluation.observe`.

    Args:
        name: what it tells: ``expression`` or ``style``.
        checkpoint: folder or hub id of the model with its image processor. Its labels are those of
            ``id2label`` in its ``config.json``.

    Raises:
        FusionError: there is no such checkpoint.
    """

    needs_face = False

    def __init__(self, name: str, checkpoint: str) -> None:
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        self.name = name
        self._processor, self._model = load_quietly(
            checkpoint, f"{name} classifier", AutoImageProcessor, AutoModelForImageClassification
        )
        labels = self._model.config.id2label
        self.labels = [str(labels[number]) for number in sorted(labels)]
        self.dimension = len(self.labels)
        self.fingerprint = sha256_modules([self._model])

    def read(self, image: Image.Image, face: AlignedFace | None) -> NDArray[np.float32]:
        """The probability ``(labels,)`` of each label."""
        import torch

        with torch.inference_mode():
            logits = self._model(**self._processor(images=image, return_tensors="pt")).logits
        probabilities: NDArray[np.float32] = logits[0].softmax(-1).numpy()
        return probabilities

    def hits(
        self, probabilities: NDArray[np.float32], wanted: Sequence[str | None]
    ) -> NDArray[np.float64]:
        """1 where the most probable label is the wanted one, else 0; NaN where there is none.

        Args:
            probabilities: ``(pictures, labels)``, as `read` returns them.
            wanted: a label for each picture, or None.
        """
        return np.array(
            [
                np.nan if label is None or np.isnan(row).any()
                else float(self.labels[int(row.argmax())] == label)
                for row, label in zip(probabilities, wanted, strict=True)
            ]
        )  # fmt: skip

    def asked_for(self, prompt: str) -> str | None:
        """The label that a prompt names as a word; None if it names none or several."""
        found = [
            label
            for label in self.labels
            if re.search(rf"\b{re.escape(label)}\b", prompt, re.IGNORECASE)
        ]
        return found[0] if len(found) == 1 else None
