"""The claims of the paper at a glance: a picture and a table of all verdicts, made of HTML.

They are HTML and not an image so that a claim leads to its experiment by a click, the text stays
text, lines wrap on a telephone, and colours follow a page that is light, dark or printed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from companion.claims.claims import STATUSES, Claim, Evidence, Status, judge_measured, status
from companion.evaluation.comparison import MIN_PAIRED, PairedDifference
from companion.evaluation.statistics import MIN_PEOPLE, Interval
from companion.figures.tables import facts_table, table_files

MARKS: dict[Status, str] = {
    "supported": "✓",
    "not supported": "✗",
    "undecided": "?",
    "not measured yet": "…",
    "not testable here": "–",
}
"""Sign of a verdict, beside its colour."""

_COLOURS: dict[Status, tuple[str, str]] = {  # on light and on dark pages
    "supported": ("#00796b", "#5fd0c0"),
    "not supported": ("#b3261e", "#ff9a8f"),
    "undecided": ("#8a5a00", "#f2bd5c"),
    "not measured yet": ("#5b6470", "#a8b1bd"),
    "not testable here": ("#5b6470", "#a8b1bd"),
}

# The theme puts HTML of notebooks on a light card when the page is dark: not this.
_STYLE = """
html[data-theme="dark"] .text_html:has(> .verdicts) {background: none !important;
  color: inherit !important; padding: 0 !important}
.verdicts {margin: 1em 0; line-height: 1.35; container-type: inline-size}
.verdicts .strip {display: grid; gap: 3px; margin: 0 0 .5em;
  grid-template-columns: repeat(auto-fill, minmax(1.45em, 1fr))}
.verdicts .strip span {border: 2px solid var(--tone); border-radius: 4px; color: var(--tone);
  font-weight: 700; text-align: center}
.verdicts .strip .measured {background: var(--tone); color: #fff; print-color-adjust: exact;
  -webkit-print-color-adjust: exact}
.verdicts .key {display: flex; flex-wrap: wrap; font-size: .9em; gap: 0 1.3em; margin: 0 0 1em}
.verdicts .key b, .verdicts .tested b, .verdicts td b {color: var(--tone)}
.verdicts .tested {align-items: center; border-top: 1px solid rgba(128, 128, 128, .35);
  break-inside: avoid; display: grid; gap: .1em 1.2em; grid-template-columns: 1fr minmax(15em, 42%);
  padding: .45em 0}
