"""The one training loop: any network, any loss, resumable, on whatever accelerate finds.

The samples of a run are numbered, over all steps and processes, and everything drawn at random for
a batch is a pure function of the seed and these numbers. So a checkpoint needs no state of a data
loader, a resumed run takes the same steps as an uninterrupted one, and a loss that draws by the
number of the sample (`Batch.sample_generators`) does not depend on how a step is split into
processes and batches.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import math
import os
import platform
import resource
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from fusionlib.errors import FusionError
from fusionlib.profiles import Recipe
from fusionlib.support.files import check_writable, replacing, write_text
from fusionlib.support.signals import Stopped, deferred, received
from fusionlib.training.checkpoints import RANDOM, Start
from fusionlib.training.log import Log, Row

logger = logging.getLogger(__name__)

FILES = {
    "checkpoint.pt": (),
    "loss.csv": ("step,samples,seconds",),
    "samples.csv": ("step",),
    "run.json": ('"planned_steps"',),
}
"""Files that a run replaces in its folder, and how each is known to be one of a run."""

LOG_EVERY = 10
"""Steps over which logged values are averaged."""


@dataclass(frozen=True)
class Batch:
    """Which samples one process draws next.

    Attributes:
        seed: Seed of the run.
        samples: Numbers of the samples, counted from 0 over the whole run and all processes.
        stride: Distance from these numbers to those of this process's next batch.
        generator: Generator for what is drawn for the batch as a whole, different in every batch.
    """

    seed: int
    samples: range
    stride: int
    generator: torch.Generator

    def sample_generators(self) -> list[torch.Generator]:
        """One generator for each sample, the same wherever and whenever it is drawn."""
        return [step_generator(self.seed, number) for number in self.samples]


LossFunction = Callable[[nn.Module, Batch], Mapping[str, Tensor]]
"""``(network, batch) -> {"loss": scalar, ...}``. Further scalars are logged; NaN stands for a value
that a batch does not determine."""

Monitor = Callable[[int], Mapping[str, float | Image.Image]]
"""Called with the step, while the network holds the averaged weights; returns what to log."""


@dataclass(frozen=True)
class Run:
    """The record of a finished or interrupted run; written to ``run.json`` beside its checkpoint.

    Attributes:
        steps: Optimiser steps taken in all sessions.
        planned_steps: Step at which the learning rate's schedule ends.
        samples: Training samples seen by all processes.
        seconds: Wall-clock time of all sessions together, including compilation.
        final_loss: Mean of the last 100 logged losses.
        machine: Processor or GPU, and the number of processes.
        started_from: Weights that the run began with; None for random ones.
        samples_before: Training samples that those weights had seen.
        peak_memory_mb: Peak memory of the main process in its last session, on the GPU or else
            resident.
        parameters: Number of trained parameters.
    """

    steps: int
    planned_steps: int
    samples: int
    seconds: float
    final_loss: float
    machine: str
    started_from: str | None = None
    samples_before: int = 0
    peak_memory_mb: float = 0.0
    parameters: int = 0

    @property
    def finished(self) -> bool:
        """Whether the schedule was followed to its end."""
        return self.steps >= self.planned_steps


def learning_rate(step: int, recipe: Recipe, steps: int) -> float:
    """Linear warm-up, a plateau, and a linear fall to 0 over the last ``cooldown`` of the steps."""
    rise = min(1.0, (step + 1) / max(recipe.warmup_steps, 1))
    tail = max(recipe.cooldown * steps, 1.0)
    return recipe.learning_rate * min(rise, 1.0, max(0.0, (steps - step) / tail))


def step_generator(seed: int, *numbers: int) -> torch.Generator:
    """A generator seeded by these numbers; trailing zeros make no difference."""
    return torch.Generator().manual_seed(_mixed(seed, *numbers))


def generator_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """A generator on a device, where drawing many numbers is faster than copying them there.

    Args:
        device: Device of the generator. On the CPU it is the given generator itself.
        generator: Generator on the CPU, whose seed is used for another device.
    """
    if device.type == "cpu":
        return generator
    return torch.Generator(device).manual_seed(generator.initial_seed())


def _mixed(*numbers: int) -> int:
    """One number of 32 bits, which is as much of a seed as torch's CPU generator uses."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@deferred()
