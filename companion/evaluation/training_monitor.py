"""The monitor of a training run: sample sheets, and what is measured on them.

While the adapter trains, the monitor paints the same prompts with the same references from the same
noise again and again, and measures three things: whether it is the person (identity distance),
whether the prompt is followed (CLIP score), and how much of each layer's attention goes to the
face's keys rather than to the text's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from companion.evaluation.alignment import ClipScorer
from companion.evaluation.attention_maps import record_attention
from fusionlib.adapter import FusionAdapter
from fusionlib.errors import FusionError
from fusionlib.inputs.images import image_grid, load_image
from fusionlib.pipeline import FusionPipeline
from fusionlib.profiles import Profile
from fusionlib.training.adapter import FACES, Task
from fusionlib.training.checkpoints import checkpoint_folder, load_frozen

logger = logging.getLogger(__name__)

NOISE_LEVELS = (0.1, 0.5, 0.9)
"""Points of the schedule at which the attention is measured, as shares of its length."""


@contextmanager
def face_attention(unet: Any) -> Iterator[dict[str, list[float]]]:
    """Measure the faces' share of the attention in every layer of a conditioned UNet.

    Args:
        unet: UNet with a ``FusionAdapter`` attached.

    Yields:
        A dictionary that is filled when the block ends. By the layer's name, it has for each call
        the mean over samples, heads and queries. It stays empty with decoupled attention, where the
        weights of text and of faces add up to 1 each.
    """
    shares: dict[str, list[float]] = {}
    with record_attention(unet) as gazes:
        yield shares
    for gaze in gazes:
        shares.setdefault(gaze.layer, []).append(gaze.faces.mean().item())


class SampleSheets:
    """The monitor of one run, called with the step.

    Args:
        pipeline: Pipeline with the adapter that is trained.
        faces: References, RGB.
        prompts: Prompts that are painted of each reference.
        side: Side of the pictures in pixels.
        sampling: Further arguments of the pipeline, ``guidance_scale`` for example.
        clip: Scorer of the prompt; None leaves the score out.
        recogniser: DeepFace's name of the recogniser that measures the distance to the reference;
            None leaves the distance out.
        detector: DeepFace's name of the face detector.
    """

    def __init__(
        self,
        pipeline: FusionPipeline,
        faces: Sequence[Image.Image],
        prompts: Sequence[str],
        *,
        side: int,
        sampling: Mapping[str, Any],
        clip: ClipScorer | None = None,
        recogniser: str | None = "Dlib",
        detector: str = "dlib",
    ) -> None:
        self.pipeline, self.faces, self.prompts = pipeline, list(faces), list(prompts)
        self.side, self.sampling = side, sampling
        self.clip, self.recogniser, self.detector = clip, recogniser, detector
        self._known: Any = None  # the references' embeddings

    def __call__(self, step: int) -> Mapping[str, float | Image.Image]:
        """Paint a sheet: a row for each face, its reference on the left.

        Returns:
            ``sheet``, ``identity_distance`` (mean over pictures with a face; NaN without any),
            ``faces_found`` (share of these pictures), ``clip_score``, ``face_attention`` and, by
            layer, ``face_attention/...`` and ``text_attention/...``, which add up to 1.
        """
        self.pipeline.unet.eval()
        each = [[face] for face in self.faces]
        seen = self.pipeline.encode_references(each, self.side, self.side)
        shares = self._attention(seen)
        columns = []
        for prompt in self.prompts:
            noise = [torch.Generator().manual_seed(seed) for seed in range(len(self.faces))]
            columns.append(
                self.pipeline(
                    [prompt] * len(self.faces),
                    references=seen,
                    generator=noise,
                    height=self.side,
                    width=self.side,
                    **self.sampling,
                ).images
            )
        size = columns[0][0].size
        rows = [
            [face.resize(size), *(column[row] for column in columns)]
            for row, face in enumerate(self.faces)
        ]
        sheet = image_grid([image for row in rows for image in row], len(rows[0]))
        images = [image for column in columns for image in column]
        found: dict[str, float | Image.Image] = {"sheet": sheet}
        found |= self._identity(images)
        if self.clip is not None:
            prompts = [prompt for prompt in self.prompts for _ in self.faces]
            seen_by_clip = np.stack([self.clip.read(image, None) for image in images])
            found["clip_score"] = float(self.clip.scores(seen_by_clip, prompts).mean())
        if not shares:  # with decoupled attention
            return found
        found["face_attention"] = float(np.mean(list(shares.values())))
        found |= {f"face_attention/{name}": share for name, share in shares.items()}
        return found | {f"text_attention/{name}": 1 - share for name, share in shares.items()}

    @torch.no_grad()
    def _attention(self, seen: Any) -> dict[str, float]:
        """The faces' share in each layer, averaged over faces and noise levels for one prompt."""
        pipeline, count = self.pipeline, len(self.faces)
        unet, adapter, scheduler = pipeline.unet, pipeline.adapter, pipeline.scheduler
        assert adapter is not None
        latents = pipeline._encode_images(self.faces, self.side, self.side)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        noise = noise.to(latents)
        text, _ = pipeline.encode_prompt(self.prompts[0], unet.device, 1, False)
        with face_attention(unet) as shares, adapter.conditioned(seen):
            for level in NOISE_LEVELS:
                time = int(level * scheduler.config.num_train_timesteps)
                timesteps = torch.full((count,), time, device=unet.device)
                noisy = scheduler.add_noise(latents, noise, timesteps)
                unet(noisy, timesteps, text.to(unet.dtype).expand(count, -1, -1))
        return {name: float(np.mean(values)) for name, values in shares.items()}

    def _identity(self, images: Sequence[Image.Image]) -> dict[str, float]:
        """Mean distance of the painted faces from their references; images are column by column."""
        if self.recogniser is None:
            return {}
        from companion.evaluation.identity import cosine_distance
        from companion.faces.recognisers import embed_faces

        try:
            if self._known is None:
                self._known = embed_faces(self.faces, self.recogniser, self.detector)
            painted = embed_faces(images, self.recogniser, self.detector)
        except (FusionError, ImportError) as error:  # a missing report must not stop the training
            logger.warning("no identity distance of the samples: %s", error)
            self.recogniser = None
            return {}
        known = np.tile(self._known, (len(self.prompts), 1))
        distances = cosine_distance(painted, known)
        there = ~np.isnan(distances)
        return {
            "identity_distance": float(distances[there].mean()) if there.any() else float("nan"),
            "faces_found": float(there.mean()),
        }


