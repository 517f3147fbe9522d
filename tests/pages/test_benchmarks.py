"""Benchmarks: what is measured is what happened, by a clock that the tests control."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import typer
import yaml

from benchmarks import __main__ as command
from benchmarks import generation, guidance, masks, memory, study, training, whole
from benchmarks.__main__ import MODULES, choose, measure, overview
from benchmarks.alternate import Call, Setting, alternate, compare
from benchmarks.counting import MOST, count_operations, profile_call
from benchmarks.models import Models
from companion.append_table import AppendTable
from companion.claims.evidence import read_evidence
from companion.evaluation.statistics import Interval
from companion.pages.benchmark_plots import benchmark_plot
from companion.pages.benchmark_records import (
    NAMES,
    Group,
    Operator,
    Result,
    Row,
    Target,
    every_result,
    read_result,
)
from companion.pages.benchmark_tables import (
    TWO_LAYERS,
    WHOLE_UNET,
    benchmark_table,
    masks_table,
    missed_table,
    optimisations_table,
    profile_table,
    record_training,
    targets_table,
)
from companion.pages.benchmark_targets import (
    read_optimisations,
    read_targets,
    targets_of,
    with_targets,
)
from companion.studies.store import INDEX, Store
from fusionlib.errors import FusionError
from fusionlib.profiles import load_profile

TINY = Setting(size="tiny", repeats=1)
MACHINE = {"cpu": "a processor", "cores": 2, "threads": 1, "load": 0.0, "torch": "2"}


def result(**rows: Row) -> Result:
    group = Group("One reference", "s", (Row("base", (1.0, 2.0, 3.0), 100.0), *rows.values()))
    return Result(
        "generation", "embedded", "cpu", "float32", MACHINE, None, "2026-01-01", 1.0, (group,)
    )


def test_calls_take_turns_and_each_gets_its_own_time() -> None:
    now, order = [0.0], []

    def taking(name: str, seconds: float) -> None:
        order.append(name)
        now[0] += seconds

    calls = {"slow": lambda: taking("slow", 3.0), "quick": lambda: taking("quick", 1.0)}
    found = alternate(calls, 2, clock=lambda: now[0])
    assert found == {"slow": (3.0, 3.0), "quick": (1.0, 1.0)}
    assert order == ["quick", "slow", "slow", "quick", "quick", "slow"], "one round warms up"


def test_a_call_takes_until_its_work_is_done_and_no_work_of_the_one_before() -> None:
    now, waiting = [0.0], [5.0]

    def synchronise() -> None:
        now[0] += waiting.pop() if waiting else 0.0

    calls = {name: lambda s=s: waiting.append(s) for name, s in (("slow", 3.0), ("quick", 1.0))}
    found = alternate(calls, 2, synchronise=synchronise, clock=lambda: now[0])
    assert found == {"slow": (3.0, 3.0), "quick": (1.0, 1.0)}


def test_seconds_become_the_units_of_their_group(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = {"a": (0.002, 0.004), "b": (0.008, 0.016)}
    monkeypatch.setattr("benchmarks.alternate.alternate", lambda *_, **__: timed)
    group = compare("", dict.fromkeys(timed, lambda: None), TINY, per=0.001, unit="ms")
    assert [row.values for row in group.rows] == [(2.0, 4.0), (8.0, 16.0)] and group.unit == "ms"


def test_a_studys_pace_is_that_of_its_processes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"one": [0.0, 2.0, 4.0], "two": [3.0, 4.0], "late": [9.0]}  # seconds after noon

    def run(*arguments: str) -> Call:
        store = Store(arguments[arguments.index("--store") + 1])
        with AppendTable(store.root / "index", INDEX) as rows:
            for worker, moments in made.items():
                for second in moments:
                    when = datetime(2026, 1, 1, 12, tzinfo=UTC) + timedelta(seconds=second)
                    rows.append({"key": f"{worker}{second}", "created": when, "worker": worker})
        return lambda: None

    monkeypatch.setattr(study, "process", run)
    assert study._rate({}, 3, "cpu") == pytest.approx(2 / 4 + 1 / 1 + 0)


def test_what_slows_a_round_down_slows_both_and_leaves_the_ratio_exact() -> None:
    disturbed = np.array([1.0, 1.0, 9.0, 1.0, 4.0])
    base, other = Row("base", tuple(disturbed)), Row("other", tuple(2 * disturbed))
    group = Group("", "s", (base, other))
    ratio = group.interval(other)
    assert (ratio.estimate, ratio.low, ratio.high) == (2.0, 2.0, 2.0)
    assert group.interval(other, "difference").estimate == 1.0
    assert group.interval(other, "value").high > 2.0


def test_an_interval_is_the_same_whenever_it_is_asked_for() -> None:
    times = np.random.default_rng(0).uniform(1, 2, (2, 20))
    group = Group("", "s", (Row("base", tuple(times[0])), Row("other", tuple(times[1]))))
    assert len({group.interval(group.rows[1]) for _ in range(5)}) == 1


def test_one_round_gives_no_interval_and_no_verdict() -> None:
    group = Group("", "s", (Row("base", (1.0,)), Row("b", (2.0,), target=Target("ratio", 9.0))))
    assert np.isnan(group.interval(group.rows[1]).low)
    assert group.outcome(group.rows[1]) == "undecided"


@pytest.mark.parametrize(
    ("low", "high", "at_least", "outcome"),
    [
        (1.0, 1.1, False, "met"),
        (1.3, 1.4, False, "missed"),
        (1.1, 1.3, False, "undecided"),
        (1.0, 1.1, True, "missed"),
        (1.3, 1.4, True, "met"),
        (1.1, 1.3, True, "undecided"),
        (1.1, 1.2, False, "met"),  # at most, and at least, the limit itself
        (1.2, 1.3, True, "met"),
        (1.2, 1.3, False, "undecided"),
    ],
)
def test_a_target_is_met_or_missed_by_the_whole_interval(
    low: float, high: float, at_least: bool, outcome: str
) -> None:
    target = Target("ratio", 1.2, at_least)
    assert target.judge(Interval((low + high) / 2, low, high)) == outcome


def test_operations_are_those_counted_by_hand() -> None:
    linear = torch.nn.Linear(8, 16)
    assert count_operations(lambda: linear(torch.zeros(5, 8))) == 2 * 5 * 8 * 16
    query, key = torch.zeros(1, 2, 10, 4), torch.zeros(1, 2, 7, 4)
    once = 2 * 2 * 10 * 7 * 4  # two heads; a product and a sum; then the same with the values
    with torch.no_grad():
        call = lambda: F.scaled_dot_product_attention(query, key, key)  # noqa: E731
        assert count_operations(call) == 2 * once


def test_a_record_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    longest = (Operator("aten::mm", 2.5, 0.5),)
    made = result(a=Row("fused", (1.1, 2.2, 3.3), 120.0, Target("ratio", 1.2), longest))
    path = made.write(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["generation-embedded-cpu.json"]
    assert read_result(path) == made
    every = every_result(tmp_path)
    assert every["generation"] == [made] and every["masks"] == []
    path.write_text(path.read_text()[:-20])
    with pytest.raises(FusionError, match=r"generation-embedded-cpu\.json"):
        read_result(path)


def test_a_run_that_is_cut_off_leaves_the_former_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = result()
    path = former.write(tmp_path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fusionlib.support.files.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        replace(former, seconds=9.0).write(tmp_path)
    assert read_result(path) == former
    assert every_result(tmp_path)["generation"] == [former]


def test_the_tables_say_which_targets_are_met_and_which_are_missed() -> None:
    made = result(
        a=Row("quick", (1.1, 2.2, 3.3), 120.0, Target("ratio", 1.2)),
        b=Row("slow", (2.0, 4.0, 6.0), 120.0, Target("ratio", 1.2)),
    )
    table = benchmark_table([made], "generation").data
    assert list(table["outcome"]) == ["", "met", "missed"]
    assert list(table["floor by operations"]) == ["", "1.20", "1.20"]
    alt = benchmark_plot([made], "generation").info["alt"]
    assert "quick 1.10" in alt and "slow 2.00" in alt
    other = replace(made, size="full", device="cuda", machine=MACHINE | {"gpu": "a GPU"})
    assert len(benchmark_table([made, other], "generation").data) == 6


def test_what_is_not_measured_says_how_to_measure_it() -> None:
    for shown in (benchmark_plot([], "masks"), benchmark_table([], "masks"), masks_table([])):
        assert "<code>python -m benchmarks masks</code>" in shown._repr_html_()
    table = targets_table({}).data
    assert len(table) == len(read_targets()) and not any(table["found"])
    assert "No target is missed" in missed_table({}).data and not profile_table({}).data
    dropped = table["outcome"] == "no longer measured"
    assert list(dropped) == [wanted.dropped for wanted in read_targets()]
    told = table["outcome"][~dropped].str.extract(r"^not measured: python -m benchmarks (\w+)(.*)$")
    assert set(told[0]) <= set(NAMES)
    assert dict(zip(told.index.get_level_values(0), told[1], strict=True)) == {
        "embedded, CPU": "",
        "Stable Diffusion 1.5, CUDA": " --size full --device cuda",
    }


def test_the_page_knows_every_benchmark() -> None:
    assert tuple(MODULES) == NAMES


def test_a_target_is_asked_of_the_row_it_names_and_judged_on_the_page() -> None:
    clean = generation.CLEAN
    rows = (Row("base model", (1.0, 2.0, 3.0)), Row(clean, (1.4, 2.8, 4.2)))
    titles = ("One reference", "Two references", "Four references")
    groups = [Group(f"{title}, seconds for a picture", "s", rows) for title in titles]
    asked = with_targets(groups, "generation", "embedded", "cpu")
    one, four = Target("ratio", 1.35), Target("ratio", 2.2)
    assert [r.target for group in asked for r in group.rows] == [None, one, None, None, None, four]
    assert list(with_targets(groups, "generation", "tiny", "cpu")) == groups
    made = replace(result(), groups=asked)
    table = targets_table({"generation": [made]}).data.loc["embedded, CPU"]
    assert table.loc["Picture, one reference", "found"] == "1.40 [1.40, 1.40]"
    assert table.loc["Picture, one reference", "outcome"] == "missed"
    assert table.loc["Picture, four references", "outcome"] == "met"
    results = {"generation": [made]}
    missed = missed_table(results).data
    assert list(missed.index) == [("embedded, CPU", "Picture, one reference")]
    assert missed["tried"].iloc[0] == targets_of("generation", "embedded", "cpu")[0].tried
    assert "<code>python -m benchmarks generation --profile</code>" in profile_table(results).data
    assert table.loc["Study, on two cores", "outcome"].startswith("not measured: python")


def test_the_profile_of_what_misses_its_target_stands_beside_that_of_its_baseline() -> None:
    (wanted, *_) = targets_of("generation", "embedded", "cpu")
    setting = replace(TINY, profiled=(wanted,), repeats=2)
    one, two = torch.ones(64, 64), torch.ones(256, 256)
    calls = {
        "base model": lambda: one @ one,
        generation.CLEAN: lambda: (two @ two).sigmoid(),
        "IP-Adapter": lambda: one @ one,
    }
    group = compare("One reference", calls, setting)
    assert [bool(row.longest) for row in group.rows] == [True, True, False]
    slow = (Row("base model", (1.0,) * 3), Row(generation.CLEAN, (9.0,) * 3))
    rows = [replace(r, longest=seen.longest) for r, seen in zip(slow, group.rows, strict=False)]
    missed = replace(result(), groups=(replace(group, rows=tuple(rows)),))
    table = profile_table({"generation": [missed]}).data.droplevel(0)
    assert table.loc["aten::sigmoid", "compared with"] == ""
    assert "%" in table.loc["aten::mm", "this"] and "%" in table.loc["aten::mm", "compared with"]


def test_the_longest_operators_come_first_and_their_shares_are_of_all() -> None:
    one = torch.ones(256, 256)
    longest, kernels = profile_call(lambda: [one @ one for _ in range(20)], "cpu")
    assert longest[0].name == "aten::mm" and len(longest) <= MOST
    assert [each.ms for each in longest] == sorted((each.ms for each in longest), reverse=True)
    assert sum(each.share for each in longest) == pytest.approx(1, abs=0.01)
    assert kernels is None and profile_call(lambda: None, "cpu") == ((), None)


def test_a_target_may_be_about_another_row_than_the_first() -> None:
    rows = (
        Row("IP-Adapter", (1.0,) * 3, 10.0),
        Row(training.IP_CACHED, (0.5,) * 3, 4.0),
        Row(training.CACHED, (0.6,) * 3, 6.0),
    )
    groups = [Group("A training step of one picture, seconds", "s", rows)]
    (group,) = with_targets(groups, "training", "full", "cuda")
    assert group.outcome(group.rows[2]) == "missed", "though it takes less than the first"
    made = replace(result(), name="training", size="full", device="cuda", groups=(group,))
    table = targets_table({"training": [made]}).data.loc["Stable Diffusion 1.5, CUDA"]
    step = table.loc["Training step, cached"]
    assert (step["found"], step["floor, counted"]) == ("1.20 [1.20, 1.20]", "1.50")
    assert step["target"] == f"≤ 1 times {training.IP_CACHED}"
    (alone,) = with_targets([replace(group, rows=rows[::2])], "training", "full", "cuda")
    assert alone.rows == rows[::2], "without what it is compared with there is nothing to judge"


@pytest.mark.parametrize(("size", "device"), [("full", "cuda"), ("embedded", "cpu")])
def test_behind_a_ratio_stand_the_kernels_and_the_time_in_them(size: str, device: str) -> None:
    """Of which the longest operators are a part: their share says how large a one."""
    rows = (
        Row("base model", (1.0,), 10.0, longest=(Operator("a", 2.0, 0.4),), kernels=100.0),
        Row(generation.CLEAN, (1.5,), 11.0, longest=(Operator("a", 3.0, 0.5),), kernels=90.0),
    )
    made = replace(result(), size=size, device=device, groups=(Group("One", "", rows),))
    where = {"cuda": "Stable Diffusion 1.5, CUDA", "cpu": "embedded, CPU"}[device]
    table = targets_table({"generation": [made]}).data.loc[where]
    found = table.loc["Picture, one reference", ["kernels, counted", "time in kernels"]]
    assert list(found) == (["0.90", "1.20"] if device == "cuda" else ["", ""])


def test_processes_are_powers_of_two_up_to_the_cores() -> None:
    found = [study.powers_of_two(cores) for cores in (1, 2, 3, 8)]
    assert found == [[1], [1, 2], [1, 2], [1, 2, 4, 8]]


def test_targets_name_what_is_measured() -> None:
    """A name that no benchmark uses would stay "not measured" for ever."""
    sides = {"embedded": masks.first_layer("embedded")[0], "full": masks.first_layer("full")[0]}
    layers = {masks.layer_title(3, side) for side in (*sides.values(), sides["full"] // 2)}
    layers |= {f"The GPU alone: {layer}" for layer in layers}
    measured = {
        "generation": set(generation.build(Models(TINY))),
        "training": set(training.systems(TINY)),
        "memory": {memory.LOADED, *training.systems(TINY)},
        "masks": {*masks.WAYS, *(f"masks, {way}" for way in masks.WAYS), "masks, by layer"},
    }
    for wanted in read_targets():
        if wanted.dropped:
            continue
        assert wanted.row in measured.get(wanted.benchmark, {wanted.row}), wanted
        assert MODULES[wanted.benchmark].measures(wanted.size, wanted.device), wanted
        if "layer" in wanted.group:
            assert wanted.group in layers, wanted
    for one in read_optimisations():
        if not one.measured:
            known = measured.get(one.benchmark, {one.row, one.without})
            assert {one.row, one.without} <= known, one


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": "huge"}, r"Target 1 \(Picture\) in .*own.yaml does not fit: size"),
        ({"at_least": 1.0}, "either `at_most` or `at_least`"),
        ({"bound": 1.0}, "bound: there is no such entry"),
    ],
)
def test_a_target_that_does_not_fit_is_named_with_its_file(
    change: dict[str, object], words: str, tmp_path: Path
) -> None:
    entry = {
        **{"what": "Picture", "benchmark": "generation", "size": "full", "device": "cpu"},
        **{"group": "One", "row": "fused", "of": "ratio", "at_most": 1.5, "tried": "nothing"},
    }
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump([entry]))
    assert read_targets(file)[0].target == Target("ratio", 1.5)
    read_targets.cache_clear()
    file.write_text(yaml.safe_dump([entry | change]))
    with pytest.raises(FusionError, match=words):
        read_targets(file)
    file.write_text(yaml.safe_dump([entry, entry]))
    with pytest.raises(FusionError, match=r"Target 2 in .* is there twice: Picture"):
        read_targets(file)
    file.write_text("what: Picture")
    with pytest.raises(FusionError, match="has to be a list of targets"):
        read_targets(file)
    with pytest.raises(FusionError, match=r"missing\.yaml cannot be read"):
        read_targets(tmp_path / "missing.yaml")


def test_an_optimisation_needs_rows_or_numbers(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    for more in ({}, {"row": "fused", "measured": "0.5"}):
        file.write_text(yaml.safe_dump([{"what": "A", "decision": "kept", **more}]))
        with pytest.raises(FusionError, match="or else `measured`"):
            read_optimisations(file)


def test_a_gpu_is_asked_for_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one: what would be recorded is called."""
    monkeypatch.setattr(masks, "recorded", lambda call: call)
    alone = masks.gpu_alone(TINY, 4, (2, 8))
    assert alone.title == f"The GPU alone: {masks.layer_title(3, 4)}" and alone.unit == "ms"
    assert [row.name for row in alone.rows] == list(masks.WAYS)