def fit(
    network: nn.Module,
    loss_function: LossFunction,
    recipe: Recipe,
    folder: Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    minutes: float | None = None,
    resume: bool = True,
    name: str = "train",
    start: Start = RANDOM,
    monitor: Monitor | None = None,
    monitor_every: int = 0,
    watch: Callable[[list[Row]], None] | None = None,
) -> Run:
    """Train the parameters of ``network`` that require a gradient, and leave their average in it.

    Args:
        network: Network whose forward pass runs under autocast in the recipe's dtype. Only
            parameters with ``requires_grad`` are trained and stored in the checkpoint.
        loss_function: Function that draws a batch and returns the loss, a float32 scalar.
        recipe: Length, batch size, learning rate, averaging and precision.
        folder: Folder of ``checkpoint.pt``, ``loss.csv``, ``run.json``, TensorBoard's files and,
            with a monitor, ``samples.csv`` and ``samples/``.
        seed: Seed of the run.
        steps: Length of the run, in place of the recipe's.
        minutes: Time after which the run stops with a checkpoint, even before its end.
        resume: Whether to continue from the checkpoint in ``folder``, if there is one.
        name: Name shown by the progress bar.
        start: Record of the weights that ``network`` comes with. A resumed run keeps its own
            record.
        monitor: Called with the averaged weights in place every ``monitor_every`` steps, before
            the first and after the last one, in the main process.
        monitor_every: Steps between these calls; 0 for never.
        watch: Called with all rows of ``loss.csv`` when one is added.

    Returns:
        The record of the run so far. ``network`` holds the exponential average of the weights.

    Raises:
        FusionError: The loss is not finite, the checkpoint is damaged or of another network, or the
            folder holds files of these names that are not of a run.
        Stopped: A signal asked for the end, which came after a whole step and its checkpoint.
    """
    for file, mark in FILES.items():
        check_writable(folder / file, *mark)
    total = steps or recipe.steps
    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    accelerator = Accelerator(
        mixed_precision=recipe.mixed_precision,
        gradient_accumulation_steps=recipe.gradient_accumulation,
        cpu=not torch.cuda.is_available(),
    )
    network.train().to(accelerator.device)
    trained = {key: p for key, p in network.named_parameters() if p.requires_grad}
    optimizer = _optimizer(recipe, trained, accelerator.device)
    ema = EMAModel(
        trained.values(), decay=recipe.ema_decay, use_ema_warmup=True, power=0.8, foreach=True
    )
    checkpoint = folder / "checkpoint.pt"
    frozen = _sha256_frozen(network)
    step, samples, seconds = 0, 0, 0.0
    each = recipe.batch_size * accelerator.num_processes  # samples of one batch of every process
    state: dict[str, Any] = {}
    if resume and checkpoint.is_file():
        state = _read_checkpoint(checkpoint, accelerator.device)
        _check_same(checkpoint, state, trained, seed, frozen)
        with torch.no_grad():
            for key, parameter in trained.items():
                parameter.copy_(state["weights"][key])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        ema.to(accelerator.device)
        step, seconds = state["step"], state["seconds"]
        samples = state.get("samples", step * each)
        start = Start(**state.get("start", asdict(start)))
        if step >= total:
            logger.warning(
                "%s: %s has come to its end after %d steps, so nothing is trained: --fresh starts "
                "over.", name, checkpoint, step,
            )  # fmt: skip
    # The seed alone would draw again what weights that were trained before have seen.
    draws = _mixed(seed, start.samples) if start.samples else seed
    prepared, optimizer = accelerator.prepare(network, optimizer)
    if accelerator.scaler is not None and state.get("scaler"):
        accelerator.scaler.load_state_dict(state["scaler"])
    meter = _Meter(accelerator)
    if accelerator.is_main_process:
        meter.sums, meter.count = state.get("meter", ({}, {}))
    del state
    if recipe.compile:
        prepared.compile(dynamic=False)

    log = Log(folder, resume_at=step) if accelerator.is_main_process else None

    def save() -> None:
        if not accelerator.is_main_process:
            return
        if "loss" in meter.sums and not meter.sums["loss"].isfinite():
            return  # the next reading reports it; the last good state stays
        with replacing(checkpoint) as partial, partial.open("wb") as file:
            torch.save(
                {
                    "weights": {key: p.detach() for key, p in trained.items()},
                    "optimizer": optimizer.state_dict(),
                    "ema": ema.state_dict(),
                    "scaler": accelerator.scaler.state_dict() if accelerator.scaler else {},
                    "step": step,
                    "samples": samples,
                    "seconds": seconds,
                    "start": asdict(start),
                    "seed": seed,
                    "frozen": frozen,
                    "meter": (meter.sums, meter.count),
                },
                file,
            )
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name with no content

    progress = tqdm(
        total=total,
        initial=step,
        desc=name,
        disable=not accelerator.is_main_process,
        mininterval=2.0,
        smoothing=0.05,
    )

    def look() -> None:
        if not (monitor and log):
            return
        ema.store(trained.values())
        ema.copy_to(trained.values())
        log.samples(step, monitor(step))
        ema.restore(trained.values())
        network.train()

    if monitor_every and step == 0:
        look()
    began = last = saved = time.monotonic()
    stopped = 0
    while step < total:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe, total)
        logged = (step + 1) % LOG_EVERY == 0 or step + 1 == total
        norms: dict[str, float] = {}
        for part in range(recipe.gradient_accumulation):
            first = samples + accelerator.process_index * recipe.batch_size
            turn = step * recipe.gradient_accumulation + part
            batch = Batch(
                draws,
                range(first, first + recipe.batch_size),
                each,
                step_generator(draws, turn, accelerator.process_index),
            )
            with accelerator.accumulate(prepared), _attention(recipe):
                terms = loss_function(prepared, batch)
                accelerator.backward(terms["loss"])
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(list(trained.values()), 1.0)
                    terms = dict(terms) | {"grad_norm": norm}
                    if logged:
                        norms = _norms(trained)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            meter.add(terms)
            samples += each
        if not accelerator.optimizer_step_was_skipped:  # float16 found its scale too large
            ema.step(trained.values())
        step += 1
        now = time.monotonic()
        seconds, last = seconds + now - last, now
        if logged:
            values = meter.read()
            if not math.isfinite(values["loss"]):
                raise FusionError(
                    f"{name}: the loss is {values['loss']} at step {step}; the last good state is "
                    f"{checkpoint}. Lower the learning rate."
                )
            if log:
                rate = optimizer.param_groups[0]["lr"]
                log.write(step, start.samples + samples, seconds, values | {"lr": rate})
                log.scalars(step, norms | {"memory_mb": _peak_memory_mb(accelerator.device)})
                if watch:
                    watch(log.rows)
            progress.set_postfix(loss=f"{values['loss']:.4f}")
        progress.update()
        if monitor_every and (step % monitor_every == 0 or step == total):
            look()
            last = time.monotonic()  # its time does not count as training
        if now - saved > 60 * recipe.checkpoint_minutes:
            save()
            saved = now
        stopped = _largest(accelerator, received())
        if stopped or (minutes and _largest(accelerator, now - began > 60 * minutes)):
            break
    progress.close()
    save()
    ema.copy_to(trained.values())
    run = Run(
        steps=step,
        planned_steps=total,
        samples=samples,
        seconds=round(seconds, 1),
        final_loss=log.recent() if log else float("nan"),
        machine=f"{_machine(accelerator)}, {accelerator.num_processes} process(es)",
        started_from=start.weights,
        samples_before=start.samples,
        peak_memory_mb=round(_peak_memory_mb(accelerator.device)),
        parameters=sum(parameter.numel() for parameter in trained.values()),
    )
    if log:
        log.close()
        record = asdict(run) | {"recipe": recipe.model_dump(), "seed": seed}
        write_text(folder / "run.json", json.dumps(record, indent=2) + "\n")
    if stopped:
        raise Stopped(
            stopped,
            f"{checkpoint} holds step {step} of {total}, and the same command, without --fresh, "
            "goes on from there",
        )
    return run


