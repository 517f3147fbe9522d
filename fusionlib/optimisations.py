"""What was done for speed: what it was expected to gain, what it gains, and whether it was kept.

What an optimisation gains is the ratio of two rows of a benchmark, with it and without it, so that
it follows from the records. Where operations were counted, their ratio is what was to be expected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fusionlib.benchmarked import (
    Group,
    Result,
    Row,
    bracketed,
    digits,
    kernels_title,
    layer_title,
    sentence,
    with_code,
)
from fusionlib.figures import marked
from fusionlib.targets import DEVICES, MODELS


@dataclass(frozen=True)
class Optimisation:
    """Two rows of a benchmark.

    Attributes:
        told: what was done.
        expected: what it should gain; None where counted operations say it.
        benchmark: its name.
        group: how its title begins; the first group of which that is true is meant.
        row: with it.
        without: the row that it is compared with.
        decision: what became of it, and why.
    """

    told: str
    expected: str | None
    benchmark: str
    group: str
    row: str
    without: str
    decision: str

    def find(self, groups: Sequence[Group]) -> tuple[Group, Row, Row] | None:
        """The group and both rows, if they were measured."""
        for group in groups:
            named = {row.name: row for row in group.rows}
            if group.title.startswith(self.group) and {self.row, self.without} <= named.keys():
                return group, named[self.row], named[self.without]
        return None


_STEP, _CACHED = "A training step of one picture", "fused, latents and text cached"
_ENCODED, _KEPT = "fused, encoded in every step", "fused, latents, text and h_f cached"

OPTIMISATIONS = (
    Optimisation(
        "The reference encoded once, without noise, rather than at every step",
        None, "generation", "One reference", "fused, clean cache", "fused, shared timestep",
        "kept, as the default",
    ),
    Optimisation(
        "K' and V' of the text and the faces joined once, not at each step; a picture of one face",
        None, "generation", "One reference", "fused, clean cache",
        "fused, clean cache, joined at each step",
        "kept, in the clean mode with joint guidance, unless a callback might change them",
    ),
    Optimisation(
        "The same, a picture of four faces",
        None, "generation", "Four references", "fused, clean cache",
        "fused, clean cache, joined at each step",
        "kept",
    ),
    Optimisation(
        "The same, a picture of three people with masks",
        None, "masks", "Three references", "masks, by layer",
        "masks, by layer, joined at each step",
        "kept",
    ),
    Optimisation(
        "Queries sorted by whom they may see, in place of a mask, in a layer of 64 x 64 positions",
        None, "masks", layer_title(3, 64), "grouped", "dense",
        "kept, for large layers",
    ),
    Optimisation(
        "The same, by the GPU alone",
        "less time: as many operations fewer", "masks", kernels_title(3, 64), "grouped", "dense",
        "kept",
    ),
    Optimisation(
        "The same in a layer of 32 x 32 positions, by the GPU alone",
        "less time: as many operations fewer", "masks", kernels_title(3, 32), "grouped", "dense",
        "dropped on CUDA: up to this size a layer is given the mask",
    ),
    Optimisation(
        "The same in a layer of 8 x 8 positions",
        None, "masks", layer_title(3, 8), "grouped", "dense",
        "dropped: small layers are given the mask",
    ),
    Optimisation(
        "A mask in small layers, sorted queries in the larger ones",
        "less time: fewer kernels to start", "masks", "Three references", "masks, by layer",
        "masks, grouped",
        "kept, as the default",
    ),
    Optimisation(
        "The sorted groups as sequences of different lengths, in one call of FlashAttention",
        "less time: three kernels to start in place of seven", "masks", "Three references",
        "masks, sequences", "masks, grouped",
        "dropped: it gains no more than a mask does in small layers, and in large ones its kernel "
        "takes longer than the one that PyTorch chooses",
    ),
    Optimisation(
        "The same in a layer of 64 x 64 positions, by the GPU alone",
        "no more time: the operations are the same", "masks", kernels_title(3, 64), "sequences",
        "grouped",
        "dropped",
    ),
    Optimisation(
        "The same in one kernel, by FlexAttention",
        "no more time: nothing is sorted", "masks", "Three references", "masks, flex",
        "masks, grouped",
        "offered, as `backend=\"flex\"`, and nowhere the default",
    ),
    Optimisation(
        "Strengths added to the logits, one row for all queries, in place of one more channel of "
        "the keys; a layer",
        "less time: nothing is copied or filled up", "masks", "Strengths",
        "added matrix", "one more channel",
        "kept, as the default",
    ),
    Optimisation(
        "The same, a picture",
        "less time, for the same reason", "masks", "One reference at half",
        "added matrix", "one more channel",
        "kept",
    ),
    Optimisation(
        "Latents and text of the training set encoded once",
        None, "training", _STEP, _CACHED, _ENCODED,
        "kept where the set fits into memory; elsewhere by `cached_variants`",
    ),
    Optimisation(
        "h_f of every picture of the training set computed once, too",
        None, "training", _STEP, _KEPT, _CACHED,
        "kept, as `cache_references`, the default: where h_f of the whole set fits into memory",
    ),
    Optimisation(
        "Attention in training by plain matrix products",
        "the same time: the operations are the same", "training", _STEP,
        f"{_CACHED}, plain attention", _CACHED,
        "kept in the recipes of the small models, `attention: plain`",
    ),
    Optimisation(
        "Activations computed twice, to hold fewer of them",
        "less memory, a third more time", "memory", _STEP, f"{_ENCODED}, checkpointing", _ENCODED,
        "offered, as `gradient_checkpointing`",
    ),
    Optimisation(
        "Pictures of a study in batches of four",
        "less time for a picture: weights are read once for four", "study", "Seconds for a picture",
        "batches of 4", "batches of 1",
        "dropped: in a batch a picture's last bits depend on its company",
    ),
    Optimisation(
        "Pictures of a study by two processes, of one thread each",
        "twice as many", "study", "Pictures a second", "2 processes", "1 process",
        "kept, as `--workers`",
    ),
    Optimisation(
        "Heavy packages imported where they are used",
        "less time than it takes to import torch", "startup", "A process", "fusionlib --help",
        "import torch",
        "kept",
    ),
)  # fmt: skip
"""In the order of the page."""


def optimisations_table(results: Mapping[str, Sequence[Result]]) -> Any:
    """Lay out what was done for speed, with what it gains by the records.

    Args:
        results: of `fusionlib.benchmarked.every_result`.

    Returns:
        A table with a row for each, whether or not it was measured; a sentence without records.
    """
    if not any(results.values()):
        return sentence("Nothing was measured yet: `make bench`.")
    rows = {one.told: _cells(one, results.get(one.benchmark, ())) for one in OPTIMISATIONS}
    table = pd.DataFrame.from_dict(rows, orient="index")
    caption = (
        "Measured here: what a thing takes, or makes in a second, with it, divided by the same "
        "without it; ratios of medians, in brackets the 95% interval."
    )
    styler: Any = marked(table.style, "measured", caption)
    return styler


def _cells(one: Optimisation, results: Sequence[Result]) -> dict[str, str]:
    expected, measured = [one.expected] if one.expected else [], []
    for result in results:
        found = one.find(result.groups)
        if found is None:
            continue
        group, row, without = found
        where = f"{MODELS[result.size]}, {DEVICES[result.device]}"
        measured.append(f"{bracketed(group.interval(row, 'ratio', without))} ({where})")
        if not one.expected:
            counted = (
                ("operations", group.floor(row, without)),
                ("kernels", group.kernel_ratio(row, without)),
            )
            expected += [f"{digits(ratio)} by {what}" for what, ratio in counted if ratio]
    return {
        "expected": "; ".join(dict.fromkeys(expected)),
        "measured": "; ".join(measured) or f"not yet: python -m benchmarks {one.benchmark}",
        "decision": with_code(one.decision),
    }
