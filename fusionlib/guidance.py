"""Separate guidance scales for text and identity, added by hooks around the UNet.

A diffusers pipeline calls its UNet once in every step with two branches, [unconditional, text],
and combines what comes back by classifier-free guidance (Ho and Salimans, 2022):
u + s_text (c - u). Faces in the text branch are guided by that same scale: the joint mode. A scale
of their own needs a third branch, as in InstructPix2Pix (Brooks et al., 2023, Eq. 3). No pipeline
has one, so the branch is appended to the UNet's inputs and removed from its output: this works for
every pipeline that calls a UNet, and the pipeline's own code stays as it is.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a call."""


@contextmanager
def intercepted(
    unet: Any,
    before: Callable[[tuple[Any, ...], dict[str, Any]], Call],
    after: Callable[[Tensor], Tensor],
) -> Iterator[None]:
    """Change what a UNet is called with, and what it returns, inside the ``with`` block.

    Args:
        unet: A ``UNet2DConditionModel``, compiled or not, called with ``return_dict=False``.
        before: Function from a call's arguments to those to use instead. It may call the UNet
            itself: such calls are not intercepted.
        after: Function from the prediction ``(batch, channels, h, w)`` to the one to use instead.
    """
    busy = False

    @torch.compiler.disable
    def enter(_unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        nonlocal busy
        if busy:
            return None
        busy = True
        try:
            return before(args, kwargs)
        finally:
            busy = False

    @torch.compiler.disable
    def leave(_unet: Any, _args: tuple[Any, ...], output: tuple[Tensor, ...]) -> Any:
        return None if busy else (after(output[0]), *output[1:])

    hooks = [
        unet.register_forward_pre_hook(enter, with_kwargs=True),
        unet.register_forward_hook(leave),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def add_branch(args: tuple[Any, ...], kwargs: dict[str, Any], images: int) -> Call:
    """Repeat the last branch of a UNet's call: [u, c] becomes [u, c, c], and [c] becomes [c, c].

    Args:
        args: Positional arguments of the call; the first is the sample ``(batch, channels, h, w)``.
        kwargs: Keyword arguments of the call. Every tensor of the sample's batch size is repeated,
            those in lists and dictionaries too (ControlNet's residuals, SDXL's conditions).
        images: Number of images that are generated: the size of one branch.
    """
    sample = args[0] if args else kwargs["sample"]
    batch = sample.shape[0]

    def repeated(value: Any) -> Any:
        if isinstance(value, Tensor):
            whole = value.ndim > 0 and value.shape[0] == batch
            return torch.cat([value, value[-images:]]) if whole else value
        if isinstance(value, dict):
            return {name: repeated(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(repeated(item) for item in value)
        return value

    return repeated(args), repeated(kwargs)


def blend_branches(prediction: Tensor, images: int, weight: float) -> Tensor:
    """Turn the predictions [u, c, f] into [u, c + weight (f - c)], and [c, f] alike.

    Here u is the unconditional branch, c the one that sees the text, and f the one that sees the
    text and the faces. With ``weight = s_identity / s_text`` the pipeline's own guidance then gives
    u + s_text (c - u) + s_identity (f - c).

    Args:
        prediction: ``(batch, channels, h, w)`` of the two or three branches.
        images: Number of images, the size of one branch.
        weight: Weight of the difference that the faces make.
    """
    text, full = prediction[-2 * images : -images], prediction[-images:]
    return torch.cat([prediction[: -2 * images], text + weight * (full - text)])
