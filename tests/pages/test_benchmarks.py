"""Benchmarks: what is measured is what happened, by a clock that the tests hold in their hands."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from benchmarks import __main__ as command
from benchmarks import (
    evaluation,
    floor,
    generation,
    guidance,
    masks,
    memory,
    sequences,
    study,
    training,
    whole,
)
from benchmarks.__main__ import MODULES, choose, measure, overview
from benchmarks.alternate import Setting, alternate, compare, describe_machine
from benchmarks.longest import MOST, longest_operators
from benchmarks.models import Models
from benchmarks.operations import count_kernels, count_operations
from companion.append_table import AppendTable
from companion.claims.claims import read_evidence
from companion.evaluation.statistics import Interval
from companion.pages.benchmark_records import (
    NAMES,
    Group,
    Operator,
    Result,
    Row,
    Target,
    benchmark_plot,
    benchmark_table,
    every_result,
    kernels_title,
    layer_title,
    masks_plot,
    masks_table,
    read_result,
)
from companion.pages.benchmark_tables import (
    OPTIMISATIONS,
    TARGETS,
    missed_table,
    optimisations_table,
    profile_table,
    record_training,
    targets_of,
    targets_table,
    with_targets,
)
from companion.studies.store import INDEX, Store
from fusionlib.attention import prepared_attention
from fusionlib.errors import FusionError
from fusionlib.kernels import group_queries
from fusionlib.profiles import ROOT, load_profile

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

    def called(title: str, calls: dict[str, object], setting: Setting, **_: object) -> Group:
        return Group(title, "s", tuple(Row(name, (8.0, 16.0)) for name in calls))

    for module in (study, evaluation):
        monkeypatch.setattr(module, "compare", called)
    batches = {row.name: row.values for row in study._batches(TINY).rows}
    assert batches == {"batches of 1": (8.0, 16.0), "batches of 2": (4.0, 8.0)}
    judged = evaluation._evaluation(TINY, [2, 4])
    assert [row.values for row in judged.rows] == [(4000.0, 8000.0), (2000.0, 4000.0)]
    assert judged.unit == "ms"


def test_a_studys_pace_is_that_of_its_processes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"one": [0.0, 2.0, 4.0], "two": [3.0, 4.0], "late": [9.0]}  # seconds after noon

    def run(arguments: list[str]) -> None:
        store = Store(arguments[arguments.index("--store") + 1])
        with AppendTable(store.root / "index", INDEX) as rows:
            for worker, moments in made.items():
                for second in moments:
                    when = datetime(2026, 1, 1, 12, tzinfo=UTC) + timedelta(seconds=second)
                    rows.append({"key": f"{worker}{second}", "created": when, "worker": worker})

    monkeypatch.setattr(study, "run_python", run)
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


def test_kernels_are_those_counted_by_hand() -> None:
    linear, there = torch.nn.Linear(8, 16, device="meta"), torch.zeros(5, 8, device="meta")
    query = torch.zeros(1, 2, 10, 4, device="meta")
    calls = {
        lambda: linear(there): 1,
        lambda: linear(there).view(16, 5).t() + 1: 2,
        lambda: F.scaled_dot_product_attention(query, query, query): 1,
        lambda: torch.cat([there, there])[3:].expand(2, -1, -1): 1,
        lambda: torch.empty(3, device="meta"): 0,
        lambda: torch.zeros(3) + 1: 0,  # on another device
    }
    for call, kernels in calls.items():
        with torch.no_grad():
            assert count_kernels(call) == kernels
    with torch.no_grad():
        assert count_kernels(lambda: torch.zeros(3) + 1, "cpu") == 2
    query.requires_grad_()
    once = lambda: F.scaled_dot_product_attention(query, query, query)  # noqa: E731
    there_and_back = lambda: once().backward(torch.zeros_like(query))  # noqa: E731
    # Three gradients make two sums; and the one that it starts from.
    assert count_kernels(once) == 1 and count_kernels(there_and_back) == 1 + 1 + 2 + 1


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

    monkeypatch.setattr("companion.pages.benchmark_records.os.replace", killed)
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


def test_what_nobody_measured_says_how_to_measure_it() -> None:
    for shown in (benchmark_plot([], "masks"), benchmark_table([], "masks"), masks_plot([])):
        assert "python -m benchmarks masks" in shown.data
    table = targets_table({}).data
    assert len(table) == len(TARGETS) and not any(table["found"])
    assert missed_table({}).data.startswith("No target is missed") and not profile_table({}).data
    told = table["outcome"].str.extract(r"^not measured: python -m benchmarks (\w+)(.*)$")
    assert set(told[0]) <= set(NAMES)
    assert dict(zip(table.index.get_level_values(0), told[1], strict=True)) == {
        "embedded, CPU": "",
        "Stable Diffusion 1.5, CUDA": " --size full --device cuda",
    }


def test_the_page_knows_every_benchmark() -> None:
    assert tuple(MODULES) == NAMES


def test_a_target_is_asked_of_the_row_it_names_and_judged_on_the_page() -> None:
    clean = generation.CLEAN
    groups = [
        Group(
            f"{number} reference{'s' * (number != 'One')}, seconds for a picture",
            "s",
            (Row("base model", (1.0, 2.0, 3.0)), Row(clean, (1.4, 2.8, 4.2))),
        )
        for number in ("One", "Two", "Four")
    ]
    asked = with_targets(groups, "generation", "embedded", "cpu")
    assert [row.target for group in asked for row in group.rows] == [
        *(None, Target("ratio", 1.35)),
        *(None, None),
        *(None, Target("ratio", 2.2)),
    ]
    assert list(with_targets(groups, "generation", "tiny", "cpu")) == groups
    made = Result(
        "generation", "embedded", "cpu", "float32", MACHINE, None, "2026-01-01", 1.0, asked
    )
    table = targets_table({"generation": [made]}).data.loc["embedded, CPU"]
    assert table.loc["Picture, one reference", "found"] == "1.40 [1.40, 1.40]"
    assert table.loc["Picture, one reference", "outcome"] == "missed"
    assert table.loc["Picture, four references", "outcome"] == "met"
    results = {"generation": [made]}
    missed = missed_table(results).data
    assert list(missed.index) == [("embedded, CPU", "Picture, one reference")]
    assert missed["tried"].iloc[0] == targets_of("generation", "embedded", "cpu")[0].tried
    assert "`python -m benchmarks generation --profile`" in profile_table(results).data
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
    longest = longest_operators(lambda: [one @ one for _ in range(20)], "cpu")
    assert longest[0].name == "aten::mm" and len(longest) <= MOST
    assert [each.ms for each in longest] == sorted((each.ms for each in longest), reverse=True)
    assert sum(each.share for each in longest) == pytest.approx(1, abs=0.01)
    assert longest_operators(lambda: None, "cpu") == ()


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
    assert (
        with_targets([replace(group, rows=rows[::2])], "training", "full", "cuda")[0].rows
        == (rows[::2])
    ), "without what it is compared with there is nothing to judge"


def test_the_floor_counts_what_the_pipelines_do() -> None:
    groups = {
        group.title.split()[0]: group for group in floor.pictures(replace(TINY, device=floor.META))
    }
    systems = generation.build(Models(TINY))
    for number, title in ((1, "One"), (2, "Two")):
        for row in groups[title].rows:
            # In the shared mode the pipeline reads the empty prompt once more than is counted.
            close = pytest.approx(row.operations, rel=0.001)
            assert count_operations(systems[row.name](number)) == close, row.name
        kernels = {}
        with torch.no_grad():
            for name in ("base model", generation.CLEAN, generation.ANEW, "IP-Adapter"):
                kernels[name] = count_kernels(systems[name](number), "cpu")
        counted = {row.name: row.kernels for row in groups[title].rows}
        # Not counted is what all pipelines do between two steps, and to compare weights' samples.
        assert kernels["base model"] > counted["base model"]
        anew, clean = generation.ANEW, generation.CLEAN
        assert counted[anew] - counted[clean] == kernels[anew] - kernels[clean] > 0
        more = kernels["IP-Adapter"] - kernels["base model"]
        assert counted["IP-Adapter"] - counted["base model"] == pytest.approx(more, abs=4)


def test_what_was_counted_without_a_gpu_is_shown_beside_what_was_timed_on_one(
    tmp_path: Path,
) -> None:
    timed = (Row("base model", (1.0,)), Row(generation.CLEAN, (1.1,)), Row("another", (2.0,)))
    counted = tuple(
        replace(row, operations=10.0 + i, kernels=20.0 + i) for i, row in enumerate(timed[:2])
    )
    group = Group("One reference, seconds for a picture", "s", timed)
    gpu = replace(result(), name="generation", size="full", device="cuda", groups=(group,))
    gpu.write(tmp_path)
    replace(gpu, device="cpu", size="embedded").write(tmp_path)
    floor = replace(group, title="One reference, operations for a picture", rows=counted)
    replace(gpu, name="floor", device="cpu", groups=(floor,)).write(tmp_path)
    small, large = every_result(tmp_path)["generation"]
    assert [row.operations for row in large.groups[0].rows] == [10.0, 11.0, None]
    assert [row.operations for row in small.groups[0].rows] == [None] * 3, "of another size"
    assert [row.kernels for row in large.groups[0].rows] == [20.0, 21.0, None]
    own = replace(group, rows=tuple(replace(row, operations=7.0) for row in timed))
    replace(gpu, device="cpu", groups=(own,)).write(tmp_path)
    _, cpu, _ = every_result(tmp_path)["generation"]
    assert (cpu.size, cpu.device) == ("full", "cpu")
    assert [row.operations for row in cpu.groups[0].rows] == [7.0] * 3, "counted where it was timed"
    assert [row.kernels for row in cpu.groups[0].rows] == [None] * 3, "of which the CPU starts none"


def test_a_target_at_full_size_has_its_floor_before_it_is_measured() -> None:
    rows = (Row("base model", (1.0,), 10.0), Row(generation.CLEAN, (1.1,), 11.0))
    counted = replace(result(), name="floor", size="full", groups=(Group("One", "", rows),))
    table = targets_table({"floor": [counted]}).data.loc["Stable Diffusion 1.5, CUDA"]
    assert table.loc["Picture, one reference", "floor, counted"] == "1.10"
    assert table.loc["Picture, one reference", "outcome"].startswith("not measured: python -m")


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
    assert [study.powers_of_two(cores) for cores in (1, 2, 3, 8)] == [
        *([1], [1, 2], [1, 2]),
        [1, 2, 4, 8],
    ]
    rows = (Row("1 process", (0.5, 1.0, 1.5)), Row("2 processes", (2.0,)))
    assert study.in_a_minute(rows) == "Pictures a minute: 60 by 1 process, 120 by 2 processes."


def test_targets_name_what_is_measured() -> None:
    """A name that no benchmark uses would stay "not measured" for ever."""
    sides = {"embedded": masks.first_layer("embedded")[0], "full": masks.first_layer("full")[0]}
    layers = {layer_title(3, side) for side in (*sides.values(), sides["full"] // 2)}
    layers |= {kernels_title(3, side) for side in (sides["full"], sides["full"] // 2)}
    measured = {
        "generation": set(generation.build(Models(TINY))),
        "training": set(training.systems(TINY)),
        "memory": {*memory.PAINTED, *memory.TRAINED},
        "masks": {"grouped", "flex", "masks, grouped", "masks, flex", "masks, by layer"},
    }
    for wanted in TARGETS:
        assert wanted.row in measured.get(wanted.benchmark, {wanted.row}), wanted
        assert MODULES[wanted.benchmark].measures(wanted.size, wanted.device), wanted
        if "layer" in wanted.group:
            assert wanted.group in layers, wanted
    measured["training"].add(training.PLAIN)
    measured["masks"] |= {"dense", "one more channel", "added matrix"}
    measured["masks"] |= {masks.SEQUENCES, f"masks, {masks.SEQUENCES}"}
    measured["masks"].add(f"masks, by layer, {generation.EACH_STEP}")
    for one in OPTIMISATIONS:
        assert {one.row, one.without} <= measured.get(one.benchmark, {one.row, one.without}), one


def one_by_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    most_queries: int,
    most_keys: int,
    scale: float | None,
) -> Tensor:
    """What FlashAttention does with sequences of different lengths, by its definition."""
    found = torch.full_like(query, torch.nan)
    assert len(query_starts) == len(key_starts)
    for i in range(len(query_starts) - 1):
        asked = slice(int(query_starts[i]), int(query_starts[i + 1]))
        seen = slice(int(key_starts[i]), int(key_starts[i + 1]))
        assert len(query[asked]) <= most_queries and len(key[seen]) <= most_keys
        logits = torch.einsum("qhd,khd->hqk", query[asked], key[seen])
        logits = logits * (scale or query.shape[-1] ** -0.5)
        found[asked] = torch.einsum("hqk,khd->qhd", logits.softmax(-1), value[seen])
    return found


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("attention", ["concatenated", "decoupled"])
def test_sequences_are_the_groups_of_every_sample(
    scale: float | None, attention: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequences, "of_sequences", one_by_one)
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    located = torch.zeros(3, 6, 7, dtype=torch.bool)
    located[0, :, :3] = located[1, 1:, 2:5] = located[2, :4, 5:] = True  # two of them overlap
    groups = group_queries(located, [0, 1, 2, 1], (6, 7))
    query, text = draw(2, 3, 42, 8), draw(2, 3, 5, 8)
    faces = [draw(2, 3, tokens, 8) for tokens in (3, 4, 9, 2)]
    given = (query, text, -text, faces, [-face for face in faces])
    more: dict[str, Any] = {"attention": attention, "mask": groups, "scale": scale}
    if attention == "decoupled":  # where somebody is seen by every query
        more["mask"] = group_queries(located[[0, 2]], [0, 1, 1, 1], (6, 7))
    wanted = prepared_attention(*given, **more, backend="dense")(query)
    backend, patched = masks.told(masks.SEQUENCES)
    with patched:
        found = prepared_attention(*given, **more, backend=backend)(query)
        if attention == "concatenated":  # elsewhere a strength scales what is attended to
            with pytest.raises(ValueError, match="leave strengths at 1"):
                prepared_attention(*given, **more, backend=backend, strengths=[1, 1, 0.5, 1])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("gigabytes", "processes"), [(12, 1), (24, 1), (80, 4), (150, 8)])
def test_no_more_systems_share_a_gpu_than_fit_it(
    gigabytes: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = SimpleNamespace(total_memory=gigabytes * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    assert memory.together(replace(TINY, device="cuda")) == processes
    assert memory.together(TINY) == 1


def test_a_gpu_is_asked_for_its_own_time_and_for_four_pictures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without one: what is recorded is called, and sequences attend by their definition."""
    monkeypatch.setattr(masks, "recorded", lambda call: call)
    monkeypatch.setattr(sequences, "of_sequences", one_by_one)
    alone = masks.kernels(TINY, 4, (2, 8))
    assert alone.title == kernels_title(3, 4) and alone.unit == "ms"
    assert [row.name for row in alone.rows] == ["dense", "grouped", masks.SEQUENCES]
    four = masks.four_at_once(Models(TINY))
    ways = ["dense", "grouped", masks.SEQUENCES, "by layer"]
    assert [row.name for row in four.rows] == ["without masks", *(f"masks, {way}" for way in ways)]


