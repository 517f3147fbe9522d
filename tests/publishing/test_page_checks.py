"""The check of built pages finds what a reader would stumble over, and nothing else."""

from pathlib import Path

import pytest

from companion.publishing.page_checks import broken_pages

GOOD = """<html><head><link rel="stylesheet" href="_static/page.css?v=1"></head><body>
<h1 id="top">Here</h1>
<img src="a%20picture.png" alt="A picture.">
<a href="#top">up</a> <a href="#">up</a> <a href="part/next.html#end">on</a> <a href="part/">on</a>
<a href="https://example.org/#x">away</a> <a href="mailto:a@example.org">write</a>
</body></html>"""
NEXT = '<a name="end"></a><a href="../index.html">back</a>'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in {
        "index.html": GOOD,
        "part/next.html": NEXT,
        "part/index.html": NEXT,
        "_static/page.css": "",
        "_static/broken-template.html": '<a href="nowhere.html">',
        "a picture.png": "",
    }.items():
        path = tmp_path / "book" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "book"


def test_sound_pages_have_no_faults(folder: Path) -> None:
    assert broken_pages(folder) == []


@pytest.mark.parametrize(
    ("right", "wrong", "fault"),
    [
        ('alt="A picture."', "", "the picture a%20picture.png has no alternative text"),
        ('alt="A picture."', 'alt=" "', "the picture a%20picture.png has no alternative text"),
        ('"A picture."', '"images/a%20picture.png"', "the picture a%20picture.png has no altern"),
        ("a%20picture.png", "b.png", "b.png leads to no file of the book"),
        ("page.css?v=1", "other.css?v=1", "_static/other.css?v=1 leads to no file of the book"),
        ("next.html#end", "gone.html#end", "part/gone.html#end leads to no file of the book"),
        ("next.html#end", "next.html#mid", "part/next.html#mid leads to no such place on that"),
        ('href="#top"', 'href="#bottom"', "#bottom leads to no such place on that page"),
        ('href="#top"', 'href="../secret.html"', "../secret.html leads to no file of the book"),
    ],
)
def test_each_fault_is_named(folder: Path, right: str, wrong: str, fault: str) -> None:
    (folder.parent / "secret.html").write_text("outside")
    assert right in GOOD
    (folder / "index.html").write_text(GOOD.replace(right, wrong))
    (found,) = broken_pages(folder)
    assert found.startswith(f"index.html: {fault}")
