"""Notebooks are chosen, ordered and run; one that fails is named and stops no other."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from threading import Barrier

import nbformat
import pytest
import yaml
from typer.testing import CliRunner

from companion.cli import app as cli
from companion.pages.benchmark_records import Group, Result, Row
from companion.publishing.book import build_pdf, find_browser
from companion.publishing.notebooks import (
    choose_notebooks,
    comes_after,
    find_notebooks,
    fit_parameters,
    reads,
    run_notebook,
)
from companion.publishing.reproduce import _longest_first, reproduce
from companion.publishing.tasks import Stage, run_in_order, write_stamp
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT, load_profile
from tests.helpers.browser import executable
from tests.helpers.tiny_book import make_repository, write_notebook

DECLARED = 'profile = "none"\nout = "."\nnumber = 1\nwords = []'


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_task_runs_when_those_it_comes_after_are_through_and_knows_their_outcomes(
    jobs: int,
) -> None:
    after = {"last": ["a", "b", "broken"], "a": [], "b": ["a"], "broken": []}
    finished: list[str] = []

    def run(name: str, before: Mapping[str, object]) -> str:
        assert set(after[name]) == set(before) <= {*finished}
        finished.append(name)
        if name == "broken":
            raise FusionError("a bad day")
        return name + "".join(str(outcome)[0] for outcome in before.values())

    outcomes = run_in_order(after, run, jobs=jobs)
    assert list(outcomes) == list(after), "in the order given"
    assert isinstance(outcomes.pop("broken"), FusionError)
    assert outcomes == {"last": "lastaba", "a": "a", "b": "ba"}


def test_one_job_keeps_the_order_given() -> None:
    ran: list[str] = []
    run_in_order({"b": [], "c": ["a"], "d": [], "a": []}, lambda name, _: ran.append(name))
    assert ran == ["b", "d", "a", "c"]


def test_two_jobs_run_side_by_side() -> None:
    meeting = Barrier(2, timeout=20)  # who waits there alone fails
    outcomes = run_in_order({"a": [], "b": []}, lambda *_: meeting.wait(), jobs=2)
    assert sorted(map(str, outcomes.values())) == ["0", "1"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_mistake_in_the_code_is_not_swallowed(jobs: int) -> None:
    with pytest.raises(ZeroDivisionError):
        run_in_order({"a": []}, lambda *_: 1 / 0, jobs=jobs)


def test_tasks_in_a_circle_are_an_error() -> None:
    with pytest.raises(FusionError, match="a after b after a|b after a after b"):
        run_in_order({"a": ["b"], "b": ["a"]}, lambda *_: None)


def test_a_notebook_is_named_by_its_beginning() -> None:
    paths = [Path(f"notebooks/{name}.ipynb") for name in ("fig3", "fig3_more", "table1", "table2")]

    def chosen(*names: str) -> list[str]:
        return [path.stem for path in choose_notebooks(paths, names)]

    assert chosen() == ["fig3", "fig3_more", "table1", "table2"]
    assert chosen("table1", "fig3") == ["fig3", "table1"], "a whole name wins; their own order"
    assert chosen("fig3_", "fig3_more.ipynb") == ["fig3_more"]
    with pytest.raises(FusionError, match="tab.*could be any of table1, table2"):
        chosen("tab")
    with pytest.raises(FusionError, match="fig9.*there are fig3, fig3_more, table1, table2"):
        chosen("fig9")


def test_the_star_is_all_that_do_not_say_so_too(tmp_path: Path) -> None:
    sources = {"claims": "", "a": "", "report": "", "b": ""}
    after = {"claims": ["*"], "report": ["*", "claims"], "b": ["a"]}
    notebooks = find_notebooks(make_repository(tmp_path, sources, after=after))
    assert comes_after(notebooks) == {
        "claims": ["a", "b"],
        "a": [],
        "report": ["claims", "a", "b"],
        "b": ["a"],
    }
    write_notebook(tmp_path, "b", "", DECLARED, ["z"])
    with pytest.raises(FusionError, match="b.ipynb .* 'z'"):
        comes_after(notebooks)


def test_the_repository_s_notebooks_name_others_that_exist() -> None:
    run_in_order(comes_after(find_notebooks(ROOT)), lambda *_: None)


def test_a_given_parameter_goes_to_every_notebook_that_declares_it(tmp_path: Path) -> None:
    root = make_repository(tmp_path, {"a": "", "b": ""}, parameters=DECLARED)
    write_notebook(root, "b", "", 'profile = ""\nout = ""\nother = 1')
    notebooks = find_notebooks(root)
    profile = {"a": {"number": 2, "words": ["x"]}}
    assert fit_parameters(notebooks, profile, {"number": 3}) == {
        "a": {"number": 3, "words": ["x"]},
        "b": {},
    }
    with pytest.raises(
        FusionError, match="'nubmer' by -p; the parameters of a, b: number, other, words"
    ):
        fit_parameters(notebooks, {}, {"nubmer": 3})
    with pytest.raises(FusionError, match="'out' by -p"):
        fit_parameters(notebooks, {}, {"out": "/"})
    with pytest.raises(FusionError, match="b.ipynb takes no parameter 'number'"):
        fit_parameters(notebooks, {"b": {"number": 1}}, {})


@pytest.mark.parametrize(
    "given, says",
    [
        ({"number": "foo"}, r"'number' of a.ipynb is a whole number \(2 unless .*\), not 'foo'"),
        ({"number": 2.5}, "is a whole number"),
        ({"number": True}, "is a whole number"),
        ({"number": None}, "is a whole number"),
        ({"words": "x"}, r"'words' of a.ipynb is a list .*, not 'x'"),
        ({"share": "half"}, r"'share' of a.ipynb is a number \(0.5"),
        ({"strict": 1}, "is true or false"),
        ({"prompt": 5}, "is text"),
    ],
)
def test_a_value_of_another_type_is_refused(
    tmp_path: Path, given: dict[str, object], says: str
) -> None:
    declared = f'{DECLARED}\nshare = 0.5\nstrict = True\nprompt = "a face"\nanything = None'
    notebooks = find_notebooks(make_repository(tmp_path, {"a": ""}, parameters=declared))
    with pytest.raises(FusionError, match=says):
        fit_parameters(notebooks, {"a": {"number": 2}}, given)
    with pytest.raises(FusionError, match=says.replace("2 unless", ".* unless")):
        fit_parameters(notebooks, {"a": given}, {})
    fit_parameters(notebooks, {}, {"share": 1, "strict": False, "anything": "x"})
    fit_parameters(notebooks, {"a": {"anything": "x"}}, {"anything": None})


SHOW = """
from matplotlib.figure import Figure
from companion.figures.display import VectorFigure
figure = Figure(figsize=(2, 1))
figure.text(0.1, 0.5, str(number))
display(VectorFigure(figure))
print("number", number, "words", words, "under", profile)
"""


def test_one_notebook_alone_is_run_and_exported_without_a_book(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = {"figure": SHOW, "never": "raise SystemError('this was not asked for')"}
    root = make_repository(tmp_path / "repository", sources, parameters=DECLARED)
    out = tmp_path / "build"
    values = {"number": 7, "words": ["a", "b"]}
    folder = reproduce(out=out, root=root, only=["fig"], parameters=values, jobs=2)
    assert folder == out / "executed"
    assert [path.name for path in folder.iterdir()] == ["figure.ipynb"]
    assert not (out / "book").exists()
    printed = capsys.readouterr().out
    assert "executed/figure.ipynb" in printed and "exports/figure" in printed
    notebook = nbformat.read(folder / "figure.ipynb", as_version=4)
    assert "number 7 words ['a', 'b'] under embedded" in str(notebook.cells[-1].outputs)

    exported = out / "exports" / "figure"
    index = json.loads((exported / "index.json").read_text())
    assert index["parameters"] == {"profile": "embedded", "out": "../../build/study", **values}
    assert (exported / index["manifest"]).exists() and (exported / index["notebook"]).exists()
    (figure,) = index["figures"]
    assert figure["vector"] and (exported / figure["pdf"]).read_bytes()[:5] == b"%PDF-"

    (exported / figure["pdf"]).unlink()
    (exported / "index.json").unlink()
    reproduce(out=out, root=root, only=["fig"], parameters=values)
    assert "unchanged" in capsys.readouterr().out
    assert (exported / figure["pdf"]).exists(), "exports are made again, the run is not"


COUNT = """
from pathlib import Path
runs = Path(out) / "{0}.txt"
runs.write_text((runs.read_text() if runs.exists() else "") + "x")
"""


def test_a_notebook_is_run_again_when_a_folder_that_it_reads_changes(tmp_path: Path) -> None:
    root = make_repository(tmp_path / "repository", {"tiny": COUNT.format("tiny"), "other": ""})
    notebook = root / "notebooks" / "tiny.ipynb"
    content = nbformat.read(notebook, as_version=4)
    content.metadata["fusionlib"] = {"reads": ["../records"]}
    nbformat.write(content, notebook)
    with pytest.raises(FusionError, match="tiny.ipynb .* reads ../records: no folder"):
        reads(notebook)

    def runs() -> int:
        run_notebook(notebook, {}, tmp_path / "out", {})
        return len((tmp_path / "out" / "study" / "tiny.txt").read_text())

    (root / "records").mkdir()
    assert (runs(), runs()) == (1, 1)
    (root / "records" / "one.json").write_text("1")
    assert (runs(), runs()) == (2, 2)
    assert reads(root / "notebooks" / "other.ipynb") == {}


def test_failing_notebooks_are_named_the_rest_is_built_and_is_not_run_again(
    tmp_path: Path,
) -> None:
    names = ("summary", "broken", "good", "dead")
    sources = {name: COUNT.format(name) for name in names}
    sources["broken"] += "x = 1 / 0"
    sources["dead"] += "import os\nos.kill(os.getpid(), 9)"
    root = make_repository(tmp_path / "repository", sources, after={"summary": ["*"]})
    out = tmp_path / "build"
    with pytest.raises(FusionError) as caught:
        reproduce(out=out, root=root, jobs=1)
    message = str(caught.value)
    assert message.startswith("2 of 4 notebooks failed.")
    assert "broken.ipynb failed at In [3], which begins with `from pathlib" in message
    assert "ZeroDivisionError: division by zero" in message
    assert "dead.ipynb failed at In [3]" in message and "Kernel died" in message
    executed = {path.name for path in (out / "executed").iterdir()}
    assert executed == {"summary.ipynb", "good.ipynb", "broken.failed.ipynb", "dead.failed.ipynb"}
    assert {path.name for path in (out / "exports").iterdir()} == {"summary", "good"}
    record = json.loads((out / "manifest.json").read_text())
    assert (out / "book" / "manifest.json").read_bytes() == (out / "manifest.json").read_bytes()
    assert set(record["failed"]) == {"broken", "dead"}
    assert {stage["name"] for stage in record["stages"]} == {"summary", "good", "book"}

    pages = {name: (out / "book" / "notebooks" / f"{name}.html").read_text() for name in names}
    assert "ZeroDivisionError" in pages["broken"]
    for name in ("broken", "dead"):
        assert "<h1>A number of" in pages[name] and "This page is not finished" in pages[name]
        assert "papermill-error-cell" not in pages[name]
    assert "not finished" not in pages["good"]

    write_notebook(root, "broken", COUNT.format("broken"), 'profile = ""\nout = ""')
    reproduce(out=out, root=root, jobs=1, only=["broken", "good", "summary"])
    runs = {name: len((out / "study" / f"{name}.txt").read_text()) for name in names}
    assert runs == {"summary": 2, "broken": 2, "good": 1, "dead": 1}, (
        "summary comes after the others"
    )
    assert [path.name for path in (out / "executed").glob("*.failed.*")] == ["dead.failed.ipynb"]
    assert (out / "exports" / "broken" / "index.json").exists()


MEET = """
import time
from pathlib import Path
(Path(out) / "{0}.here").touch()
for _ in range(600):
    if (Path(out) / "{1}.here").exists():
        break
    time.sleep(0.1)
