"""Peak memory of a picture and of a training step, each system in a process of its own.

The processes branch off one that has imported everything, and do the same at the tiny size first:
then code, kernels and late imports are in memory, and what is counted is the system alone. On CUDA
that is what PyTorch allocated, on the CPU how far the process grew. Weights count, the peak is that
of the call; what is computed once for a person comes before it, as in `benchmarks.generation`.

A process that only loads the base model comes first, and the others say how much more they took.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import generation, training
from benchmarks.alternate import Call, Setting, say
from benchmarks.models import PROMPT, Models
from companion.pages.benchmark_records import Group, Row
from fusionlib.errors import FusionError

LOADED = "base model, only loaded"
CHECKPOINTED = ", checkpointing"
PAINTED = (
    "base model",
    generation.CLEAN,
    generation.SHARED,
    "IP-Adapter",
    "IP-Adapter-Plus",
    "ControlNet",
    DECOUPLED := "fused, decoupled",
    INSTANTID := "IP-Adapter-Plus and ControlNet",
    LORA := "LoRA in the attention",
)
"""FaceID's and its kin's pictures are an IP-Adapter's, InstantID's those of IP-Adapter-Plus and a
ControlNet, DreamBooth's those of a LoRA; Arc2Face's are the base model's."""
STEPS = ("IP-Adapter", training.IP_CACHED, training.ENCODED, training.CACHED, training.KEPT)
TRAINED = (
    *STEPS,
    *(name + CHECKPOINTED for name in ("IP-Adapter", training.ENCODED, training.CACHED)),
    training.DECOUPLED,
    training.PLUS,
    training.FACEID,
    training.INSTANTID,
    training.LORA,
    training.WHOLE,
)
"""IP-Adapter-Plus stands for FaceID-Plus, FaceID for FaceID-Portrait."""
ROUNDS = 3
"""At most: memory hardly changes."""
TOGETHER, LARGEST = 8, 17e9
"""Processes on a GPU at once, where each finds the bytes that the largest takes at full size."""


def run(setting: Setting) -> list[Group]:
    """Measure a picture with one reference, and a training step of one picture."""
    asked = [("picture", LOADED), *(("picture", name) for name in PAINTED)]
    asked += [("step", name) for name in TRAINED]
    asked *= min(setting.repeats, ROUNDS)
    # What PyTorch allocated on a GPU does not depend on who else is there; how a process grew may.
    with ThreadPoolExecutor(together(setting)) as several:
        found = [*several.map(lambda one: in_a_process(setting, *one), asked)]
    peaks: dict[tuple[str, str], list[float]] = {}
    for one, value in zip(asked, found, strict=True):
        peaks.setdefault(one, []).append(value)

    def group(title: str, what: str, names: Sequence[str]) -> Group:
        loaded = {LOADED: peaks["picture", LOADED]}
        return _group(title, loaded | {name: peaks[what, name] for name in names})

    return [
        group("A picture with one reference", "picture", PAINTED),
        group("A training step of one picture", "step", TRAINED),
    ]


def together(setting: Setting) -> int:
    """How many processes may measure at the same time."""
    if setting.device != "cuda":
        return 1
    return max(1, min(TOGETHER, int(torch.cuda.get_device_properties(0).total_memory // LARGEST)))


def _group(title: str, peaks: dict[str, list[float]]) -> Group:
    rows = tuple(Row(name, tuple(found)) for name, found in peaks.items())
    return Group(title, "MB", rows, "difference")


def in_a_process(setting: Setting, what: str, name: str) -> float:
    """`peak`, in a new process.

    Raises:
        FusionError: the process was killed.
    """
    say(f"memory of a {what}: {name}")
    server = multiprocessing.get_context("forkserver")  # imports once, and never touches a GPU
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # not even by asking whether there is one
    server.set_forkserver_preload([__name__])
    try:
        with ProcessPoolExecutor(1, server) as pool:
            return pool.submit(peak, setting, what, name).result()
    except BrokenProcessPool as error:
        raise FusionError(
            f"The process that measured {name!r} was killed, as happens where memory runs out: use "
            "a machine with more, or a smaller --size."
        ) from error


def peak(setting: Setting, what: str, name: str) -> float:
    """Build one system, run it twice, and say what memory that took.

    Args:
        setting: where, and of which size.
        what: a ``picture`` or a training ``step``.
        name: of the system.

    Returns:
        Megabytes.
    """
    build(replace(setting, size="tiny"), what, name)()
    gc.collect()
    before = held(setting)
    call = build(setting, what, name)
    gc.collect()
    forget_peak(setting)
    for _ in range(2):
        call()
    setting.synchronise()
    return highest(setting) - before


def build(setting: Setting, what: str, name: str) -> Call:
    """The call that makes a picture, or a training step, by the system of this name."""
    models = Models(setting, alone=True)
    if name == LOADED:
        parts: Sequence[object] = (models.unet, models.vae, models.text_encoder)
        return lambda: parts
    if what == "picture":
        return painters(models)[name](1)
    checkpointing = name.endswith(CHECKPOINTED)
    systems = training.systems(setting, checkpointing=checkpointing) | training.others(setting)
    return systems[name.removesuffix(CHECKPOINTED)]()


def painters(models: Models) -> dict[str, Callable[[int], Call]]:
    """`generation.build`, and the systems that cost no other time than one of its own."""

    def paint(pipeline: Any, **more: Any) -> Call:
        return lambda: pipeline(PROMPT, **models.sampling, **more)

    def decoupled(references: int) -> Call:
        pipeline = models.decoupled()
        seen = pipeline.encode_references(models.pictures(references))
        return paint(pipeline, references=seen)

    def instantid(references: int) -> Call:
        embeds = models.image_embeds(references, plus=True)
        both = torch.cat([torch.zeros_like(embeds), embeds])
        pipeline = models.controlnet(plus=True)
        return paint(pipeline, image=models.pictures(1)[0], ip_adapter_image_embeds=[both])

    return generation.build(models) | {
        DECOUPLED: decoupled,
        INSTANTID: instantid,
        LORA: lambda _: paint(models.lora()),
    }


def held(setting: Setting) -> float:
    """Megabytes in use now."""
    return torch.cuda.memory_allocated() / 1e6 if setting.device == "cuda" else _status("VmRSS")


def highest(setting: Setting) -> float:
    """Most megabytes in use at once since `forget_peak`."""
    return torch.cuda.max_memory_allocated() / 1e6 if setting.device == "cuda" else _status("VmHWM")


def forget_peak(setting: Setting) -> None:
    """Begin to look for the highest from here.

    Raises:
        FusionError: on the CPU, where the system does not tell (only Linux does).
    """
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    # Not `getrusage`: its peak is inherited from the process that started this one.
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    except OSError as error:
        raise FusionError(_ONLY_LINUX) from error


def _status(field: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
    except OSError as error:
        raise FusionError(_ONLY_LINUX) from error
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024 / 1e6


_ONLY_LINUX = (
    "Memory on the CPU is read from /proc/self/status and its peak reset by /proc/self/clear_refs, "
    "as only Linux has them: measure there, or by --device cuda."
)