def test_the_table_of_masks_shows_how_many_times_longer_a_dense_one_takes() -> None:
    dense = Row("dense", (6.0,) * 3)
    groups = [
        Group(masks.layer_title(n, 8), "ms", (dense, Row("grouped", (6.0 / n,) * 3)))
        for n in (1, 2, 3)
    ]
    pictures = Group("Three references", "s", (Row("without masks", (1.0,)),))
    made = replace(result(), name="masks", groups=(*groups, pictures))
    table = masks_table([made]).data
    assert list(table) == ["1 person", "2 people", "3 people"]
    assert list(table.loc["8 × 8, CPU"]) == [f"{n}.00 [{n}.00, {n}.00]" for n in (1, 2, 3)]
    uneven = (Row("dense", (6.0, 6.6, 5.4)), Row("grouped", (3.0, 3.0, 3.0)))
    varied = replace(made, groups=(Group(masks.layer_title(2, 8), "ms", uneven),))
    varied_table = masks_table([varied]).data
    assert varied_table.loc["8 × 8, CPU", "2 people"] == "2.00 [1.80, 2.20]"
    assert "Three references" in benchmark_plot([made], "masks", "Three references").info["alt"]


def test_a_step_of_two_layers_against_one_of_the_whole_unet_decides_that_it_is_cheap(
    tmp_path: Path,
) -> None:
    rows = (
        Row("IP-Adapter", (0.1,) * 5),
        Row(training.ENCODED, (0.5, 0.6, 0.5, 0.6, 0.5)),
        Row(training.WHOLE_UNET, (1.0, 1.2, 1.0, 1.2, 1.0)),
    )
    assert (training.ENCODED, training.WHOLE_UNET) == (TWO_LAYERS, WHOLE_UNET)
    steps = (Group("A training step of one picture, seconds", "s", rows),)
    small = replace(result(), name="training", groups=steps)
    (found,) = record_training(tmp_path, "cheap-training", [small], "paper")
    assert found.verdict == "supported" and found.found.interval.estimate == pytest.approx(0.5)
    swapped = (replace(rows[2], name=TWO_LAYERS), replace(rows[1], name=WHOLE_UNET))
    slower = (replace(steps[0], rows=swapped),)
    large = replace(small, size="full", device="cuda", groups=slower)
    (found,) = record_training(tmp_path, "cheap-training", [large, small], "paper")
    assert found.verdict == "not supported", "the largest size counts, wherever it stands"
    assert found.found.interval.estimate == pytest.approx(-1)
    once = (replace(steps[0], rows=tuple(replace(r, values=r.values[:1]) for r in rows)),)
    (unsure,) = record_training(tmp_path, "cheap-training", [replace(small, groups=once)], "paper")
    assert unsure.verdict == "undecided"
    without = (replace(steps[0], rows=rows[:2]),)
    assert record_training(tmp_path, "cheap-training", [replace(small, groups=without)], "e") == []
    (found,) = record_training(tmp_path, "cheap-training", [small], "paper")
    assert read_evidence(tmp_path, "paper")["cheap-training"].verdict == "supported"


