"""Rows cached on disk: computed once, computed again under another key, continued after a stop."""

from pathlib import Path

import pytest
import torch

from fusionlib.errors import FusionError
from fusionlib.training import cached
from fusionlib.training.cached import cached_rows


class Computer:
    """Computes squares of row numbers, and records which rows it was asked for."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.asked: list[range] = []
        self.stop_after = stop_after

    def __call__(self, numbers: range) -> dict[str, torch.Tensor]:
        if len(self.asked) == self.stop_after:
            raise KeyboardInterrupt
        self.asked.append(numbers)
        rows = torch.tensor(numbers)
        return {"square": rows**2, "pair": torch.stack([rows, -rows], 1)}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "CHUNK", 4)


def check(rows: dict[str, torch.Tensor], count: int) -> None:
    assert rows["square"].tolist() == [n * n for n in range(count)]
    assert rows["pair"].tolist() == [[n, -n] for n in range(count)]


def test_rows_come_in_order_and_are_computed_once(tmp_path: Path) -> None:
    first, again = Computer(), Computer()
    check(cached_rows(tmp_path / "rows", "a", 10, first), 10)
    assert sorted(n for asked in first.asked for n in asked) == list(range(10))
    check(cached_rows(tmp_path / "rows", "a", 10, again), 10)
    assert not again.asked


def test_rows_of_another_key_are_computed_again(tmp_path: Path) -> None:
    cached_rows(tmp_path / "rows", "a", 10, Computer())
    again = Computer()
    check(cached_rows(tmp_path / "rows", "b", 6, again), 6)
    assert len(again.asked) == 2


def test_rows_of_another_key_are_never_mixed_in(tmp_path: Path) -> None:
    """Another run computes the files again while this one is in its last chunk."""
    mine = Computer()

    def disturbed(numbers: range) -> dict[str, torch.Tensor]:
        if len(mine.asked) == 2:
            check(cached_rows(tmp_path / "rows", "b", 10, Computer()), 10)
        return mine(numbers)

    with pytest.raises(FusionError, match="was replaced while it was read"):
        cached_rows(tmp_path / "rows", "a", 10, disturbed)


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        cached_rows(tmp_path / "rows", "a", 20, Computer(stop_after=3))
    rest = Computer()
    check(cached_rows(tmp_path / "rows", "a", 20, rest), 20)
    assert len(rest.asked) == 2


def test_a_write_that_is_cut_off_is_no_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(old: object, new: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.replace", cut_off)
        cached_rows(tmp_path / "rows", "a", 4, Computer())
    assert not any((tmp_path / "rows").glob("*.safetensors"))
    rest = Computer()
    check(cached_rows(tmp_path / "rows", "a", 4, rest), 4)
    assert len(rest.asked) == 1


def test_runs_side_by_side_share_the_work(tmp_path: Path) -> None:
    """The second run starts while the first is in its first chunk, and leaves it nothing."""
    inner, outer = Computer(), Computer()

    def interrupted(numbers: range) -> dict[str, torch.Tensor]:
        if not outer.asked:
            check(cached_rows(tmp_path / "rows", "a", 20, inner), 20)
        return outer(numbers)

    check(cached_rows(tmp_path / "rows", "a", 20, interrupted), 20)
    assert len(inner.asked) == 5
    assert len(outer.asked) == 1