.verdicts small {display: block; font-size: .82em; opacity: .85}
.verdicts table.all {border-collapse: collapse; border-left: 5px solid var(--measured, #00796b);
  table-layout: fixed !important; width: 100%}
.verdicts .all caption {caption-side: top; color: var(--measured, #00796b); padding: 0 0 .4em .6em;
  text-align: left}
.verdicts .all td, .verdicts .all th {border: 0; border-top: 1px solid rgba(128, 128, 128, .35);
  overflow-wrap: anywhere; padding: .5em .6em; text-align: left; vertical-align: top}
.verdicts .all th:first-child {width: 40%}
.verdicts .all tr {break-inside: avoid}
.verdicts .head {border: 0; font-size: .82em; padding: 0}
.verdicts .sides {display: flex; justify-content: space-between}
.verdicts svg {display: block; height: 22px; overflow: visible; width: 100%}
.verdicts .bar {fill: var(--tone); stroke: var(--tone); stroke-width: 4}
.verdicts .line {stroke: currentColor; stroke-dasharray: 3 3; stroke-width: 1.5}
@container (max-width: 34em) {.verdicts .tested {grid-template-columns: 1fr}
  .verdicts .head > :first-child, .verdicts .all thead {display: none}
  .verdicts .all td, .verdicts .all tr {display: block; width: auto !important}
  .verdicts .all td + td {border: 0; padding-top: 0}}
""" + "".join(
    f'.verdicts [data-verdict="{name}"] {{--tone: {light}}}\n'
    f'html[data-theme="dark"] .verdicts [data-verdict="{name}"] {{--tone: {dark}}}\n'
    f'html[data-theme="dark"] .verdicts [data-verdict="{name}"].measured {{color: #111}}\n'
    for name, (light, dark) in _COLOURS.items()
)


class Panel:
    """A piece of HTML that a notebook shows, with its plain text for where there is no HTML.

    Args:
        html: Content of the piece.
        text: The same as plain text.
        caption: Caption of a table.
        files: A table as `companion.figures.tables.table_files` gives it.
    """

    def __init__(
        self, html: str, text: str, caption: str = "", files: Mapping[str, str] | None = None
    ) -> None:
        self._html = f'<style>{_STYLE}</style>\n<div class="verdicts">\n{html}\n</div>'
        self._text = text
        self._caption, self._files = caption, dict(files or {})

    def _repr_html_(self) -> str:
        return self._html

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, str], dict[str, object]]:
        return self._files, {kind: {"caption": self._caption} for kind in self._files}

    def __repr__(self) -> str:
        return self._text


def verdict_counts(
    claims: Mapping[str, Claim], evidence: Mapping[str, Evidence], profile: str
) -> dict[Status, int]:
    """How many claims have each status under a profile; every status is there."""
    found = [status(claim, evidence, profile) for claim in claims.values()]
    return {name: found.count(name) for name in STATUSES}


def verdict_strip(
    claims: Mapping[str, Claim], evidence: Mapping[str, Evidence], profile: str
) -> Panel:
    """All claims as a row of fields, one each, sorted and coloured by verdict, with their counts.

    Args:
        claims: Claims of `companion.claims.claims.claims_under`.
        evidence: Evidence of `companion.claims.claims.read_evidence`.
        profile: Name of the profile.
    """
    counts = verdict_counts(claims, evidence, profile)
    sentence = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    ordered = sorted(
        claims.values(), key=lambda claim: STATUSES.index(status(claim, evidence, profile))
    )
    fields = []
    for claim in ordered:
        stands = status(claim, evidence, profile)
        filled = ' class="measured"' if claim.id in evidence else ""
        fields.append(
            f'<span{filled} data-verdict="{stands}" title="{escape(claim.title)}: {stands}">'
            f"{MARKS[stands]}</span>"
        )
    key = "".join(
        f'<span data-verdict="{name}"><b>{MARKS[name]}&nbsp;{count}</b>&nbsp;{name}</span>'
        for name, count in counts.items()
        if count
    )
    label = f"{len(claims)} claims: {sentence}."
    html = (
        f'<div class="strip" role="img" aria-label="{label}">{"".join(fields)}</div>\n'
        f'<div class="key">{key}</div>'
    )
    return Panel(html, label)


def verdict_summary(
    claims: Mapping[str, Claim], evidence: Mapping[str, Evidence], profile: str
) -> Panel:
    """Sum up the verdicts in a few sentences: which claims hold, which do not, which are open.

    The arguments are those of `verdict_strip`.
    """

    def titles(wanted: Status) -> str:
        found = [c.title for c in claims.values() if status(c, evidence, profile) == wanted]
        return "; ".join(found) or "none"

    counts = verdict_counts(claims, evidence, profile)
    open_ones = [one for one in evidence.values() if one.verdict == "undecided"]
    lost = [one for one in open_ones if one.found.pairs < MIN_PAIRED * one.found.cells]
    clear = [judge_measured(one.claim, one.found) for one in lost]
    sides = [clear.count(side) for side in ("supported", "not supported")]
    why = (
        f", in {len(lost)} of which more than a tenth of the pictures could not be measured, "
        "mostly because no face is found in them. By the pictures that are left, "
        f"{sides[0]} of these would be supported and {sides[1]} would not"
    )
    sentences = [
        ("Supported", f"{titles('supported')}."),
        ("Not supported", f"{titles('not supported')}."),
        ("Undecided", f"{counts['undecided']}{why if lost else ''}."),
    ]
    text = "\n".join(f"{name}: {words}" for name, words in sentences)
    items = "".join(f"<li><b>{name}:</b> {escape(words)}</li>" for name, words in sentences)
    return Panel(f"<ul>{items}</ul>", text)


def verdict_plot(evidence: Sequence[Evidence] | Mapping[str, Evidence]) -> Panel:
    """Draw tested claims: each number with its interval beside what it has to exceed.

    The dashed line in the middle is the claim's threshold. Units differ, so every claim has a scale
    of its own: what can be read off is the side on which the interval lies, and whether it reaches
    the line.

    Args:
        evidence: Evidence of `companion.claims.claims.record_claim` or `read_evidence`.
    """
    tested = list(evidence.values() if isinstance(evidence, Mapping) else evidence)
    if not tested:
        text = "No claim has been measured yet."
        return Panel(f"<p>{text}</p>", text)
    tested.sort(key=lambda one: STATUSES.index(one.verdict))
    rows = [
        '<div class="tested head"><span></span><span class="sides"><span>← against the claim</span>'
        "<span>for it →</span></span></div>"
    ]
    for one in tested:
        rows.append(
            f'<div class="tested" data-verdict="{one.verdict}">'
            f"<div><b>{MARKS[one.verdict]} {_verdict_words(one)}:</b> {escape(one.claim.title)}"
            f"<small>{_place(one.claim)}; {experiment_link(one.claim, one.profile)}</small></div>"
            f"<div>{_bar(one)}<small>{_numbers(one)}</small></div></div>"
        )
    text = "\n".join(f"{one.verdict}: {one.claim.title}: {_numbers(one)}" for one in tested)
    return Panel("\n".join(rows), text)


def verdict_table(
    claims: Mapping[str, Claim], evidence: Mapping[str, Evidence], profile: str
) -> Panel:
    """Lay out every claim: where it is made, what decides it, what was found, and the verdict.

    The arguments are those of `verdict_strip`.
    """
    runs = sorted({one.run for one in evidence.values()})
    caption = f"Found under the profile {profile}, with 95% intervals over people."
    rows, cells, lines = [], [], []
    for claim in claims.values():
        stands = status(claim, evidence, profile)
        experiment = experiment_link(claim, profile)
        found = {
            "not testable here": escape(claim.obstacle.get(profile, "")),
            "not measured yet": f"to be decided by {experiment}",
        }.get(stands) or f"{_numbers(evidence[claim.id])},<br>{experiment}"
        cells.append(
            (
                f"{escape(claim.title)} <small>{escape(claim.quotation)} {_place(claim)}.</small>",
                f"<small>{escape(claim.decided_by)} ({claim.unit})</small>",
                f"<b>{MARKS[stands]} {stands}</b> <small>{found}</small>",
            )
        )
        columns = "".join(f"<td>{cell}</td>" for cell in cells[-1])
        rows.append(f'<tr data-verdict="{stands}">{columns}</tr>')
        lines.append(f"{stands}: {claim.title} ({claim.id})")
    html = (
        f'<table class="all"><caption>{escape(caption)}</caption>'
        "<thead><tr><th>claim</th><th>decided by</th><th>found</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
        f"<details><summary>The runs</summary>{''.join(f'<p>{escape(run)}</p>' for run in runs)}"
        "</details>"
    )
    frame = pd.DataFrame(cells, columns=["claim", "decided by", "found"]).set_index("claim")
    return Panel(html, "\n".join(lines), caption, table_files(frame, caption))


def claim_table(found: Evidence, **more: object) -> Styler:
    """Lay out a claim of the paper, the comparison that decides it, and the verdict.

    Args:
        found: Evidence that was recorded about it.
        more: Further lines, above the verdict.
    """
    claim = found.claim
    rows: dict[str, object] = {
        f"claim (Section {claim.section})": claim.quotation,
        "decided by": f"{claim.decided_by}, above {claim.threshold:g}",
    }
    number = found.found
    over = f"(95% interval over {number.people} {claim.over})"
    if isinstance(number, PairedDifference):
        spread = [f"{value:.3f}" for value in number.by_seed.values()]
        ahead = number.ahead
        rows |= {
            "difference": f"{number.interval} {over}",
            f"effect size (standard deviations between {claim.over})": str(number.effect),
            f"{claim.over} for whom it holds": "–" if ahead != ahead else f"{ahead:.0%}",
            "pairs measured": f"{number.pairs} of {number.cells}",
        }
        if len(spread) > 1:
            rows["each seed alone"] = ", ".join(spread)
    else:
        rows[claim.unit] = f"{number.interval} {over}"
        rows["measured"] = f"{number.pairs} of {number.cells}"
    lines = {name.replace("_", " "): value for name, value in more.items()}
    return facts_table({**rows, **lines, "verdict": found.verdict}, found.run)


def experiment_link(claim: Claim, profile: str) -> str:
    """The experiment of a claim as HTML: a link to its page, or the name of its file."""
    experiment = claim.tested_by(profile)
    if experiment is None:
        return "no experiment yet"
    if not experiment.startswith("notebooks/"):
        return f"<code>{escape(experiment)}</code>"
    name = experiment.removeprefix("notebooks/")
    return f'<a href="../notebooks/{name}.html">{escape(name)}</a>'


def _verdict_words(one: Evidence) -> str:
    """The verdict in words, and whether only missing pictures leave it undecided."""
    decided = judge_measured(one.claim, one.found) != "undecided"
    missing = one.verdict == "undecided" and decided
    return "undecided, too few measured" if missing else one.verdict


def _place(claim: Claim) -> str:
    return ("Section " if claim.section[0].isdigit() else "") + escape(claim.section)


def _numbers(one: Evidence) -> str:
    """The number with its interval, what it has to exceed, and over how many people."""
    text = f"{_short(one.found.interval)} {one.claim.unit}"
    if one.claim.threshold:
        text += f", to exceed {one.claim.threshold:g}".replace("-", "−")
    text += f"; {one.found.people} {one.claim.over}"
    # Why it is undecided, whatever the interval.
    if one.found.people < MIN_PEOPLE:
        text += f"; fewer than {MIN_PEOPLE} decide nothing"
    if one.found.pairs < MIN_PAIRED * one.found.cells:
        text += f"; only {one.found.pairs} of {one.found.cells} pictures could be measured"
    return text


def _short(interval: Interval) -> str:
    """An interval in three digits after the point, or in powers of ten if that leaves nothing."""
    largest = max(abs(interval.low), abs(interval.high))
    if 0 < largest < 0.001:
        return f"{interval.estimate:.1g} [{interval.low:.1g}, {interval.high:.1g}]"
    return str(interval).replace("-", "−")


def _bar(one: Evidence) -> str:
    """An interval and its estimate, drawn in percent of the width, with the threshold at 50%."""
    interval, threshold = one.found.interval, one.claim.threshold
    label = f"{_numbers(one)}: {one.verdict}"
    line = '<line class="line" x1="50%" x2="50%" y1="0" y2="22"/>'
    reach = max(abs(interval.low - threshold), abs(interval.high - threshold))
    if not np.isfinite(reach):
        return f'<svg role="img" aria-label="{escape(label)}">{line}</svg>'

    def at(value: float) -> str:
        return f"{50 + 46 * (value - threshold) / (reach or 1):.2f}%"

    return (
        f'<svg role="img" aria-label="{escape(label)}">{line}'
        f'<line class="bar" x1="{at(interval.low)}" x2="{at(interval.high)}" y1="11" y2="11"/>'
        f'<circle class="bar" cx="{at(interval.estimate)}" cy="11" r="4"/></svg>'
    )
