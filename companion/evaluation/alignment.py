"""Prompt alignment: the CLIP score, and whether a classifier sees what the prompt asks for.

CLIP score (Section 4.2 of the paper): 100 x the cosine between the embeddings of picture and
prompt, by any checkpoint of transformers that has both. Accuracy: the share of pictures whose most
probable class is the one that the prompt names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from companion.faces.aligned import AlignedFace
from fusionlib.profiles.loading import load_quietly
from fusionlib.support.provenance import sha256_json, sha256_modules


class ClipScorer:
    """Embeds pictures and prompts; an instrument of `companion.evaluation.readings`.

    Args:
        checkpoint: Folder or hub id of a CLIP model with its processor.

    Raises:
        FusionError: There is no such checkpoint.
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
            images: Embeddings ``(pictures, dimension)``, as `read` returns them.
            prompts: A prompt for each picture.
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
    """An image classifier of transformers; an instrument of `companion.evaluation.readings`.

    Its classes, ``id2label`` in its ``config.json``, may belong to several heads: a class called
    ``expression/laughing`` is the class *laughing* of the head *expression*. Without that, all are
    classes of one head, which is called as the instrument is.

    What a prompt asks for is known by exact words: a class's own name, or what ``label_words`` in
    ``config.json`` gives besides: ``{"style": {"noir": ["film noir"]}}``. Where there is such a
    table, only the heads in it are asked for: "short" may be said of hair, and of much else.

    Args:
        name: Name of the instrument.
        checkpoint: Folder or hub id of the model with its image processor.

    Raises:
        FusionError: There is no such checkpoint.
    """

    needs_face = False

    def __init__(self, name: str, checkpoint: str) -> None:
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        self.name = name
        self._processor, self._model = load_quietly(
            checkpoint, f"{name} classifier", AutoImageProcessor, AutoModelForImageClassification
        )
        config = self._model.config
        labels = [str(config.id2label[number]) for number in sorted(config.id2label)]
        self.dimension = len(labels)
        self._places: dict[str, dict[str, int]] = {}
        for place, label in enumerate(labels):
            head, _, inner = label.partition("/") if "/" in label else (name, "", label)
            self._places.setdefault(head, {})[inner] = place
        self._asked = {head: self._words(head) for head in self._places}
        self.fingerprint = sha256_json([sha256_modules([self._model]), labels])

    @property
    def heads(self) -> dict[str, list[str]]:
        """The classes of each head."""
        return {head: list(places) for head, places in self._places.items()}

    def read(self, image: Image.Image, face: AlignedFace | None) -> NDArray[np.float32]:
        """The probability of each class ``(dimension,)``; those of a head sum to 1."""
        import torch

        with torch.inference_mode():
            logits = self._model(**self._processor(images=image, return_tensors="pt")).logits[0]
            probabilities = torch.empty_like(logits)
            for places in map(list, (inner.values() for inner in self._places.values())):
                probabilities[places] = logits[places].softmax(-1)
        values: NDArray[np.float32] = probabilities.numpy()
        return values

    def seen(self, head: str, probabilities: NDArray[np.float32]) -> list[str | None]:
        """The most probable class of a head in each picture; None where nothing was read.

        Args:
            head: Name of a head, see `heads`.
            probabilities: Probabilities ``(pictures, dimension)``, as `read` returns them.
        """
        names, places = zip(*self._places[head].items(), strict=True)
        rows = probabilities[:, list(places)]
        return [None if np.isnan(row).any() else names[int(row.argmax())] for row in rows]

    def hits(
        self, head: str, probabilities: NDArray[np.float32], wanted: Sequence[str | None]
    ) -> NDArray[np.float64]:
        """1 where the most probable class is the wanted one, else 0; NaN where there is none.

        Args:
            head: Name of a head, see `heads`.
            probabilities: Probabilities ``(pictures, dimension)``, as `read` returns them.
            wanted: A class for each picture, or None.
        """
        return np.array(
            [
                np.nan if label is None or name is None else float(name == label)
                for name, label in zip(self.seen(head, probabilities), wanted, strict=True)
            ]
        )

    def asked_for(self, head: str, prompt: str) -> str | None:
        """The class of a head that a prompt asks for; None if it asks for none, or for several.

        Where words overlap, the longer ones count: "a black and white photo" asks for no "photo".
        """
        words = self._asked[head]
        if not words:
            return None
        longest = sorted(map(re.escape, words), key=len, reverse=True)
        found = re.findall(rf"\b(?:{'|'.join(longest)})\b", prompt.lower())
        asked = {words[match] for match in found}
        return asked.pop() if len(asked) == 1 else None

    def _words(self, head: str) -> dict[str, str]:
        """The class that each of the words stands for; none where a head is not asked for."""
        table = getattr(self._model.config, "label_words", None)
        if table is not None and head not in table:
            return {}
        further: Mapping[str, Sequence[str]] = (table or {}).get(head, {})
        words = {label.lower(): label for label in self._places[head]}
        for label, others in further.items():
            if label in self._places[head]:
                words |= {other.lower(): label for other in others}
        return words
