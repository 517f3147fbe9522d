"""The one training loop: any network, any loss, resumable, on whatever accelerate finds.

Batch ``i`` of a run is a pure function of ``(seed, i, process)``: the loss function receives a
generator seeded with them and draws its samples, noise and timesteps from it. So a checkpoint needs
no state of a data loader, and a resumed run takes the same steps as an unbroken one.
"""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from fusionlib.errors import FusionError
from fusionlib.profiles import Recipe
from fusionlib.training.checkpoints import RANDOM, Start

LossFunction = Callable[[nn.Module, torch.Generator], Mapping[str, Tensor]]
"""``(network, generator) -> {"loss": scalar, ...}``; further entries are logged."""

LOG_EVERY = 10


@dataclass(frozen=True)
class Run:
    """What a finished or interrupted run did; written to ``run.json`` beside its checkpoint.

    Attributes:
        steps: optimiser steps taken in all.
        planned_steps: where the learning rate's schedule ends.
        samples: training samples seen over all processes.
        seconds: wall-clock time of all sessions together, compilation included.
        final_loss: mean over the last 100 logged values.
        machine: processor or GPU, and how many processes.
        started_from: the weights that it began with, None for random ones.
        samples_before: training samples that those weights had seen.
    """

    steps: int
    planned_steps: int
    samples: int
    seconds: float
    final_loss: float
    machine: str
    started_from: str | None = None
    samples_before: int = 0

    @property
    def finished(self) -> bool:
        """Whether the schedule was run to its end."""
        return self.steps >= self.planned_steps


def learning_rate(step: int, recipe: Recipe, steps: int) -> float:
    """Linear warm-up, a plateau, and a linear fall to 0 over the last ``cooldown`` of the steps."""
    rise = min(1.0, (step + 1) / max(recipe.warmup_steps, 1))
    tail = max(recipe.cooldown * steps, 1.0)
    return recipe.learning_rate * min(rise, 1.0, max(0.0, (steps - step) / tail))


