"""DreamBooth: the UNet itself is fine-tuned on one person's pictures.

It learns a name for the person by the ordinary denoising loss on "a photo of sks person", and, so
that *person* keeps its meaning, on pictures that the base model painted of "a photo of a person"
(prior preservation).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from companion.methods import Method, Models
from companion.methods.common import make_method
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT
from fusionlib.profiles.loading import load_stock
from fusionlib.support.files import check_folder, write_atomically
from fusionlib.support.paths import user_path
from fusionlib.support.provenance import sha256_file, sha256_json, sha256_modules

RATES = {"lora": 1e-4, "full": 5e-6}
STEPS = {"lora": 500, "full": 800}
"""Values of diffusers' own examples, for one subject."""


@dataclass(frozen=True)
class FineTuning:
    """How one person is learned.

    Attributes:
        train: ``lora`` (the attention layers, by low-rank updates) or ``full`` (the whole UNet).
        steps: Optimiser steps, each on one picture of the person and one of the class.
        learning_rate: Learning rate of AdamW, constant.
        rank: Rank of the LoRA.
        identifier: The person's name in prompts, a word that means nothing yet.
        class_word: Word for what the person is, which prompts are expected to contain.
        prior_images: Number of pictures of the class, painted by the base model once for all.
        prior_weight: Weight of their loss beside the person's; 0 leaves them out.
        save_every: Steps between saved states, from which a stopped training goes on.
        seed: Seed of every random draw.
    """

    train: Literal["lora", "full"]
    steps: int
    learning_rate: float
    rank: int = 16
    identifier: str = "sks"
    class_word: str = "person"
    prior_images: int = 100
    prior_weight: float = 1.0
    save_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        whole = {n: getattr(self, n) for n in ("steps", "rank", "prior_images", "save_every")}
        for name, value in whole.items():
            if not (isinstance(value, int) and value >= 1):
                raise FusionError(f"{name} must be a whole number of at least 1, not {value!r}.")
        if self.learning_rate <= 0 or self.prior_weight < 0:
            raise FusionError("learning_rate must be above 0, prior_weight at least 0.")

    def settings(self) -> dict[str, Any]:
        """The values that change what is learned: all but how often it is saved."""
        return {name: value for name, value in asdict(self).items() if name != "save_every"}

    def personal(self, prompt: str) -> str:
        """The prompt with the person's name before the class word, or with both in front."""
        named = f"{self.identifier} {self.class_word}"
        text, found = re.subn(rf"\b{re.escape(self.class_word)}\b", named, prompt, count=1)
        return text if found else f"{named}, {prompt}"


def build_dreambooth(
    models: Models,
    *,
    name: str = "dreambooth",
    train: Literal["lora", "full"] = "lora",
    steps: int | None = None,
    learning_rate: float | None = None,
    rank: int = 16,
    identifier: str = "sks",
    class_word: str = "person",
    prior_images: int = 100,
    prior_weight: float = 1.0,
    save_every: int = 100,
    seed: int = 0,
    cache: str = "runs/dreambooth",
    base_model: str | None = None,
    references: int = 1,
    **sampling: Any,
) -> Method:
    """DreamBooth on the profile's base model; each person is learned when it is prepared.

    Args:
        models: Profile, device and what a study's methods share.
        name: Name in tables.
        train: ``lora`` or ``full``; this and the options up to ``seed`` are those of `FineTuning`.
        steps: By default 500 for ``lora``, 800 for ``full``.
        learning_rate: By default 1e-4 for ``lora``, 5e-6 for ``full``.
        rank: Rank of the LoRA.
        identifier: The person's name in prompts.
        class_word: Word for what the person is.
        prior_images: Number of pictures of the class.
        prior_weight: Weight of their loss.
        save_every: Steps between saved states.
        seed: Seed of every random draw.
        cache: Folder of the learned weights, one file for each person.
        base_model: Folder or hub id; by default the profile's.
        references: Number of references that are seen; DreamBooth's paper uses three to five.
        sampling: Further arguments of the pipeline's call.

    Raises:
        FusionError: The base model is not there, or an option does not fit.
    """
    if train not in RATES:
        raise FusionError(f'train must be "lora" or "full", not {train!r}.')
    if train == "full" and models.dtype == "float16":
        raise FusionError(
            "DreamBooth of the whole UNet needs weights that small steps can change: give "
            "dtype: float32 or bfloat16, or train: lora."
        )
    tuning = FineTuning(
        train=train,
        steps=STEPS[train] if steps is None else steps,
        learning_rate=RATES[train] if learning_rate is None else learning_rate,
        rank=rank,
        identifier=identifier,
        class_word=class_word,
        prior_images=prior_images,
        prior_weight=prior_weight,
        save_every=save_every,
        seed=seed,
    )
    base_model = base_model or models.profile.base_model
    pipeline = load_stock(StableDiffusionPipeline, base_model, models.device, models.dtype)
    arguments = {**(models.sampling or {}), **sampling}
    painting: dict[str, Any] = {
        key: arguments[key] for key in ("num_inference_steps", "guidance_scale") if key in arguments
    }
    student = Student(pipeline, tuning, ROOT / user_path(cache), painting)

    def call(prompt: str, learned: Path) -> dict[str, Any]:
        student.become(learned)
        return {"prompt": tuning.personal(prompt)}

    return make_method(
        name,
        models,
        pipeline,
        call=call,
        prepare=student.learn,
        sampling=sampling,
        settings=tuning.settings(),
        references=references,
        code=("methods/dreambooth.py", "embedded/losses.py"),
        needs=(base_model,),
        citation="ruiz2023dreambooth",
    )


