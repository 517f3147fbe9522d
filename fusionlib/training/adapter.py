"""The fusion adapter: Linear_kf and Linear_vf trained over the frozen base (Section 3.2).

Everything else is frozen, in the compute dtype. With the reference shown clean at timestep 0, its
hidden states h_f depend on nothing that is trained or drawn: where the training set fits in memory
they are computed once for each picture (``cache_references``), otherwise in every step, without a
graph.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from diffusers import DDIMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn

from fusionlib.adapter import FusionAdapter
from fusionlib.errors import FusionError
from fusionlib.profiles import Profile, Training
from fusionlib.reference import encode_references
from fusionlib.training.checkpoints import Start, checkpoint_folder, load_frozen, start_weights
from fusionlib.training.crops import Crops
from fusionlib.training.denoising import Drawn, denoising_loss
from fusionlib.training.encoders import Encoders
from fusionlib.training.export import own_folder, save_adapter
from fusionlib.training.log import Row
from fusionlib.training.loop import Batch, Monitor, Run, fit, training_device
from fusionlib.training.pairs import Pairing, Skipped
from fusionlib.training.pictures import load_pictures
from fusionlib.training.shards import SampleSet, index_samples
from fusionlib.training.sources import (
    Source,
    cached_source,
    first_people,
    memory_source,
    stream_source,
)

FACES = 4
"""Pictures of the training set that are kept for the sample sheets."""

logger = logging.getLogger(__name__)

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The compute dtype of each ``mixed_precision``."""


class Conditioned(nn.Module):
    """The frozen UNet with the adapter's faces; only the adapter is trained.

    Args:
        unet: frozen.
        adapter: in float32; attached here.
        checkpointing: whether the UNet computes its activations again in the backward pass.
    """

    def __init__(
        self, unet: UNet2DConditionModel, adapter: FusionAdapter, *, checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.unet, self.adapter, self.checkpointing = unet, adapter, checkpointing
        self._shown = ExitStack()
        adapter.attach(unet)
        if checkpointing:
            unet.enable_gradient_checkpointing()

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        text: Tensor,
        hidden_states: dict[str, Tensor],
        strength: Tensor,
    ) -> Tensor:
        """The UNet's prediction, shaped like ``noisy``; ``strength`` is ``(batch,)``."""
        faces = self.adapter.project(hidden_states)
        shown = self.adapter.conditioned([faces], strengths=[strength])
        if self.checkpointing:
            self._shown.enter_context(shown)
            return self.unet(noisy, timesteps, text, return_dict=False)[0]
        with shown:
            return self.unet(noisy, timesteps, text, return_dict=False)[0]

    def release(self) -> None:
        """Make the UNet the base model again, before it is used for anything else.

        With checkpointing the layers run once more in the backward pass, and have to see the same
        faces: they stay until this is called. Otherwise it does nothing.
        """
        self._shown.close()


@dataclass
class Task:
    """All that a training run of the adapter is made of.

    Attributes:
        network: whose adapter is trained.
        source: of the batches.
        scheduler: of the noise.
        empty_prompt: its embedding, ``(1, tokens, width)``, in the compute dtype.
        settings: dropout, timesteps, weights.
        start: what the adapter begins with.
        damaged: shards that are damaged, by file.
        faces: some pictures of the training set, for the sample sheets.
    """

    network: Conditioned
    source: Source
    scheduler: Any
    empty_prompt: Tensor
    settings: Training
    start: Start
    damaged: dict[str, str]
    faces: list[Image.Image]

    def loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Draw a batch and compute its loss (`denoising_loss`); a `LossFunction`."""
        self.network.release()
        inputs = self.source(batch)

        def predict(drawn: Drawn) -> Tensor:
            states = inputs.reference
            if isinstance(states, Tensor):
                states = self._encoded(states, inputs.reference_text, drawn)
            strength = (~drawn.no_reference).float()
            prediction: Tensor = network(drawn.noisy, drawn.timesteps, drawn.text, states, strength)
            return prediction

        return denoising_loss(
            inputs, batch, self.scheduler, self.empty_prompt, self.settings, predict
        )

    def _encoded(self, latents: Tensor, text: Tensor | None, drawn: Drawn) -> dict[str, Tensor]:
        """h_f of a batch's references."""
        kind = self.empty_prompt.dtype
        shared: dict[str, Any] = {}
        if self.settings.reference_timestep == "shared":
            one = latents[:1].shape
            noise = torch.cat([torch.randn(one, generator=each) for each in drawn.generators])
            shared = {
                "timestep_mode": "shared",
                "timestep": drawn.timesteps,
                "noise": noise.to(latents.device, kind),
                "scheduler": self.scheduler,
            }
        said = self.empty_prompt if text is None else text.to(kind)
        return encode_references(self.network.unet, latents.to(kind), said, **shared)


