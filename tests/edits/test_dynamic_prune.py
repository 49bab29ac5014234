"""Dynamic pruning: the allocation against loops and the released code, its repairs, and the masks."""

from __future__ import annotations

import edit_oracles as oracles
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from deltasmith.edits.dynamic_prune import (
    DynamicPrune,
    DynamicPruneAbove,
    Linear,
    allocation,
    feasible,
    is_linear,
    layer_densities,
)
from deltasmith.operation.protocols import Place
from deltasmith.operation.reference import _surveyed, edit_table
from deltasmith.table.names import layer_of
from golden_cases import assert_close, cases

ALL = ("*",)


def linears_of(edit, deltas) -> dict[str, Linear]:
    """Return what the edit's own surveys count."""
    counted = {}

    class Spy(type(edit)):
        def _counts(self, linears):
            counted.update(linears)
            return super()._counts(linears)

    spy = Spy(**edit.model_dump())
    _surveyed(spy, {n: [d] for n, d in deltas.items()}, lambda name, span: Place(name, deltas[name].shape))
    return counted


def model(seed: int, sizes=((8, 16), (16, 8), (4, 8)), layers: int = 4) -> dict[str, np.ndarray]:
    """Draw a model whose layers differ in how heavy the tails of their deltas are."""
    rng = np.random.default_rng(seed)
    return {
        f"layers.{layer}.{i}_proj.weight": rng.standard_t(2 + layer, size).astype(np.float32)
        for layer in range(layers)
        for i, size in enumerate(sizes)
    }


@pytest.mark.parametrize("seed", range(5))
def test_allocation_equals_the_loop(seed):
    deltas = model(seed)
    linears = linears_of(DynamicPrune(density=0.3), deltas)
    names = sorted(linears)
    expected = oracles.dp_densities(
        {n: d.reshape(-1).tolist() for n, d in deltas.items()}, {n: layer_of(n) for n in deltas}, 0.3
    )
    got = allocation([linears[n] for n in names], 0.3, 0.08)
    np.testing.assert_allclose(got, [expected[n] for n in names], rtol=1e-12)


DP = [c for c in cases("dppa_dp", "authors") if "FAILS" not in c.note]
FAILING = [c for c in cases("dppa_dp", "authors") if "FAILS" in c.note]


def check_allocation(case, k, layer_k):
    linears = linears_of(DynamicPruneAbove(density=0.5, linears=ALL), case.arrays["delta_0"])
    order, density = case.params["linear_order"], 1.0 - case.params["sparsity"]
    got = layer_densities([linears[n] for n in order], density, case.params["lam"])
    if layer_k is not None:
        assert_close([got["layers", layer] for layer in range(case.params["layers"])], layer_k, case)
    assert_close(allocation([linears[n] for n in order], density, case.params["lam"]), k, case)


@pytest.mark.parametrize("case", [*DP, *FAILING], ids=str)
def test_released_allocation(case):
    check_allocation(case, case.arrays["expected_k"], case.arrays["expected_layer_K"])


@pytest.mark.parametrize("case", cases("dppa_dp_bf16", "authors"), ids=str)
def test_bfloat16_deltas_are_allocated_as_in_float32(case):
    check_allocation(case, case.arrays["expected_k_fp32"], None)


@pytest.mark.parametrize("case", DP, ids=str)
def test_released_masks(case):
    deltas = case.arrays["delta_0"]
    got = edit_table(DynamicPruneAbove(density=1.0 - case.params["sparsity"], linears=ALL), deltas)
    for name, expected in case.arrays["expected_mask"].items():
        np.testing.assert_array_equal(got[name], deltas[name] * expected, err_msg=name)
    counts = [np.count_nonzero(got[n]) for n in case.params["linear_order"]]
    assert counts == case.arrays["expected_count"].tolist()


def test_the_released_code_was_run_where_it_works_and_where_it_fails():
    assert len(DP) == 3
    assert len(FAILING) == 1


@pytest.mark.parametrize("case", FAILING, ids=str)
@pytest.mark.parametrize("record", [DynamicPrune, DynamicPruneAbove])
def test_where_the_released_code_fails_the_total_is_kept(case, record):
    deltas = case.arrays["delta_0"]
    assert (case.arrays["expected_k"] < 0).any()
    got = edit_table(record(density=1.0 - case.params["sparsity"], linears=ALL), deltas)
    total, kept = sum(d.size for d in deltas.values()), sum(np.count_nonzero(a) for a in got.values())
    assert abs(kept - 0.1 * total) <= len(deltas)


def test_exact_counts_and_one_less_above():
    deltas = model(3)
    linears = linears_of(DynamicPrune(density=0.2), deltas)
    names = sorted(linears)
    k = feasible(allocation([linears[n] for n in names], 0.2, 0.08), [linears[n].size for n in names])
    expected = {
        n: linears[n].size - int(np.floor(linears[n].size * (1 - x))) for n, x in zip(names, k, strict=True)
    }
    exact = edit_table(DynamicPrune(density=0.2), deltas)
    assert {n: np.count_nonzero(a) for n, a in exact.items()} == expected
    above = edit_table(DynamicPruneAbove(density=0.2), deltas)
    assert {n: np.count_nonzero(a) for n, a in above.items()} == {n: c - 1 for n, c in expected.items()}


