"""Claims of the paper: what it says, where, what would decide it, and what was found.

A verdict is computed, never written down by hand: it follows from the interval of one comparison,
or, where nothing here can decide the claim, from the reason for that.
"""

from __future__ import annotations

from dataclasses import dataclass

from fusionlib.errors import FusionError
from fusionlib.evaluation.comparison import PairedDifference
from fusionlib.evaluation.statistics import Verdict


@dataclass(frozen=True)
class Claim:
    """One claim of the paper.

    Attributes:
        text: in the paper's words, or few of our own.
        section: of the paper, where it is made.
        decided_by: the comparison that decides it, in words: what minus what.
        comparison: its result; None where it cannot be made here.
        obstacle: why it cannot be made here.
    """

    text: str
    section: str
    decided_by: str
    comparison: PairedDifference | None = None
    obstacle: str = ""

    def __post_init__(self) -> None:
        if (self.comparison is None) != bool(self.obstacle):
            raise FusionError(
                f"The claim {self.text!r} needs either a comparison or the obstacle to one."
            )

    @property
    def verdict(self) -> Verdict:
        """Supported, not supported or undecided by the comparison, or not testable here."""
        return "not testable here" if self.comparison is None else self.comparison.verdict
