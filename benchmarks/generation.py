"""A picture's latency beside that of the same base model, scheduler and steps without a face.

Timed is the whole call, from the prompt to the picture. What is computed once for a person comes
before it: K_f and V_f of the fused method's clean mode, CLIP's embedding of an IP-Adapter. The
shared mode has nothing to prepare and encodes the references at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.alternate import Call, Setting, compare
from benchmarks.models import PROMPT, Models
from companion.pages.benchmark_records import Group

EACH_STEP = "joined at each step"
CLEAN, SHARED = "fused, clean cache", "fused, shared timestep"
ANEW = f"{CLEAN}, {EACH_STEP}"
WORDS = {1: "One reference", 2: "Two references", 4: "Four references"}


def run(setting: Setting) -> list[Group]:
    """Measure 1, 2 and 4 references, and what is prepared for a person."""
    models = Models(setting)
    systems = build(models)
    groups = []
    for references in (1, 2, 4):
        calls = {
            name: make(references)
            for name, make in systems.items()
            if name != "ControlNet" or references == 1
        }
        title = f"{WORDS[references]}, seconds for a picture"
        groups.append(compare(title, calls, setting, count=setting.counts))
    return [*groups, _preparation(models)]


def build(models: Models) -> dict[str, Callable[[int], Call]]:
    """Each system as a function that takes a number of references and returns a call.

    The base model comes first. A pipeline is built when it is first asked for, and once.
    """
    base, control = cache(models.base), cache(models.controlnet)
    adapter = cache(lambda plus: models.ip_adapter(plus=plus))

    def paint(pipeline: Any, **more: Any) -> Call:
        return lambda: pipeline(PROMPT, **models.sampling, **more)

    def clean(references: int) -> Call:
        seen = models.fused.encode_references(models.pictures(references))
        return paint(models.fused, references=seen)

    def anew(references: int) -> Call:
        call = clean(references)

        def each_step() -> None:
            with joined_at_each_step(models.fused.adapter):
                call()

        return each_step

    def shared(references: int) -> Call:
        pictures = models.pictures(references)
        return paint(models.fused, references=pictures, timestep_mode="shared")

    def decoupled(plus: bool, references: int) -> Call:
        embeds = models.image_embeds(references, plus=plus)
        both = torch.cat([torch.zeros_like(embeds), embeds])  # guidance's branch sees no face
        return paint(adapter(plus), ip_adapter_image_embeds=[both])

    return {
        "base model": lambda _: paint(base()),
        CLEAN: clean,
        ANEW: anew,
        SHARED: shared,
        "IP-Adapter": partial(decoupled, False),
        "IP-Adapter-Plus": partial(decoupled, True),
        "ControlNet": lambda _: paint(control(), image=models.pictures(1)[0]),
    }


@contextmanager
def joined_at_each_step(adapter: Any) -> Iterator[None]:
    """K' and V' of Eq. 6 are not kept from one step to the next, as if a callback changed them."""

    def conditioned(*args: Any, **kwargs: Any) -> Any:
        return kept(*args, **kwargs | {"same_text": False})

    kept = adapter.conditioned
    with patch.object(adapter, "conditioned", conditioned):
        yield


def _preparation(models: Models) -> Group:
    """What comes before a person's first picture, as images in memory."""
    fused, pictures = models.fused, models.pictures(1)
    return compare(
        "One reference, prepared once for any number of pictures",
        {
            "IP-Adapter's CLIP": lambda: models.image_embeds(1),
            "fused, encoded": lambda: fused.encode_references(pictures),
        },
        models.setting,
        count=models.setting.counts,
        shows="value",
    )
