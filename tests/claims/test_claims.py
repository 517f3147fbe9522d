"""Claims of the paper: what decides them, what was found, and what breaks when that changes."""

import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from companion.claims.claims import (
    CLAIMS,
    Claim,
    claims_under,
    find_claim,
    read_claims,
    read_effects,
)
from companion.claims.decide import Part, decide, part_answer
from companion.claims.evidence import (
    after_holm,
    changed_verdicts,
    check_claims,
    read_evidence,
    record_claim,
    record_claims,
    status,
)
from companion.claims.quoted import read_quoted
from companion.embedded.recogniser import MARGIN, SCALE
from companion.embedded.vae import SIDES
from companion.evaluation.comparison import (
    Estimate,
    IdentityScores,
    PairedDifference,
    estimate_mean,
    estimate_of,
    estimate_recovery,
    method_recovery,
    with_accepted,
    with_prompt_followed,
)
from companion.evaluation.measure import Measurements
from companion.evaluation.statistics import MIN_PEOPLE, Interval, bootstrap
from companion.figures.verdicts import (
    claim_table,
    verdict_counts,
    verdict_plot,
    verdict_strip,
    verdict_summary,
    verdict_table,
)
from companion.pages.morphing import morph_gains
from companion.pages.training_records import training_hours
from companion.person import Person
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT, load_profile

NOTEBOOK = ROOT / "notebooks" / "claims.ipynb"
GAIN = PairedDifference(
    metric="distance",
    interval=Interval(0.04, 0.03, 0.05),
    effect=Interval(1.2, 0.8, 1.6),
    ahead=0.875,
    by_seed={0: 0.045, 1: 0.035},
    pairs=80,
    cells=80,
    people=40,
    verdict="supported",
)
SMALL = {
    "id": "helps",
    "title": "It helps",
    "text": "it helps & more",
    "words": "the paper's",
    "section": "3.2",
    "decided_by": "far minus near",
    "unit": "cosine distance",
    "experiment": "notebooks/table1_identity",
    "expected": {"embedded": {"verdict": "supported", "people": 10}},
}
UNTESTABLE = {
    "id": "art",
    "title": "It is art",
    "text": "is art",
    "words": "ours",
    "section": "5",
    "decided_by": "taste",
    "unit": "points",
    "obstacle": {"embedded": "no judge"},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of two claims."""
    return write(tmp_path / "claims.yaml", [SMALL, UNTESTABLE])


EFFECT = {"unit": "cosine distance", "smallest": 0.01, "because": "less would change nothing"}


def write(path: Path, entries: object) -> Path:
    path.write_text(yaml.safe_dump({"smallest_effects": [EFFECT], "claims": entries}))
    return path


def decided(found: PairedDifference | Estimate, **claim: Any) -> str:
    """The verdict on the claim `SMALL` with other fields."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "claims.yaml", [SMALL | claim])
        told = {"profile": "embedded", "run": "run", "path": path}
        return record_claim(folder, "helps", found, **told).verdict


def about(value: float, low: float, high: float, people: int = 40) -> PairedDifference:
    return replace(GAIN, interval=Interval(value, low, high), people=people)


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]+>", " ", html, flags=re.S))


# --- the file ---------------------------------------------------------------------------------


def test_every_claim_names_an_experiment_that_exists_or_what_is_in_the_way() -> None:
    claims = read_claims()
    assert len(claims) > 20
    for claim in claims.values():
        assert claim.experiment or claim.obstacle
        for profile in ("embedded", "paper"):
            if experiment := claim.tested_by(profile):
                notebook = experiment.startswith("notebooks/")
                assert (ROOT / (experiment + (".ipynb" if notebook else ""))).is_file(), claim.id


def test_a_claim_of_a_page_that_a_book_goes_without_has_that_for_its_obstacle() -> None:
    profile = load_profile("paper")
    claims = claims_under(profile)
    assert profile.left_out["ablations"] and status(claims["concatenation"], {}, "paper") == (
        "not testable here"
    )
    assert claims["concatenation"].obstacle["paper"] == profile.left_out["ablations"]
    assert claims["identity-faceid"].tested_by("paper") == "notebooks/table1_identity"
    assert status(claims["identity-faceid"], {}, "paper") == "not measured yet"
    assert status(claims["masks"], {}, "paper") == "not testable here"
    linked = re.findall(
        r'href="[^"]*/(\w+)\.html"', verdict_table(claims, {}, "paper")._repr_html_()
    )
    assert linked and not set(linked) & set(profile.left_out), "no link to a page that is not there"


def test_every_claim_of_a_notebook_is_recorded_by_that_notebook_and_no_other() -> None:
    recorded: dict[str, str] = {}
    made = {claim.id: claim.tested_by("embedded") for claim in read_claims().values()}
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        here = f"notebooks/{notebook.stem}"
        for cell in nbformat.read(notebook, 4).cells:
            if not re.search(r"record_(claims?|training)\(", cell.source):
                continue
            named = [text for text in re.findall(r'"([^"]+)"', cell.source) if text in made]
            page = re.search(r'page="([^"]+)"', cell.source)  # under the profiles that test here
            assert page is None or page[1] == notebook.stem
            for claim in named:
                if page is None or made[claim] == here:
                    assert recorded.setdefault(claim, here) == here, f"{claim} is recorded twice"
    assert recorded == {
        name: experiment
        for name, experiment in made.items()
        if experiment and experiment.startswith("notebooks/")
    }


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"verdict": "supported"}, r"Claim 1 \(helps\) in .*claims.yaml does not fit: verdict"),
        ({"id": "It helps"}, "does not fit: id"),
        ({"experiment": None}, "needs the experiment that tests it, or the obstacle"),
        ({"obstacle": {"embedded": "no"}}, "both expected and untestable under embedded"),
        ({"expected": {"embedded": {"verdict": "true", "people": 9}}}, "expected.embedded.verdict"),
        ({"title": None}, "does not fit: title"),
        ({"pair": ["a", "b"], "mean_of": "a"}, "a pair of methods or by the mean of one, not by"),
    ],
)
def test_what_does_not_fit_is_named_with_its_file(
    tmp_path: Path, change: dict[str, object], complaint: str
) -> None:
    with pytest.raises(FusionError, match=complaint):
        read_claims(write(tmp_path / "claims.yaml", [SMALL | change]))