def step_generator(seed: int, step: int, process: int = 0) -> torch.Generator:
    """The generator of one step on one process, independent of every other step's."""
    # torch's CPU generator takes 32 bits of a seed: mix the three numbers into them.
    mixed = np.random.SeedSequence([seed, step, process]).generate_state(1)
    return torch.Generator().manual_seed(int(mixed[0]))


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
) -> Run:
    """Train the parameters of ``network`` that require a gradient, and leave their average in it.

    Args:
        network: its forward pass runs under autocast in the recipe's dtype; only parameters with
            ``requires_grad`` are trained and stored in the checkpoint.
        loss_function: draws a batch from the generator and returns the loss, a float32 scalar.
        recipe: length, batch size, learning rate, averaging, precision.
        folder: holds ``checkpoint.pt``, ``loss.csv``, ``run.json`` and TensorBoard's files.
        seed: of the run.
        steps: overrides the recipe's length.
        minutes: stop (with a checkpoint) after this time even if the schedule is not at its end.
        resume: go on from the checkpoint in ``folder`` if there is one, else start over.
        name: shown by the progress bar.
        start: what to record of the weights that ``network`` comes with; a resumed run keeps its
            own record.

    Returns:
        What the run did so far. ``network`` holds the exponential average of the weights.

    Raises:
        FusionError: when the loss is not finite, or the checkpoint is of another network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total = steps or recipe.steps
    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    accelerator = Accelerator(
        mixed_precision=recipe.mixed_precision, cpu=not torch.cuda.is_available()
    )
    network.train().to(accelerator.device)
    trained = {key: p for key, p in network.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        trained.values(),
        lr=recipe.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    ema = EMAModel(
        trained.values(), decay=recipe.ema_decay, use_ema_warmup=True, power=0.8, foreach=True
    )
    checkpoint = folder / "checkpoint.pt"
    step, seconds = 0, 0.0
    if resume and checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True, map_location=accelerator.device)
        if set(state["weights"]) != set(trained):
            raise FusionError(
                f"{checkpoint} belongs to another network: use --no-resume to start over, "
                "or another --out folder"
            )
        with torch.no_grad():
            for key, parameter in trained.items():
                parameter.copy_(state["weights"][key])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        ema.to(accelerator.device)
        step, seconds = state["step"], state["seconds"]
        start = Start(**state.get("start", asdict(start)))
    prepared, optimizer = accelerator.prepare(network, optimizer)
    if recipe.compile:
        prepared.compile(dynamic=False)

    log = _Log(folder, resume_at=step) if accelerator.is_main_process else None

    def save() -> None:
        if not accelerator.is_main_process:
            return
        partial = checkpoint.with_suffix(".partial")
        torch.save(
            {
                "weights": {key: p.detach() for key, p in trained.items()},
                "optimizer": optimizer.state_dict(),
                "ema": ema.state_dict(),
                "step": step,
                "seconds": seconds,
                "start": asdict(start),
            },
            partial,
        )
        os.replace(partial, checkpoint)

    progress = tqdm(
        total=total,
        initial=step,
        desc=name,
        disable=not accelerator.is_main_process,
        mininterval=2.0,
        smoothing=0.05,
    )
    began = last = saved = time.monotonic()
    while step < total:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe, total)
        generator = step_generator(seed, step, accelerator.process_index)
        terms = loss_function(prepared, generator)
        accelerator.backward(terms["loss"])
        norm = accelerator.clip_grad_norm_(list(trained.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.step(trained.values())
        step += 1
        now = time.monotonic()
        seconds, last = seconds + now - last, now
        if step % LOG_EVERY == 0 or step == total:
            values = {key: float(value.detach()) for key, value in terms.items()}
            if not all(map(math.isfinite, values.values())):
                raise FusionError(
                    f"{name}: the loss is {values} at step {step}; the last good state is "
                    f"{checkpoint}. Lower the learning rate."
                )
            if log:
                log.write(
                    step,
                    start.samples + step * recipe.batch_size * accelerator.num_processes,
                    seconds,
                    values | {"grad_norm": float(norm), "lr": optimizer.param_groups[0]["lr"]},
                )
            progress.set_postfix(loss=f"{values['loss']:.4f}")
        progress.update()
        if now - saved > 60 * recipe.checkpoint_minutes:
            save()
            saved = now
        if minutes is not None and now - began > 60 * minutes:
            break
    progress.close()
    save()
    ema.copy_to(trained.values())
    run = Run(
        steps=step,
        planned_steps=total,
        samples=step * recipe.batch_size * accelerator.num_processes,
        seconds=round(seconds, 1),
        final_loss=log.recent() if log else float("nan"),
        machine=f"{_device(accelerator)}, {accelerator.num_processes} process(es)",
        started_from=start.weights,
        samples_before=start.samples,
    )
    if log:
        log.close()
        (folder / "run.json").write_text(
            json.dumps(asdict(run) | {"recipe": recipe.model_dump(), "seed": seed}, indent=2) + "\n"
        )
    return run


def _device(accelerator: Accelerator) -> str:
    if accelerator.device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


class _Log:
    """``loss.csv`` and TensorBoard, cut back to the step at which a run resumes."""

    def __init__(self, folder: Path, *, resume_at: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "loss.csv"
        rows: list[dict[str, str]] = []
        if resume_at and self.path.is_file():
            with self.path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) <= resume_at]
        self.rows: list[dict[str, Any]] = list(rows)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_at or None)
        self._rewrite()

    def _rewrite(self) -> None:
        partial = self.path.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            if self.rows:
                writer = csv.DictWriter(file, self.rows[0])
                writer.writeheader()
                writer.writerows(self.rows)
        os.replace(partial, self.path)

    def write(self, step: int, samples: int, seconds: float, values: Mapping[str, float]) -> None:
        row: dict[str, Any] = {"step": step, "samples": samples, "seconds": round(seconds, 1)}
        row |= {key: f"{value:.6g}" for key, value in values.items()}
        self.rows.append(row)
        if len(self.rows) == 1:
            self._rewrite()
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.rows[0]).writerow(row)
        for key, value in values.items():
            self.board.add_scalar(key, value, step)

    def recent(self) -> float:
        losses = [float(row["loss"]) for row in self.rows[-100:]]
        return sum(losses) / len(losses) if losses else float("nan")

    def close(self) -> None:
        self.board.close()
