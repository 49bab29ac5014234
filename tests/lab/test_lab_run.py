"""Running experiments: parts are kept, nothing runs twice, and a missing model is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deltasmith.errors import DamagedInputError
from deltasmith.lab import family_folder
from deltasmith.lab.rows import load_results
from deltasmith.lab.run import run_experiments


@pytest.fixture
def family(tmp_path: Path) -> Path:
    shutil.copytree(family_folder(), tmp_path / "family" / "seed0")
    return tmp_path / "family"


def test_an_interrupted_run_goes_on(family: Path, tmp_path: Path) -> None:
    said: list[str] = []

    def run(*regimes: str) -> None:
        run_experiments(
            family,
            tmp_path / "results",
            tmp_path / "parts",
            (0,),
            experiments=("family",),
            regimes=regimes,
            say=said.append,
        )

    run("small")
    first = (tmp_path / "parts" / "family-seed0-small.json").stat().st_mtime_ns
    run("small", "large")
    assert (tmp_path / "parts" / "family-seed0-small.json").stat().st_mtime_ns == first
    assert "2 jobs, 1 of them done before" in said
    results = load_results(tmp_path / "results" / "family.json")
    assert results.settings["regimes"] == ["small", "large"]
    (row,) = results.where(model="large/math").where(train_seed=0).rows[:1]
    assert row.task == "math"
    assert row.accuracy > 0.95


def test_rows_of_other_models_are_not_taken_over(family: Path, tmp_path: Path) -> None:
    said: list[str] = []

    def run() -> None:
        places = (family, tmp_path / "results", tmp_path / "parts", (0,))
        run_experiments(*places, experiments=("family",), regimes=("small",), say=said.append)

    run()
    record = family / "seed0" / "RECORD.json"
    record.write_text(record.read_text().replace('"seed": 0', '"seed": 7'))
    run()
    assert said.count("1 jobs, 0 of them done before") == 2


def test_a_missing_model_is_named(family: Path, tmp_path: Path) -> None:
    shutil.rmtree(family / "seed0" / "large" / "code")
    with pytest.raises(DamagedInputError, match="large/code"):
        run_experiments(family, tmp_path / "results", tmp_path / "parts", (0,), regimes=("large",))
