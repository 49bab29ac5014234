from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.errors import RecipeError, RefusedError
from deltasmith.merges.fisher import Fisher, FisherAdded
from deltasmith.operation.protocols import Found, Place
from deltasmith.operation.reference import merge_table
from golden_cases import Case, assert_close, cases
from merges import oracles
from merges.examples import rows

FILES = {"m0": "a.safetensors", "m1": "b.safetensors", "m2": "c.safetensors"}


def merged(merge: Any, cells: Any, fishers: Any, weights: Any = None) -> Any:
    def table(rows_: Any) -> list[dict[str, Any]]:
        return [{"w": np.asarray(row, np.float32)} for row in rows_]

    return merge_table(merge, table(cells), weights=weights, statistics=table(fishers))["w"]


def test_by_hand() -> None:
    cells, fishers = [[1.0, 1.0], [4.0, 4.0]], [[3.0, 4.0], [0.0, 1.0]]
    # Norms 5 and 1: (3/5·1 + 0·4) / (3/5), (4/5·1 + 1·4) / (4/5 + 1)
    assert np.allclose(merged(Fisher(statistics=FILES), cells, fishers), [1.0, 4.8 / 1.8])
    assert np.allclose(merged(Fisher(statistics=FILES, norm="none"), cells, fishers), [1.0, 8 / 5])
    assert np.allclose(
        merged(Fisher(statistics=FILES, norm="none"), cells, fishers, [1.0, 4.0]), [1.0, 20 / 8]
    )


def test_where_no_information_exists_the_first_model_or_the_mean_is_taken() -> None:
    cells, none = [[1.0], [4.0]], [[0.0], [0.0]]
    assert merged(Fisher(statistics=FILES), cells, none).tolist() == [1.0]
    assert np.allclose(merged(Fisher(statistics=FILES, floored="all"), cells, none), [2.5])
    assert np.allclose(merged(FisherAdded(statistics=FILES), cells, none), [2.5])
    # With no floor, or no say for the first model, the divisor is 0.
    assert merged(Fisher(statistics=FILES, floor=0.0), cells, none).tolist() == [1.0]
    assert merged(Fisher(statistics=FILES), cells, none, [0.0, 1.0]).tolist() == [1.0]


@given(cells=rows(st.integers(1, 4)), data=st.data(), norm=st.booleans(), everyone=st.booleans())
def test_equals_the_oracle(cells: Any, data: Any, norm: bool, everyone: bool) -> None:
    if cells.size == 0:
        return
    fishers = np.abs(cells[::-1]) / 4
    weights = data.draw(st.lists(st.floats(0.25, 4), min_size=len(cells), max_size=len(cells)))
    merge = Fisher(
        statistics=FILES, norm="l2" if norm else "none", floored="all" if everyone else "first", floor=1e-3
    )
    lifted = [everyone or t == 0 for t in range(len(cells))]
    wanted = oracles.fisher(cells.tolist(), fishers.tolist(), weights, floor=1e-3, lifted=lifted, norm=norm)
    assert np.allclose(merged(merge, cells, fishers, weights), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("record", [Fisher, FisherAdded])
def test_properties(record: Any) -> None:
    rng = np.random.default_rng(0)
    cells, fishers = rng.normal(size=(3, 20)), rng.random((3, 20)) ** 4
    merge = record(statistics=FILES)
    got = merged(merge, cells, fishers, [1.0, 2.0, 0.5])
    assert np.allclose(merged(merge, cells, fishers, [3.0, 6.0, 1.5]), got, rtol=1e-5, atol=1e-6)
    assert (got <= cells.max(axis=0) + 1e-5).all()
    assert (got >= cells.min(axis=0) - 1e-5).all()
    same = np.stack([cells[0]] * 3)
    assert np.allclose(merged(merge, same, fishers), cells[0], rtol=1e-5)
    # The norm makes the unit of a model's Fisher information irrelevant, but for the floor.
    other = fishers * np.array([[1.0], [100.0], [0.1]])
    exact = record(statistics=FILES, floor=0.0)
    assert np.allclose(merged(exact, cells, other), merged(exact, cells, fishers), rtol=1e-4, atol=1e-5)


def test_the_norm_ranges_over_all_tensors() -> None:
    cells = [{n: np.full(2, t, np.float32) for n in "ab"} for t in (0.0, 1.0)]
    fishers = [
        {"a": np.full(2, 1, np.float32), "b": np.full(2, 7, np.float32)},
        {"a": np.full(2, 1, np.float32), "b": np.full(2, 1, np.float32)},
    ]
    got = merge_table(Fisher(statistics=FILES), cells, statistics=fishers)
    # Norms 10 and 2.
    assert np.allclose(got["a"], (1 / 2) / (1 / 10 + 1 / 2))
    assert np.allclose(got["b"], (1 / 2) / (7 / 10 + 1 / 2))


def test_wrong_statistics_are_refused() -> None:
    cells = np.ones((2, 2), np.float32)
    place = Place("w", (2,), weights=(1.0, 1.0), labels=("x", "y"))
    merge = Fisher(statistics={"x": "a", "y": "b"}, norm="none")
    with pytest.raises(RecipeError) as error:
        merge.apply(cells, place, Found())
    assert str(error.value) == "fisher has no statistics in w; give a file per label in `statistics`"
    for diagonal, message in [
        ([1.0, 2.0, 3.0], "the Fisher diagonal has 3 elements where the tensor has 2 in w of x"),
        ([1.0, -1.0], "the Fisher diagonal has a negative or non-finite element in w of x"),
        ([1.0, float("inf")], "the Fisher diagonal has a negative or non-finite element in w of x"),
        ([1.0, float("nan")], "the Fisher diagonal has a negative or non-finite element in w of x"),
    ]:
        given_ = replace(place, statistics=lambda i, suffix, d=diagonal: np.array(d, np.float32))
        with pytest.raises(RefusedError) as refused:
            merge.apply(cells, given_, Found())
        assert str(refused.value).startswith(message)


def test_records_are_hashable_and_compare_by_their_fields() -> None:
    one, same = Fisher(statistics=FILES), Fisher(statistics=dict(reversed(FILES.items())))
    assert len({one, same}) == 1
    assert one != Fisher(statistics=FILES, floored="all")
    assert one != FisherAdded(statistics=FILES)


def test_only_weight_space() -> None:
    assert (Fisher.space, Fisher.spaces) == ("weight", ("weight",))


@pytest.mark.parametrize("case", cases("fisher"), ids=str)
def test_golden(case: Case) -> None:
    params, arrays = case.params, case.arrays
    norm: Any = "l2" if params["normalize"] else "none"
    merge: Fisher | FisherAdded
    if params["code"] == "MergeLM":
        merge = FisherAdded(statistics=FILES, norm=norm, floor=params["minimal_fisher_weight"])
    else:
        floored: Any = "first" if params["favor_target_model"] else "all"
        merge = Fisher(statistics=FILES, norm=norm, floor=params["fisher_floor"], floored=floored)
    models, fishers = oracles.models_of(arrays), oracles.models_of(arrays, "fisher")
    got = merge_table(merge, models, weights=params["coefficients"], statistics=fishers)
    for name, tensor in got.items():
        assert_close(tensor, arrays["expected"][name], case)
