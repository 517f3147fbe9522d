"""Verdicts by the book's code and by code that shares no line with it, on the same records."""

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from companion.claims.claims import read_claims
from companion.claims.evidence import Evidence, after_holm, read_evidence, record_claims
from companion.studies.records import read_record
from fusionlib.profiles import ROOT
from tests.independent import recompute_claims as independent

SCRIPT = Path(independent.__file__)
RECORDS = ROOT / "book" / "records" / "studies" / "embedded"
METHODS = ("ours", "near", "far", "plain")
PROMPTS = ("a photo", "a drawing")
PEOPLE = [f"{number:04d}" for number in range(30)]


def pictures(seed: int = 1, *, outlier: bool = True) -> pd.DataFrame:
    """Random pictures of four methods that differ, some without a face and some not there at all.

    What is asked, read and found has every gap that a record can have. The outlier is a person of
    whom one method shows no face at all.
    """
    rng = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product(
        [METHODS, PEOPLE, PROMPTS, (2, 3)], names=["method", "person", "prompt", "seed"]
    )
    table = index.to_frame(index=False)
    number = len(table)
    far = table["method"].map({"ours": 0.0, "near": 0.002, "far": 0.02, "plain": 0.04})
    of_person = dict(zip(PEOPLE, rng.normal(0, 0.008, len(PEOPLE)), strict=True))
    far = far + table["person"].map(of_person)
    found = rng.random(number) > table["method"].map(
        {"ours": 0.06, "near": 0.03, "far": 0.02, "plain": 0}
    )
    if outlier:
        found &= (table["person"] != "0007") | (table["method"] != "ours")
    table["unreadable"] = None
    table["face"] = found
    table["found_by"] = np.where(found, np.where(rng.random(number) < 0.9, "dlib", "mtcnn"), None)

    def read(values: Any) -> pd.Series:
        return pd.Series(values, dtype=float).where(found)

    for judge, unit in (("Dlib", 1.0), ("identity", 0.5)):
        near = 0.05 + far * unit + rng.gamma(3, 0.004 * unit, number)
        table[f"distance {judge}"] = read(near)
        table[f"unseen {judge}"] = read(near + 0.01 + rng.normal(0, 0.002, number))
        table[f"strangers {judge}"] = read(0.085 + rng.normal(0, 0.01, number))
        table[f"rank {judge}"] = read(1.0 + rng.poisson(2, number))
    table["clip_score"] = 20 - 20 * far + rng.normal(0, 2, number)
    table["ssim"] = read(rng.beta(8, 8, number) - far)
    table["psnr"] = read(12 + rng.normal(0, 2, number))
    table["skin_difference"] = read(rng.gamma(4, 2, number) + 40 * far)
    happy = (rng.random(number) > 0.1 + 2 * np.abs(far)).astype(float)
    table["expression_correct"] = happy
    drawn = (rng.random(number) > 0.02).astype(float)
    table["style_correct"] = pd.Series(drawn).where(table["prompt"] == "a drawing")
    for trait, chance in (("gender", 0.9), ("age_word", 0.6), ("hair_style", 0.5)):
        table[f"{trait}_kept"] = read((rng.random(number) < chance - 3 * far).astype(float))
    # The far method left two people out, as one in whose reference it finds no face.
    return table[(table["method"] != "far") | ~table["person"].isin(PEOPLE[:2])]


def scales(seed: int = 2) -> dict[str, pd.DataFrame]:
    """Scales of two recognisers; one person has none, and one is nearer to strangers."""
    rng = np.random.default_rng(seed)
    made = {}
    for judge, unit in (("Dlib", 1.0), ("identity", 0.5)):
        size = len(PEOPLE)
        ends = {
            "genuine": 0.045 * unit + rng.normal(0, 0.008, size) * unit,
            "impostor": 0.115 * unit + rng.normal(0, 0.008, size) * unit,
            "unseen_genuine": 0.05 * unit + rng.normal(0, 0.008, size) * unit,
            "unseen_impostor": 0.12 * unit + rng.normal(0, 0.008, size) * unit,
        }
        made[judge] = pd.DataFrame(ends, index=PEOPLE)
        made[judge].loc["0003", ["genuine", "unseen_genuine"]] = np.nan
        made[judge].loc["0004", ["genuine", "impostor"]] = [0.12 * unit, 0.11 * unit]
    return made


