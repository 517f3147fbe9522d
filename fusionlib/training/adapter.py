"""The fusion adapter: Linear_kf and Linear_vf trained over the frozen base (Section 3.2).

Everything else is frozen, in the compute dtype. If the reference is shown clean at timestep 0, its
hidden states h_f depend on nothing that is trained or drawn: where the training set fits in memory,
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
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn

from fusionlib.adapter import FusionAdapter
from fusionlib.errors import FusionError
from fusionlib.profiles import Profile
from fusionlib.reference import encode_references
from fusionlib.training.checkpoints import FrozenBase, Start, start_weights
from fusionlib.training.crops import Crops
from fusionlib.training.denoising import DenoisingTask, Drawn
from fusionlib.training.encoders import Encoders
from fusionlib.training.export import ADAPTER, own_folder, save_adapter
from fusionlib.training.log import Row
from fusionlib.training.loop import Batch, Monitor, Run
from fusionlib.training.pairs import Pairing, Skipped
from fusionlib.training.pictures import load_pictures
from fusionlib.training.runs import DEFAULTS, RunOptions, check_runs, run_folder, train_network
from fusionlib.training.shards import SampleSet, index_samples
from fusionlib.training.sources import (
    Inputs,
    Source,
    cached_source,
    first_people,
    memory_source,
    stream_source,
)

FACES = 4
"""Number of training pictures that the sample sheets show."""

logger = logging.getLogger(__name__)


class Conditioned(nn.Module):
    """The frozen UNet, conditioned on faces by the adapter; only the adapter is trained.

    Args:
        unet: Frozen UNet.
        adapter: Adapter in float32, attached to the UNet here.
        checkpointing: Whether the UNet computes its activations again in the backward pass.
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

        With checkpointing the layers run once more in the backward pass and have to see the same
        faces, so these stay until this is called. Otherwise it does nothing.
        """
        self._shown.close()


@dataclass
class Task(DenoisingTask):
    """Everything that a training run of the adapter needs.

    Attributes:
        network: UNet with the adapter that is trained.
        start: Record of the weights that the adapter begins with.
        damaged: Where shards are damaged, by file.
        faces: Some pictures of the training set, for the sample sheets.
    """

    network: Conditioned
    start: Start
    damaged: dict[str, str]
    faces: list[Image.Image]

    def loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """See `DenoisingTask`."""
        self.network.release()
        return super().loss(network, batch)

    def predict(self, network: nn.Module, inputs: Inputs, drawn: Drawn) -> Tensor:
        """See `DenoisingTask`."""
        states = inputs.reference
        if isinstance(states, Tensor):
            states = self._encoded(states, inputs.reference_text, drawn)
        strength = (~drawn.no_reference).float()
        prediction: Tensor = network(drawn.noisy, drawn.timesteps, drawn.text, states, strength)
        return prediction

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
        text = self.empty_prompt if text is None else text.to(kind)
        return encode_references(self.network.unet, latents.to(kind), text, **shared)


@dataclass(frozen=True)
class _Data:
    """The training set of a run; see `Task`."""

    source: Source
    empty_prompt: Tensor
    faces: list[Image.Image]
    damaged: dict[str, str]


def prepare(profile: Profile, options: RunOptions = DEFAULTS, *, name: str = "adapter") -> Task:
    """Load the frozen models and the training set of a profile, and make an adapter.

    Args:
        profile: Base model, recipe and shards.
        options: Weights to begin with, and whether the samples that an earlier session skipped
            stay counted.
        name: Name of the run.

    Raises:
        FusionError: A model or a shard is missing, or there is nothing to train on.
    """
    settings = profile.training
    base = FrozenBase.load(profile)
    if settings.stream:
        data = _on_disk(profile, base, run_folder(profile, name), options.resume)
    else:
        data = _in_memory(profile, base, run_folder(profile, name).parent / "latents")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(profile.seed)  # for weights that are drawn
        adapter = FusionAdapter.from_unet(
            base.unet, settings.init, settings.attention, settings.layers
        ).float()
    start = start_weights(adapter, options.start_from, "adapter")
    checkpointing = profile.recipe("adapter").gradient_checkpointing
    return Task(
        network=Conditioned(base.unet, adapter, checkpointing=checkpointing),
        source=data.source,
        scheduler=base.scheduler,
        empty_prompt=data.empty_prompt,
        settings=settings,
        start=start,
        damaged=data.damaged,
        faces=data.faces,
    )


def _on_disk(profile: Profile, base: FrozenBase, folder: Path, resume: bool) -> _Data:
    """A training set that is read as it is needed, or cached as latents."""
    settings = profile.training
    captioned = settings.reference_prompt == "caption"
    samples = index_samples(settings.shards, folder.parent / "index")
    selected = first_people([each.person for each in samples.samples], settings.people_share)
    samples = replace(samples, samples=[samples.samples[n] for n in selected])
    crops = Crops(profile.resolution, settings.crop, settings.augment)
    pairing = Pairing(
        [sample.person for sample in samples.samples],
        [sample.style == "photo" for sample in samples.samples],
        profile.seed,
        alone=settings.augment,
    )
    skipped = Skipped(folder, PartialState().process_index, fresh=not resume)
    skipped.add(samples.skipped)
    encoders = Encoders.load(base.folder, base.device, base.dtype)
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
    return _Data(source, empty_prompt, faces, samples.damaged)


def _in_memory(profile: Profile, base: FrozenBase, latents_folder: Path) -> _Data:
    """A training set that is held in memory as latents."""
    settings = profile.training
    pictures = load_pictures(settings.shards, profile.resolution)
    empty_prompt, source = memory_source(
        profile, base, pictures, latents_folder,
        settings.cache_references and settings.reference_timestep == "clean",
        settings.reference_prompt == "caption",
    )  # fmt: skip
    first = {who: n for n, who in reversed(list(enumerate(pictures.person.tolist())))}
    shown = sorted(first.values())[:FACES]  # the first picture of each person
    return _Data(source, empty_prompt, [Image.fromarray(pictures.pixels[n]) for n in shown], {})


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


def train(
    profile: Profile,
    options: RunOptions = DEFAULTS,
    *,
    watch: Callable[[list[Row]], None] | None = None,
    name: str = "adapter",
    make_monitor: Callable[[Profile, Task], Monitor] | None = None,
) -> Run:
    """Train the adapter on pairs of pictures and write its folder, by default ``profile.adapter``.

    Args:
        profile: Base model, recipe and shards.
        options: Options of the run. It may start from the folder of an adapter.
        watch: Called with the rows of ``loss.csv`` whenever one is added.
        name: Name of the run and of its records.
        make_monitor: Makes the monitor that is called every ``sample_every`` steps, such as the
            sample sheets of ``companion.evaluation.training_monitor``, which the command
            ``fusionlib train adapter`` passes. By default there is none.

    Raises:
        FusionError: A model or shard is missing, or the folder holds what would be lost.
    """
    folder = run_folder(profile, name)
    target = own_folder(Path(options.out or profile.adapter), ADAPTER, name)
    check_runs(profile, name)
    task = prepare(profile, options, name=name)
    look: Monitor | None = None
    if make_monitor and profile.training.sample_every and PartialState().is_main_process:
        look = make_monitor(profile, task)

    def monitor(step: int) -> Mapping[str, float | Image.Image]:
        assert look is not None
        task.network.release()  # from the last batch
        return look(step)

    run = train_network(
        task.network, task.loss, profile, name, options,
        recipe=profile.recipe("adapter"), start=task.start,
        monitor=monitor if look else None, watch=watch,
    )  # fmt: skip
    task.network.release()
    task.network.adapter.detach(task.network.unet)
    state = PartialState()
    state.wait_for_everyone()  # each rank has recorded what it skipped
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