else:
    raise RuntimeError("the other one never came")
"""


def test_two_notebooks_run_at_once_each_in_its_own_folder(tmp_path: Path) -> None:
    sources = {"a": MEET.format("a", "b"), "b": MEET.format("b", "a")}
    root = make_repository(tmp_path / "repository", sources)
    here = Path.cwd()
    reproduce(out=tmp_path / "build", root=root, jobs=2, book=False)
    assert Path.cwd() == here


def test_the_longest_begin_first(tmp_path: Path) -> None:
    """By their last run here, or else by the book's record; what nobody knows might be long."""
    minutes = tuple(Row(name, (at,)) for name, at in (("a", 1.0), ("b", 3.0), ("c", 2.0)))
    group = Group("make reproduce, minutes by stage", "minutes", minutes, "value")
    machine = {"cpu": "any", "cores": 2}
    whole = Result("whole", "embedded", "cpu", "float32", machine, None, "2026", 1.0, (group,))
    order: dict[str, list[str]] = {"a": [], "b": ["a"], "c": [], "new": []}
    assert list(_longest_first(order, tmp_path, tmp_path)) == ["a", "b", "c", "new"]
    whole.write(tmp_path / "book" / "records" / "benchmarks")
    first = _longest_first(order, tmp_path, tmp_path)
    assert list(first) == ["new", "b", "c", "a"] and first["b"] == ["a"]
    write_stamp(tmp_path, Stage("a", "", 150.0, reused=False))
    assert list(_longest_first(order, tmp_path, tmp_path)) == ["new", "b", "a", "c"]