def make_monitor(profile: Profile, task: Task) -> SampleSheets:
    """The sample sheets of a profile's training run.

    The references are the last held-out people, who are in none of the book's tables, or else
    people of the training set.

    Args:
        profile: Models, prompts and sampling.
        task: Run whose UNet and adapter are used.
    """
    faces = task.faces
    if profile.heldout is not None and Path(profile.heldout).is_dir():
        from companion.person import load_people

        people = load_people(profile.heldout, only={"style": "photo"})[-FACES:]
        faces = [load_image(person.references[0]) for person in people]
    if profile.training.reference_timestep == "shared":
        logger.warning("sample sheets show the references clean, whatever the training does")
    unet, adapter = task.network.unet, task.network.adapter
    return make_sheets(profile, unet, adapter, faces)


def make_sheets(
    profile: Profile, unet: Any, adapter: FusionAdapter, faces: Sequence[Image.Image]
) -> SampleSheets:
    """Sample sheets of a profile's prompts.

    Args:
        profile: Other models, prompts and sampling.
        unet: UNet of the base model, whose device and precision the other models take.
        adapter: Adapter, attached to the UNet or not yet.
        faces: References.
    """
    base = checkpoint_folder(profile.base_model)
    pipeline = FusionPipeline(
        vae=load_frozen(AutoencoderKL, base / "vae", unet.dtype).to(unet.device),
        text_encoder=load_frozen(CLIPTextModel, base / "text_encoder", unet.dtype).to(unet.device),
        tokenizer=CLIPTokenizer.from_pretrained(base / "tokenizer"),
        unet=unet,
        scheduler=DDIMScheduler.from_pretrained(base / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        adapter=adapter,
    )
    pipeline.set_progress_bar_config(disable=True)
    return SampleSheets(
        pipeline,
        faces,
        profile.training.sample_prompts,
        side=profile.resolution,
        sampling=profile.sampling,
        clip=_clip(profile),
        recogniser=profile.recognisers[0],
        detector=profile.detector,
    )


def _clip(profile: Profile) -> ClipScorer | None:
    """The profile's CLIP model, or None where it is not available."""
    try:
        return ClipScorer(profile.clip_model)
    except FusionError as error:
        logger.warning("no CLIP score of the samples: %s", error)
        return None
