"""What a call makes its machine do: its operations, its longest operators, and its kernels.

Floating-point operations are those of matrix products, convolutions and attention, by PyTorch's own
counter; sums, norms and activations are not counted, nor what it costs to move numbers about. They
are a floor that no implementation gets below.

Kernels count where the processor starts them more slowly than the GPU runs them: then it is their
number that decides. To compile a model, or to record its graph, makes fewer of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from companion.pages.benchmark_records import Operator

MOST = 10
"""Operators of a profile that are kept."""


def count_operations(call: Callable[[], object]) -> float:
    """Call once, and count a multiplication and its addition as two operations."""
    with FlopCounterMode(display=False, custom_mapping=_ON_CPU) as counter:
        call()
    return float(counter.get_total_flops())


def _forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}
"""What PyTorch's counter does not know, attention on the CPU, from the shapes that it passes."""


def profile_call(
    call: Callable[[], object], device: str
) -> tuple[tuple[Operator, ...], float | None]:
    """Call once under torch.profiler: the operators that took longest, and the number of kernels.

    Returns:
        At most `MOST` operators (on CUDA kernels), the longest first, none where torch did nothing;
        and the number of kernels on CUDA.
    """
    on_gpu = device == "cuda"
    watched = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=watched) as seen:
        call()
        if on_gpu:
            torch.cuda.synchronize()
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    ms: dict[str, float] = {}
    kernels = 0
    for event in seen.key_averages():
        if event.device_type == wanted and not event.is_user_annotation:
            name = event.key[:60]  # a kernel's goes on with all its template's arguments
            spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            ms[name] = ms.get(name, 0.0) + spent / 1000
            kernels += event.count * (not name.startswith(("Memcpy", "Memset")))
    together = sum(ms.values())
    names = sorted(ms, key=ms.__getitem__, reverse=True)[:MOST]
    longest = tuple(Operator(name, ms[name], ms[name] / together) for name in names if ms[name])
    return longest, float(kernels) if on_gpu else None