def prepare(
    profile: Profile,
    *,
    start_from: Path | None = None,
    resume: bool = True,
    name: str = "adapter",
) -> Task:
    """Load the frozen models and the training set of a profile, and make an adapter.

    Args:
        profile: base model, recipe and shards.
        start_from: the folder of an adapter to begin with, rather than with the self-attention.
        resume: whether the samples that an earlier session skipped stay counted.
        name: of the run.

    Raises:
        FusionError: when a model or a shard is missing, or there is nothing to train on.
    """
    recipe, settings = profile.recipe("adapter"), profile.training
    folder = run_folder(profile, name)
    device, dtype = training_device(), DTYPES[recipe.mixed_precision]
    with PartialState().local_main_process_first():  # one download a machine
        base = checkpoint_folder(profile.base_model)
    unet = load_frozen(UNet2DConditionModel, base / "unet", dtype).to(device)
    clean = settings.reference_timestep == "clean"
    captioned = settings.reference_prompt == "caption"
    damaged: dict[str, str] = {}
    if settings.stream:
        samples = index_samples(settings.shards, folder.parent / "index")
        damaged = samples.damaged
        kept = first_people([each.person for each in samples.samples], settings.people_share)
        samples = replace(samples, samples=[samples.samples[n] for n in kept])
        crops = Crops(profile.resolution, settings.crop, settings.augment)
        pairing = Pairing(
            [sample.person for sample in samples.samples],
            [sample.style == "photo" for sample in samples.samples],
            profile.seed,
            alone=settings.augment,
        )
        rank = PartialState().process_index
        skipped = Skipped(folder, rank, fresh=not resume)
        skipped.add(samples.skipped)
        encoders = Encoders.load(base, device, dtype)
        empty_prompt = encoders.embed([""])
        faces = _first_faces(samples, pairing, crops)
        if settings.cached_variants:
            source = cached_source(
                samples, pairing, crops, encoders, skipped,
                folder.parent / "crops", settings.cached_variants, profile.seed, captioned,
            )  # fmt: skip
            encoders.unload()
        else:
            source = stream_source(
                samples, pairing, crops, encoders, skipped, settings.workers, captioned
            )
    else:
        pictures = load_pictures(settings.shards, profile.resolution)
        empty_prompt, source = memory_source(
            pictures, profile.seed, base, folder.parent / "latents", device,
            unet if settings.cache_references and clean else None, captioned,
            settings.people_share,
        )  # fmt: skip
        empty_prompt = empty_prompt.to(device, dtype)
        first = {who: n for n, who in reversed(list(enumerate(pictures.person.tolist())))}
        shown = sorted(first.values())[:FACES]  # the first picture of each person
        faces = [Image.fromarray(pictures.pixels[n]) for n in shown]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(profile.seed)  # for weights that are drawn
        adapter = FusionAdapter.from_unet(
            unet, settings.init, settings.attention, settings.layers
        ).float()
    start = start_weights(adapter, start_from, "adapter")
    return Task(
        network=Conditioned(unet, adapter, checkpointing=recipe.gradient_checkpointing),
        source=source,
        scheduler=DDIMScheduler.from_pretrained(base / "scheduler"),
        empty_prompt=empty_prompt,
        settings=settings,
        start=start,
        damaged=damaged,
        faces=faces,
    )


def _first_faces(samples: SampleSet, pairing: Pairing, crops: Crops) -> list[Image.Image]:
    """References as the adapter will see them, from the first pictures that can be read."""
    faces: list[Image.Image] = []
    for number in range(min(len(samples.samples), 10 * FACES)):
        _, reference, rng = pairing.choose(number)
        with suppress(FusionError):
            faces.append(Image.fromarray(crops.reference(samples.samples[reference], rng)))
        if len(faces) == FACES:
            break
    return faces


def run_folder(profile: Profile, name: str = "adapter") -> Path:
    """Where checkpoint and logs of the adapter's run, or of another one, lie."""
    return Path(profile.training.runs) / profile.name / name


def train(
    profile: Profile,
    out: Path | None = None,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    resume: bool = True,
    start_from: Path | None = None,
    watch: Callable[[list[Row]], None] | None = None,
    name: str = "adapter",
    make_monitor: Callable[[Profile, Task], Monitor] | None = None,
) -> Run:
    """Train the adapter on pairs of pictures and write its folder.

    Args:
        profile: base model, recipe and shards.
        out: the adapter's folder; default ``profile.adapter``.
        minutes: stop after this time with a checkpoint.
        steps: overrides the recipe's length.
        resume: go on from the checkpoint if there is one.
        start_from: the folder of an adapter to begin with, rather than with the self-attention.
        watch: called with the rows of ``loss.csv`` whenever there is a new one.
        name: Name of the run and of its records.
        make_monitor: Makes what looks at the training every ``sample_every`` steps, such as the
            sample sheets of ``companion.evaluation.training_monitor``. None looks at nothing; the
            command ``fusionlib train adapter`` passes the sample sheets.

    Raises:
        FusionError: a model or shard is missing, or the folder holds a whole pipeline.
    """
    recipe, folder = profile.recipe("adapter"), run_folder(profile, name)
    target = own_folder(Path(out or profile.adapter))
    task = prepare(profile, start_from=start_from, resume=resume, name=name)
    look: Monitor | None = None
    if make_monitor and profile.training.sample_every and PartialState().is_main_process:
        look = make_monitor(profile, task)

    def monitor(step: int) -> Mapping[str, float | Image.Image]:
        assert look is not None
        task.network.release()  # what is left of the last batch
        return look(step)

    run = fit(
        task.network,
        task.loss,
        recipe,
        folder,
        seed=profile.seed,
        steps=steps,
        minutes=minutes,
        resume=resume,
        name=name,
        start=task.start,
        monitor=monitor if look else None,
        monitor_every=profile.training.sample_every,
        watch=watch,
    )
    task.network.release()
    task.network.adapter.detach(task.network.unet)
    state = PartialState()
    state.wait_for_everyone()  # for what each rank skipped
    if state.is_main_process:
        counts = {
            "skipped_samples": len(Skipped.all(folder)),
            "damaged_shards": len(task.damaged),
        }
        if any(counts.values()):
            logger.warning(
                "%d samples were skipped and %d shards are damaged: see %s",
                *counts.values(),
                folder / "skipped",
            )
        save_adapter(task.network.adapter, target, folder, profile, run, counts)
    state.wait_for_everyone()
    return run