@pytest.mark.gpu
def test_the_kernel_of_sequences_is_its_definition() -> None:
    draw = partial(torch.randn, device="cuda", dtype=torch.float16)
    query, key, value = draw(30, 2, 40), draw(50, 2, 40), draw(50, 2, 40)
    starts = [torch.tensor(s, dtype=torch.int32).cuda() for s in ([0, 10, 30], [0, 45, 50])]
    found = sequences.of_sequences(query, key, value, *starts, 20, 45, None)
    wanted = one_by_one(query.double(), key.double(), value.double(), *starts, 20, 45, None)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-2, atol=1e-2)


def test_the_picture_of_masks_shows_how_many_times_longer_a_dense_one_takes() -> None:
    groups = [
        Group(layer_title(n, 8), "ms", (Row("dense", (6.0,) * 3), Row("grouped", (6.0 / n,) * 3)))
        for n in (1, 2, 3)
    ]
    pictures = Group("Three references", "s", (Row("without masks", (1.0,)),))
    made = replace(result(), name="masks", groups=(*groups, pictures))
    alt = masks_plot([made]).info["alt"]
    assert "8 × 8, CPU: 1.00 for 1, 2.00 for 2, 3.00 for 3." in alt
    table = masks_table([made]).data
    assert list(table) == ["1 person", "2 people", "3 people"]
    assert list(table.loc["8 × 8, CPU"]) == [f"{n}.00 [{n}.00, {n}.00]" for n in (1, 2, 3)]
    uneven = (Row("dense", (6.0, 6.6, 5.4)), Row("grouped", (3.0, 3.0, 3.0)))
    varied = replace(made, groups=(Group(layer_title(2, 8), "ms", uneven),))
    varied_table = masks_table([varied]).data
    assert varied_table.loc["8 × 8, CPU", "2 people"] == "2.00 [1.80, 2.20]"
    assert "<code>python -m benchmarks masks</code>" in masks_table([])._repr_html_()
    assert "Three references" in benchmark_plot([made], "masks", "Three references").info["alt"]


