"""What the front page shows beside the verdicts: likeness against the prompt, from a record."""

from __future__ import annotations

from typing import Any

from companion.figures.display import as_html
from companion.figures.plots import trade_off, trade_off_plot
from companion.figures.verdicts import Panel
from companion.studies.experiment import RECORDS
from companion.studies.records import read_record
from fusionlib.profiles import Profile

STUDY = "strength-curve"
"""Study whose record is drawn."""


def recorded_trade_off(profile: Profile) -> Any:
    """The figure of likeness against the prompt at every strength, from the profile's record.

    Args:
        profile: Profile whose record is drawn, by its first recogniser.

    Returns:
        The figure as HTML, which keeps its alternative text on another page; a sentence, where the
        profile has no such record.
    """
    file = RECORDS / profile.name / f"{STUDY}.parquet"
    if not file.is_file():
        text = f"The study {STUDY} has not been measured under the profile {profile.name} yet."
        return Panel(f"<p>{text}</p>", text)
    measured = read_record(file).measured
    return as_html(trade_off_plot(trade_off(measured, next(iter(measured.scales))), "strength"))
