"""EMR's steps: what the lab computes by hand is what the recipe computes."""

from __future__ import annotations

import numpy as np
import pytest
from bench_tools import bundled

from deltasmith.lab.experiments import controls, emr
from deltasmith.lab.rows import Row


def test_the_last_step_by_hand_is_the_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bundled(test=3)
    seen: dict[str, dict[str, dict[str, np.ndarray]]] = {}

    def keep(bench: object, method: str, models: dict[str, dict[str, np.ndarray]]) -> list[Row]:
        seen[method] = models
        return []

    monkeypatch.setattr(emr, "_rows", keep)
    list(emr._variants(bench, bench.tensors(bench.base)))
    for task in bench.tasks:
        recipe = bench.recipe(bench.tasks, preset="emr", task=task, dtype="float32")
        expected = bench.merged(recipe)
        for name, value in seen["emr"][task].items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-7)


def test_all_methods_have_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltasmith.lab.experiments.merges.FINE", (0.5, 1.0))
    monkeypatch.setattr("deltasmith.lab.experiments.merges.SCALES", (0.5,))
    rows = list(emr.run(bundled(test=1, validation=1)))
    assert {row.keys["method"] for row in rows} == set(emr.METHODS)
    assert len(rows) == 3 * len(emr.METHODS)


@pytest.mark.parametrize("regime", ["small", "large"])
def test_an_expert_averaged_with_itself_is_the_expert(regime: str) -> None:
    bench = bundled(regime)
    for task in bench.tasks:
        averaged = controls._same(bench, task)
        for name, value in bench.tensors(bench.expert(task)).items():
            np.testing.assert_array_equal(averaged[name], value)


def test_controls_run_beside_another_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controls, "FINE", (0.5, 1.0))
    bench = bundled(test=1, validation=1)
    rows = list(controls.run(bench, bench.folder))  # the same family stands in for a stranger
    assert {row.keys["base"] for row in rows} == {"itself", "shared", "none"}
    assert len(rows) == 1 + 2 * 3 * 2