def test_the_page_on_the_method_shows_a_table_that_the_page_on_costs_makes() -> None:
    assert "{glue} masks_table" in (ROOT / "book/method.md").read_text()
    notebook = nbformat.read(ROOT / "notebooks/benchmarks.ipynb", 4)
    assert any('glue("masks_table"' in cell.source for cell in notebook.cells)


def test_a_training_step_on_cuda_decides_the_claim_that_it_is_cheap(tmp_path: Path) -> None:
    rows = (
        Row("IP-Adapter", (1.0, 1.1, 1.0, 1.1, 1.0)),
        Row(training.ENCODED, (0.5, 0.6, 0.5, 0.6, 0.5)),
        Row(training.CACHED, (0.1,) * 5),
    )
    steps = (Group("A training step of one picture, seconds", "s", rows),)
    on_cpu = replace(result(), name="training", groups=steps)
    on_gpu = replace(on_cpu, size="full", device="cuda")
    assert record_training(tmp_path, "cheap-training", [on_cpu], "paper") == []
    (found,) = record_training(tmp_path, "cheap-training", [on_cpu, on_gpu], "paper")
    once = (replace(steps[0], rows=tuple(replace(r, values=r.values[:1]) for r in rows)),)
    (unsure,) = record_training(tmp_path, "cheap-training", [replace(on_gpu, groups=once)], "paper")
    assert unsure.verdict == "undecided"
    (found,) = record_training(tmp_path, "cheap-training", [on_cpu, on_gpu], "paper")
    assert found.verdict == "supported" and found.found.interval.estimate == pytest.approx(0.5)
    uneven = (replace(rows[0], values=(2.0, 2.5, 2.0, 2.4, 3.0)), *rows[1:])
    varied = replace(on_gpu, groups=(replace(steps[0], rows=uneven),))
    (wide,) = record_training(tmp_path, "cheap-training", [varied], "paper")
    interval = wide.found.interval
    assert 1.4 <= interval.low < interval.estimate < interval.high <= 2.5
    assert interval.estimate == pytest.approx(2.4 - 0.5)
    assert read_evidence(tmp_path, "paper")["cheap-training"].verdict == "supported"


