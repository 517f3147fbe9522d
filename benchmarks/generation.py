"""A picture's latency beside that of the same base model, scheduler and steps without a face.

The whole call is timed, from the prompt to the picture. What is computed once for a person comes
before it: K_f and V_f of the fused method's clean mode, CLIP's embedding of an IP-Adapter. The
shared mode has nothing to prepare and encodes the references at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from benchmarks.alternate import Call, Setting, compare
from benchmarks.models import PROMPT, Models
from companion.pages.benchmark_records import Group

CLEAN, SHARED = "fused, clean cache", "fused, shared timestep"
WORDS = {1: "One reference", 4: "Four references"}


def run(setting: Setting) -> list[Group]:
    """Measure one reference and four."""
    systems = build(Models(setting))
    return [
        compare(
            f"{words}, seconds for a picture",
            {name: make(references) for name, make in systems.items()},
            setting,
            count=True,
        )
        for references, words in WORDS.items()
    ]


def build(models: Models) -> dict[str, Callable[[int], Call]]:
    """Each system as a function that takes a number of references and returns a call.

    The base model comes first. A pipeline is built when it is first asked for, and once.
    """
    base, adapter = cache(models.base), cache(models.ip_adapter)

    def paint(pipeline: Any, **more: Any) -> Call:
        return lambda: pipeline(PROMPT, **models.sampling, **more)

    def clean(references: int) -> Call:
        encoded = models.fused.encode_references(models.pictures(references))
        return paint(models.fused, references=encoded)

    def shared(references: int) -> Call:
        pictures = models.pictures(references)
        return paint(models.fused, references=pictures, timestep_mode="shared")

    def decoupled(references: int) -> Call:
        embeds = models.image_embeds(references)
        both = torch.cat([torch.zeros_like(embeds), embeds])  # guidance's branch sees no face
        return paint(adapter(), ip_adapter_image_embeds=[both])

    return {
        "base model": lambda _: paint(base()),
        CLEAN: clean,
        SHARED: shared,
        "IP-Adapter": decoupled,
    }
