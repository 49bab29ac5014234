"""The second order is taken around the mean of the random edit, wherever the path starts."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from deltasmith.analysis import preparing
from deltasmith.analysis.curvature import SecondOrder, hessian_excess
from deltasmith.analysis.data import read_examples
from deltasmith.analysis.language import LanguageChunks, language_loss
from deltasmith.analysis.networks import load
from deltasmith.analysis.run import loss
from deltasmith.analysis.sweep import sweep
from deltasmith.analysis.torch_objective import TorchObjective
from deltasmith.lab import family_folder

FAMILY = family_folder()
BASE, MATH, CODE = FAMILY / "base", FAMILY / "small" / "math", FAMILY / "small" / "code"
DATA = FAMILY / "items" / "validation_math.jsonl"
FEW: dict[str, Any] = {"data": DATA, "limit": 3, "batch": 1, "steps": 1, "rules": ("midpoint",), "probes": 2}


def recipe(*models: Path, density: float | None = None, **fields: Any) -> dict[str, Any]:
    edits = [] if density is None else [{"drop": {"density": density}}]
    entries = [{"model": str(model), "label": model.name, "edits": edits} for model in models]
    return {"base": str(BASE), "models": entries} | fields


def squares(model: Path) -> dict[str, Any]:
    """δ² of a model, tensor by tensor."""
    ours, theirs = (dict(load(folder).network.named_parameters()) for folder in (BASE, model))
    return {n: (theirs[n].detach().double() - p.detach().double()).square().numpy() for n, p in ours.items()}


def by_hand(mean: Any, spread: dict[str, Any]) -> tuple[float, SecondOrder]:
    """Load the mean by itself, and estimate ½ Σ H_ii v_i there; return the loss there too."""
    loaded = load(mean)
    assert loaded.tokenizer is not None
    found = read_examples(DATA, loaded.tokenizer, length=512, limit=3, context=loaded.context)
    laid = LanguageChunks.of(found.examples, 1, "cpu", loaded.tokenizer.padding)
    objective = TorchObjective(loaded.network, {}, laid.chunks, laid.counts, language_loss)
    there = float(objective.losses() @ objective.counts / objective.counts.sum())
    return there, hessian_excess(objective, spread, probes=2)


def test_of_a_merge_it_is_taken_at_the_plain_merge() -> None:
    merged = recipe(MATH, CODE, density=0.2, merge="sum", scale=0.7)
    found = loss(merged, **FEW, second_order="hessian")
    second = found.second_order
    assert second is not None
    a, b = squares(MATH), squares(CODE)
    spread = {n: 0.49 * 4.0 * (a[n] + b[n]) for n in a}  # (1 - p) / p is 4
    there, expected = by_hand(recipe(MATH, CODE, merge="sum", scale=0.7), spread)
    assert second.total == pytest.approx(expected.total, rel=1e-4)
    assert second.shift == pytest.approx(there - found.start_loss.value, abs=1e-6)
    assert second.shift < -0.1  # the start is the base: far from where the edits are
    assert (found.start, second.at) == ("base", "the recipe without its random edits")
    _, wrong = by_hand(BASE, spread)
    assert abs(wrong.total - expected.total) > 0.05 * abs(expected.total)


def test_of_half_a_delta_it_is_taken_half_way() -> None:
    found = loss(recipe(MATH, density=0.25, scale=0.5), **FEW, second_order="hessian")
    second = found.second_order
    assert second is not None
    spread = {n: 0.25 * 3.0 * v for n, v in squares(MATH).items()}
    there, expected = by_hand(recipe(MATH, scale=0.5), spread)
    assert second.total == pytest.approx(expected.total, rel=1e-4)
    assert second.shift == pytest.approx(there - found.start_loss.value, abs=1e-6)
    document = json.loads(json.dumps(found.as_json()))["second_order"]
    assert (document["at"], document["shift"]) == (second.at, second.shift)


def test_on_top_of_one_model_it_is_the_start_and_no_more_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[object] = []
    inner = preparing.load
    monkeypatch.setattr(preparing, "load", lambda *a, **k: loads.append(a[0]) or inner(*a, **k))
    found = loss(recipe(MATH, density=0.2), **FEW, second_order="hessian")
    assert found.second_order is not None
    assert (found.second_order.at, found.second_order.shift) == ("math", 0.0)
    assert len(loads) == 3  # the model, the base for the margin, the edited model
    loads.clear()
    far = loss(recipe(MATH, density=0.2), start="base", **FEW, second_order="hessian")
    assert far.second_order is not None
    assert len(loads) == 3  # the base, the edited model, the model
    assert far.second_order.total == pytest.approx(found.second_order.total, rel=0.01)  # but for rounding
    assert far.second_order.shift == pytest.approx(found.start_loss.value - far.start_loss.value, abs=1e-3)


def test_the_direction_is_released_before_the_mean_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []
    held: list[weakref.ref[Any]] = []
    line_to, inner = preparing.Ground.line_to, preparing.load

    def watched(ground: preparing.Ground, end: Any) -> Any:
        line = line_to(ground, end)
        held.extend(weakref.ref(step) for step in line.direction.values())
        return line

    def counting(*arguments: Any, **options: Any) -> Any:
        alive.append(sum(ref() is not None for ref in held))
        return inner(*arguments, **options)

    monkeypatch.setattr(preparing.Ground, "line_to", watched)
    monkeypatch.setattr(preparing, "load", counting)
    loss(recipe(MATH, CODE, density=0.2), **FEW | {"limit": 2}, second_order="fisher")
    assert held
    assert alive == [0, 0, 0]  # the start, the end, the mean


def test_a_sweep_loads_each_mean_once_and_counts_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    merged = recipe(MATH, CODE, density=0.2, merge="sum")
    given = FEW | {"second_order": "hessian", "limit": 2}
    alone = loss(merged, **given, overrides=["scale=0.5"])
    loads: list[Any] = []
    inner = preparing.load
    monkeypatch.setattr(preparing, "load", lambda *a, **k: loads.append(a[0]) or inner(*a, **k))
    found = sweep(merged, "scale=0.5|1, p=0.5|0.8", **given)
    means = [s for s in loads if hasattr(s, "models") and not any(m.edits for m in s.models)]
    assert [mean.scale for mean in means] == [0.5, 1.0]
    assert alone.second_order is not None
    expected = alone.second_order.shift + alone.second_order.total
    assert found.points[1].expected == pytest.approx(expected, rel=1e-4)
    assert found.points[1].expected is not None
    assert found.points[1].expected < -0.1  # and the excess alone is above 0
    assert alone.second_order.total > 0


def test_an_edit_that_varies_nowhere_costs_nothing() -> None:
    found = sweep(recipe(MATH, density=0.5, scale=0.5), "density=1|0.5", **FEW, second_order="fisher")
    whole, half = found.points
    assert whole.expected == pytest.approx(whole.measured.value, abs=1e-6)
    assert whole.expected_error == 0.0
    assert half.expected is not None
    assert half.expected > whole.expected
    assert found.second_order is not None
    assert found.second_order.probes == 2