def test_what_an_optimisation_gains_is_the_ratio_of_its_rows() -> None:
    with_it = Row("fused, clean cache", (1.0, 2.0, 3.0), 110.0)
    made = result(a=with_it, b=Row("fused, shared timestep", (2.0, 4.0, 6.0), 220.0))
    table = optimisations_table({"generation": [made]}).data
    first = table.iloc[0]
    assert first["measured"] == "0.500 [0.500, 0.500] (embedded, CPU)"
    assert first["expected"] == "0.500 by operations"
    assert first["decision"] == OPTIMISATIONS[0].decision
    small = "The same in a layer of 8 x 8 positions"
    assert table.loc[small, "measured"] == "not yet: python -m benchmarks masks"
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
    with pytest.raises(typer.Exit):
        command.main("all", size="tiny", out=tmp_path)
    assert sorted(done) == sorted(NAMES)
    said = capsys.readouterr().err
    assert "memory is full" in said and said.strip().endswith("above: masks.")


def test_what_decides_a_target_comes_first_and_a_rerun_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = choose("all", "embedded", "cpu")
    assert first[:4] == ["startup", "generation", "masks", "study"] and "floor" not in first
    assert choose("all", "full", "cuda")[-1] == "study"
    done: list[str] = []
    here = describe_machine("cpu")
    commit = "0123-dirty"

    def made(name: str, *_: object) -> None:
        done.append(name)
        replace(result(), name=name, machine=here, commit="0123").write(tmp_path)

    monkeypatch.setattr("fusionlib.support.provenance.git_commit", lambda: commit)
    monkeypatch.setattr(command, "measure", made)
    command.main("all", out=tmp_path, minutes=0.0)
    assert done == [], "no minutes"
    command.main("startup", out=tmp_path)
    command.main("all", out=tmp_path)
    assert sorted(done) == sorted(first) and len(done) == len(first)
    command.main("startup", out=tmp_path)
    command.main("all", out=tmp_path, profile=True)
    commit = "4567"
    command.main("all", out=tmp_path)
    assert len(done) == 3 * len(first) + 1
    commit = "0123"
    command.main("all", out=tmp_path)
    assert len(done) == 3 * len(first) + 1, "all of this commit"
    elsewhere = here | {"cpu": "another processor"}
    monkeypatch.setattr("benchmarks.alternate.describe_machine", lambda _: elsewhere)
    command.main("all", out=tmp_path)
    assert len(done) == 4 * len(first) + 1, "and none of this machine"


