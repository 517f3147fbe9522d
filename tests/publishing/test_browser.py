"""The built book as a reader sees it: in a browser, on a phone and a desk, by day and by night."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from companion.publishing.toc import toc_pages
from fusionlib.profiles import ROOT
from tests.helpers.browser import Tab, browser, executable, served

BOOK = Path(os.environ.get("FUSIONLIB_BOOK", ROOT / "build" / "book"))
PAGES = [f"{page}.html" for page in toc_pages(ROOT)] + ["search.html", "genindex.html"]
LOST = "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"
"""Pictures that a page asks for and cannot show."""

WIDE = """
[...document.querySelectorAll("body *")].filter(element => {
  const box = element.getBoundingClientRect();
  if (!box.width || box.right <= document.documentElement.clientWidth + 1) return false;
  for (let above = element; above && above !== document.body; above = above.parentElement)
    if (getComputedStyle(above).overflowX !== "visible") return false;
  return true;
}).map(element => element.outerHTML.slice(0, 80)).slice(0, 3)
"""
"""What makes a page wider than the window, outside of anything that scrolls by itself."""

ASKED = "FUSIONLIB_BOOK" in os.environ
"""`make browser` asks for these tests by name: then what is missing is an error."""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        executable() is None and not ASKED, reason="needs Chromium or Chrome on the PATH"
    ),
    pytest.mark.skipif(
        not BOOK.is_dir() and not ASKED,
        reason=f"there is no book in {BOOK}: `make reproduce` builds it",
    ),
]


def test_there_is_a_browser_and_a_book_to_look_at() -> None:
    assert executable() is not None, "needs Chromium or Chrome on the PATH"
    assert (BOOK / "index.html").is_file(), f"there is no book in {BOOK}"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with served(BOOK) as address:
        yield address


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_whole_at_every_width_and_in_both_themes(tab: Tab, site: str, page: str) -> None:
    assert (BOOK / page).is_file(), f"{page} was not built yet: run `make reproduce`"
    for width in (1440, 390):
        for dark in (False, True):
            where = f"{page}, {width} pixels wide, {'dark' if dark else 'light'}"
            tab.look(width, dark=dark)
            tab.open(f"{site}/{page}")
            theme = tab.wait_for("document.documentElement.dataset.theme")
            assert theme == ("dark" if dark else "light"), where
            assert tab.evaluate(LOST) == [], where
            assert tab.evaluate("document.documentElement.scrollWidth") <= width, (
                f"{where}: wider than the window because of {tab.evaluate(WIDE)}"
            )
            assert tab.complaints == [], where


def test_search_finds_fused_attention_on_the_page_of_the_method(tab: Tab, site: str) -> None:
    tab.look(1440, dark=False)
    tab.open(f"{site}/search.html?q=fused+attention")
    tab.wait_for("document.querySelector('#search-results .search-summary')?.innerText")
    links = (
        "[...document.querySelectorAll('#search-results li a')].map(a => a.getAttribute('href'))"
    )
    found = tab.wait_for(f"{links}.some(a => a.includes('book/method.html')) && {links}")
    assert len(found) > 1
    assert tab.complaints == []


def test_the_first_address_leads_to_the_front_page(tab: Tab, site: str) -> None:
    tab.open(f"{site}/index.html")
    tab.wait_for("location.pathname === '/book/intro.html' && document.readyState === 'complete'")
    assert "Fusion Is All You Need" in tab.evaluate("document.title")


def test_the_browser_of_these_tests_sees_what_is_wrong(tab: Tab, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(
        '<meta name="viewport" content="width=device-width">'
        '<body><img src="lost.png"><div style="width:600px">wide</div>'
        '<div style="overflow-x:auto"><div style="width:900px">scrolls</div></div>'
        "<script>console.error('loud'); undefined.x</script>"
    )
    with served(tmp_path) as address:
        tab.look(390, dark=False)
        tab.open(f"{address}/page.html")
        assert tab.evaluate(LOST) == [f"{address}/lost.png"]
        assert [text[:10] for text in tab.evaluate(WIDE)] == ["<div style"]
        complaints = " ".join(tab.complaints)
        assert "loud" in complaints and "TypeError" in complaints and "lost.png" in complaints
