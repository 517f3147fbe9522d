"""The page "Use it in your own work" does what it says: its blocks are run as they stand."""

import doctest
import re
from pathlib import Path

import pytest
import torch

from fusionlib.profiles import ROOT

PAGE = ROOT / "book" / "own_work.md"


def test_every_block_of_the_page_runs_and_shows_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").symlink_to(ROOT / "data")  # what the blocks write is thrown away
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    text = PAGE.read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 7 and all(block.startswith(">>> ") for block in blocks)
    test = doctest.DocTestParser().get_doctest("".join(blocks), {}, PAGE.name, str(PAGE), 0)
    report: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    torch.set_num_threads(threads)
    assert not report, "".join(report)
