"""Methods: ways of making pictures of a person, each a `Method`, compared by a study.

One file for each system. What a study needs of a method is in its `Method` and nothing else, so a
new system is one new function that returns one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

Generate = Callable[
    [Sequence[Sequence[Image.Image]], Sequence[str], Sequence[int]], list[Image.Image]
]
"""``generate(references, prompts, noise_seeds)``: one picture for each prompt, with its noise, of
the person whom its own list of references shows."""


@dataclass(frozen=True)
class Method:
    """A way of making pictures of a person.

    Attributes:
        name: in tables.
        generate: makes the pictures.
        settings: all that determines a picture besides person, prompt and noise: hashes of weights
            and code, steps, guidance. Anything JSON can hold.
        references: how many of a person's references it sees, from the first on.
    """

    name: str
    generate: Generate
    settings: Mapping[str, Any]
    references: int = 1
