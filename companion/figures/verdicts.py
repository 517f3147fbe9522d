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

from companion.claims.claims import Claim, read_effects
from companion.claims.decide import Part, part_answer
from companion.claims.evidence import STATUSES, Evidence, Status, after_holm, status
from companion.evaluation.comparison import PairedDifference
from companion.evaluation.scale import SHOWN_VECTORS
from companion.evaluation.statistics import MIN_PEOPLE, Interval
from companion.figures.tables import facts_table, table_files

MARKS: dict[Status, str] = {
    "supported": "✓",
    "not supported": "✗",
    "no difference that matters": "=",
    "undecided": "?",
    "not measured yet": "…",
    "not testable here": "–",
}
"""Sign of a verdict, beside its colour."""

_COLOURS: dict[Status, tuple[str, str]] = {  # on light and on dark pages
    "supported": ("#00796b", "#5fd0c0"),
    "not supported": ("#b3261e", "#ff9a8f"),
    "no difference that matters": ("#2f5ea8", "#9cc2ff"),
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
.verdicts .thin {stroke: var(--tone); stroke-width: 1.5}
.verdicts .band {fill: currentColor; opacity: .1}
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
        evidence: Evidence of `companion.claims.evidence.read_evidence`.
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
    lost = sum(bool(one.assumption) for one in open_ones)
    differ = sum(one.judges_differ for one in evidence.values())
    held = sum(p < 0.05 for name, p in after_holm(evidence).items() if _decided(evidence[name]))
    decided = sum(_decided(one) for one in evidence.values())
    why = (
        f"; in {lost} of them it depends on what is made of pictures without a face" if lost else ""
    )
    sentences = [
        ("Supported", f"{titles('supported')}."),
        ("Not supported", f"{titles('not supported')}."),
        ("No difference that matters", f"{titles('no difference that matters')}."),
        ("Undecided", f"{counts['undecided']}{why}."),
        (
            "All at once",
            f"{held} of {decided} verdicts stand after Holm's correction for {len(evidence)} "
            f"tests; in {differ}, the recognisers contradict each other.",
        ),
    ]
    text = "\n".join(f"{name}: {words}" for name, words in sentences)
    items = "".join(f"<li><b>{name}:</b> {escape(words)}</li>" for name, words in sentences)
    return Panel(f"<ul>{items}</ul>", text)


def headline(evidence: Mapping[str, Evidence]) -> Panel:
    """Three sentences for who reads no more: the likeness, its price, and the design.

    Args:
        evidence: Evidence of `companion.claims.evidence.read_evidence`; a sentence whose claims are
            not measured is left out.
    """
    found = {name: one.found.interval for name, one in evidence.items()}
    sentences = []
    if near := evidence.get("accurate-identity"):
        others = "".join(
            f", or {_percent(part.found.interval)} by the {part.recogniser} network"
            for part in near.beside
        )
        sentences.append(
            "From one reference, two trained layers take a picture "
            f"{_percent(near.found.interval)} of the way from another person to the person, by "
            f"{near.part.recogniser}{others}."
        )
    if {"faces-kept", "alignment-kept"} <= found.keys():
        sentences.append(
            "Beside the same model without a reference, pictures with a face change by "
            f"{_points(found['faces-kept'])}, and those with a face and everything that the prompt "
            f"asks for by {_points(found['alignment-kept'])}."
        )
    if {"concatenation", "encoding-gap"} <= found.keys():
        one, other = evidence["concatenation"], evidence["encoding-gap"]
        sentences.append(
            "That one softmax over text and face brings more likeness than a second attention: "
            f"{one.verdict}; that the UNet's own features carry more than CLIP's: {other.verdict}; "
            "both said of one training each."
        )
    items = "".join(f"<li>{escape(text)}</li>" for text in sentences)
    return Panel(f"<ul>{items}</ul>", "\n".join(sentences) or "Nothing was measured yet.")


def _percent(interval: Interval) -> str:
    return f"{interval.estimate:.0%} [{interval.low:.0%}, {interval.high:.0%}]"


def _points(interval: Interval) -> str:
    """A difference of shares with its interval, in percentage points with their signs."""
    values = (interval.estimate, interval.low, interval.high)
    middle, low, high = (f"{100 * value:+.1f}".replace("-", "−") for value in values)
    return f"{middle} [{low}, {high}] in a hundred"


def verdict_plot(evidence: Sequence[Evidence] | Mapping[str, Evidence]) -> Panel:
    """Draw tested claims: each number with its interval beside what it has to exceed.

    The dashed line in the middle is what the number is compared with, the shaded band around it the
    smallest effect of interest. Thick: the complete cases; thin: the bounds of what pictures
    without a face could make of it. Units differ, so every claim has a scale of its own: what can
    be read off is the side on which the interval lies, and whether it reaches the line or the band.

    Args:
        evidence: Evidence of `companion.claims.evidence.record_claim` or `read_evidence`.
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
            f"<div><b>{MARKS[one.verdict]} {one.verdict}:</b> {escape(one.claim.title)}"
            f"<small>{_place(one.claim)}; {experiment_link(one.claim, one.profile)}</small></div>"
            f"<div>{_bar(one)}<small>{_numbers(one)}{_remarks(one)}</small></div></div>"
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
    corrected = after_holm(evidence)
    rows, cells, lines = [], [], []
    for claim in claims.values():
        stands = status(claim, evidence, profile)
        experiment = experiment_link(claim, profile)
        found = {
            "not testable here": escape(claim.obstacle.get(profile, "")),
            "not measured yet": f"to be decided by {experiment}",
        }.get(stands)
        if found is None:
            one = evidence[claim.id]
            found = f"{_numbers(one)}, {experiment}{_remarks(one)}"
            if _decided(one):
                found += f"<br>after Holm: p = {_p(corrected[claim.id])}"
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


def effects_table() -> Styler:
    """Lay out the smallest effects of interest: the unit, the effect, and why this one."""
    rows = {}
    for effect in read_effects().values():
        of = " of the way from another person to the person" if effect.of else ""
        rows[effect.unit] = f"{effect.smallest:g}{of}: {effect.because}"
    return facts_table(rows, "Smallest effects of interest, by the unit of a claim's number.")


def claim_table(found: Evidence, **more: object) -> Styler:
    """Lay out a claim of the paper, the comparison that decides it, and the verdict.

    Args:
        found: Evidence that was recorded about it.
        more: Further lines, above the verdict.
    """
    claim = found.claim
    wanted = {
        "more": f"more than {claim.threshold:g}",
        "no less": f"not less by {found.part.smallest:.2g}",
        "as much": f"neither more nor less by {found.part.smallest:.2g}",
    }[claim.asks]
    rows: dict[str, object] = {
        f"claim (Section {claim.section})": claim.quotation,
        "decided by": f"{claim.decided_by}: {wanted}",
    }
    if found.part.smallest and claim.asks == "more":
        rows["smallest effect of interest"] = f"{found.part.smallest:.2g} {claim.unit}"
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
    if number.composite is not None and number.pairs < number.cells:
        rows["pictures without a face as strangers'"] = str(number.composite)
        bounds = number.bounds
        assert bounds is not None
        rows["whatever they may show"] = f"from {bounds.low:.4f} to {bounds.high:.4f}"
    for part in found.beside:
        rows[f"by {part.recogniser}"] = f"{part.found.interval}: {part_answer(claim, part)[0]}"
    if found.note:
        rows["limits"] = found.note
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


def _decided(one: Evidence) -> bool:
    return one.verdict != "undecided"


def _place(claim: Claim) -> str:
    return ("Section " if claim.section[0].isdigit() else "") + escape(claim.section)


def _p(value: float) -> str:
    """A p value to two digits, or that it is below a thousandth."""
    return "below 0.001" if value < 0.001 else f"{value:.2g}"


def _numbers(one: Evidence) -> str:
    """The number with its interval, what it is compared with, and over how many people."""
    part, claim = one.part, one.claim
    text = f"{part.found.interval} {claim.unit}".replace("-", "−")
    if len(one.parts) > 1:
        text += f", against {_named(part)}, of {len(one.parts)} comparisons"
    if claim.threshold:
        text += f", to exceed {claim.threshold:g}".replace("-", "−")
    elif part.smallest:
        text += f", of interest from {part.smallest:.2g} on"
    text += f"; {part.found.people} {claim.over}"
    if part.found.people < MIN_PEOPLE:
        text += f"; fewer than {MIN_PEOPLE} decide nothing"
    if part.found.pairs < part.found.cells:
        text += f"; {part.found.pairs} of {part.found.cells} pictures could be measured"
    return text


def _named(part: Part) -> str:
    judge = f" by {part.recogniser}" if part.recogniser else ""
    return f"{part.against or 'the other'}{judge}"


def _remarks(one: Evidence) -> str:
    """What a reader has to know beside the number, as further lines of HTML."""
    lines = []
    if one.verdict == "undecided":
        if one.assumption:
            lines.append(one.assumption)
        elif needed := one.people_needed:
            if needed > len(one.found.values):
                lines.append(f"About {_rounded(needed)} {one.claim.over} would decide it.")
        elif one.found.people >= MIN_PEOPLE:
            lines.append("No number of people would decide it: it lies on the boundary.")
    for part in one.beside:
        said = part_answer(one.claim, part)[0]
        against = f" against {part.against}" if len(one.beside) > 1 else ""
        if part.recogniser == "Dlib" and part.against in SHOWN_VECTORS:
            against += f", whose vector {part.against} was shown"
        contrary = "but " if said not in (one.verdict, "undecided") else ""
        lines.append(f"By {part.recogniser}{against}: {contrary}{part.found.interval}, {said}.")
    if one.note:
        lines.append(f"{one.note[0].upper()}{one.note[1:]}.")
    return "".join(f"<br>{escape(line)}" for line in lines).replace("-0.", "−0.")


def _rounded(count: int) -> str:
    """A count to two digits, which is more than such a forecast is worth."""
    return f"{float(f'{count:.2g}'):,.0f}"


def _bar(one: Evidence) -> str:
    """An interval and its estimate, drawn in percent of the width, with the threshold at 50%."""
    part = one.part
    interval, threshold = part.found.interval, one.claim.threshold
    bounds = part.found.bounds or interval
    label = f"{_numbers(one)}: {one.verdict}"
    line = '<line class="line" x1="50%" x2="50%" y1="0" y2="22"/>'
    ends = [interval.low, interval.high, bounds.low, bounds.high]
    reach = max(abs(end - threshold) for end in ends)
    if not np.isfinite(reach):
        return f'<svg role="img" aria-label="{escape(label)}">{line}</svg>'
    reach = max(reach, 1.2 * part.smallest) or 1

    def at(value: float) -> float:
        return 50 + 46 * (value - threshold) / reach

    band = at(threshold + part.smallest) - 50
    return (
        f'<svg role="img" aria-label="{escape(label)}">'
        f'<rect class="band" x="{50 - band:.2f}%" width="{2 * band:.2f}%" y="0" height="22"/>{line}'
        f'<line class="thin" x1="{at(bounds.low):.2f}%" x2="{at(bounds.high):.2f}%" y1="11" '
        'y2="11"/>'
        f'<line class="bar" x1="{at(interval.low):.2f}%" x2="{at(interval.high):.2f}%" y1="11" '
        'y2="11"/>'
        f'<circle class="bar" cx="{at(interval.estimate):.2f}%" cy="11" r="4"/></svg>'
    )
