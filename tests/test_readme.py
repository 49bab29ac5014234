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


@pytest.mark.parametrize("name", ["try.yaml", "k_dare.yaml"])
def test_the_recipes_to_try_merge(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(block("yaml", f"# {name}").replace("src/", f"{ROOT}/src/"))
    assert deltasmith.merge(tmp_path / name, tmp_path / "out").tensors > 10
    assert deltasmith.verify(tmp_path / "out").ok


def test_the_commands_on_the_loss_have_what_they_name(tmp_path: Path) -> None:
    """Every recipe is shown or written by `advise` before it is used, and every path and label is there."""
    shell = block("console", "deltasmith loss k_dare.yaml")
    family = re.findall(r"F=([^;]+);", shell)[0]
    paths = {path.replace("$F", family) for path in re.findall(r"\$F/[\w/.]+", shell)}
    assert len(paths) == 4
    assert all((ROOT / path).exists() for path in paths)
    asked = re.findall(r"^\$ deltasmith advise (.*) --out start\.yaml", shell, re.MULTILINE)[0]
    base, *models = (str(ROOT / path.replace("$F", family)) for path in asked.split())
    deltasmith.advise(base, models, out=tmp_path / "start.yaml", threads=1)
    labels = {
        "k_dare.yaml": loads(block("yaml", "# k_dare.yaml")).labels,
        "start.yaml": loads((tmp_path / "start.yaml").read_text()).labels,
    }
    used = re.findall(r"^\$ deltasmith loss (\S+\.yaml)(?:.* --from (\w+))?", shell, re.MULTILINE)
    assert {recipe for recipe, _ in used} == set(labels)
    assert all(start in ("", "base", *labels[recipe]) for recipe, start in used)


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