def write_study(file: Path, table: pd.DataFrame, ends: dict[str, pd.DataFrame]) -> None:
    """The file format of a record, written by hand."""
    methods = [{"name": name, "settings": {"weights": {}}} for name in table["method"].unique()]
    people = [{"name": name} for name in table["person"].unique()]
    seeds, prompts = table["seed"].unique().tolist(), list(table["prompt"].unique())
    about = {
        "manifest": {"methods": methods, "people": people, "prompts": prompts, "seeds": seeds},
        "scales": {name: scale.to_dict("index") for name, scale in ends.items()},
        "detector": "dlib",
        "against": "reference",
    }
    written = pa.Table.from_pandas(table, preserve_index=False)
    meta = {**written.schema.metadata, b"fusionlib": json.dumps(about).encode()}
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(written.replace_schema_metadata(meta), file)


SHARE, DISTANCE = {"unit": "share of pictures"}, {"unit": "cosine distance"}
UNSEEN = {"against": "unseen"}
KINDS: dict[str, dict[str, Any]] = {
    "more": DISTANCE | {"pair": ["ours", "plain"]},
    "more-unseen": DISTANCE | UNSEEN | {"pair": ["ours", "far"]},
    "no-more": DISTANCE | {"pair": ["far", "ours"]},
    "a-tie": DISTANCE | {"pair": ["ours", "near"], "smallest": 0.02},
    "by-the-last": DISTANCE | {"pair": ["ours", "near"], "recogniser": {"embedded": "last"}},
    "no-less": DISTANCE | {"pair": ["near", "ours"], "asks": "no less"},
    "as-much": DISTANCE | {"pair": ["ours", "near"], "asks": "as much", "smallest": 0.015},
    "not-as-much": DISTANCE | {"pair": {"embedded": ["ours", "plain"]}, "asks": "as much"},
    "several": DISTANCE | {"pair": ["ours", ["far", "plain", "near"]]},
    "several-ties": DISTANCE | {"pair": ["ours", ["near", "far"]], "smallest": 0.05},
    "each-judge": DISTANCE | {"pair": ["near", ["far", "ours"]], "recogniser": "each"},
    "each-supported": DISTANCE | {"pair": ["ours", ["far", "plain"]], "recogniser": "each"},
    "only": DISTANCE | {"pair": ["ours", "far"], "only": ["a drawing"]},
    "without": DISTANCE | {"pair": ["ours", "far"], "without": "a drawing"},
    "baseline": DISTANCE | UNSEEN | {"pair": ["ours", "plain"], "baseline": ["near", "far"]},
    "spread": DISTANCE | {"pair": ["ours", "far"], "metric": "spread"},
    "recovery": {"unit": "R", "mean_of": "ours", "metric": "recovery", "threshold": 0.5},
    "recovery-unseen": UNSEEN
    | {"unit": "R", "mean_of": "far", "metric": "recovery", "threshold": 0.5},
    "accepted": SHARE | {"mean_of": "ours", "metric": "accepted", "threshold": 0.5},
    "face": SHARE | {"pair": ["ours", "plain"], "metric": "face", "asks": "no less"},
    "followed": SHARE | {"pair": ["ours", "plain"], "metric": "followed"},
    "shown": SHARE | UNSEEN | {"pair": ["ours", "plain"], "metric": "shown"},
    "shown-by-both": SHARE | {"pair": ["ours", "near"], "metric": "shown", "recogniser": "each"},
    "style": SHARE
    | {"pair": ["ours", ["near", "far"]], "metric": "style_correct", "asks": "no less"},
    "expression": SHARE | {"mean_of": "ours", "metric": "expression_correct", "threshold": 0.5},
    "clip": {"unit": "CLIP score", "pair": ["ours", "plain"], "metric": "clip_score"},
    "clip-no-less": {"unit": "CLIP score", "pair": ["near", "far"], "metric": "clip_score"}
    | {"asks": "no less"},
    "clip-several": {"unit": "CLIP score", "pair": ["ours", ["plain", "far"]]}
    | {"metric": "clip_score"},
    "likeness": {"unit": "share of traits", "pair": ["ours", "far"], "metric": "likeness"}
    | {"traits": ["gender", "age_word"]},
    "likeness-all": {"unit": "share of traits", "pair": ["ours", "far"], "metric": "likeness"},
    "ssim": {"unit": "SSIM", "pair": ["ours", ["near", "plain"]], "metric": "ssim"},
    "psnr": {"unit": "dB", "pair": ["ours", "near"], "metric": "psnr"},
    "skin": {"unit": "CIEDE2000", "pair": ["ours", "plain"], "metric": "skin_difference"},
}


