"""Floating-point operations that a call makes, counted: a floor that no implementation gets below.

Counted are matrix products, convolutions and attention, by PyTorch's own counter; sums, norms and
activations are not, nor what it costs to move numbers about.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def count_operations(call: Callable[[], object]) -> float:
    """Call once, and count a multiplication and its addition as two operations.

    Args:
        call: anything that computes with torch in this thread.
    """
    with FlopCounterMode(display=False, custom_mapping=_MORE) as counter:
        call()
    return float(counter.get_total_flops())


def _attention_on_cpu(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward_on_cpu(
    gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any
) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


_MORE = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_on_cpu,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_on_cpu,
}
"""What PyTorch's counter does not know: attention on the CPU. (It hands on shapes.)"""
