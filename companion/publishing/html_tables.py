"""Tables read back from the pages that show them, for a spreadsheet or a paper."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from html.parser import HTMLParser
from io import StringIO

LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "\u00a0": "~",
        "–": "--",
        "—": "---",
        "“": "``",
        "”": "''",
        "‘": "`",
        "’": "'",
        "…": r"\dots{}",
        "−": "$-$",
        "±": r"$\pm$",
        "×": r"$\times$",
        "·": r"$\cdot$",
        "≤": r"$\leq$",
        "≥": r"$\geq$",
        "≈": r"$\approx$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "→": r"$\rightarrow$",
        "λ": r"$\lambda$",
        "Δ": r"$\Delta$",
    }
)
"""What LaTeX needs instead of a sign that it reads otherwise or that its fonts lack."""

LONG = 60
"""More letters than this do not stand in one line of a LaTeX page's column."""


@dataclass(frozen=True)
class Table:
    """A table's text. A cell that spans columns or rows stands in each of them.

    Attributes:
        caption: above it.
        heads: rows of headings; none where the table has none.
        rows: the others, each as long as the heads.
        labels: so many columns on the left name the rows.
    """

    caption: str
    heads: tuple[tuple[str, ...], ...]
    rows: tuple[tuple[str, ...], ...]
    labels: int

    def csv(self) -> str:
        """One line of headings, if there are any, and one for each row.

        Headings of several levels are joined: ``quoted: SSIM``.
        """
        file = StringIO()
        writer = csv.writer(file, lineterminator="\n")
        if self.heads:
            columns = zip(*self.heads, strict=True)
            writer.writerow(": ".join(filter(None, dict.fromkeys(column))) for column in columns)
        writer.writerows(self.rows)
        return file.getvalue()

    def latex(self) -> str:
        """A ``table`` environment in the style of the package booktabs."""
        lines = [r"% \usepackage{booktabs}", r"\begin{table}", r"\centering"]
        if self.caption:
            lines.append(rf"\caption{{{self.caption.translate(LATEX)}}}")
        lines.append(rf"\begin{{tabular}}{{{''.join(self._kinds())}}}")
        lines.append(r"\toprule")
        for level, head in enumerate(self.heads):
            lines.append(" & ".join(self._spanning(head)) + r" \\")
            if level < len(self.heads) - 1:
                lines += self._rules(head)
        lines += [r"\midrule"] if self.heads else []
        lines += [" & ".join(cell.translate(LATEX) for cell in row) + r" \\" for row in self.rows]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])

    def _kinds(self) -> list[str]:
        """How LaTeX sets each column: numbers to the right, long texts in a paragraph."""
        kinds = []
        for number, column in enumerate(zip(*self.rows, strict=True)):
            figures = all(text[0].isdigit() or text[0] in "-–−+." for text in column if text)
            kind = "r" if figures and number >= self.labels else "l"
            kinds.append(r"p{0.5\linewidth}" if max(map(len, column)) > LONG else kind)
        return kinds

    def _spanning(self, head: tuple[str, ...]) -> list[str]:
        """One row of headings, each once over all of its columns."""
        return [
            head[start].translate(LATEX)
            if stop - start == 1 or not head[start]
            else rf"\multicolumn{{{stop - start}}}{{c}}{{{head[start].translate(LATEX)}}}"
            for start, stop in _runs(head)
        ]

    def _rules(self, head: tuple[str, ...]) -> list[str]:
        """Lines under the headings that span several columns."""
        spans = [(a + 1, b) for a, b in _runs(head) if head[a] and b - a > 1]
        return [" ".join(rf"\cmidrule(lr){{{a}-{b}}}" for a, b in spans)] if spans else []


def _runs(head: tuple[str, ...]) -> list[tuple[int, int]]:
    """Where neighbours are the same heading; columns without one stand alone."""
    starts = [n for n, text in enumerate(head) if n == 0 or not text or text != head[n - 1]]
    return list(zip(starts, [*starts[1:], len(head)], strict=True))


def read_tables(html: str) -> list[Table]:
    """The tables of a piece of HTML; of a table within a cell, the text only."""
    reader = _Reader()
    reader.feed(html)
    return [table.finished() for table in reader.tables if any(table.rows)]


@dataclass
class _Rough:
    """A table while it is read: cells with (text, is a heading, columns, rows)."""

    caption: str = ""
    rows: list[list[tuple[str, bool, int, int]]] = field(default_factory=list)

    def finished(self) -> Table:
        free: list[list[tuple[str, bool] | None]] = [[] for _ in self.rows]  # None: not taken yet
        for at, cells in enumerate(self.rows):
            column = 0
            for text, heading, columns, rows in cells:
                while column < len(free[at]) and free[at][column] is not None:
                    column += 1
                for row in free[at : at + rows]:
                    row += [None] * (column + columns - len(row))
                    row[column : column + columns] = [(text, heading)] * columns
        width = max(map(len, free))
        grid = [[cell or ("", True) for cell in row] for row in free]
        grid = [row + [("", True)] * (width - len(row)) for row in grid]
        grid = [row for row in grid if any(text for text, _ in row)]
        heads = 0
        while heads < len(grid) and all(heading for _, heading in grid[heads]):
            heads += 1
        body = grid[heads:]
        labels = 0
        while body and labels < width and all(row[labels][1] for row in body):
            labels += 1
        texts = [tuple(text for text, _ in row) for row in grid]
        return Table(self.caption, tuple(texts[:heads]), tuple(texts[heads:]), labels)


class _Reader(HTMLParser):
    """Collects the text of every cell and caption."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[_Rough] = []
        self._depth = 0
        self._text: list[str] | None = None
        self._cell = (False, 1, 1)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self._depth += 1
            if self._depth == 1:
                self.tables.append(_Rough())
        elif self._depth == 1 and tag == "tr":
            self.tables[-1].rows.append([])
        elif self._depth == 1 and tag in ("td", "th", "caption"):
            given = dict(attrs)
            columns, rows = (int(given.get(f"{way}span") or 1) for way in ("col", "row"))
            self._text, self._cell = [], (tag == "th", columns, rows)
        elif tag == "br" and self._text is not None:
            self._text.append(" ")

    def handle_data(self, data: str) -> None:
        if self._text is not None:
            self._text.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._depth -= 1
        elif self._depth == 1 and tag in ("td", "th", "caption") and self._text is not None:
            text = " ".join("".join(self._text).split())  # a blank heading is a hard space
            if tag == "caption":
                self.tables[-1].caption = text
            elif self.tables[-1].rows:
                self.tables[-1].rows[-1].append((text, *self._cell))
            self._text = None
