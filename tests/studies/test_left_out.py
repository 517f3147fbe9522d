"""A profile that has no use for some notebooks: the book goes without them, and says so."""

import ast
import json
from pathlib import Path

import nbformat
import pytest
import yaml

from companion.publishing.book import assemble_book
from companion.publishing.notebooks import find_notebooks, fit_parameters
from companion.publishing.preflight import PICTURES
from companion.publishing.reproduce import reproduce
from companion.publishing.toc import prune_toc, toc_pages, unlink
from companion.studies.declaration import load_declaration
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT, load_profile
from tests.helpers.tiny_book import make_repository, write_notebook

DECLARED = 'profile = "none"\nout = "."\nnumber = 1'


def own_profile(folder: Path, **notebooks: object) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"extends": "paper", "name": "mine", "notebooks": notebooks}))
    return str(path)


def test_the_table_of_contents_loses_notebooks_their_sections_and_empty_parts(
    tmp_path: Path,
) -> None:
    toc = {
        "format": "jb-book",
        "root": "book/intro",
        "parts": [
            {"caption": "Gone", "chapters": [{"file": "notebooks/a"}]},
            {
                "caption": "Stays",
                "chapters": [
                    {"file": "book/b", "sections": [{"file": "notebooks/a"}]},
                    {"file": "notebooks/c", "sections": [{"file": "book/of_c"}]},
                    {"file": "book/c"},
                ],
            },
        ],
    }
    (tmp_path / "_toc.yml").write_text(yaml.safe_dump(toc))
    assert prune_toc(tmp_path, []) == toc
    assert prune_toc(tmp_path, ["a", "c"]) == {
        "format": "jb-book",
        "root": "book/intro",
        "parts": [
            {"caption": "Stays", "chapters": [{"file": "book/b"}, {"file": "book/c"}]},
        ],
    }


@pytest.mark.parametrize(
    ("text", "page", "expected"),
    [
        ("see {doc}`../notebooks/a`.", "book/b", "see *Title (not in this book)*."),
        ("{doc}`a` {doc}`c`", "notebooks/c", "*Title (not in this book)* {doc}`c`"),
        ("{doc}`a`", "book/b", "{doc}`a`"),  # a page of its own
        ("{doc}`some words <../notebooks/a>`", "book/b", "some words"),
        ("{doc}`../../notebooks/a`", "book/methods/b", "*Title (not in this book)*"),
        ("the [model](../notebooks/a.ipynb)", "book/b", "the model"),
        ("the [model](../notebooks/c.ipynb)", "book/b", "the [model](../notebooks/c.ipynb)"),
    ],
)
def test_links_to_what_is_left_out_become_words(text: str, page: str, expected: str) -> None:
    assert unlink(text, page, {"a": "Title"}) == expected