def test_a_gpu_is_not_kept_waiting_by_what_it_makes_no_difference_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []
    monkeypatch.setattr(command, "_check", lambda *_: None)
    monkeypatch.setattr(command, "measure", lambda name, *_: done.append(name))
    command.main("all", size="full", device="cuda", out=tmp_path)
    assert done == ["generation", "masks", "training", "memory", "study"]
    with pytest.raises(typer.Exit):
        command.main("whole", size="full", out=tmp_path)
    assert "whole measures nothing" in capsys.readouterr().err


def test_the_highest_memory_is_found_though_it_was_given_back() -> None:
    memory.forget_peak(TINY)
    before = memory.held(TINY)
    block = np.ones(8_000_000)  # 64 MB
    del block
    grown = memory.highest(TINY) - before
    assert 60 < grown < 100
    memory.forget_peak(TINY)
    assert memory.highest(TINY) < before + 30


def test_a_peak_is_beyond_what_was_held_before(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([100.0, 160.0])
    monkeypatch.setattr(memory, "build", lambda *_: lambda: None)
    monkeypatch.setattr(memory, "held", lambda _: next(told))
    monkeypatch.setattr(memory, "highest", lambda _: next(told))
    assert memory.peak(TINY, "picture", memory.LOADED) == 60.0


def test_every_system_can_have_its_memory_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def here(setting: Setting, what: str, name: str) -> float:
        asked.append((what, name))
        memory.build(setting, what, name)()
        return float(len(asked))

    monkeypatch.setattr(memory, "in_a_process", here)
    pictures, steps = memory.run(TINY)
    assert [row.name for row in pictures.rows] == [memory.LOADED, *memory.PAINTED]
    assert [row.name for row in steps.rows] == [memory.LOADED, *memory.TRAINED]
    assert pictures.rows[0] == steps.rows[0] and pictures.shows == "difference"
    assert len(asked) == 1 + len(memory.PAINTED) + len(memory.TRAINED)


def test_a_system_that_is_measured_alone_holds_one_base_model() -> None:
    for alone in (True, False):
        models = Models(TINY, alone=alone)
        assert (models.base().unet is models.unet) is alone


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


def test_the_whole_goes_without_a_reproduction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def process(*arguments: str) -> Callable[[], object]:
        return lambda: started.append(arguments)

    monkeypatch.setattr(whole, "process", process)
    (group,) = whole.run(replace(TINY, reproduced=tmp_path))
    assert "No reproduction is recorded" in group.note
    assert [row.name for row in group.rows][0] == "diffusers, no face"
    assert [len(arguments) for arguments in started] == [2, 11, 13]
    assert Path(started[2][-1]).is_file(), "the reference"


SLOW = {"generation", "memory", "study", "evaluation", "whole"}
"""The first makes many pictures, the others start processes that import everything."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in NAMES]
)
def test_every_benchmark_runs(name: str, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        path = measure(name, "tiny", "cpu", None, 1, tmp_path)
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
