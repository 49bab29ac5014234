"""Rows of results survive the file, and nothing else passes for one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deltasmith.errors import DamagedInputError
from deltasmith.lab.rows import Results, Row, grouped, load_results


def row(n: int = 11, **keys: str | int | float) -> Row:
    marks = np.arange(n) % 3 == 0
    return Row({"train_seed": 0, "mask_seed": 0, "method": "ties", **keys}, "math", marks)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 300])
def test_a_row_survives_its_file(n: int, tmp_path: Path) -> None:
    results = Results("merges", {"train_seeds": [0]}, (row(n), row(n, rate=0.9)))
    results.save(tmp_path / "deep" / "merges.json")
    loaded = load_results(tmp_path / "deep" / "merges.json")
    assert (loaded.experiment, loaded.settings) == ("merges", {"train_seeds": [0]})
    for before, after in zip(results.rows, loaded.rows, strict=True):
        assert (before.keys, before.task) == (after.keys, after.task)
        np.testing.assert_array_equal(before.right, after.right)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["merges.json"]


def test_the_same_results_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        Results("merges", {}, (row(),)).save(tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_rows_are_chosen_by_their_keys() -> None:
    results = Results("curves", {}, (row(rate=0.5), row(rate=0.9), row(method="dare", rate=0.9)))
    assert len(results.where(rate=0.9).rows) == 2
    assert len(results.where(rate=0.9, method="dare").rows) == 1
    assert list(grouped(results.rows, lambda r: r.keys["rate"])) == [0.5, 0.9]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "experiment": "x", "rows": []}']
)
def test_anything_else_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(DamagedInputError, match="no file of lab results"):
        load_results(tmp_path / "results.json")
