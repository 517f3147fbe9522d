"""Colours that all figures share."""

from __future__ import annotations

INK, QUIET, WORSE = "#22272e", "#6b7280", "#d1495b"
"""Colours of text and lines, of secondary text, and of a difference in the wrong direction."""

QUOTED, MEASURED = "#7a5195", "#00796b"
"""Colours of the two kinds of numbers: purple is quoted from the paper, teal was measured here. The
book's style sheet has the same, and lighter ones for dark pages."""