class Student:
    """A pipeline whose UNet learns one person after the other, each from the base model's weights.

    Args:
        pipeline: Pipeline whose UNet is trained and changed.
        tuning: How a person is learned.
        cache: Folder of the learned weights.
        painting: Arguments of the pipeline's call for the pictures of the class.
    """

    def __init__(
        self, pipeline: Any, tuning: FineTuning, cache: Path, painting: Mapping[str, Any]
    ) -> None:
        self.pipeline, self.tuning, self._painting = pipeline, tuning, dict(painting)
        unet = pipeline.unet
        self._base = sha256_modules([unet, pipeline.vae, pipeline.text_encoder])
        for part in (unet, pipeline.vae, pipeline.text_encoder):
            part.requires_grad_(False)
        if tuning.train == "lora":
            from peft import LoraConfig

            layers = ["to_q", "to_k", "to_v", "to_out.0"]
            with torch.random.fork_rng():  # PEFT draws from the global state, in vain
                unet.add_adapter(
                    LoraConfig(r=tuning.rank, lora_alpha=tuning.rank, target_modules=layers)
                )
        else:
            unet.requires_grad_(True)
        self._weights = {n: p for n, p in unet.named_parameters() if p.requires_grad}
        if tuning.train == "lora":
            for name, weight in self._weights.items():
                weight.data = weight.data.float()  # small steps vanish in 16 bits
                if "lora_A" in name:  # beside a B of zeros: nothing changes yet
                    drawn = torch.randn(weight.shape, generator=self._generator("lora", name))
                    weight.data.copy_(drawn / tuning.rank)
        self._start = {n: p.detach().cpu().clone() for n, p in self._weights.items()}
        # Weights that other code or another schedule learned belong in another folder.
        settings = tuning.settings() | self._painting | {"dtype": str(unet.dtype)}
        schedule = dict(pipeline.scheduler.config)
        code = sha256_file(Path(__file__))
        self._folder = cache / sha256_json([self._base, settings, schedule, code])[:16]
        self._current: Path | None = None
        self._scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)

    def learn(self, references: Sequence[Image.Image]) -> Path:
        """Learn a person, unless the weights are in the cache.

        Args:
            references: One picture of the person, or more.

        Returns:
            The file with the weights, for `become`.

        Raises:
            FusionError: There is no picture, or the cache cannot be written.
        """
        if not references:
            raise FusionError("DreamBooth learns a person from pictures: give one or more.")
        pixels = [self._pixels(image) for image in references]
        shown = b"".join(pixel.numpy().tobytes() for pixel in pixels)
        name = hashlib.sha256(shown).hexdigest()[:16]
        learned = self._folder / f"{name}.safetensors"
        if not learned.is_file():
            try:
                check_folder(self._folder, None, whole=False)
                self._train(pixels, learned)
            except OSError as error:
                raise FusionError(
                    f"DreamBooth cannot write its cache {self._folder} ({error}): give cache= "
                    "another folder."
                ) from error
        return learned

    def become(self, learned: Path) -> None:
        """Give the UNet the weights of a person.

        Raises:
            FusionError: The file is missing or damaged.
        """
        from safetensors.torch import load_file

        if learned == self._current:
            return
        try:
            self._set(load_file(learned))
        except Exception as error:  # safetensors has errors of its own
            raise FusionError(
                f"What DreamBooth learned, {learned}, is damaged or gone: delete it, and the "
                "person is learned again."
            ) from error
        self._current = learned

    @torch.no_grad()
    def _set(self, weights: dict[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(weights[name])
        self._current = None

    def _train(self, pixels: list[Tensor], learned: Path) -> None:
        tuning, unet = self.tuning, self.pipeline.unet
        own = torch.cat([self._encode(pixel) for pixel in pixels])
        prior = self._prior if tuning.prior_weight else None
        texts = torch.cat(
            [
                self._text(f"a photo of {tuning.personal(tuning.class_word)}"),
                self._text(f"a photo of a {tuning.class_word}"),
            ]
        )
        self._set(self._start)
        optimizer = torch.optim.AdamW(self._weights.values(), lr=tuning.learning_rate)
        half = unet.dtype == torch.float16
        scaler = torch.amp.GradScaler(self.pipeline.device.type, enabled=half)
        state = learned.with_suffix(".state")
        first = self._resume(state, optimizer, scaler)
        unet.train()
        for step in range(first, tuning.steps):
            clean = own[step % len(own)][None]
            if prior is not None:
                clean = torch.cat([clean, prior[step % len(prior)][None]])
            loss = self._loss(clean, texts[: len(clean)], step)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(self._weights.values(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            if (step + 1) % tuning.save_every == 0 and step + 1 < tuning.steps:
                content = {
                    "step": step + 1,
                    "weights": self._copy(),
                    "optimizer": optimizer.state_dict(),
                    "scaler": scaler.state_dict(),
                }
                self._write(state, partial(torch.save, content))
        unet.eval()
        from safetensors.torch import save

        self._write(learned, lambda file: file.write(save(self._copy())))
        state.unlink(missing_ok=True)
        self._current = learned

    def _resume(self, state: Path, optimizer: Any, scaler: Any) -> int:
        """Restore a saved state, if there is one; returns the next step."""
        if not state.is_file():
            return 0
        try:
            saved = torch.load(state, map_location="cpu", weights_only=True)
            self._set(saved["weights"])
            optimizer.load_state_dict(saved["optimizer"])
            scaler.load_state_dict(saved["scaler"])
        except Exception as error:  # torch and pickle each have errors of their own
            raise FusionError(
                f"The saved state {state} is damaged: delete it, and the person is learned again."
            ) from error
        return int(saved["step"])

    def _loss(self, clean: Tensor, texts: Tensor, step: int) -> Tensor:
        """The denoising loss of the person's picture, and of the class's by its weight."""
        from fusionlib.training.denoising import noised

        draws = [self._generator("step", step, part) for part in range(len(clean))]
        noisy, timesteps, target = noised(self._scheduler, clean, draws)
        unet, device = self.pipeline.unet, self.pipeline.device
        with torch.autocast(device.type, unet.dtype, enabled=unet.dtype != torch.float32):
            predicted = unet(noisy.to(unet.dtype), timesteps, encoder_hidden_states=texts).sample
        error = F.mse_loss(predicted.float(), target.float(), reduction="none").mean((1, 2, 3))
        weights = torch.tensor([1.0, self.tuning.prior_weight], device=device)[: len(error)]
        return (error * weights).sum()

    @cached_property
    def _prior(self) -> Tensor:
        """Latents that the base model paints of the class, ``(prior_images, channels, h, w)``."""
        from safetensors.torch import load_file, save

        path = self._folder / "prior.safetensors"
        if not path.is_file():
            self._set(self._start)  # a new LoRA changes nothing
            prompt = f"a photo of a {self.tuning.class_word}"
            painted = [
                self.pipeline(
                    prompt,
                    generator=self._generator("prior", number),
                    output_type="latent",
                    **self._painting,
                ).images.cpu()
                for number in range(self.tuning.prior_images)
            ]
            content = save({"latents": torch.cat(painted)})
            self._write(path, lambda file: file.write(content))
        return load_file(path)["latents"].to(self.pipeline.device)

    def _pixels(self, image: Image.Image) -> Tensor:
        """``(1, 3, h, w)`` in [-1, 1], cropped and resized to the model's own size."""
        from fusionlib.pipeline_inputs import prepare_reference

        side = self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor
        pixels = np.asarray(prepare_reference(image, side, side), np.float32) / 127.5 - 1
        return torch.from_numpy(pixels).permute(2, 0, 1)[None]

    @torch.no_grad()
    def _encode(self, pixels: Tensor) -> Tensor:
        vae = self.pipeline.vae
        mean = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mean
        return mean * vae.config.scaling_factor

    @torch.no_grad()
    def _text(self, prompt: str) -> Tensor:
        text: Tensor = self.pipeline.encode_prompt(prompt, self.pipeline.device, 1, False)[0]
        return text

    def _generator(self, *names: str | int) -> torch.Generator:
        """A generator that depends on the seed and these names, not on former draws."""
        key = int(sha256_json([self.tuning.seed, *names])[:15], 16)
        return torch.Generator("cpu").manual_seed(key)

    def _copy(self) -> dict[str, Tensor]:
        return {name: weight.detach().cpu().clone() for name, weight in self._weights.items()}

    def _write(self, path: Path, write: Callable[[BinaryIO], object]) -> None:
        write_atomically(path, write)
