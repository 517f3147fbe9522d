"""A profile of one call by torch.profiler: in which operators its time goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from companion.pages.benchmark_records import Operator

MOST = 10


def longest_operators(call: Callable[[], object], device: str) -> tuple[Operator, ...]:
    """Call once, and name the operators that took longest, on CUDA the kernels.

    Args:
        call: anything that computes with torch in this process.
        device: ``cpu`` or ``cuda``.

    Returns:
        At most `MOST`, the longest first; none where torch did nothing.
    """
    on_gpu = device == "cuda"
    watched = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=watched) as seen:
        call()
        if on_gpu:
            torch.cuda.synchronize()
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    ms: dict[str, float] = {}
    for event in seen.key_averages():
        if event.device_type == wanted and not event.is_user_annotation:
            name = event.key[:60]  # a kernel's goes on with all its template's arguments
            ms[name] = ms.get(name, 0.0) + _self_time(event, on_gpu) / 1000
    together = sum(ms.values())
    names = sorted(ms, key=ms.__getitem__, reverse=True)[:MOST]
    return tuple(Operator(name, ms[name], ms[name] / together) for name in names if ms[name])


def _self_time(event: Any, on_gpu: bool) -> float:
    return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)