def test_what_an_optimisation_gains_is_the_ratio_of_its_rows() -> None:
    with_it = Row("fused, clean cache", (1.0, 2.0, 3.0), 110.0)
    made = result(a=with_it, b=Row("fused, shared timestep", (2.0, 4.0, 6.0), 220.0))
    table = optimisations_table({"generation": [made]}).data
    first = table.iloc[0]
    assert first["measured"] == "0.500 [0.500, 0.500] (embedded, CPU)"
    assert first["expected"] == "0.500 by operations"
    assert first["decision"] == read_optimisations()[0].decision
    small = "The same in a layer of 8 x 8 positions"
    assert table.loc[small, "measured"] == "not yet: python -m benchmarks masks"
    by_then = next(one for one in read_optimisations() if one.measured)
    assert table.loc[by_then.what, "measured"] == by_then.measured, "which nothing measures again"
    assert "make bench" in optimisations_table({"generation": []}).data


def test_the_list_says_how_long_a_benchmark_took(tmp_path: Path) -> None:
    replace(result(), seconds=90.0).write(tmp_path)
    lines = overview(tmp_path).splitlines()
    assert len(lines) == len(NAMES)
    assert "(1.5 min embedded, cpu)" in lines[NAMES.index("generation")]
    assert "(not measured yet)" in lines[NAMES.index("masks")]


