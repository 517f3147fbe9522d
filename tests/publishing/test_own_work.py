"""The Python blocks on pages of the book run as they are and show what the pages say."""

import doctest
import re
from pathlib import Path

import pytest
import torch

from fusionlib.profiles import ROOT

PAGES = {"own_work": 9, "responsible_use": 1}
"""Pages with Python blocks, and the smallest number of blocks on each."""


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_runs_and_shows_what_it_says(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ROOT / "book" / f"{page}.md"
    (tmp_path / "data").symlink_to(ROOT / "data")  # what the blocks write is thrown away
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    text = path.read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= PAGES[page] and all(block.startswith(">>> ") for block in blocks)
    test = doctest.DocTestParser().get_doctest("".join(blocks), {}, path.name, str(path), 0)
    report: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    torch.set_num_threads(threads)
    assert not report, "".join(report)