def write_claims(path: Path, kinds: dict[str, dict[str, Any]] = KINDS) -> Path:
    """A file of claims on the study ``made``, with the book's smallest effects."""
    known = yaml.safe_load((ROOT / "data" / "paper" / "claims.yaml").read_text("utf-8"))
    common = {
        "title": "T", "text": "t", "words": "ours", "section": "1", "decided_by": "d",
        "study": {"embedded": "made"}, "experiment": "notebooks/table1_identity",
    }  # fmt: skip
    entries = [common | {"id": name} | claim for name, claim in kinds.items()]
    effects = known["smallest_effects"]
    path.write_text(yaml.safe_dump({"smallest_effects": effects, "claims": entries}))
    return path


def judged(folder: Path, kinds: dict[str, dict[str, Any]] = KINDS) -> dict[str, Evidence]:
    """What the book's code makes of the record in a folder, written to ``claims/`` there."""
    path = write_claims(folder / "claims.yaml", kinds)
    measured = read_record(folder / "made.parquet").measured
    told: dict[str, Any] = {"profile": "embedded", "run": "run", "study": "made", "path": path}
    return {one.claim.id: one for one in record_claims(folder, list(kinds), measured, **told)}


def recomputed(folder: Path) -> dict[str, independent.Result]:
    """What the script makes of the same record."""
    found = independent.results(folder / "claims.yaml", folder)
    return {one.claim["id"]: one for one in found if isinstance(one, independent.Result)}


def differences(folder: Path, results: dict[str, independent.Result]) -> list[str]:
    """Where the two differ, in sentences."""
    return [
        sentence
        for name, one in results.items()
        for sentence in independent.differences(
            one, json.loads((folder / "claims" / f"{name}.json").read_text())
        )
    ]


def status(folder: Path) -> int:
    """The exit status of the script over a folder."""
    arguments = ["--records", folder, "--claims", folder / "claims.yaml", "--evidence", folder]
    return independent.main([str(argument) for argument in arguments])