def test_one_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = []

    def failing(name: str, *_: object) -> Path:
        done.append(name)
        if name == "masks":
            raise RuntimeError("memory is full")
        return tmp_path

    monkeypatch.setattr(command, "measure", failing)
    (tmp_path / "manifest.json").touch()
    with pytest.raises(typer.Exit):
        command.main("all", size="tiny", out=tmp_path, reproduced=tmp_path)
    assert sorted(done) == sorted(set(NAMES) - {"memory"})
    said = capsys.readouterr().err
    assert "memory is full" in said and said.strip().endswith("above: masks.")


def test_what_decides_a_target_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = choose("all", "embedded", "cpu")
    assert first == ["startup", "generation", "masks", "study", "training", "whole"]
    assert choose("all", "full", "cuda") == ["generation", "masks", "training", "memory"]
    done: list[str] = []
    monkeypatch.setattr(command, "measure", lambda name, *_: done.append(name))
    command.main("all", out=tmp_path, minutes=0.0)
    assert done == [], "no minutes"
    command.main("all", out=tmp_path, reproduced=tmp_path)
    assert done == first[:-1], "nothing was reproduced"


def test_a_gpu_is_not_kept_waiting_by_what_it_makes_no_difference_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []
    monkeypatch.setattr(command, "_check", lambda *_: None)
    monkeypatch.setattr(command, "measure", lambda name, *_: done.append(name))
    command.main("all", size="full", device="cuda", out=tmp_path)
    assert done == ["generation", "masks", "training", "memory"]
    with pytest.raises(typer.Exit):
        command.main("whole", size="full", out=tmp_path)
    assert "whole measures nothing" in capsys.readouterr().err