def test_a_profile_of_one_s_own_hands_its_parameters_to_the_notebooks(tmp_path: Path) -> None:
    """As `make reproduce PROFILE=paper` does, without its models."""
    root = make_repository(
        tmp_path / "repository", {"a": "print('number', number)"}, parameters=DECLARED
    )
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump({"extends": "paper", "notebooks": {"a": {"number": 5}}})
    )
    reproduce(str(tmp_path / "mine.yaml"), out=tmp_path / "build", root=root, book=False)
    text = (tmp_path / "build" / "executed" / "a.ipynb").read_text()
    assert "number 5" in text and f'profile = \\"{tmp_path}/mine.yaml\\"' in text


def test_the_command_parses_its_options_and_fails_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = {}

    def run(profile: str, **options: object) -> None:
        called.update(options)
        raise FusionError("1 of 2 notebooks failed.")

    monkeypatch.setattr("companion.publishing.reproduce.reproduce", run)
    line = "reproduce --only fig3 --only table1 -p num_people=8 -p prompts=[a,b] --jobs 2"
    done = CliRunner().invoke(cli.app, line.split())
    assert done.exit_code == 1 and done.output.startswith("Error: 1 of 2")
    assert called["only"] == ["fig3", "table1"] and called["jobs"] == 2
    assert called["parameters"] == {"num_people": 8, "prompts": ["a", "b"]}
    assert called["book"] is None
    for wrong in ("num_people", "=8", "a=[", "a b=1"):
        done = CliRunner().invoke(cli.app, ["reproduce", "-p", wrong])
        assert done.exit_code == 1 and done.output.startswith("Error: "), wrong


