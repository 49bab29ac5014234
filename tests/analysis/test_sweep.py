"""Sweeps of the bundled family: every point is what `loss` says of it, and the start is none the worse for them."""

from __future__ import annotations

import json
import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from deltasmith.analysis import free_memory, second_order  # noqa: E402
from deltasmith.analysis.run import loss  # noqa: E402
from deltasmith.analysis.sweep import InterruptedSweepError, sweep  # noqa: E402
from deltasmith.engine.workers import Stop  # noqa: E402
from deltasmith.errors import RecipeError, RefusedError  # noqa: E402
from deltasmith.lab import family_folder  # noqa: E402

FAMILY = family_folder()
EDIT = {"drop_partly": {"density": 0.5, "k": 0.5}}
RECIPE = {
    "base": str(FAMILY / "base"),
    "models": [{"model": str(FAMILY / "large" / "math"), "label": "math", "edits": [EDIT]}],
    "merge": "sum",
}
HOW = {"rules": ["left", "midpoint"], "steps": 1, "batch": 1, "length": 64}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    items = (FAMILY / "items" / "validation_math.jsonl").read_text().splitlines()[:2]
    kept = [{key: json.loads(line)[key] for key in ("prompt", "answer")} for line in items]
    path = tmp_path_factory.mktemp("sweep") / "math.jsonl"
    path.write_text("\n".join(map(json.dumps, kept)))
    return path


def figures(point):
    return (point.measured, point.end_loss, [(p.grid, p.change, p.verdict) for p in point.predictions])


def test_every_point_is_what_the_analysis_says_of_it(data):
    found = sweep(RECIPE, "k=-1|0.5, p=0.5|0.9", data=data, **HOW)
    assert [point.values for point in found.points] == [
        {"k": -1, "p": 0.5},
        {"k": -1, "p": 0.9},
        {"k": 0.5, "p": 0.5},
        {"k": 0.5, "p": 0.9},
    ]
    for point in (found.points[1], found.points[3]):
        place = "models.math.edits.0.drop_partly"
        settings = [f"{place}.k={point.values['k']}", f"{place}.density={1 - point.values['p']:.1f}"]
        alone = loss(RECIPE, data=data, overrides=settings, **HOW)
        assert point.measured == alone.measured
        assert point.verdict == alone.verdict
        assert point.end_loss == pytest.approx(alone.end_loss.value, rel=1e-12)
        assert [p.change for p in point.predictions] == [p.change for p in alone.predictions]
        assert [p.error for p in point.predictions] == [p.error for p in alone.predictions]
        assert (found.margin, found.start_loss, found.base_loss) == (
            alone.margin,
            alone.start_loss,
            alone.base_loss,
        )
    assert found.points[1].measured.value > 1 > abs(found.points[2].measured.value)
    assert any("one draw of it (seed 0)" in note for note in found.notes)


@pytest.mark.parametrize("room", [None, 0])
def test_the_order_of_points_changes_nothing(data, monkeypatch, room):
    monkeypatch.setattr(free_memory, "free_on_machine", lambda: room)
    forth, back = (sweep(RECIPE, axes, data=data, **HOW) for axes in ("k=-1|0.5|0", "k=0|0.5|-1"))
    assert [figures(p) for p in forth.points] == [figures(p) for p in reversed(back.points)]
    told = "there is no memory for a copy of the start, which is loaded again after every point"
    assert (told in forth.notes) == (room == 0)


def test_what_changes_nothing_costs_nothing(data):
    plain = {"models": [{"model": str(FAMILY / "small" / "math")}], "merge": "linear"}
    for point in sweep(plain, "seed=1|2", data=data, **HOW).points:
        assert (point.measured.value, point.measured.low, point.measured.high) == (0, 0, 0)
        assert [p.change.value for p in point.predictions] == [0, 0]
        assert point.verdict == "competitive"
    (whole, _) = sweep(RECIPE, "k=1|0.9", data=data, **HOW).points
    assert abs(whole.measured.value) < 1e-6  # base + (model - base) is not the model to the last bit