@pytest.fixture
def gpu_memory(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A GPU that holds 100 MB, 160 MB at its peak; an entry for each reset of the peak."""
    resets: list[float] = []
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 100e6)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 160e6)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: resets.append(0.0))
    return resets


def test_a_peak_is_beyond_what_was_held_before(gpu_memory: list[float]) -> None:
    called: list[int] = []
    assert memory.peak("", lambda: lambda: called.append(len(gpu_memory))) == 60.0
    assert called == [1, 1], "what it took to build is forgotten"


def test_every_system_can_have_its_memory_measured(gpu_memory: list[float]) -> None:
    (steps,) = memory.run(TINY)
    assert [row.name for row in steps.rows] == [memory.LOADED, *training.systems(TINY)]
    assert steps.shows == "difference" and len(gpu_memory) == len(steps.rows)


def test_minutes_come_from_what_reproduce_recorded(tmp_path: Path) -> None:
    record = tmp_path / "manifest.json"
    stages = [{"name": "quick", "seconds": 30.0}, {"name": "long", "seconds": 90.0}]
    facts = {"profile": "embedded", "commit": "0123456789", "created": "2026-01-01T00:00:00"}
    record.write_text(json.dumps({**facts, "stages": stages, "failed": {"broken": "why"}}))
    group = whole.stages(record)
    assert [(row.name, row.values) for row in group.rows] == [("long", (1.5,)), ("quick", (0.5,))]
    for word in ("2.0 minutes", "profile embedded", "2026-01-01", "Failed: broken"):
        assert word in group.note
    for damage in ("{", "{}", json.dumps({**facts, "stages": []})):
        record.write_text(damage)
        with pytest.raises(FusionError, match=r"manifest\.json .*make reproduce"):
            whole.stages(record)


SLOW = {"generation", "study"}
"""The first makes many pictures, the other starts processes that import everything."""

ON_CPU = [name for name in NAMES if name not in ("memory", "whole")]  # these have tests above


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in ON_CPU]
)
def test_every_benchmark_runs(name: str, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        path = measure(name, TINY, tmp_path)
    finally:
        torch.set_num_threads(threads)
    found = read_result(path)
    assert found.groups and all(row.values for group in found.groups for row in group.rows)


def test_the_guidance_table_counts_a_picture_only_where_face_and_prompt_are_right(
    tmp_path: Path,
) -> None:
    profile = load_profile("embedded").model_copy(update={"num_inference_steps": 2})
    found = guidance.table(profile, tmp_path, scales=(1.5, 3.0), noises=1).astype(float)
    assert list(found.index) == ["1.5", "3"] and found.stack().between(0, 1).all()
    assert (
        found["face found and all as prompted"]
        <= found.drop(columns="face found and all as prompted").min(axis=1)
    ).all()