def _read_checkpoint(checkpoint: Path, device: torch.device) -> dict[str, Any]:
    state: Any = None
    reason: Exception | None = None
    try:
        state = torch.load(checkpoint, weights_only=True, map_location=device)
    except (torch.OutOfMemoryError, MemoryError):
        raise  # the file may be whole
    except Exception as error:  # zip, pickle and torch each have errors of their own
        reason = error
    needed = {"weights", "optimizer", "ema", "step", "seconds"}
    if not (isinstance(state, dict) and needed <= state.keys()):
        raise FusionError(
            f"{checkpoint} is damaged or no checkpoint of a training, so the run cannot go on from "
            "it: use --fresh to start over, or bring a whole copy of it"
        ) from reason
    return state


def _check_same(
    checkpoint: Path,
    state: Mapping[str, Any],
    trained: Mapping[str, nn.Parameter],
    seed: int,
    frozen: str,
) -> None:
    """Refuse to continue from the checkpoint of another run."""
    shapes = {key: weight.shape for key, weight in state["weights"].items()}
    other = (
        "belongs to another network"
        if shapes != {key: weight.shape for key, weight in trained.items()}
        else "was trained over other frozen weights"
        if state.get("frozen", frozen) != frozen
        else "was trained with another seed"
        if state.get("seed", seed) != seed
        else None
    )
    if other:
        raise FusionError(
            f"{checkpoint} {other}: use --fresh to start over, or another folder of runs"
        )