def test_one_estimate_serves_all_points(data, monkeypatch):
    calls = []
    inner = second_order.hessian_excess
    monkeypatch.setattr(second_order, "hessian_excess", lambda *a, **k: calls.append(1) or inner(*a, **k))
    found = sweep(RECIPE, "k=0|0.5|1, p=0.25|0.5", data=data, second_order="hessian", probes=2, **HOW)
    assert len(calls) == 1
    unit = found.points[0].expected / (0.25 / 0.75)
    for point in found.points:
        k, p = point.values["k"], point.values["p"]
        assert point.expected == pytest.approx((1 - k) ** 2 * p / (1 - p) * unit, rel=1e-4)
        assert point.expected_error >= 0
    assert found.second_order.total == found.points[0].expected
    alone = loss(RECIPE, data=data, second_order="hessian", probes=2, **HOW)
    assert found.points[3].expected == pytest.approx(alone.second_order.total, rel=1e-4)


def test_variances_that_are_no_multiples_get_estimates_of_their_own(data, monkeypatch):
    calls = []
    inner = second_order.fisher_excess
    monkeypatch.setattr(second_order, "fisher_excess", lambda *a, **k: calls.append(1) or inner(*a, **k))
    mapping = {**RECIPE, "models": [{**RECIPE["models"][0], "edits": [{"drop_by_rank": {"density": 0.5}}]}]}
    found = sweep(mapping, "window=0.1|0.8", data=data, second_order="fisher", probes=1, **HOW)
    assert len(calls) == 2
    assert all(point.expected > 0 for point in found.points)


def test_seeds_can_be_swept_or_given(data):
    found = sweep(RECIPE, "seed=1|2, p=0.9|0.8", data=data, **HOW)
    given = sweep(RECIPE, "p=0.9|0.8", data=data, seed=2, **HOW)
    assert found.points[0].end_loss != found.points[2].end_loss
    assert [p.end_loss for p in found.points[2:]] == [p.end_loss for p in given.points]
    assert not any("one draw" in note for note in found.notes)


def test_a_stop_keeps_what_is_done(data):
    stop = Stop()

    def say(what, done, of):
        if what == "points of the sweep" and done == 2:
            stop.ask()

    with pytest.raises(InterruptedSweepError, match="the sweep was interrupted after 2 points") as caught:
        sweep(RECIPE, "k=0|0.5|0.7", data=data, stop=stop, say=say, **HOW)
    kept = caught.value.sweep
    assert "interrupted: 2 of 3 points are finished" in kept.notes
    assert [point.values["k"] for point in kept.points] == [0, 0.5]
    assert figures(kept.points[1]) == figures(sweep(RECIPE, "k=0.5|0.6", data=data, **HOW).points[0])
    stop = Stop()
    stop.ask()
    with pytest.raises(InterruptedSweepError, match="after 0 points") as caught:
        sweep(RECIPE, "k=0|0.5", data=data, stop=stop, **HOW)
    assert caught.value.sweep is None


def test_a_point_that_overflows_has_no_figures_and_the_others_have(data):
    found = sweep(RECIPE, "k=1e39|0.5", data=data, **HOW)
    lost, kept = found.points
    assert lost.refused
    assert math.isnan(lost.measured.value)
    assert lost.predictions == ()
    assert not kept.refused
    assert [grid.rule for grid in found.grids] == ["left", "midpoint"]
    assert any(note.startswith("no figures at k=1e+39: ") for note in found.notes)
    json.dumps(found.as_json(), allow_nan=False)
    assert figures(kept) == figures(sweep(RECIPE, "k=0.5|0.6", data=data, **HOW).points[0])
    with pytest.raises(RefusedError, match="no point of the sweep can be measured"):
        sweep(RECIPE, "k=1e39|2e39", data=data, **HOW)


def test_wrong_axes_are_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(RecipeError, match=r"--sweep p=1: density must be above 0"):
        sweep(RECIPE, "p=0|1", data=tmp_path / "not there.jsonl")
    with pytest.raises(RecipeError, match="is a model, and has nothing to sweep; give a recipe"):
        sweep(FAMILY / "base", "p=0|1", data=tmp_path / "not there.jsonl")
