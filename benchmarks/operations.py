"""What a call makes its machine do, counted and not timed.

Floating-point operations are those of matrix products, convolutions and attention, by PyTorch's own
counter; sums, norms and activations are not counted, nor what it costs to move numbers about. They
are a floor that no implementation gets below.

Kernels count where the processor starts them more slowly than the GPU runs them: then it is their
number that decides. To compile a model, or to record its graph, makes fewer of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def count_operations(call: Callable[[], object]) -> float:
    """Call once, and count a multiplication and its addition as two operations.

    Args:
        call: anything that computes with torch in this thread.
    """
    with FlopCounterMode(display=False, custom_mapping=_MORE) as counter:
        call()
    return float(counter.get_total_flops())


def count_kernels(call: Callable[[], object], device: str = "meta") -> int:
    """Call once, and count PyTorch's operators that compute something: most start one kernel.

    Attention is one forwards and one backwards, whatever it is made of on this device; nothing that
    comes of it is a number.

    Args:
        call: anything that computes with torch in this thread.
        device: where tensors have to lie to be counted.
    """
    with _Counter(device) as counter:

        def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
            found: Tensor = _Attention.apply(counter, query, key, value)
            return found

        with patch("torch.nn.functional.scaled_dot_product_attention", attention):
            call()
    return counter.found


class _Counter(TorchDispatchMode):
    """Counts operators that are neither views nor set memory aside."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.found = device, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        idle = func.is_view or any(word in func.name() for word in ("empty", "_unsafe_view"))
        self.found += not idle and any(
            isinstance(each, Tensor) and each.device.type == self.device
            for each in tree_leaves(made)
        )
        return made


class _Attention(torch.autograd.Function):
    """Shapes in place of attention, as kernels lay them out: the heads of a token side by side."""

    @staticmethod
    def forward(ctx: Any, counter: _Counter, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.counter, ctx.like = counter, (query, key, value)
        counter.found += query.device.type == counter.device
        return torch.empty_like(query.transpose(1, 2)).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ctx.counter.found += gradients[0].device.type == ctx.counter.device
        return (None, *map(torch.empty_like, ctx.like))


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
