"""What the README shows works: its recipe loads, its method merges, its commands exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import numpy as np
import pytest

import deltasmith
from contracts import MERGE_CHECKS, MergeCase
from deltasmith.cli.main import group
from deltasmith.operation.reference import merge_table
from deltasmith.recipe.checks import loads

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def block(language: str, containing: str) -> str:
    """Return the one fenced block of a language that contains some text."""
    (found,) = [b for b in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if containing in b]
    return found


def test_the_recipe_to_try_merges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "try.yaml").write_text(block("yaml", "# try.yaml").replace("src/", f"{ROOT}/src/"))
    assert deltasmith.merge(tmp_path / "try.yaml", tmp_path / "out").tensors > 10
    assert deltasmith.verify(tmp_path / "out").ok


def test_the_recipe_loads() -> None:
    recipe = loads(block("yaml", "preset: della"))
    assert recipe.labels == ("chat", "math", "code")
    assert recipe.models[1].weight == 0.8


def test_the_method_merges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "strongest_of_readme.py").write_text(block("python", "class Strongest"))
    monkeypatch.syspath_prepend(tmp_path)
    strongest = importlib.import_module("strongest_of_readme").Strongest
    for check in MERGE_CHECKS:
        check(MergeCase(strongest()))
    columns = [{"w": np.array([[1, -5], [0, 2]], np.float32)}, {"w": np.array([[-1, 4], [3, 1]], np.float32)}]
    merged = merge_table(strongest(), columns)
    assert merged["w"].tolist() == [[1, -5], [3, 2]]


def test_the_commands_exist() -> None:
    named = set(re.findall(r"^\$ deltasmith (\w+)", README, re.MULTILINE))
    assert named
    assert named <= set(group.list_commands(None))  # type: ignore[arg-type]


def test_the_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", README)) <= targets