def test_a_chromium_is_named_or_found_or_its_lack_is_one_clear_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PATH", "CHROME_PATH", "PLAYWRIGHT_BROWSERS_PATH"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(
        "companion.publishing.book.BROWSERS", ("chromium",)
    )  # macOS has places of its own
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FusionError, match="apt install chromium"):
        find_browser()

    def program(path: Path) -> str:
        path.parent.mkdir(parents=True)
        path.touch(mode=0o755)
        return str(path)

    kept = tmp_path / ".cache" / "ms-playwright"
    program(kept / "chromium-1091" / "chrome-linux" / "chrome")
    newer = program(kept / "chromium-1200" / "chrome-linux64" / "chrome")
    assert find_browser() == newer
    elsewhere = program(tmp_path / "browsers" / "chromium-9" / "chrome-linux" / "chrome")
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path / "browsers"))
    assert find_browser() == elsewhere
    on_the_path = program(tmp_path / "bin" / "chromium")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert find_browser() == on_the_path
    monkeypatch.setenv("CHROME_PATH", elsewhere)
    assert find_browser() == elsewhere
    monkeypatch.setenv("CHROME_PATH", str(tmp_path / "nothing"))
    with pytest.raises(FusionError, match="CHROME_PATH names .*nothing, which is no program"):
        find_browser()


@pytest.mark.slow
@pytest.mark.skipif(executable() is None, reason="no Chromium")
def test_the_book_is_printed_as_one_pdf(tmp_path: Path) -> None:
    root, out = make_repository(tmp_path / "repository", "print(6 * 7)"), tmp_path / "build"
    reproduce(out=out, root=root, book=False)
    pdf = build_pdf(out, root=root)
    assert pdf == out / "book.pdf"
    printed = pdf.read_bytes()
    assert printed.startswith(b"%PDF-") and printed.rstrip().endswith(b"%%EOF")
    assert b"A number of tiny" in printed or b"/Outlines" in printed, "chapters are in the outline"
    first = pdf.stat().st_mtime_ns
    assert build_pdf(out, root=root).stat().st_mtime_ns == first, "nothing changed"


def test_every_study_takes_a_number_of_seeds() -> None:
    """``fusionlib reproduce --only fig3 -p seeds=5``, and likewise for whatever paints people."""
    profile = load_profile("embedded")
    for name in ("fig1", "fig3", "fig4", "fig5", "fig6", "table1", "table2", "systems"):
        (notebook,) = choose_notebooks(find_notebooks(ROOT), [name])
        given = fit_parameters([notebook], profile.notebooks, {"seeds": 5})
        assert given[notebook.stem]["seeds"] == 5


def test_papermill_runs_a_notebook_from_the_root(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "papermill", "notebooks/benchmarks.ipynb"]
    done = tmp_path / "out.ipynb"
    subprocess.run(
        [*command, str(done), "-p", "profile", "embedded", "--no-progress-bar"],
        cwd=ROOT, check=True, timeout=300, capture_output=True,
    )  # fmt: skip
    assert "benchmark" in done.read_text("utf-8")