def test_a_file_that_is_none_or_names_a_claim_twice_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "claims.yaml"
    with pytest.raises(FusionError, match="cannot be read"):
        read_claims(file)
    with pytest.raises(FusionError, match="list of claims"):
        read_claims(write(file, {"helps": SMALL}))
    with pytest.raises(FusionError, match=r"Claim 1 \(\?\)"):
        read_claims(write(file, ["helps"]))
    with pytest.raises(FusionError, match="Claim 2 in .* is there twice: helps"):
        read_claims(write(file, [SMALL, SMALL]))
    with pytest.raises(FusionError, match="no claim 'hurts' .* it has helps"):
        find_claim("hurts", write(file, [SMALL]))


# --- verdicts and records ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "asks, threshold, low, high, verdict",
    [
        ("more", 0.0, 0.001, 0.03, "supported"),
        ("more", 0.0, 0.02, 0.03, "supported"),
        ("more", 0.0, -0.03, -0.01, "not supported"),
        ("more", 0.0, -0.03, 0.009, "not supported"),  # an advantage that matters is excluded
        ("more", 0.0, -0.009, 0.009, "no difference that matters"),
        ("more", 0.0, 0.001, 0.009, "no difference that matters"),
        ("more", 0.0, -0.001, 0.02, "undecided"),
        ("more", 0.5, 0.3, 0.4, "not supported"),
        ("more", 0.5, 0.6, 0.7, "supported"),
        ("no less", 0.0, -0.009, 0.2, "supported"),
        ("no less", 0.0, -0.02, -0.011, "not supported"),
        ("no less", 0.0, -0.02, 0.2, "undecided"),
        ("as much", 0.0, -0.009, 0.009, "supported"),
        ("as much", 0.0, -0.02, -0.011, "not supported"),
        ("as much", 0.0, 0.011, 0.02, "not supported"),
        ("as much", 0.0, -0.009, 0.011, "undecided"),
    ],
)
def test_the_verdict_is_where_the_interval_lies_from_the_threshold_and_the_smallest_effect(
    asks: str, threshold: float, low: float, high: float, verdict: str
) -> None:
    found = about((low + high) / 2, low, high)
    asked = {"asks": asks, "threshold": threshold}
    assert decided(found, **asked) == verdict
    interval = found.interval
    same = replace(found, composite=interval, bounds=interval, pairs=10)
    assert decided(same, **asked) == verdict, "whatever is missing makes no difference"
    assert decided(replace(found, pairs=79), **asked) == "undecided", "nothing says it makes none"
    wide = replace(same, bounds=Interval(interval.estimate, interval.low - 1, interval.high + 1))
    assert decided(wide, **asked) == "undecided"


def test_a_verdict_that_depends_on_lost_faces_says_on_what(tmp_path: Path, path: Path) -> None:
    composite, bounds = Interval(0.03, 0.02, 0.04), Interval(0.03, -0.02, 0.06)
    found = replace(GAIN, pairs=70, composite=composite, bounds=bounds)
    made = record_claim(tmp_path, "helps", found, profile="embedded", run="run", path=path)
    assert made.verdict == "undecided"
    for part in ("supported by complete cases", "supported by composite", "undecided by bounds"):
        assert part in made.assumption
    assert "undecided by bounds" in verdict_plot([made])._repr_html_()


def test_an_undecided_claim_says_how_many_people_would_decide_it(
    tmp_path: Path, path: Path
) -> None:
    def needed(low: float, high: float) -> int | None:
        found = replace(about((low + high) / 2, low, high), values=(0.0,) * 40)
        told = {"profile": "embedded", "run": "run", "path": path}
        return record_claim(tmp_path, "helps", found, **told).people_needed

    # The estimate 0.005 is 0.005 from 0 and from the smallest effect; the half width is 0.02, so
    # (0.02 / 0.005)^2 = 16 times the people would make it 0.005, and (1 + 0.84 / 1.96)^2 as many
    # again let 80% of studies see it.
    assert needed(-0.015, 0.025) == pytest.approx(40 * 16 * 2.042, rel=0.01)
    assert needed(-0.01, 0.03) == pytest.approx(40 * 4 * 2.042, rel=0.01)


@pytest.mark.parametrize("found", [GAIN, Estimate(Interval(0.2, 0.1, 0.3), 80, 80, 40)])
def test_evidence_is_read_as_it_was_recorded(
    tmp_path: Path, path: Path, found: PairedDifference | Estimate
) -> None:
    claims = read_claims(path)
    assert read_evidence(tmp_path, "embedded", claims) == {}
    made = record_claim(tmp_path, "helps", found, profile="embedded", run="a run", path=path)
    assert made.verdict == "supported"
    assert read_evidence(tmp_path, "embedded", claims) == {"helps": made}
    file = tmp_path / "claims" / "helps.json"
    bytes_ = file.read_bytes()
    record_claim(tmp_path, "helps", found, profile="embedded", run="a run", path=path)
    assert file.read_bytes() == bytes_ and list(file.parent.iterdir()) == [file]


def test_records_that_no_longer_speak_of_the_claim_are_passed_over(
    tmp_path: Path, path: Path
) -> None:
    record_claim(tmp_path, "helps", GAIN, profile="embedded", run="a run", path=path)
    assert read_evidence(tmp_path, "paper", read_claims(path)) == {}
    for change in (
        {"experiment": "notebooks/fig3_references"},
        {"threshold": 0.5},
        {"obstacle": {"embedded": "no judge"}, "expected": {}},
    ):
        claims = read_claims(write(path, [SMALL | change]))
        assert read_evidence(tmp_path, "embedded", claims) == {}, change
    file = tmp_path / "claims" / "helps.json"
    file.write_text(file.read_text().replace('"supported"', '"not supported"'))
    (kept,) = read_evidence(tmp_path, "embedded", read_claims(write(path, [SMALL]))).values()
    assert kept.verdict == "supported", "of the interval, whatever is written there"
    file.write_text("{}")
    with pytest.raises(FusionError, match=r"helps.json cannot be read.*run the notebook"):
        read_evidence(tmp_path, "embedded", read_claims(write(path, [SMALL])))


