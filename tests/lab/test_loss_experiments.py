"""The experiments on the loss, each at its smallest, on a bundled expert; and the vision models' ground."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from deltasmith.analysis.rules import Grid  # noqa: E402
from deltasmith.lab import family_folder  # noqa: E402
from deltasmith.lab.loss import bench, biased, extrapolation, predictions, second_order  # noqa: E402
from deltasmith.lab.loss.bench import Subject  # noqa: E402
from deltasmith.lab.loss.example import _report  # noqa: E402
from deltasmith.lab.loss.ground import Ground  # noqa: E402
from deltasmith.lab.loss.points import CLASSES, GROUPS, KINDS, POINTS, vision_points  # noqa: E402
from deltasmith.lab.vision.vit import VitShape, features, initial  # noqa: E402


@pytest.fixture(scope="module")
def subject() -> Any:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "ITEMS", 4)
        patch.setattr(bench, "BATCH", 2)
        patch.setattr("deltasmith.lab.bench.HELD_OUT", {"test": 6, "validation": 4})
        yield bench.language(family_folder(), 0, "small", "math")


def test_the_catalogue_holds_what_was_asked_for() -> None:
    assert len(POINTS) >= 40
    assert {point.group for point in POINTS} == set(GROUPS)
    assert {point.group for point in vision_points()} == set(GROUPS) - {"dp", "dpa"}
    assert set(CLASSES) <= set(GROUPS)
    names = [(point.group, point.name) for point in POINTS]
    assert len(set(names)) == len(names)


def test_predictions_meet_what_is_measured(subject: Subject) -> None:
    chosen = [p for p in POINTS if (p.group, p.name) in (("expo", "α = -1.0"), ("rounding", POINTS[-1].name))]
    base, expert, whole, rounding = predictions.run(subject, chosen)
    losses = [float(str(row.keys["loss"])) for row in (base, expert)]
    found = {key: float(str(value)) for key, value in whole.keys.items() if isinstance(value, float)}
    assert found["measured"] == pytest.approx(losses[0] - losses[1], abs=2e-5)
    assert found["size"] == pytest.approx(1.0)
    assert found["midpoint 5"] == pytest.approx(found["measured"], rel=0.05)
    assert abs(found["left 1"]) < 0.2 * found["measured"]
    assert found["low"] <= found["measured"] <= found["high"]
    assert whole.right.tolist() == base.right.tolist()
    assert 0 < float(str(rounding.keys["size"])) < 0.2
    assert {predictions.grid_name(grid) for grid in predictions.GRIDS} <= set(rounding.keys)


def test_the_network_answers_to_the_numbers(subject: Subject) -> None:
    expert, base = subject.expert, subject.base()
    assert subject.ground.mean(subject.ground.losses(expert)) < subject.ground.mean(
        subject.ground.losses(base)
    )
    # The gradient that is written for `bias_by_gradient` is the one that slopes are made of.
    path = subject.ground.path(expert, base, [Grid("left", 1)])
    gradient = biased.gradient(subject.ground, expert)
    by_hand = sum(float(np.sum(gradient[name] * (base[name] - expert[name]))) for name in gradient)
    assert path.predicted(Grid("left", 1)) == pytest.approx(by_hand, rel=1e-4)


def test_biases_and_masks_and_extrapolation(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(biased, "KS", (0.5,))
    monkeypatch.setattr(biased, "RATES", (0.5,))
    found = {str(row.keys["kind"]): float(str(row.keys["measured"])) for row in biased.run(subject)}
    assert list(found) == list(KINDS)
    assert found[KINDS[3]] > 10 * abs(found[KINDS[0]])
    for name, value in {"KS": (0.0, 0.5), "RATES": (0.9,), "MASKS": 2, "PROBES": 2}.items():
        monkeypatch.setattr(second_order, name, value)
    dare, half = second_order.run(subject)
    assert dare.keys["hessian"] == pytest.approx(4 * float(str(half.keys["hessian"])), rel=1e-4)
    values = [float(one.split()[0]) for one in str(dare.keys["masks"]).split("; ")]
    assert len(set(values)) == 2
    assert np.mean(values) == pytest.approx(float(str(dare.keys["measured"])), rel=1e-3)
    monkeypatch.setattr(extrapolation, "ALPHAS", (-1.0, 0.0, 1.0))
    *grid, searched = extrapolation.run(subject)
    assert [row.keys["alpha"] for row in grid] == [-1.0, 0.0, 1.0]
    assert grid[1].keys["measured"] == grid[1].keys["validation"] == 0.0
    assert -1 <= float(str(searched.keys["alpha"])) <= 1


def test_a_vision_trunk_is_the_function_of_its_tensors() -> None:
    shape = VitShape(hidden=8, inner=16, layers=2, heads=2)
    params = {name: value.float() for name, value in initial(shape, 0).items()}
    chance = torch.Generator().manual_seed(0)
    head, images = 0.1 * torch.randn(3, 8, generator=chance), torch.rand(4, 28, 28, generator=chance)
    trunk = bench._Trunk({name: value.numpy() for name, value in params.items()}, shape, head)
    assert {name for name, _ in trunk.named_parameters()} == set(params)
    wanted = features(params, shape, images)[:, 0] @ head.T
    assert torch.allclose(trunk(images), wanted, atol=1e-5)
    labels = torch.tensor([0, 1, 2, 0])
    ground = Ground(trunk, [(images, labels)], [4.0], bench._cross_entropy)
    assert ground.losses({n: v.numpy() for n, v in params.items()})[0] == pytest.approx(
        float(torch.nn.functional.cross_entropy(wanted, labels)), abs=1e-5
    )
    objective = ground.objective(
        {n: v.numpy() for n, v in params.items()}, {n: 0.9 * v.numpy() for n, v in params.items()}
    )
    assert np.isfinite(objective.curvatures()).all()
    drawn = {float(bench._sampled_class(trunk, (images, labels), key).detach()) for key in range(8)}
    assert len(drawn) > 1


def test_the_example_is_read_back() -> None:
    estimate = {"value": 0.2, "low": 0.1, "high": 0.3}
    prediction = {"rule": "left", "steps": 5, "change": estimate, "error": 0.0, "verdict": "decreased"}
    told = {
        "start": "a",
        "end": "b",
        "data": {"file": "f", "sha256": "0", "documents": 1, "examples": 1, "tokens": 2, "chunks": 1},
        "start_loss": estimate,
        "end_loss": estimate,
        "base_loss": None,
        "measured": estimate,
        "verdict": "decreased",
        "margin": 0.01,
        "margin_reason": "asked",
        "predictions": [{**prediction, "contributions": {"tensor": {"model.layers.0.x.weight": 0.2}}}],
        "along": [{"t": 0.0, "loss": 1.0}],
    }
    report = _report(told)
    assert report.prediction("left").contributions == {"model.layers.0.x.weight": 0.2}
    assert report.measured.high == 0.3
