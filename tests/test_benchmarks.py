"""Benchmarks: what is measured is what happened, by a clock that the tests hold in their hands."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.__main__ import MODULES, measure
from benchmarks.alternate import alternate
from benchmarks.operations import count_operations
from fusionlib.benchmarked import (
    NAMES,
    Group,
    Result,
    Row,
    Target,
    benchmark_plot,
    benchmark_table,
    every_result,
    read_result,
    targets_table,
)
from fusionlib.errors import FusionError
from fusionlib.evaluation.statistics import Interval

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


def test_what_slows_a_round_down_slows_both_and_leaves_the_ratio_exact() -> None:
    disturbed = np.array([1.0, 1.0, 9.0, 1.0, 4.0])
    base, other = Row("base", tuple(disturbed)), Row("other", tuple(2 * disturbed))
    group = Group("", "s", (base, other))
    ratio = group.interval(other)
    assert (ratio.estimate, ratio.low, ratio.high) == (2.0, 2.0, 2.0)
    assert group.interval(other, "difference").estimate == 1.0
    assert group.interval(other, "value").high > 2.0


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
    made = result(a=Row("fused", (1.1, 2.2, 3.3), 120.0, Target("ratio", 1.2)))
    path = made.write(tmp_path)
    assert path.name == "generation-embedded-cpu.json"
    assert read_result(path) == made
    every = every_result(tmp_path)
    assert every["generation"] == [made] and every["masks"] == []
    path.write_text(path.read_text()[:-20])
    with pytest.raises(FusionError, match=r"generation-embedded-cpu\.json"):
        read_result(path)


def test_the_tables_say_which_targets_are_met_and_which_are_missed() -> None:
    made = result(
        a=Row("quick", (1.1, 2.2, 3.3), 120.0, Target("ratio", 1.2)),
        b=Row("slow", (2.0, 4.0, 6.0), 120.0, Target("ratio", 1.2)),
    )
    table = benchmark_table([made], "generation").data
    assert list(table["outcome"]) == ["", "met", "missed"]
    assert list(table["floor by operations"]) == ["", "1.20", "1.20"]
    assert list(targets_table({"generation": [made]}).data["outcome"]) == ["met", "missed"]
    alt = benchmark_plot([made], "generation").info["alt"]
    assert "quick 1.10" in alt and "slow 2.00" in alt
    other = replace(made, size="full", device="cuda", machine=MACHINE | {"gpu": "a GPU"})
    assert len(benchmark_table([made, other], "generation").data) == 6


def test_what_nobody_measured_says_how_to_measure_it() -> None:
    for show in (benchmark_plot, benchmark_table):
        assert "python -m benchmarks masks" in show([], "masks").data
    assert "make bench" in targets_table({}).data


def test_the_page_knows_every_benchmark() -> None:
    assert tuple(MODULES) == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_runs(name: str, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        path = measure(name, "tiny", "cpu", None, 1, tmp_path)
    finally:
        torch.set_num_threads(threads)
    found = read_result(path)
    assert found.groups and all(row.values for group in found.groups for row in group.rows)