def test_above_drops_ties_and_exact_keeps_the_first():
    # Eight of sixteen: the threshold falls among six equal magnitudes.
    delta = np.array([9, 8, 7, 6, 5, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1], np.float32).reshape(4, 4)
    table = {"layers.0.q_proj.weight": delta}
    exact = edit_table(DynamicPrune(density=0.5), table)["layers.0.q_proj.weight"]
    assert exact.reshape(-1).tolist() == [9, 8, 7, 6, 5, 2, 2, 2] + [0] * 8
    above = edit_table(DynamicPruneAbove(density=0.5), table)["layers.0.q_proj.weight"]
    assert above.reshape(-1).tolist() == [9, 8, 7, 6, 5] + [0] * 11


def test_equal_shares_give_no_offset():
    rng = np.random.default_rng(0)
    one = rng.standard_t(2, (10, 10)).astype(np.float32)
    same = {f"layers.{i}.q_proj.weight": one for i in range(3)}
    single = {"layers.0.q_proj.weight": one}
    flat = {f"layers.{i}.q_proj.weight": np.ones((10, 10), np.float32) for i in range(2)}
    for table in (same, single, flat):
        kept = edit_table(DynamicPrune(density=0.3), table)
        assert {np.count_nonzero(a) for a in kept.values()} == {30}


def test_more_outliers_keep_more():
    rng = np.random.default_rng(1)
    table = {
        "layers.0.q_proj.weight": rng.standard_normal((40, 40)).astype(np.float32),
        "layers.1.q_proj.weight": rng.standard_t(1.5, (40, 40)).astype(np.float32),
    }
    kept = edit_table(DynamicPrune(density=0.3), table)
    # One layer term and one linear term of +-0.08 each.
    assert [np.count_nonzero(kept[n]) for n in sorted(kept)] == [round(1600 * 0.14), round(1600 * 0.46)]


def test_other_tensors_are_untouched():
    table = model(0) | {
        "model.embed_tokens.weight": np.ones((4, 4), np.float32),
        "layers.0.norm.weight": np.ones(4, np.float32),
        "layers.0.conv_proj.weight": np.ones((2, 2, 2), np.float32),
        "lm_head_proj.weight": np.ones((4, 4), np.float32),
        "layers.0.mlp.w1.weight": np.ones((4, 4), np.float32),
    }
    edited = edit_table(DynamicPrune(density=0.2), table)
    alone = edit_table(DynamicPrune(density=0.2), model(0))
    for name in table:
        np.testing.assert_array_equal(edited[name], alone.get(name, table[name]), err_msg=name)
    globbed = edit_table(DynamicPrune(density=0.2, linears=("*.w1.weight",)), table)
    assert np.count_nonzero(globbed["layers.0.mlp.w1.weight"]) < 16


@pytest.mark.parametrize(
    ("name", "shape", "globs", "linear"),
    [
        ("model.layers.3.self_attn.q_proj.weight", (4, 4), (), True),
        ("model.layers.3.self_attn.q_proj.bias", (4,), (), False),
        ("model.layers.3.mlp.w1.weight", (4, 4), (), False),
        ("model.layers.3.mlp.w1.weight", (4, 4), ("*.w?.weight",), True),
        ("model.embed_proj.weight", (4, 4), ("*",), False),
        ("model.layers.3.experts.down_proj.weight", (2, 4, 4), (), False),
    ],
)
def test_which_tensors_are_linears(name, shape, globs, linear):
    assert is_linear(name, shape, globs) is linear


RATIOS = hnp.arrays(np.float64, st.integers(1, 8), elements=st.floats(-0.5, 1.5))


@settings(deadline=None)
@given(RATIOS, st.data())
def test_feasible_keeps_the_total_and_the_order(densities, data):
    sizes = data.draw(hnp.arrays(np.int64, densities.size, elements=st.integers(1, 1000)))
    got = feasible(densities, sizes)
    assert ((got >= 0.0) & (got <= 1.0)).all()
    wanted = min(max(float(densities @ sizes), 0.0), float(sizes.sum()))
    assert got @ sizes == pytest.approx(wanted, rel=1e-9, abs=1e-6)
    assert (np.diff(got[np.argsort(densities)]) >= 0).all()
    if (densities >= 0).all() and (densities <= 1).all():
        np.testing.assert_array_equal(got, densities)


def test_the_excess_is_spread_by_size():
    got = feasible(np.array([-0.06, 0.1, 0.2]), [100, 300, 100])
    # Six elements too many are taken from 400: 0.015 of each.
    np.testing.assert_allclose(got, [0.0, 0.085, 0.185], rtol=1e-12)


@pytest.mark.parametrize(
    "fields", [{"density": 0.0}, {"spread": -0.1}, {"layer_factor": 0.0}, {"linear_factor": -1.0}]
)
def test_impossible_settings_are_refused(fields):
    with pytest.raises(ValidationError, match=next(iter(fields))):
        DynamicPrune(**({"density": 0.2} | fields))


def test_a_model_without_linears_is_untouched():
    table = {"w": np.arange(5, dtype=np.float32)}
    np.testing.assert_array_equal(edit_table(DynamicPrune(density=0.2), table)["w"], table["w"])