def test_a_book_goes_without_a_notebook_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = {"summary": "", "stays": "print(number)", "gone": "raise SystemError('not run')"}
    root = make_repository(
        tmp_path / "repository", sources, after={"summary": ["*", "gone"]}, parameters=DECLARED
    )
    intro = root / "book" / "intro.md"
    intro.write_text("# Tiny\n\n{doc}`../notebooks/stays`, {doc}`../notebooks/gone`\n")
    write_notebook(root, "stays", "print(number)", DECLARED)
    notebook = nbformat.read(root / "notebooks" / "stays.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_markdown_cell("More: [here](gone.ipynb), {doc}`gone`."))
    nbformat.write(notebook, root / "notebooks" / "stays.ipynb")
    profile = own_profile(tmp_path, stays={"number": 5}, gone="there is nothing to show")
    out = tmp_path / "build"
    reproduce(profile, out=out, root=root, jobs=1)  # a dead link would be an error
    assert "left out: gone: there is nothing to show" in capsys.readouterr().out
    assert not (out / "book" / "notebooks" / "gone.html").exists()
    text = (out / "book" / "book" / "intro.html").read_text()
    assert "<em>A number of gone</em>: there is nothing to show." in text
    assert "<em>A number of gone (not in this book)</em>" in text
    text = (out / "book" / "notebooks" / "stays.html").read_text()
    assert "More: here, <em>A number of gone (not in this book)</em>." in text
    with pytest.raises(FusionError, match="'mine' leaves gone out: there is nothing to show"):
        reproduce(profile, out=out, root=root, only=["gone"])
    with pytest.raises(FusionError, match="gone.ipynb was not executed yet"):
        assemble_book(out, root)


def test_a_dry_run_says_what_would_be_run_and_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    root = make_repository(
        tmp_path / "repository", {"a": "1 / 0", "gone": ""}, parameters=DECLARED + "\nnum_people=3"
    )
    people = tmp_path / "people"
    people.mkdir()
    (people / "index.csv").write_text(
        "person,view,file,style\nada,0,a,photo\nada,1,b,photo\nbob,0,c,photo\n"
    )
    for name in "abc":
        (people / name).touch()
    profile = Path(own_profile(tmp_path, a={"number": 5}, gone="no use"))
    settings = yaml.safe_load(profile.read_text())
    settings |= {"heldout": str(people), "recognisers": ["Dlib"], "detector": "dlib"}
    profile.write_text(yaml.safe_dump(settings))
    with pytest.raises(FusionError, match="'mine' is not ready: 4 thing"):
        reproduce(str(profile), out=tmp_path / "build", root=root, dry_run=True)
    printed = capsys.readouterr().out
    assert "would run: a (number=5)" in printed and "would run: gone" not in printed
    missing = [line for line in printed.splitlines() if line.startswith("missing: ")]
    for line, words in zip(
        missing,
        [
            "The base model SG161222/Realistic_Vision_V4.0_noVAE is not in the hub's cache",
            "`fusionlib train adapter --profile mine` makes it.",
            "run `hf download openai/clip-vit-large-patch14`",
            "a asks for 3 people with 2 pictures each, of whom",
        ],
        strict=True,
    ):
        assert words in line
    assert not (tmp_path / "build").exists(), "nothing was run or written"


def test_a_profile_that_has_everything_is_ready(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_repository(
        tmp_path / "repository", "", parameters=DECLARED + '\nmethods = ["fused", "decoupled"]'
    )
    profile = tmp_path / "mine.yaml"
    settings = {
        "extends": "paper",
        "base_model": str(tiny_checkpoint),
        "adapter": str(tiny_checkpoint / "adapter"),
        "clip_model": str(tiny_checkpoint / "clip"),
        "recognisers": ["Dlib"],
        "detector": "dlib",
        "heldout": str(ROOT / "data" / "heldout"),
    }
    profile.write_text(yaml.safe_dump(settings))
    reproduce(str(profile), out=tmp_path / "build", root=root, dry_run=True)
    printed = capsys.readouterr().out
    assert "everything is there" in printed and "missing" not in printed
    assert "without decoupled: tiny. The method 'decoupled' needs an adapter" in printed

    notebook = root / "notebooks" / "tiny.ipynb"  # its systems may stand in a study's file
    node = nbformat.read(notebook, as_version=4)
    node.metadata["fusionlib"] = {"study": "../study.yaml"}
    nbformat.write(node, notebook)
    (root / "study.yaml").write_text("{name: s, methods: [fused-mid], prompts: [a face]}")
    reproduce(str(profile), out=tmp_path / "build", root=root, dry_run=True)
    printed = capsys.readouterr().out
    assert "without fused-mid: tiny." in printed and "without decoupled: tiny." in printed


@pytest.mark.parametrize("name", ["embedded", "paper", "paper-v2"])
def test_a_profile_speaks_of_notebooks_and_parameters_that_exist(name: str) -> None:
    profile = load_profile(name)
    notebooks = {path.stem: path for path in find_notebooks(ROOT)}
    assert profile.notebooks.keys() <= notebooks.keys()
    kept = [path for stem, path in notebooks.items() if stem not in profile.left_out]
    fit_parameters(kept, profile.parameters, {})
    if name == "paper":
        embedded_only = {"data_card", "model_card", "interactive", "systems", "ablations"}
        assert profile.left_out.keys() == embedded_only | {
            "fig4_groups",
            "laughing_reference",
            "limitations",
        }


def _asked_by(study: ast.expr) -> dict[str, int]:
    """How many pictures of a person a study's file asks for; nothing, if it has no file."""
    name = study.value if isinstance(study, ast.Constant) else ""
    if not str(name).endswith(".yaml"):
        return {}
    people = load_declaration(ROOT / "notebooks" / str(name)).people
    return {"references": people.references, "others": people.others}


def test_notebooks_say_how_many_pictures_of_a_person_they_ask_for() -> None:
    """What ``--dry-run`` counts is what `load_people` and `experiment` will be asked for."""
    counted = 0
    for path in find_notebooks(ROOT):
        content = json.loads(path.read_text())
        code = ["".join(c["source"]) for c in content["cells"] if c["cell_type"] == "code"]
        trees = [ast.parse(text) for text in code if "%pip" not in text]
        asked = [
            {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg != "only"}
            for tree in trees
            for call in ast.walk(tree)
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "load_people"
            if any(getattr(argument, "id", "") == "num_people" for argument in call.args)
        ]
        asked += [  # `experiment` asks for as many as its study's file, or `load_people`, does
            _asked_by(call.args[0])
            for tree in trees
            for call in ast.walk(tree)
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "experiment"
            if any(getattr(word.value, "id", "") == "num_people" for word in call.keywords)
        ]
        most = max((a.get("references", 1) + a.get("others", 1) for a in asked), default=PICTURES)
        said = content["metadata"].get("fusionlib", {}).get("pictures", PICTURES)
        assert max(most, PICTURES) == said, path.stem
        counted += bool(asked)
    assert counted > 5


def test_every_page_that_links_to_what_paper_leaves_out_is_found() -> None:
    """No link to a left-out notebook survives in any form that the book has."""
    gone = dict.fromkeys(load_profile("paper").left_out, "Title")
    for page in toc_pages(ROOT):
        path = ROOT / f"{page}.md"
        if path.exists():
            text = unlink(path.read_text(), page, gone)
            for name in gone:
                assert f"notebooks/{name}" not in text, page
