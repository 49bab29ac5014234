"""Histograms, sums and rounding: held against plain numpy, whatever the number of threads."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from synthetic import SHAPES, base, facts, measured, moved

from deltasmith.advice.measuring import Grid, Rounding, combined
from deltasmith.advice.risks import risks_of
from deltasmith.advice.spectrum import Spectrum, relative_quantile
from deltasmith.kernels.spectrum import CELLS, STEPS, add_sizes


def spectrum(values: np.ndarray) -> Spectrum:
    counts = np.zeros(CELLS, np.int64)
    add_sizes(values.astype(np.float32), counts)
    return Spectrum.of(counts)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_quantiles_are_those_of_the_values(share: float) -> None:
    values = np.random.default_rng(0).laplace(size=20_000) * 1e-3
    values[:1000] = 0.0
    found = spectrum(values).quantile(share)
    assert found == pytest.approx(np.quantile(np.abs(values), share), rel=0.006)


def test_shares_above_a_bound() -> None:
    values = np.random.default_rng(1).normal(size=20_000)
    assert spectrum(values).above(1.0) == pytest.approx((np.abs(values) > 1.0).sum(), rel=0.02)
    assert spectrum(values).above(100.0) == 0
    assert spectrum(values).above(0.0) == 20_000


def test_a_spectrum_of_nothing() -> None:
    nothing = spectrum(np.zeros(0))
    assert (nothing.size, nothing.quantile(0.9), nothing.above(0.1)) == (0, 0.0, 0)
    still = spectrum(np.zeros(5))
    assert (still.size, still.quantile(0.9), still.above(0.0)) == (5, 0.0, 0)
    assert Spectrum.total([nothing, still]).zeros == 5


def test_relative_quantile_weighs_each_tensor_by_its_own_spread() -> None:
    small, large = spectrum(np.full(90, 0.01)), spectrum(np.full(10, 0.02))
    assert relative_quantile([(small, 0.1), (large, 0.02)], 0.5) == pytest.approx(0.1, rel=0.01)
    assert relative_quantile([(small, 0.1), (large, 0.02)], 0.95) == pytest.approx(1.0, rel=0.01)
    assert relative_quantile([(small, 0.0)], 0.5) == 0.0


def test_figures_are_those_of_numpy() -> None:
    ground = base()
    models = [moved(ground, 0.004, 1), moved(ground, 0.002, 2)]
    found = {one.name: one for one in measured(ground, models)}
    name = "model.layers.1.mlp.up_proj.weight"
    first, second = (m[name].astype(np.float64) - ground[name] for m in models)
    one = found[name]
    assert one.linear
    assert not found["model.embed_tokens.weight"].linear
    assert one.sigma == pytest.approx(ground[name].std(dtype=np.float64), rel=1e-6)
    assert one.columns["m0"].change.relative_norm == pytest.approx(
        np.linalg.norm(first) / np.linalg.norm(ground[name]), rel=1e-5
    )
    model = models[0][name].astype(np.float64).ravel()
    weights = ground[name].astype(np.float64).ravel()
    cosine = model @ weights / np.linalg.norm(model) / np.linalg.norm(weights)
    assert one.columns["m0"].base_cosine == pytest.approx(cosine, rel=1e-6)
    pair = one.pairs["m0", "m1"]
    assert pair.sign_conflict == pytest.approx((first * second < 0).mean())


def test_threads_change_nothing() -> None:
    rng = np.random.default_rng(3)
    ground = {"model.layers.0.w.weight": rng.normal(size=(900, 800)).astype(np.float32)}
    tuned = {n: (a + rng.normal(size=a.shape) * 0.01).astype(np.float32) for n, a in ground.items()}
    one, four = (measured(ground, [tuned], threads=n)[0].columns["m0"] for n in (1, 4))
    assert one.change == four.change
    assert one.base_dot == four.base_dot
    assert np.array_equal(one.spectrum.counts, four.spectrum.counts)


def test_groups_add_up() -> None:
    ground = base()
    found = measured(ground, [moved(ground, 0.004, 1)])
    (whole,) = combined(found, "model")
    assert whole.size == sum(int(np.prod(shape)) for shape in SHAPES.values())
    assert len(combined(found, "layer")) == 4
    assert whole.columns["m0"].spectrum.size == whole.size


def rounding(base_values: np.ndarray, delta: np.ndarray) -> tuple[Rounding, float]:
    from deltasmith.kernels.spectrum import add_steps

    stored = base_values.astype(ml_dtypes.bfloat16).astype(np.float32)
    after = (stored + delta).astype(ml_dtypes.bfloat16).astype(np.float32)
    seen = after - stored
    zeros, steps = np.zeros(256, np.int64), np.zeros((256, STEPS), np.int64)
    add_steps(stored, seen, 7, 1, zeros, steps)
    median = float(np.median(np.abs(seen[seen != 0])))
    return Rounding(Grid(7, 1), zeros, zeros + steps.sum(axis=1), steps.sum(axis=0)), median


def test_rounding_is_told_from_weights_left_alone() -> None:
    rng = np.random.default_rng(4)
    values = (rng.normal(size=200_000) * np.exp2(rng.integers(-6, 1, size=200_000))).astype(np.float32)
    delta = (rng.normal(size=values.size) * 2e-3).astype(np.float32)
    found, median = rounding(values, delta)
    unmoved = int(found.zeros.sum()) / values.size
    assert unmoved > 0.1
    assert found.hidden(median) == pytest.approx(unmoved, abs=0.03)  # training moved every weight
    frozen = delta.copy()
    frozen[rng.random(values.size) < 0.5] = 0.0
    found, median = rounding(values, frozen)
    share = found.hidden(median)
    assert share is not None
    assert share < 0.6 * int(found.zeros.sum()) / values.size  # the frozen half is not put down to rounding


def test_rounding_to_come() -> None:
    ratios = np.zeros(STEPS, np.int64)
    ratios[32] = 100  # one to two steps
    ratios[40] = 300
    found = Rounding(Grid(7, 1), np.zeros(256, np.int64), np.zeros(256, np.int64), ratios)
    assert found.lost(1.0) == 0.0
    assert found.lost(0.25) == pytest.approx(0.25)  # below two steps: a quarter of them all
    assert found.lost(0.0) == 0.0
    assert found.hidden(1.0) is None


def test_risks_name_the_tensors_that_stand_out() -> None:
    ground = base()
    tuned = moved(ground, 0.001, 1)
    odd, spiky = "model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"
    tuned[odd] = ground[odd] + 10 * (tuned[odd] - ground[odd])
    flat = tuned[spiky].reshape(-1)
    flat[:60] = ground[spiky].reshape(-1)[:60] + 0.02
    found = {(r.tensor, r.what) for r in risks_of(measured(ground, [tuned]))}
    assert (odd, "relative change") in found
    assert (spiky, "outliers") in found
    assert risks_of(measured(ground, [moved(ground, 0.001, 1)])) == ()


def test_subspaces_shared_and_not() -> None:
    ground = base()
    rng = np.random.default_rng(5)

    def low_rank(seed: int) -> dict[str, np.ndarray]:
        own = np.random.default_rng(seed)
        found = dict(ground)
        for name in ground:
            if "layers" in name:
                m, n = ground[name].shape
                found[name] = ground[name] + (
                    own.normal(size=(m, 10)) @ own.normal(size=(10, n)) * 1e-3
                ).astype(np.float32)
        return found

    same = low_rank(1)
    noisy = {n: (a + rng.normal(size=a.shape) * 1e-5).astype(np.float32) for n, a in same.items()}
    together = facts(ground, [same, noisy]).pairs[0].overlap
    apart = facts(ground, [same, low_rank(2)]).pairs[0].overlap
    assert together is not None
    assert apart is not None
    assert together.matrices == 4
    assert together.left > 0.9
    assert together.right > 0.9
    assert abs(apart.left - apart.chance) < 0.1
    assert apart.chance == pytest.approx(8 * np.mean([1 / 48 + 1 / 48, 1 / 64 + 1 / 48]) / 2)
