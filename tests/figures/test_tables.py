"""A table shows text, says where its numbers come from, and is stored as CSV and LaTeX, too."""

import csv
import re
from io import StringIO

import numpy as np
import pandas as pd
from IPython.core.formatters import format_display_data

from companion.evaluation.statistics import Interval
from companion.figures.tables import facts_table, marked_table, summary_table, table_files


def test_columns_are_filled_from_the_fields_of_a_row() -> None:
    found = pd.DataFrame(
        {"found": [3, 4], "of": 4, "auc": [0.98765, np.nan], "by": "dlib"}, ["a", "b"]
    )
    columns = {"faces found": "{found} of {of}", "AUC ↑": "{auc:.3f}"}
    styler = marked_table(found, "Measured here.", columns)
    assert styler.data.to_dict("index") == {
        "a": {"faces found": "3 of 4", "AUC ↑": "0.988"},
        "b": {"faces found": "4 of 4", "AUC ↑": "–"},
    }
    assert "solid var(--measured" in styler.to_html()
    assert "double var(--quoted" in marked_table(found, "Quoted.", kind="quoted").to_html()
    assert "border" not in marked_table(found, "Recorded.", kind=None).to_html()


def test_a_notebook_stores_a_table_in_three_kinds() -> None:
    styler = marked_table(pd.DataFrame({"x": [Interval(0.5, 0.4, 0.6)]}, ["one"]), "Of one.")
    data, metadata = format_display_data(styler)
    assert data["text/plain"].startswith("<pandas.io.formats.style.Styler")
    assert "0.500 [0.400,\u00a00.600]" in data["text/html"]
    assert data["text/csv"] == ',x\none,"0.500 [0.400, 0.600]"\n'
    assert r"one & 0.500 [0.400, 0.600] \\" in data["text/latex"]
    assert metadata == {"text/csv": {"caption": "Of one."}}


def test_headings_of_several_levels_are_joined_in_csv() -> None:
    columns = pd.MultiIndex.from_tuples([("quoted", "SSIM"), ("quoted", "PSNR"), ("here", "SSIM")])
    rows = pd.MultiIndex.from_tuples([("one", "a"), ("one", "b"), ("two", "a")])
    numbers = pd.DataFrame(np.arange(9).reshape(3, 3), rows, columns).astype(str)
    found = list(csv.reader(StringIO(table_files(numbers, "")["text/csv"])))
    assert found[0] == ["", "", "quoted: SSIM", "quoted: PSNR", "here: SSIM"]
    assert [row[:2] for row in found[1:]] == [list(row) for row in rows]
    assert [row[2:] for row in found[1:]] == numbers.to_numpy().tolist()


def test_headless_tables_and_awkward_cells() -> None:
    styler = facts_table({"a<br>b": "1, 2 <code>x</code> &lt;3", "c": 4}, "What &amp; <b>why</b>.")
    data, _ = format_display_data(styler)
    assert data["text/csv"] == 'a b,"1, 2 x <3"\nc,4\n'
    assert r"\midrule" not in data["text/latex"]
    assert r"\caption{Measured here. What \& why.}" in data["text/latex"]


def test_latex_has_booktabs_and_no_sign_that_it_would_stumble_over() -> None:
    cells = {"R ↑ of A_b": ["50% & {more}", "–0.5 ± 1"], "#": ["λ^2 −1", "\\x~$"]}
    latex = table_files(pd.DataFrame(cells, index=["first_row", "<2>"]), "100% “so”")["text/latex"]
    assert latex.isascii()
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\caption{100\% ``so''}"):
        assert latex.count(rule) == 1
    assert r" & R $\uparrow$ of A\_b & \# \\" in latex
    assert r"first\_row & 50\% \& \{more\} & $\lambda$\textasciicircum{}2 $-$1 \\" in latex
    escaped = (
        r"\textless{}2\textgreater{} & --0.5 $\pm$ 1 & \textbackslash{}x\textasciitilde{}\$ \\"
    )
    assert escaped in latex
    rows = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert all(len(re.findall(r"(?<!\\)&", line)) == 2 for line in rows), "three columns in each"


def test_groups_of_columns_have_one_heading_and_a_line_in_latex() -> None:
    columns = pd.MultiIndex.from_tuples([("quoted", "A"), ("quoted", "B"), ("here", "A")])
    cells = pd.DataFrame([["1", "2", "3" * 70]], ["x"], columns)
    latex = table_files(cells, "")["text/latex"]
    assert r" & \multicolumn{2}{c}{quoted} & here \\" in latex and r"\cmidrule(lr){2-3}" in latex
    assert r"\begin{tabular}{lrrp{0.5\linewidth}}" in latex


def test_names_that_people_give_are_shown_sign_by_sign() -> None:
    name = "ada|*b*<i> & 🙂"
    data, _ = format_display_data(summary_table({name: {"x": 1}, "ours": {"x": 2}}, ""))
    assert "ada|*b*&lt;i&gt; &amp; 🙂" in data["text/html"]
    assert f"\n{name},1\n" in data["text/csv"]
