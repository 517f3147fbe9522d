"""DreamBooth: the UNet itself is fine-tuned on one person's pictures, under a name of its own.

By the ordinary denoising loss on "a photo of sks person", and, so that *person* keeps its meaning,
on pictures that the base model painted of "a photo of a person" (prior preservation).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

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
from fusionlib.support.provenance import sha256_file, sha256_json, sha256_modules

RATES = {"lora": 1e-4, "full": 5e-6}
STEPS = {"lora": 500, "full": 800}
"""Usual for one subject, in diffusers' own examples."""


@dataclass(frozen=True)
class Recipe:
    """How one person is learned.

    Attributes:
        train: ``lora`` (the attention layers, by low-rank updates) or ``full`` (the whole UNet).
        steps: of the optimiser, each on one picture of the person and one of the class.
        learning_rate: of AdamW, constant.
        rank: of the LoRA.
        identifier: the person's name in prompts, a word that means nothing yet.
        class_word: what the person is; prompts are expected to say it.
        prior_images: painted by the base model, once for all people.
        prior_weight: of their loss beside the person's; 0 leaves them out.
        save_every: steps between saved states, from which a stopped training goes on.
        seed: of every draw.
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
        models: the profile, the device and what a study's methods share.
        name: in tables.
        train: `Recipe` holds this and the next ten, and their meaning.
        steps: by default 500 for ``lora``, 800 for ``full``.
        learning_rate: by default 1e-4 for ``lora``, 5e-6 for ``full``.
        rank: of the LoRA.
        identifier: the person's name.
        class_word: what the person is.
        prior_images: painted by the base model.
        prior_weight: of their loss.
        save_every: steps between saved states.
        seed: of every draw.
        cache: folder of the learned weights, one file for each person.
        base_model: folder or hub id; by default the profile's.
        references: how many are seen; the paper uses three to five.
        sampling: further arguments of the pipeline's call.

    Raises:
        FusionError: the base model is not there, or an option does not fit.
    """
    if train not in RATES:
        raise FusionError(f'train must be "lora" or "full", not {train!r}.')
    if train == "full" and models.dtype == "float16":
        raise FusionError(
            "DreamBooth of the whole UNet needs weights that small steps can change: give "
            "dtype: float32 or bfloat16, or train: lora."
        )
    recipe = Recipe(
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
    student = Student(pipeline, recipe, ROOT / Path(cache).expanduser(), painting)

    def call(prompt: str, learned: Path) -> dict[str, Any]:
        student.become(learned)
        return {"prompt": recipe.personal(prompt)}

    settings = asdict(recipe)
    del settings["save_every"]  # how often it was saved does not change what was learned
    return make_method(
        name,
        models,
        pipeline,
        call=call,
        prepare=student.learn,
        sampling=sampling,
        settings={**settings, "references": references},
        code=("methods/dreambooth.py", "embedded/losses.py"),
        needs=(base_model,),
        citation="ruiz2023dreambooth",
        references=references,
    )


class Student:
    """A pipeline whose UNet learns one person after the other, each from the base model's weights.

    Args:
        pipeline: whose UNet is trained and changed.
        recipe: how.
        cache: folder of what was learned.
        painting: steps and guidance of the class's pictures, by the names of the pipeline's call.
    """

    def __init__(
        self, pipeline: Any, recipe: Recipe, cache: Path, painting: Mapping[str, Any]
    ) -> None:
        self.pipeline, self.recipe, self._painting = pipeline, recipe, dict(painting)
        unet = pipeline.unet
        self._base = sha256_modules([unet, pipeline.vae, pipeline.text_encoder])
        for part in (unet, pipeline.vae, pipeline.text_encoder):
            part.requires_grad_(False)
        if recipe.train == "lora":
            from peft import LoraConfig

            layers = ["to_q", "to_k", "to_v", "to_out.0"]
            with torch.random.fork_rng():  # PEFT draws from the global state, in vain
                unet.add_adapter(
                    LoraConfig(r=recipe.rank, lora_alpha=recipe.rank, target_modules=layers)
                )
        else:
            unet.requires_grad_(True)
        self._weights = {n: p for n, p in unet.named_parameters() if p.requires_grad}
        if recipe.train == "lora":
            for name, weight in self._weights.items():
                weight.data = weight.data.float()  # small steps vanish in 16 bits
                if "lora_A" in name:  # beside a B of zeros: nothing changes yet
                    drawn = torch.randn(weight.shape, generator=self._generator("lora", name))
                    weight.data.copy_(drawn / recipe.rank)
        self._start = {n: p.detach().cpu().clone() for n, p in self._weights.items()}
        # What was learned by other code or another schedule is not taken for the same.
        schedule = dict(pipeline.scheduler.config)
        code = sha256_file(Path(__file__))
        self._folder = cache / sha256_json([self._base, self._settings(), schedule, code])[:16]
        self._current: Path | None = None
        self._scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)

    def _settings(self) -> dict[str, Any]:
        settings = asdict(self.recipe)
        del settings["save_every"]
        return settings | self._painting | {"dtype": str(self.pipeline.unet.dtype)}

    def learn(self, references: Sequence[Image.Image]) -> Path:
        """Learn a person, unless that was done before.

        Args:
            references: one picture or more.

        Returns:
            The file with the weights, for `become`.

        Raises:
            FusionError: there is no picture, or the cache cannot be written.
        """
        if not references:
            raise FusionError("DreamBooth learns a person from pictures: give one or more.")
        pixels = [self._pixels(image) for image in references]
        shown = b"".join(pixel.numpy().tobytes() for pixel in pixels)
        name = hashlib.sha256(shown).hexdigest()[:16]
        learned = self._folder / f"{name}.safetensors"
        if not learned.is_file():
            try:
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
            FusionError: the file is gone or damaged.
        """
        from safetensors.torch import load_file

        if learned == self._current:
            return
        try:
            self._set(load_file(learned))
        except Exception as error:  # safetensors has errors of its own
            raise FusionError(
                f"What DreamBooth learned, {learned}, is damaged or gone: delete it and start "
                "again, it will be learned anew."
            ) from error
        self._current = learned

    @torch.no_grad()
    def _set(self, weights: dict[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(weights[name])
        self._current = None

    def _train(self, pixels: list[Tensor], learned: Path) -> None:
        recipe, unet = self.recipe, self.pipeline.unet
        own = torch.cat([self._encode(pixel) for pixel in pixels])
        prior = self._prior if recipe.prior_weight else None
        texts = torch.cat(
            [
                self._text(f"a photo of {recipe.personal(recipe.class_word)}"),
                self._text(f"a photo of a {recipe.class_word}"),
            ]
        )
        self._set(self._start)
        optimizer = torch.optim.AdamW(self._weights.values(), lr=recipe.learning_rate)
        half = unet.dtype == torch.float16
        scaler = torch.amp.GradScaler(self.pipeline.device.type, enabled=half)
        state = learned.with_suffix(".state")
        first = self._resume(state, optimizer, scaler)
        unet.train()
        for step in range(first, recipe.steps):
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
            if (step + 1) % recipe.save_every == 0 and step + 1 < recipe.steps:
                content = {
                    "step": step + 1,
                    "weights": self._copy(),
                    "optimizer": optimizer.state_dict(),
                    "scaler": scaler.state_dict(),
                }
                _write(state, torch.save, content)
        unet.eval()
        from safetensors.torch import save_file

        _write(learned, save_file, self._copy())
        state.unlink(missing_ok=True)
        self._current = learned

    def _resume(self, state: Path, optimizer: Any, scaler: Any) -> int:
        """Go on from a saved state, if there is one that can be read; the step that is next."""
        if not state.is_file():
            return 0
        try:
            saved = torch.load(state, map_location="cpu", weights_only=True)
            self._set(saved["weights"])
            optimizer.load_state_dict(saved["optimizer"])
            scaler.load_state_dict(saved["scaler"])
        except Exception as error:  # torch and pickle each have errors of their own
            raise FusionError(
                f"The saved state {state} is damaged: delete it, and the person is learned anew."
            ) from error
        return int(saved["step"])

    def _loss(self, clean: Tensor, texts: Tensor, step: int) -> Tensor:
        """The denoising error of the person's picture, and of the class's by its weight."""
        from fusionlib.training.denoising import noised

        draws = [self._generator("step", step, part) for part in range(len(clean))]
        noisy, timesteps, target = noised(self._scheduler, clean, draws)
        unet, device = self.pipeline.unet, self.pipeline.device
        with torch.autocast(device.type, unet.dtype, enabled=unet.dtype != torch.float32):
            predicted = unet(noisy.to(unet.dtype), timesteps, encoder_hidden_states=texts).sample
        error = F.mse_loss(predicted.float(), target.float(), reduction="none").mean((1, 2, 3))
        weights = torch.tensor([1.0, self.recipe.prior_weight], device=device)[: len(error)]
        return (error * weights).sum()

    @cached_property
    def _prior(self) -> Tensor:
        """Latents that the base model paints of the class, ``(prior_images, channels, h, w)``."""
        from safetensors.torch import load_file, save_file

        path = self._folder / "prior.safetensors"
        if not path.is_file():
            self._set(self._start)  # a new LoRA changes nothing
            prompt = f"a photo of a {self.recipe.class_word}"
            painted = [
                self.pipeline(
                    prompt,
                    generator=self._generator("prior", number),
                    output_type="latent",
                    **self._painting,
                ).images.cpu()
                for number in range(self.recipe.prior_images)
            ]
            _write(path, save_file, {"latents": torch.cat(painted)})
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
        """Draws that depend on the seed and on these names, and on nothing that came before."""
        key = int(sha256_json([self.recipe.seed, *names])[:15], 16)
        return torch.Generator("cpu").manual_seed(key)

    def _copy(self) -> dict[str, Tensor]:
        return {name: weight.detach().cpu().clone() for name, weight in self._weights.items()}


def _write(path: Path, save: Callable[[Any, str], Any], content: Any) -> None:
    """Write a file beside its place and move it there: whole or not at all, whoever else writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    save(content, str(partial))
    partial.replace(path)