Both = tuple[Path, dict[str, Evidence], dict[str, independent.Result]]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Every kind of claim on one record, by either code."""
    folder = tmp_path_factory.mktemp("both")
    write_study(folder / "made.parquet", pictures(), scales())
    return folder, judged(folder), recomputed(folder)


def test_the_script_stands_alone() -> None:
    allowed = {"numpy", "pandas", "pyarrow", "scipy", "yaml"}
    allowed |= {"argparse", "collections", "dataclasses", "functools", "json", "pathlib", "sys"}
    allowed |= {"__future__", "typing"}
    for node in ast.walk(ast.parse(SCRIPT.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            assert {name.name.split(".")[0] for name in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and (node.module or "").split(".")[0] in allowed

    def lines(files: Sequence[Path]) -> set[str]:
        every = (line.strip() for file in files for line in file.read_text("utf-8").splitlines())
        return {
            line for line in every if len(line) > 30 and not line.startswith(("from", "import"))
        }

    theirs = [*(ROOT / "companion" / "claims").glob("*.py")]
    theirs += [ROOT / "companion" / "evaluation" / f"{name}.py" for name in
               ("comparison", "statistics", "treatments")]  # fmt: skip
    assert lines([SCRIPT]) & lines(theirs) == set()


def test_both_agree_on_every_kind_of_claim(both: Both) -> None:
    folder, evidence, results = both
    assert set(evidence) == set(results) == set(KINDS)
    assert differences(folder, results) == []
    verdicts = {name: one.verdict for name, one in evidence.items()}
    assert verdicts == {name: one.verdict for name, one in results.items()}
    assert set(verdicts.values()) == {
        "supported", "not supported", "no difference that matters", "undecided",
    }  # fmt: skip


def test_p_values_and_their_correction_agree(both: Both) -> None:
    folder, _, results = both
    read = read_evidence(folder, "embedded", read_claims(folder / "claims.yaml"))
    own = {name: one.p for name, one in results.items()}
    assert {name: one.p for name, one in read.items()} == pytest.approx(own, rel=1e-6)
    assert after_holm(read) == pytest.approx(independent.holm(own), rel=1e-6)


def test_distances_agree_to_the_third_digit(tmp_path: Path) -> None:
    """Where no person stands apart, so that no end lies among the last few resamples."""
    names = ("more", "more-unseen", "by-the-last", "no-less", "baseline", "spread")
    kinds = {name: KINDS[name] for name in names}
    write_study(tmp_path / "made.parquet", pictures(outlier=False), scales())
    evidence, results = judged(tmp_path, kinds), recomputed(tmp_path)
    compared = 0
    for name, one in evidence.items():
        (part,), (own,) = one.parts, results[name].parts
        found = (part.found.interval, part.found.composite, part.found.bounds)
        for there, here in zip(found, own.treated.values(), strict=True):
            assert there is not None
            assert there.estimate == pytest.approx(here.estimate, abs=1e-9)
            assert (there.low, there.high) == pytest.approx((here.low, here.high), abs=1e-3), name
            compared += 1
    assert compared == 3 * len(names)


def test_planted_numbers_come_out(tmp_path: Path) -> None:
    """Ten people, a difference of a tenth of the way, and one lost face of forty pictures."""
    rows = [
        {"method": method, "person": f"p{person}", "prompt": "a", "seed": seed, "face": True}
        | {"distance Dlib": distance, "clip_score": 20.0}
        for method, distance in (("ours", 0.05), ("plain", 0.06))
        for person in range(10)
        for seed in (2, 3)
    ]
    rows[0] |= {"face": False, "distance Dlib": np.nan}  # of the first person, by ours
    scale = pd.DataFrame({"genuine": 0.04, "impostor": 0.14}, index=[f"p{n}" for n in range(10)])
    write_study(tmp_path / "made.parquet", pd.DataFrame(rows), {"Dlib": scale})
    kinds = {
        "nearer": DISTANCE | {"pair": ["ours", "plain"]},
        "same": {"unit": "CLIP score", "pair": ["ours", "plain"], "metric": "clip_score"},
        "half": {"unit": "R", "mean_of": "ours", "metric": "recovery", "threshold": 0.5},
        "faces": SHARE | {"pair": ["ours", "plain"], "metric": "face", "asks": "no less"},
    }
    judged(tmp_path, kinds)
    results = recomputed(tmp_path)
    assert status(tmp_path) == 0
    (nearer,) = results["nearer"].parts
    assert (nearer.pairs, nearer.cells, nearer.people) == (19, 20, 10)
    assert nearer.smallest == pytest.approx(0.005), "a twentieth of 0.1"
    each = {name: ends.estimate for name, ends in nearer.treated.items()}
    lost = (0.01 + (0.06 - 0.14)) / 2  # of the first person, with a stranger in one picture
    assert each["complete cases"] == pytest.approx(0.01)
    assert each["composite"] == pytest.approx((9 * 0.01 + lost) / 10)
    complete = nearer.treated["complete cases"]
    assert complete.low == complete.high == complete.estimate, "people do not differ"
    assert results["nearer"].verdict == "undecided", "one stranger of ten could turn it"
    assert results["same"].verdict == "no difference that matters"
    assert results["same"].p == pytest.approx(2 / 2**10)
    (half,) = results["half"].parts
    assert half.treated["complete cases"].estimate == pytest.approx(0.9)
    assert half.treated["composite"].estimate == pytest.approx((0.9 * 9 + 0.45) / 10)
    assert results["half"].verdict == "supported"
    (faces,) = results["faces"].parts
    assert faces.treated["bounds"].estimate == pytest.approx(-0.05)


@pytest.mark.parametrize(
    "place, value, named",
    [
        (("verdict",), "undecided", "more: the verdict is 'undecided' there, 'supported' here"),
        (("study",), "other", "more: recorded on 'other', not 'made'"),
        (("parts", 0, "p"), 0.5, "p is 0.5 there"),
        (("parts", 0, "smallest"), 0.1, "smallest is 0.1 there"),
        (("parts", 0, "found", "composite", "estimate"), 0.04, "composite is 0.04 there"),
        (("parts", 0, "found", "bounds", "low"), 0.02, "the low end of bounds is 0.02"),
        (("parts", 0, "found", "cells"), 7, "cells is 7 there"),
        (("parts", 0, "found", "by_seed", "2"), 0.5, "seed 2 is 0.5 there"),
        (("beside",), [], "more: 0 beside there, 1 here"),
    ],
)
def test_every_difference_is_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    place: tuple[str | int, ...],
    value: object,
    named: str,
) -> None:
    kinds = {"more": KINDS["more"]}
    write_study(tmp_path / "made.parquet", pictures(), scales())
    judged(tmp_path, kinds)
    assert status(tmp_path) == 0
    file = tmp_path / "claims" / "more.json"
    record = json.loads(file.read_text())
    inner: Any = record
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    file.write_text(json.dumps(record))
    capsys.readouterr()
    assert status(tmp_path) == 1
    assert named in capsys.readouterr().err


def test_a_claim_that_was_not_recorded_is_a_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = {"more": KINDS["more"]}
    write_study(tmp_path / "made.parquet", pictures(), scales())
    judged(tmp_path, kinds)
    (tmp_path / "claims" / "more.json").unlink()
    assert status(tmp_path) == 1
    assert "has no record of it" in capsys.readouterr().err


ON_RECORDS = [
    claim.id
    for claim in read_claims().values()
    if claim.decided_on("embedded") and "embedded" not in claim.obstacle
]


@pytest.mark.parametrize("name", ON_RECORDS)
def test_both_agree_on_the_books_records(name: str, tmp_path: Path) -> None:
    """Skipped for a record that lacks what the claim needs, as those before the second detector."""
    claim = read_claims()[name]
    study = str(claim.decided_on("embedded"))
    file = RECORDS / f"{study}.parquet"
    if not file.is_file():
        pytest.skip(f"there is no record {file.name} yet")
    entry = yaml.safe_load((ROOT / "data" / "paper" / "claims.yaml").read_text("utf-8"))
    entry["claims"] = [one for one in entry["claims"] if one["id"] == name]
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(entry))
    measured = read_record(file).measured
    told: dict[str, Any] = {"profile": "embedded", "run": "run", "study": study, "path": path}
    made = record_claims(tmp_path, [name], measured, **told)
    (own,) = independent.results(path, RECORDS)
    if not isinstance(own, independent.Result):
        assert not made, f"the script says that {own[1]}"
        pytest.skip(f"{file.name}: {own[1]}")
    record = json.loads((tmp_path / "claims" / f"{name}.json").read_text())
    assert list(independent.differences(own, record)) == []
    assert made[0].verdict == own.verdict and made[0].p == pytest.approx(own.p, rel=1e-6)