def _sha256_frozen(network: nn.Module) -> str:
    """Hash of the parameters that are not trained, over which the others are."""
    digest = hashlib.sha256()
    for key, parameter in network.named_parameters():
        if not parameter.requires_grad:
            digest.update(key.encode())
            digest.update(
                parameter.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data
            )
    return digest.hexdigest()


def _attention(recipe: Recipe) -> AbstractContextManager[None]:
    """The kernels that the recipe lets torch's attention use."""
    return sdpa_kernel(SDPBackend.MATH) if recipe.attention == "plain" else nullcontext()


def _optimizer(
    recipe: Recipe, trained: Mapping[str, nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    options: dict[str, Any] = {
        "lr": recipe.learning_rate,
        "betas": (0.9, 0.99),
        "weight_decay": recipe.weight_decay,
    }
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(trained.values(), fused=True, **options)
    try:
        bitsandbytes = importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise FusionError(
            "the recipe's optimizer 'adamw8bit' needs the package bitsandbytes, which is not "
            "installed: pip install bitsandbytes, or set optimizer: adamw"
        ) from error
    if device.type != "cuda":
        raise FusionError(
            "the recipe's optimizer 'adamw8bit' needs a CUDA GPU: set optimizer: adamw"
        )
    return bitsandbytes.optim.AdamW8bit(trained.values(), **options)


@dataclass
class _Meter:
    """Means of what the loss function returns, over batches and processes, without NaN."""

    accelerator: Accelerator
    sums: dict[str, Tensor] = field(default_factory=dict)
    count: dict[str, Tensor] = field(default_factory=dict)

    def add(self, terms: Mapping[str, Any]) -> None:
        for key, value in terms.items():
            value = torch.as_tensor(value, device=self.accelerator.device).detach().float()
            known = ~value.isnan() if key != "loss" else torch.ones_like(value, dtype=torch.bool)
            self.sums[key] = self.sums.get(key, 0.0) + torch.where(known, value, 0.0)
            self.count[key] = self.count.get(key, 0.0) + known.float()

    def read(self) -> dict[str, float]:
        """The means since the last reading."""
        keys = sorted(self.sums)
        pairs = torch.stack([torch.stack([self.sums[key], self.count[key]]) for key in keys])
        totals = self.accelerator.reduce(pairs, "sum").tolist()
        self.sums, self.count = {}, {}
        means = {k: s / n if n else math.nan for k, (s, n) in zip(keys, totals, strict=True)}
        return {"loss": means.pop("loss")} | means


def _norms(trained: Mapping[str, nn.Parameter]) -> dict[str, float]:
    """The gradient's norm at every trained parameter, after clipping."""
    named = [(key, p.grad) for key, p in trained.items() if p.grad is not None]
    values = torch.stack([grad.float().norm() for _, grad in named]).tolist() if named else []
    return {f"grad_norm/{key}": value for (key, _), value in zip(named, values, strict=True)}


def _largest(accelerator: Accelerator, wish: int) -> int:
    """The largest wish of all processes, so that they stop at the same step."""
    if accelerator.num_processes == 1:
        return wish
    return int(accelerator.gather(torch.tensor([wish], device=accelerator.device)).max())


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # kilobytes on Linux


def _machine(accelerator: Accelerator) -> str:
    if accelerator.device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