def test_evidence_names_the_code_the_versions_and_the_run_that_it_is_of(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_from(run: str) -> str:
        told = {"profile": "embedded", "path": path}
        return record_claim(tmp_path, "helps", GAIN, run=run, **told).made_from

    found = {made_from("one"), made_from("one"), made_from("another")}
    monkeypatch.setattr("companion.claims.evidence.git_commit", lambda: "0123")
    found.add(made_from("one"))
    monkeypatch.setattr("companion.claims.evidence.package_versions", dict)
    found.add(made_from("one"))
    assert len(found) == 4


def test_what_cannot_be_tested_cannot_be_recorded(tmp_path: Path, path: Path) -> None:
    with pytest.raises(FusionError, match="'art' was measured .* take the `obstacle` out"):
        record_claim(tmp_path, "art", GAIN, profile="embedded", run="a run", path=path)
    with pytest.raises(FusionError, match="no claim 'hurts'"):
        record_claim(tmp_path, "hurts", GAIN, profile="embedded", run="a run", path=path)


@pytest.mark.parametrize(
    "found, breaks",
    [
        (about(0.04, 0.03, 0.05), False),
        (about(-0.04, -0.05, -0.03, people=6), True),
        (about(-0.04, np.nan, np.nan, people=4), False),  # four decide nothing
        (about(0.01, -0.02, 0.04), True),
        (about(0.01, -0.02, 0.04, people=4), False),  # too few to see it
        (about(0.01, -0.02, 0.04, people=9), False),
        (about(0.01, -0.02, 0.04, people=10), True),  # as many as it was seen with
    ],
)
def test_a_verdict_that_turned_breaks_unless_there_were_few_people(
    tmp_path: Path, path: Path, found: PairedDifference, breaks: bool
) -> None:
    record_claim(tmp_path, "helps", found, profile="embedded", run="a run", path=path)
    claims = read_claims(path)
    evidence = read_evidence(tmp_path, "embedded", claims)
    assert len(changed_verdicts(claims, evidence)) == breaks
    if breaks:
        with pytest.raises(FusionError, match=r"The claim 'helps' \(It helps\) is .*was supported"):
            check_claims(claims, evidence)
    else:
        check_claims(claims, evidence)


# --- what claims are decided by ---------------------------------------------------------------


def test_a_mean_comes_with_what_it_was_measured_on() -> None:
    images = pd.DataFrame(
        {"method": "a", "person": ["p", "p", "q", "r"], "x": [1.0, 0.0, np.nan, 1.0]}
        | {"prompt": ["a", "b", "a", "a"], "seed": 0}
    )
    found = estimate_mean(images, "x", "a")
    assert found.interval.estimate == 0.75 and (found.pairs, found.cells, found.people) == (3, 4, 2)
    half = estimate_of([1.0, 2.0, 3.0, np.nan])
    assert half.interval.estimate == 2 and (half.pairs, half.cells, half.people) == (3, 4, 3)
    assert half.composite and half.composite.estimate == pytest.approx((6 + 1.2) / 4)


def test_recovery_counts_the_pictures_with_a_face() -> None:
    names = [f"p{number}" for number in range(6)]
    distance = [0.4, 0.6, 0.4, 0.6, 0.5, np.nan]
    images = pd.DataFrame(
        {"method": "a", "person": names, "prompt": "p", "seed": 0, "distance": distance}
    )
    scale = pd.DataFrame({"genuine": [0.2] * 6, "impostor": [0.8] * 6}, index=names)
    scores = IdentityScores("Dlib", "dlib", "reference", images, scale)
    found = estimate_recovery(scores, "a")
    assert found.interval == method_recovery(scores, "a")
    assert found.interval.estimate == pytest.approx(0.5) and (found.pairs, found.cells) == (5, 6)
    assert found.composite and found.bounds
    assert found.composite.estimate == pytest.approx(0.5 * 5 / 6), "a lost face is a stranger's"
    assert found.bounds.low <= found.composite.low and found.composite.high < found.bounds.high
    few = replace(scores, images=images[:4])
    assert np.isnan(method_recovery(few, "a").estimate), "nothing is told of fewer than five"


def test_a_picture_follows_its_prompt_if_it_shows_all_that_was_asked() -> None:
    images = pd.DataFrame(
        {"expression_correct": [1, 1, 0, np.nan], "style_correct": [1, 0, np.nan, np.nan]}
    )
    assert with_prompt_followed(images)["followed"].tolist()[:3] == [1, 0, 0]
    assert with_prompt_followed(images)["followed"].isna().tolist() == [False] * 3 + [True]
    faceless = images.assign(face=[False, True, True, False])
    assert with_prompt_followed(faceless)["followed"].tolist()[:3] == [0, 0, 0]
    with pytest.raises(FusionError, match="No classifier"):
        with_prompt_followed(pd.DataFrame({"distance": [1.0]}))


def test_a_picture_is_accepted_below_deepfaces_threshold() -> None:
    from deepface.config.threshold import thresholds

    line = thresholds["Dlib"]["cosine"]
    images = pd.DataFrame({"distance": [line / 2, line * 2, np.nan]})
    scores = IdentityScores("Dlib", "dlib", "reference", images, pd.DataFrame())
    accepted = with_accepted(scores)["accepted"]
    assert accepted.tolist()[:2] == [1, 0] and np.isnan(accepted[2])
    with pytest.raises(FusionError, match="no threshold for 'Nobody'"):
        with_accepted(replace(scores, recogniser="Nobody"))


def test_a_blend_gains_only_if_it_nears_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faces stand for points on a line: 0 is the first person, 1 the second."""
    places = {"first": 0.0, "second": 1.0, "both": 0.5, "one": 0.0}

    def fake(index: pd.DataFrame, people: list[Person], **_: object) -> object:
        target = float(people[0].references[0].stem)
        distance = [abs(places[method] - target) for method in index["method"]]
        return type("Measured", (), {"images": index.assign(**{"distance Dlib": distance})})

    monkeypatch.setattr("companion.pages.morphing.measure", fake)
    pairs = [Person(name, (Path("0.png"), Path("1.png"))) for name in ("a+b", "c+d")]
    index = pd.DataFrame(
        [(method, pair.name) for pair in pairs for method in places], columns=["method", "person"]
    )
    ends = {"first": "first", "second": "second"}
    assert morph_gains(index, pairs, middle="both", **ends).interval.estimate == 0.5
    assert morph_gains(index, pairs, middle="one", **ends).interval.estimate == 0
    places["second"] = float("nan")  # no face in it, so that there is one gain and not the other
    lost = morph_gains(index, pairs, middle="both", **ends)
    assert (lost.pairs, lost.cells) == (0, 2) and np.isnan(lost.interval.estimate)
    with pytest.raises(FusionError, match="no method 'neither'"):
        morph_gains(index, pairs, middle="neither", **ends)
    with pytest.raises(FusionError, match="'alone' needs two references"):
        morph_gains(index, [Person("alone", (Path("0.png"),))], middle="both", **ends)


def test_faces_of_real_pictures_can_be_blended(tmp_path: Path) -> None:
    """The held-out people's own pictures as if they had been painted: the measure is the real one.

    Pixels of two aligned faces, averaged, are nearer to both people than each is to the other.
    """
    heldout = ROOT / "data" / "heldout"
    first, second = heldout / "0000_0.jpg", heldout / "0003_0.jpg"
    Image.blend(Image.open(first), Image.open(second), 0.5).save(tmp_path / "blend.png")
    index = pd.DataFrame(
        [
            (method, "a+b", "", 0, str(image))
            for method, image in
            (("1", first), ("half", tmp_path / "blend.png"), ("2", second))
        ],
        columns=["method", "person", "prompt", "seed", "image"],
    )  # fmt: skip
    pair = Person("a+b", (first, second))
    found = morph_gains(index, [pair], first="1", middle="half", second="2")
    assert (found.pairs, found.cells) == (1, 1)
    # One pair has no interval; the same one five times has.
    names = ["a+b", "b", "c", "d", "e"]
    often = pd.concat([index.assign(person=name) for name in names])
    ends = {"first": "1", "middle": "half", "second": "2"}
    pairs = [Person(name, (first, second)) for name in names]
    assert np.isnan(found.interval.low) and morph_gains(often, pairs, **ends).interval.low > 0


def test_hours_are_those_that_the_runs_recorded(tmp_path: Path) -> None:
    hours = float(training_hours(ROOT / "data" / "models" / "embedded"))
    records = (ROOT / "data/models/embedded/training").glob("*.json")
    seconds = {file.stem: json.loads(file.read_text())["seconds"] for file in records}
    judges = seconds.pop("identity") + seconds.pop("classifier")
    assert judges > 0 and hours == pytest.approx(sum(seconds.values()) / 3600, abs=0.05)
    assert training_hours(tmp_path) == "unknown"


# --- how it is shown --------------------------------------------------------------------------


def test_a_claim_is_shown_with_what_decides_it(tmp_path: Path, path: Path) -> None:
    made = record_claim(tmp_path, "helps", GAIN, profile="embedded", run="run", path=path)
    html = claim_table(made, R=1).to_html()
    for part in (
        "“it helps", "Section 3.2", "0.040 [0.030,\u00a00.050]", "80 of 80", "1.200", "88%",
        "0.045, 0.035",
    ):  # fmt: skip
        assert part in html
    assert html.index(">R<") < html.index("supported")
    alone = Estimate(Interval(0.2, 0.1, 0.3), 80, 80, 40)
    made = record_claim(tmp_path, "helps", alone, profile="embedded", run="run", path=path)
    html = claim_table(made).to_html()
    assert "0.200 [0.100,\u00a00.300]" in html and "80 of 80" in html and "effect size" not in html


def test_a_number_without_an_interval_stands_alone(tmp_path: Path, path: Path) -> None:
    nan = float("nan")
    few = replace(GAIN, effect=Interval(0.432, nan, nan))
    assert str(few.effect) == "0.432" and str(Interval(nan, nan, nan)) == "–"
    made = record_claim(tmp_path, "helps", few, profile="embedded", run="run", path=path)
    assert "nan" not in claim_table(made).to_html()


def test_a_changed_record_changes_the_table_the_picture_and_the_counts(
    tmp_path: Path, path: Path
) -> None:
    claims = read_claims(path)

    def shown() -> tuple[str, str, str]:
        evidence = read_evidence(tmp_path, "embedded", claims)
        table = verdict_table(claims, evidence, "embedded")._repr_html_()
        strip = verdict_strip(claims, evidence, "embedded")
        return text_of(table), verdict_plot(evidence)._repr_html_(), strip._repr_html_()

    table, picture, strip = shown()
    assert "to be decided by table1_identity" in table and "no judge" in table
    assert "it helps &amp; more" in table, "text is escaped"
    assert "No claim has been measured yet" in picture
    assert "2 claims: 1 not measured yet, 1 not testable here." in strip

    record_claim(tmp_path, "helps", GAIN, profile="embedded", run="a run", path=path)
    table, picture, strip = shown()
    assert (
        "0.040 [0.030, 0.050] cosine distance, of interest from 0.01 on; 40 people" in table
        and "a run" in table
    )
    assert '<a href="../notebooks/table1_identity.html">' in picture
    assert "2 claims: 1 supported, 1 not testable here." in strip
    assert verdict_counts(claims, read_evidence(tmp_path, "embedded", claims), "embedded") == {
        "supported": 1,
        "not supported": 0,
        "no difference that matters": 0,
        "undecided": 0,
        "not measured yet": 0,
        "not testable here": 1,
    }

    worse = about(-0.04, -0.05, -0.03)
    record_claim(tmp_path, "helps", worse, profile="embedded", run="a run", path=path)
    table, picture, strip = shown()
    assert "−0.040 [−0.050, −0.030]" in table and "not supported" in table
    assert 'data-verdict="not supported"' in picture


def test_the_summary_names_claims_by_their_answers(tmp_path: Path) -> None:
    names = ("one", "two", "three", "four")
    path = write(tmp_path / "claims.yaml", [SMALL | {"id": n, "title": n} for n in names])
    found = {
        "one": about(0.04, 0.03, 0.05),
        "two": about(-0.04, -0.05, -0.03),
        "three": about(0.0, -0.005, 0.005),
        "four": replace(GAIN, composite=Interval(0, -0.1, 0.1), bounds=Interval(0, -0.1, 0.1)),
    }
    for name, number in found.items():
        numbers = replace(number, values=tuple(number.interval.estimate + x for x in SPREAD))
        record_claim(tmp_path, name, numbers, profile="embedded", run="run", path=path)
    claims = read_claims(path)
    evidence = read_evidence(tmp_path, "embedded", claims)
    summary = repr(verdict_summary(claims, evidence, "embedded"))
    assert summary.startswith(
        "Supported: one.\nNot supported: two.\nNo difference that matters: three.\n"
        "Undecided: 1; in 1 of them it depends on what is made of pictures without a face.\n"
    )
    assert "3 of 3 verdicts stand after Holm's correction for 4 tests" in summary


SPREAD = tuple(np.linspace(-0.01, 0.01, 40))


def test_holm_is_what_its_definition_gives(tmp_path: Path) -> None:
    from companion.claims.rule import holm

    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06}
    )


def test_bars_lie_on_the_side_of_the_line_that_the_interval_does(
    tmp_path: Path, path: Path
) -> None:
    def ends(low: float, high: float) -> list[float]:
        found = about((low + high) / 2, low, high)
        made = record_claim(tmp_path, "helps", found, profile="embedded", run="run", path=path)
        drawn = re.search(r'class="bar" x1="([\d.]+)%" x2="([\d.]+)%"', verdict_plot([made])._html)
        assert drawn
        return [float(end) for end in drawn.groups()]

    assert 50 < ends(0.01, 0.03)[0] < ends(0.01, 0.03)[1] <= 100
    assert ends(-0.02, 0.02) == [pytest.approx(4), pytest.approx(96)]
    assert 0 <= ends(-0.03, -0.01)[0] < ends(-0.03, -0.01)[1] < 50
    unknown = replace(GAIN, interval=Interval(np.nan, np.nan, np.nan))
    made = record_claim(tmp_path, "helps", unknown, profile="embedded", run="run", path=path)
    assert made.verdict == "undecided" and "nan" not in verdict_plot([made])._html


@pytest.mark.parametrize(
    "low, high, told",
    [
        (-0.0034, -0.0003, "-0.0018 [-0.0034, -0.0003]"),
        (-0.0004, 0.0086, "0.0041 [-0.0004, 0.0086]"),
        (-2e-6, 4e-6, "0.000001 [-0.000002, 0.000004]"),
        (-0.002, 0.004, "0.001 [-0.002, 0.004]"),
        (0.0, 0.0, "0.000 [0.000, 0.000]"),
    ],
)
def test_a_printed_interval_never_hides_the_sign_that_decides(
    low: float, high: float, told: str
) -> None:
    assert str(Interval((low + high) / 2, low, high)) == told


def test_an_interval_that_decides_nothing_says_why(tmp_path: Path, path: Path) -> None:
    for changes, said in (
        ({"people": 4, "interval": Interval(1, np.nan, np.nan)}, "fewer than 5 decide nothing"),
        ({"pairs": 39}, "; 40 people; 39 of 80 pictures could be measured"),
    ):
        found = replace(GAIN, **changes)
        made = record_claim(tmp_path, "helps", found, profile="embedded", run="run", path=path)
        assert made.verdict == "undecided" and said in repr(verdict_plot([made]))


def test_claims_about_systems_that_are_not_there_are_passed_over(tmp_path: Path) -> None:
    here = {"embedded": "notebooks/table1_identity"}
    claims = {
        "helps": {"pair": ["near", "far"]},
        "art": {"pair": ["near", "missing"]},
        "best": {"pair": ["near", ["far", "missing"]]},
        "mean": {"mean_of": "missing"},
        "unseen": {"pair": ["near", "far"], "metric": "clip_score"},
        "elsewhere": {"pair": {"paper": ["near", "far"]}},
    }
    entries = [SMALL | {"id": name, "experiment": here} | more for name, more in claims.items()]
    path = write(tmp_path / "claims.yaml", entries)
    images = pd.DataFrame(
        [
            {"method": method, "person": str(i), "prompt": "p", "seed": 0, "distance": far - i / 99}
            for method, far in (("near", 0.2), ("far", 0.5))
            for i in range(12)
        ]
    )
    told = {"run": "run", "path": path}
    made = record_claims(tmp_path, list(claims), images, profile="embedded", **told)
    assert [(one.claim.id, one.verdict) for one in made] == [("helps", "supported")]
    assert made[0].found.interval.estimate == pytest.approx(0.3)
    assert [file.stem for file in (tmp_path / "claims").iterdir()] == ["helps"]
    passed_over = record_claims(
        tmp_path, ["helps"], images, profile="embedded", page="another", **told
    )
    assert passed_over == []


def measured_faces() -> Measurements:
    """Two recognisers that disagree, and a classifier, on twelve people and two prompts."""
    rows = [
        {"method": method, "person": str(person), "prompt": prompt, "seed": 0, "face": True}
        | {"distance Dlib": far + person / 99, "distance own": 1 - far}
        | {"style_correct": float(method == "near"), "expression_correct": 1.0}
        | {"gender_kept": 1.0, "hair_kept": float(method == "far"), "clip_score": clip}
        | {"unseen Dlib": far + 0.1, "strangers Dlib": 0.55, "rank Dlib": 1.0}
        | {"unseen own": far, "strangers own": 0.55, "rank own": 1.0}
        for method, far, clip in (
            ("near", 0.2, 20.0),
            ("far", 0.5, 25.0),
            ("farther", 0.6, 22.0),
            ("farthest", 0.8, 21.0),
        )  # fmt: skip
        for prompt in ("a photo", "a drawing")
        for person in range(12)
    ]
    scale = pd.DataFrame(
        {"genuine": 0.1, "impostor": 0.7, "unseen_genuine": 0.2, "unseen_impostor": 0.8},
        index=[str(n) for n in range(12)],
    )
    return Measurements(pd.DataFrame(rows), {"Dlib": scale, "own": scale}, "dlib", "reference")


@pytest.mark.parametrize(
    "decided, value",
    [
        ({"pair": ["near", "far"]}, 0.3),
        ({"pair": ["near", "far"], "recogniser": "last"}, -0.3),
        ({"pair": ["near", "far"], "recogniser": {"embedded": "last", "paper": "first"}}, -0.3),
        ({"pair": {"embedded": ["far", "near"], "paper": ["near", "far"]}}, -0.3),
        ({"pair": ["near", ["far", "farther"]], "metric": "clip_score"}, -5),
        ({"pair": ["near", "far"], "baseline": ["farther", "farthest"]}, 0.1),
        (
            {"pair": ["far", "near"], "baseline": ["farther", "farthest"], "metric": "clip_score"},
            (25 - 20) - (22 - 21),
        ),
        ({"pair": ["near", "far"], "metric": "followed"}, 1),
        ({"pair": ["far", "near"], "metric": "likeness"}, 0.5),
        ({"pair": ["far", "near"], "metric": "likeness", "traits": ["hair"]}, 1),
        ({"pair": ["near", "far"], "only": ["a drawing"]}, 0.3),
        ({"pair": ["near", "far"], "metric": "face"}, 0),
        ({"pair": ["near", "far"], "metric": "spread"}, 0),
        ({"pair": ["near", "far"], "metric": "shown"}, 1),
        ({"mean_of": "near", "metric": "recovery", "against": "unseen"}, 5 / 6),
        ({"mean_of": "near", "metric": "style_correct", "without": "a photo"}, 1),
        ({"mean_of": "far", "metric": "accepted"}, 0),
    ],
)
def test_what_decides_a_claim_stands_beside_it(decided: dict[str, Any], value: float) -> None:
    claim = Claim.model_validate(SMALL | decided)
    found = decide(claim, measured_faces(), "embedded", {})
    assert found is not None
    part = found[0][0]
    assert part.found.interval.estimate == pytest.approx(value)
    halved = 24 if claim.only or claim.without or claim.metric == "spread" else 24 * 2
    assert part.found.cells == halved // 2


def test_recovery_decides_like_any_other_number() -> None:
    claim = Claim.model_validate(SMALL | {"mean_of": "near", "metric": "recovery"})
    measured = measured_faces()
    found = decide(claim, measured, "embedded", {})
    assert found is not None
    ((part,), (other,)) = found
    assert part.found == estimate_recovery(measured.identity("Dlib"), "near")
    assert (part.recogniser, other.recogniser) == ("Dlib", "own")
    assert decide(claim, measured.images, "embedded", {}) is None, "a table alone has no scale"
    few = np.mean(part.found.values)
    assert few == pytest.approx(part.found.interval.estimate), "its linear part has the same mean"


def test_better_than_several_needs_each_and_each_recogniser(tmp_path: Path) -> None:
    several: dict[str, Any] = {"pair": ["near", ["far", "farther"]], "recogniser": "first"}
    claims = [
        SMALL | several,
        SMALL | several | {"id": "each", "recogniser": "each"},
        SMALL | {"id": "tie", "pair": ["near", ["far", "same"]]},
    ]
    path = write(tmp_path / "claims.yaml", claims)
    measured = measured_faces()
    same = measured.images[measured.images["method"] == "near"].assign(method="same")
    measured = replace(measured, images=pd.concat([measured.images, same], ignore_index=True))
    told = {"profile": "embedded", "run": "run", "path": path}
    helps, each, tie = record_claims(tmp_path, ["helps", "each", "tie"], measured, **told)
    assert helps.verdict == "supported" and helps.part.against == "far", "the nearest of them"
    assert [part.against for part in helps.parts] == ["far", "farther"]
    assert all(part.corrected for part in helps.parts)
    assert helps.judges_differ and helps.beside[0].recogniser == "own"
    assert each.verdict == "not supported" and each.part.recogniser == "own"
    assert each.beside == () and len(each.parts) == 4
    assert tie.verdict == "no difference that matters" and tie.part.against == "same"
    read = read_evidence(tmp_path, "embedded", read_claims(path))
    assert {name: one.verdict for name, one in read.items()} == {
        "helps": "supported", "each": "not supported", "tie": "no difference that matters",
    }  # fmt: skip
    assert read["each"].part.against == each.part.against
    assert after_holm(read)["helps"] < 0.05


def test_a_claim_that_several_comparisons_leave_open_has_no_small_p(tmp_path: Path) -> None:
    """One fails by its own interval and not by the widened one: nothing has been excluded."""
    claim = Claim.model_validate(SMALL | {"pair": ["near", ["far", "farther"]]})
    fails, wide = about(-0.01, -0.03, -0.001), about(-0.01, -0.05, 0.02)
    parts = [
        Part("far", "Dlib", fails, 0.01, 1e-9, wide),
        Part("farther", "Dlib", GAIN, 0.01, 1e-9, GAIN),
    ]
    path = write(tmp_path / "claims.yaml", [SMALL | {"pair": ["near", ["far", "farther"]]}])
    told = {"profile": "embedded", "run": "run", "path": path}
    made = record_claim(tmp_path, claim.id, (parts, []), **told)
    assert made.verdict == "undecided" and made.p == 1
    failed = [replace(parts[0], corrected=fails), parts[1]]
    made = record_claim(tmp_path, claim.id, (failed, []), **told)
    assert made.verdict == "not supported" and made.p == 2e-9


def test_the_smallest_effect_of_a_distance_is_a_share_of_the_way_to_the_person() -> None:
    claim = Claim.model_validate(SMALL | {"pair": ["near", "far"]})
    effects = {"cosine distance": read_effects()["cosine distance"]}
    found = decide(claim, measured_faces(), "embedded", effects)
    assert found is not None
    assert found[0][0].smallest == pytest.approx(0.05 * 0.6)
    assert part_answer(claim, found[0][0]) == ("supported", "")


def test_a_claim_is_recorded_on_the_study_that_it_names_and_no_other(tmp_path: Path) -> None:
    path = write(tmp_path / "claims.yaml", [SMALL | {"study": {"embedded": "table1"}}])
    told = {"profile": "embedded", "run": "run", "path": path}
    with pytest.raises(FusionError, match="decided by the study 'table1', and was measured on 'c"):
        record_claim(tmp_path, "helps", GAIN, study="counterparts", **told)
    record_claim(tmp_path, "helps", GAIN, study="table1", **told)
    assert set(read_evidence(tmp_path, "embedded", read_claims(path))) == {"helps"}
    moved = write(path, [SMALL | {"study": {"embedded": "table2"}}])
    assert read_evidence(tmp_path, "embedded", read_claims(moved)) == {}


def test_claims_of_a_table_are_decided_by_that_tables_study() -> None:
    for claim in read_claims().values():
        for number in "12":
            tables = re.findall(r"Tables? (\d)(?: and (\d))?", claim.section)
            named = {found for pair in tables for found in pair if found}
            if named == {number} and "embedded" not in claim.obstacle:
                assert claim.decided_on("embedded") == f"table{number}", claim.id
    files = (ROOT / "data" / "studies").glob("*.yaml")
    names = {yaml.safe_load(file.read_text())["name"] for file in files}
    assert {claim.decided_on("embedded") for claim in read_claims().values()} - {None} <= names


def test_traits_that_decide_are_those_that_the_quoted_words_name() -> None:
    """F3 of the review: a claim on gender and age was decided by hair."""
    words = {"gender": "gender", "age_word": "age", "hair_style": "hair", "hair_color": "hair"}
    judged = [claim for claim in read_claims().values() if claim.metric == "likeness"]
    assert judged
    for claim in judged:
        assert claim.traits, f"{claim.id} would average every trait"
        for trait, word in words.items():
            assert (word in claim.text) == (trait in claim.traits), (claim.id, trait)
            assert trait not in claim.traits or word in claim.title.lower(), claim.id


def test_a_claim_to_be_best_of_a_table_is_compared_with_every_system_in_it() -> None:
    """F4 of the review: a system that scores higher was left out."""
    systems = {
        "IPA-FaceID": "faceid", "IPA-FaceID-Plus": "faceid-plus", "InstantID": "instantid",
        "Ours v1": "fused-v1", "Ours v2": "fused",
    }  # fmt: skip
    table = read_quoted(ROOT / "data" / "paper" / "table2.csv").dropna(subset="value")
    claims = read_claims()
    ours = {"fused", "fused-v1"}
    for name, column in (("clip-order", "CLIP Score"), ("face-quality", "PSNR"),
                         ("face-similarity", "SSIM")):  # fmt: skip
        there = {systems[row] for row in table[table["column"] == column]["row"]}
        best, others = claims[name].pair  # type: ignore[misc]
        left_out = there - {best, *others}
        assert left_out <= (ours if best in ours else set()), name
        assert set(others) <= there, "and with no system that is not in it"


def test_notebooks_keep_their_results_in_one_place() -> None:
    """F6 of the review: a page that wrote elsewhere left a claim "not measured yet"."""
    folders = set()
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in nbformat.read(notebook, 4).cells:
            if "parameters" in cell.metadata.get("tags", []):
                folders |= set(re.findall(r'^out = "(.*)"$', cell.source, re.M))
    assert folders == {"../build/small"}


def test_what_is_expected_of_a_claim_is_expected_of_people_who_are_there() -> None:
    """F10 of the review: an expectation of more people than a profile runs would never bite."""
    settings = load_profile("embedded")
    sizes = {"num_people", "num_pairs", "num_groups", "shown"}
    for claim in read_claims().values():
        expected = claim.expected.get("embedded")
        if expected is None:
            continue
        study = claim.decided_on("embedded")
        record = ROOT / "book" / "records" / "studies" / "embedded" / f"{study}.parquet"
        if study and record.is_file():
            there = pd.read_parquet(record, columns=["person"])["person"].nunique()
        else:
            page = Path(claim.tested_by("embedded") or "").name
            given = settings.notebooks.get(page, {})
            there = max([int(given[name]) for name in sizes & given.keys()] or [7])
        assert expected.people <= there, claim.id


# --- the page ---------------------------------------------------------------------------------


def nbval(notebook: Path) -> subprocess.CompletedProcess[str]:
    """Run a notebook under nbval, as `make test` does."""
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-q", "-x"]
    command += ["-p", "no:cacheprovider", "--rootdir", str(notebook.parent), str(notebook)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def at(folder: Path, out: Path) -> Path:
    """The claims notebook with another folder to read from, beside a link to the data it reads."""
    notebook = nbformat.read(NOTEBOOK, 4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    cell.source = re.sub(r'out = ".*"', f'out = "{out}"', cell.source)
    nbformat.write(notebook, folder / "claims.ipynb")
    return folder / "claims.ipynb"


def test_a_broken_claim_fails_nbval_and_is_named(tmp_path: Path) -> None:
    claim = next(c for c in read_claims().values() if "embedded" in c.expected)
    for_it = claim.expected["embedded"].verdict == "not supported"
    turned = [claim.threshold + (value if for_it else -value) for value in (0.04, 0.03, 0.05)]
    told = {"profile": "embedded", "run": "a run", "study": claim.decided_on("embedded") or ""}
    record_claim(tmp_path, claim.id, about(*turned), **told)
    done = nbval(at(tmp_path, tmp_path))
    assert done.returncode == 1, done.stdout
    now = "supported" if for_it else "not supported"
    assert f"The claim '{claim.id}' ({claim.title}) is {now}" in done.stdout


def test_the_page_runs_alone_and_other_notebooks_come_first() -> None:
    assert nbformat.read(NOTEBOOK, 4).metadata["fusionlib"]["after"] == ["*"]
    listing = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval-lax", "--collect-only", "-q", "-p",
         "no:cacheprovider", str(ROOT / "notebooks")],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    order = list(dict.fromkeys(re.findall(r"(\w+)\.ipynb::", listing.stdout)))
    assert order[-1] == "claims" and len(order) > 3, listing.stdout[-500:]
    assert order.index("systems") < order.index("metric_audit")


def test_status_prefers_the_obstacle(tmp_path: Path, path: Path) -> None:
    claims = read_claims(path)
    assert status(claims["art"], {}, "embedded") == "not testable here"
    assert status(claims["art"], {}, "paper") == "not measured yet"
    assert CLAIMS.is_relative_to(ROOT)


def test_the_front_page_has_no_number_but_from_the_claims_page() -> None:
    page = (ROOT / "book" / "intro.md").read_text()
    wanted = [("claims", key) for key in re.findall(r"claims\.ipynb::(\w+):s", page)]
    drawn = re.findall(r"\{glue\} (\w+)\n:doc: \.\./notebooks/(\w+)\.ipynb", page)
    wanted += [(notebook, key) for key, notebook in drawn]
    assert {"headline", "verdict_strip", "verdict_plot", "training_hours"} <= {
        key for _, key in wanted
    }
    for notebook, key in wanted:
        cells = nbformat.read(NOTEBOOK.with_stem(notebook), 4).cells
        source = "\n".join(cell.source for cell in cells)
        assert f'"{key}"' in source, f"the page {notebook} glues no {key}"
    prose = re.sub(r"```.*?```|\{glue:text\}`[^`]*`|\{\w+:?\w*\}`[^`]*`", "", page, flags=re.S)
    names = r"Python 3\.11|V4\.0|Stable Diffusion 1\.5|Table \d|Figure \d|Facenet512|95% interval"
    names += r"|abs/2409\.19111|Apache License 2\.0|CC0"
    assert not re.findall(r".{0,30}\d.{0,10}", re.sub(names, "", prose))
    by_hand = r"\b(two|three|four|five|ten|forty|hundred) (hours|minutes|people|pictures|percent)"
    assert not re.findall(by_hand, prose)


KNOWN = (
    r"95% interval", r"(Section|\d and) \d\.\d",
    "between 0 and 100%", "sum to 100%",  # shares of one softmax
    "100 times the cosine",  # the CLIP score
    "modulo 256", r"is 105\.5", "has 256", "file's 256 levels", "below 16",  # numbers of 8 bits
    "32, 64 and 128 pixels", "at 64 pixels", "1,000 steps", "5% each",  # held to the code below
)  # fmt: skip
"""Numbers that the prose of a notebook may state: of definitions, and of places in the paper."""


def typed_numbers(text: str) -> list[str]:
    """Numbers in prose besides `KNOWN`: of two digits, with a point or in percent, or in words.

    Code, equations and links are no prose, and a single digit is mostly none of a result.
    """
    prose = re.sub(r"```.*?```|\$\$.*?\$\$|\$[^$]*\$|`[^`]*`|\]\([^)]*\)", "", text, flags=re.S)
    prose = re.sub("|".join(KNOWN), "", prose)
    number = r"(?<![\w.-])\d[\d.,]*(?:\d|%)(?!\w)"
    words = "half an?|one|two|three|four|five|six|ten|twenty|forty|(?:one )?hundred"
    units = "seconds|minutes|hours?|degrees|decibels?|percent|pixels|parameters"
    return re.findall(rf".{{0,30}}(?:{number}|\b(?:{words}) (?:{units})\b).{{0,20}}", prose)


def test_typed_numbers_are_found_and_others_are_not() -> None:
    for text in (
        "ages from 18 to 80", "a share of 12%", "within 0.33", "in 1,000 studies", "half a decibel",
        "about one hundred parameters", "up to twenty degrees", "5% fewer",
    ):  # fmt: skip
        assert typed_numbers(text), text
    for text in (
        "with 95% intervals", "Section 3.3 says", "Figure 2", "Eq. 7", "`-p seeds=12`", "Arc2Face",
        "mean is $105.5$ dB", "float16", "left in 8 bits", "[the model](https://arxiv.org/2409.1)",
    ):  # fmt: skip
        assert not typed_numbers(text), text


@pytest.mark.parametrize(
    "notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_no_prose_of_a_notebook_has_a_typed_number(notebook: Path) -> None:
    """Nor has a caption or an alternative text: a number of a run would not follow the next one."""
    for cell in nbformat.read(notebook, 4).cells:
        shown = cell.metadata.get("mystnb", {})
        texts = [shown.get("figure", {}).get("caption"), shown.get("image", {}).get("alt")]
        texts += [cell.source] if cell.cell_type == "markdown" else []
        for text in filter(None, texts):
            assert not typed_numbers(text), cell.id


def test_pages_state_the_numbers_of_the_code() -> None:
    page = (ROOT / "book" / "evaluation.md").read_text()
    resamples = inspect.signature(bootstrap).parameters["resamples"].default
    assert f"{resamples:,} resamples" in page
    assert f"additive angular margin of {MARGIN:g} at a scale of {SCALE:g}" in page
    assert MIN_PEOPLE == 5 and "fewer than five people" in page
    settings = load_profile("embedded")
    side, training = settings.resolution, settings.training
    assert f"at {side} × {side} pixels" in (ROOT / "README.md").read_text()
    card = nbformat.read(ROOT / "notebooks" / "model_card.ipynb", 4).cells
    table = "\n".join(cell.source for cell in card)
    quarter, half, whole = (side // SIDES[name] for name in ("vae_quarter", "vae_half", "vae"))
    assert f"pictures at {quarter}, {half} and {whole} pixels" in table
    assert f"the encoder is finished at {half} pixels" in table
    steps = settings.architecture["scheduler"]["num_train_timesteps"]
    assert f"v-prediction, {steps:,} steps" in table
    shares = {training.text_dropout, training.reference_dropout, training.both_dropout}
    assert [f"dropped, {share:.0%} each" in table for share in shares] == [True]
