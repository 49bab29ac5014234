"""`deltasmith lab features` and `features-page`: what they refuse before anything starts, and what they write."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from features_rows import run_data, saved

from models import check_refusal, run


def test_a_preset_is_given_alone(tmp_path: Path) -> None:
    for option in (("--shorten", 2), ("--seed", 3), ("--lua", tmp_path)):
        result = run("lab", "features", "--preset", "paper-cpu", *option, "--work", tmp_path / "work")
        check_refusal(result, 2, "--preset fixes texts, sizes and seeds")
    assert not (tmp_path / "work").exists()


def test_without_torch_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltasmith.lab.jobs.find_spec", lambda name: None)
    for preset in ((), ("--preset", "paper-gpu")):
        result = run("lab", "features", *preset, "--work", tmp_path / "work")
        check_refusal(result, 2, 'pip install "deltasmith[features]"')
    assert not (tmp_path / "work").exists()


def test_the_page_names_what_it_wrote(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    saved(tmp_path / "features.json", run_data())
    result = run("lab", "features-page", tmp_path, "--out", tmp_path / "page.md")
    assert result.code == 0
    written = [Path(line) for line in result.out.splitlines()]
    assert [path.name for path in written] == ["page.md", "edges.svg", "sweep.svg"]
    assert all(path.is_file() for path in written)
    check_refusal(
        run("lab", "features-page", tmp_path / "none", "--out", tmp_path / "page.md"),
        3,
        "no results on features",
    )


def test_help_imports_nothing_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "transformers", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "SLERP" in run("lab", "features", "--help").out
