"""Second order: against Hessians and Fisher matrices that are known, and against what random edits do."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quadratics import Quadratic, by_tensor, quadratic

from deltasmith.analysis.curvature import expand, fisher_excess, hessian_excess, signed_root
from deltasmith.errors import InterruptedRunError, RefusedError


def drawn_variances(seed: int, size: int = 6) -> dict[str, np.ndarray]:
    return by_tensor(np.random.default_rng(seed).gamma(1.0, size=size))


def exact_excess(objective: Quadratic, variances: dict[str, np.ndarray]) -> dict[str, float]:
    halves = by_tensor(0.5 * np.diag(objective.hessian))
    return {name: float(halves[name] @ v) for name, v in variances.items()}


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_on_a_diagonal_hessian_every_probe_is_exact(seed: int, probes: int) -> None:
    objective, variances = quadratic(seed), drawn_variances(seed)
    objective.hessians *= np.eye(6)
    found = hessian_excess(objective, variances, probes=probes, seed=seed)
    exact = exact_excess(objective, variances)
    assert found.excess == pytest.approx(exact, rel=1e-12, abs=1e-13)
    assert found.total == pytest.approx(sum(exact.values()), rel=1e-12, abs=1e-12)
    if probes > 1:
        assert found.standard_error == pytest.approx(0.0, abs=1e-12)


def test_the_mean_over_probes_converges_and_its_error_is_told() -> None:
    objective, variances = quadratic(1), drawn_variances(1)
    exact = exact_excess(objective, variances)
    few = hessian_excess(objective, variances, probes=50)
    many = hessian_excess(objective, variances, probes=5000)
    assert few.standard_error is not None
    assert many.standard_error is not None
    assert many.standard_error == pytest.approx(few.standard_error / 10, rel=0.4)
    assert abs(many.total - sum(exact.values())) < 4 * many.standard_error
    assert many.standard_error < 0.05 * abs(sum(exact.values()))
    assert many.excess == pytest.approx(exact, abs=6 * many.standard_error)


def test_the_standard_error_is_the_spread_between_seeds() -> None:
    objective, variances = quadratic(2), drawn_variances(2)
    runs = [hessian_excess(objective, variances, probes=8, seed=seed) for seed in range(150)]
    told = np.sqrt(np.mean([r.standard_error**2 for r in runs if r.standard_error is not None]))
    assert np.std([r.total for r in runs]) == pytest.approx(told, rel=0.25)


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_the_expansion_is_exact_on_a_quadratic(seed: int) -> None:
    objective = quadratic(seed)
    found = expand(objective)
    assert found.total == pytest.approx(objective.exact(1.0), rel=1e-9, abs=1e-10)
    d = objective.direction
    assert sum(found.second.values()) == pytest.approx(0.5 * d @ objective.hessian @ d, rel=1e-9, abs=1e-10)
    assert found.total == pytest.approx(sum(found.first.values()) + sum(found.second.values()), abs=1e-10)
    assert json.loads(json.dumps(found.as_json()))["total"] == found.total


def test_dropping_costs_what_the_closed_form_says() -> None:
    """All masks of a quadratic, each with its probability: their mean is ½ (1−k)² p/(1−p) Σ H_ii δ_i²."""
    objective, p, k = quadratic(3), 0.7, -0.5
    objective.hessians *= np.eye(6)  # so that the probes are exact, too
    delta = np.random.default_rng(3).normal(size=6)
    gradient = (
        objective.hessian @ objective.start + objective.counts @ objective.linear / objective.counts.sum()
    )
    mean = 0.0
    for mask in range(64):
        dropped = (mask >> np.arange(6)) & 1
        edit = (k - 1) * (dropped - p) / (1 - p) * delta
        chance = float(np.prod(np.where(dropped, p, 1 - p)))
        mean += chance * (gradient @ edit + 0.5 * edit @ objective.hessian @ edit)
    variances = by_tensor((1 - k) ** 2 * p / (1 - p) * delta**2)
    assert sum(exact_excess(objective, variances).values()) == pytest.approx(mean, rel=1e-12)
    assert hessian_excess(objective, variances, probes=1).total == pytest.approx(mean, rel=1e-12)


def test_the_result_as_plain_data_and_what_is_missing_with_one_probe_or_chunk() -> None:
    found = hessian_excess(quadratic(4, chunks=1), drawn_variances(4), probes=1)
    assert found.standard_error is None
    assert found.interval is None
    more = hessian_excess(quadratic(4, chunks=5), drawn_variances(4), probes=2)
    plain = json.loads(json.dumps(more.as_json()))
    figures = ["total", "standard_error", "interval", "probes", "excess"]
    assert list(plain) == ["kind", "at", "shift", *figures]
    assert plain["interval"][0] < plain["total"] < plain["interval"][1]
    assert more == hessian_excess(quadratic(4, chunks=5), drawn_variances(4), probes=2)
    assert more != hessian_excess(quadratic(4, chunks=5), drawn_variances(4), probes=2, seed=1)


def test_only_tensors_with_a_variance_are_probed() -> None:
    objective = quadratic(5)
    objective.names = ("a",)
    objective.hessians *= np.eye(6)

    class Part(Quadratic):
        def curvatures(self, probe: object = None) -> np.ndarray:
            assert isinstance(probe, dict)
            padded = {"a": np.zeros(2), "b": np.zeros(1), "c": np.zeros(3), **probe}
            self.names = ("a", "b", "c")
            whole = super().curvatures(padded)
            return whole[:, [self.names.index(n) for n in probe]]

    part = Part(objective.hessians, objective.linear, objective.start, objective.direction, objective.counts)
    found = hessian_excess(part, {"c": np.ones(3)}, probes=2)
    assert list(found.excess) == ["c"]
    assert found.total == pytest.approx(0.5 * np.diag(objective.hessian)[3:].sum(), rel=1e-12)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_impossible_variances_are_refused(bad: float) -> None:
    variances = {**drawn_variances(6), "b": np.array([bad])}
    with pytest.raises(ValueError, match="variances of b"):
        hessian_excess(quadratic(6), variances)
    with pytest.raises(ValueError, match="0 probes"):
        hessian_excess(quadratic(6), drawn_variances(6), probes=0)


def test_derivatives_that_overflow_are_refused_with_chunk_and_tensor() -> None:
    objective = quadratic(7)
    objective.hessians[3, 4, 4] = np.inf
    with pytest.raises(RefusedError, match="chunk 3 of the data are not finite in c"):
        hessian_excess(objective, drawn_variances(7))


def test_an_interruption_is_heard_between_probes() -> None:
    said: list[int] = []
    with pytest.raises(InterruptedRunError):
        hessian_excess(
            quadratic(8),
            drawn_variances(8),
            asked=lambda: len(said) == 2,
            say=lambda done, of: said.append(done),
        )
    assert said == [1, 2]


def test_signs_are_fair_and_belong_to_the_key() -> None:
    signs = signed_root(np.ones((100, 100), np.float32), 5)
    assert signs.dtype == np.float32
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.mean()) < 0.04
    assert abs((signs * signed_root(np.ones((100, 100)), 6)).mean()) < 0.04


@dataclass
class Guesses:
    """A softmax over three labels with logits w, the same for every term: its Fisher matrix is diag(p) − pp'."""

    logits: np.ndarray
    counts: np.ndarray

    def squares(self, sampled: object, keys: list[int], weights: dict[str, np.ndarray]) -> np.ndarray:
        p = np.exp(self.logits) / np.exp(self.logits).sum()
        rows = []
        for key, n in zip(keys, self.counts.astype(int), strict=True):
            drawn = np.random.default_rng(key).multinomial(n, p) / n
            gradient = p - drawn  # of the mean over n terms of −log p(label)
            rows.append([float(weights["w"] @ gradient**2)])
        return np.array(rows)


def test_the_fisher_of_a_chunk_of_many_terms_is_that_of_one() -> None:
    logits = np.array([0.3, -1.0, 0.5])
    p = np.exp(logits) / np.exp(logits).sum()
    variance = np.array([0.5, 2.0, 1.0])
    exact = 0.5 * float(variance @ (p * (1 - p)))
    guesses = Guesses(logits, np.array([1.0, 2.0, 7.0, 40.0]))
    found = fisher_excess(guesses, None, {"w": variance}, probes=3000)  # type: ignore[arg-type]
    assert found.kind == "fisher"
    assert found.standard_error is not None
    assert abs(found.total - exact) < 4 * found.standard_error
    assert found.standard_error < 0.03 * exact
