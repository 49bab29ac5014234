from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from deltasmith.merges.pcb import Clip, Pcb, PcbPairwise, PcbSigned, Window
from deltasmith.operation.reference import merge_table
from golden_cases import Case, assert_close, cases
from merges import oracles
from merges.examples import rows

VARIANTS: dict[str, Any] = {"a": Pcb, "b": PcbSigned, "c": PcbPairwise}


def merged(merge: Any, cells: Any, weights: Any = None) -> Any:
    return merge_table(merge, [{"w": np.asarray(c, np.float32)} for c in cells], weights=weights)["w"]


def test_clip_and_window() -> None:
    clip = Clip(1.0, 3.0)
    delta = np.array([-0.5, 2.0, -9.0], np.float32)
    assert clip(delta).tolist() == [1.0, 2.0, 3.0]
    assert clip.normalise(delta).tolist() == [0.0, 0.5, 1.0]
    assert Clip(2.0, 2.0).normalise(delta).tolist() == [0.0, 0.0, 0.0]
    assert Window(-1.0, 1.0)(np.array([-2.0, 0.0, 1.0], np.float32)).tolist() == [0.0, 0.5, 1.0]
    assert Window(1.0, 1.0)(np.array([0.5, 1.0], np.float32)).tolist() == [0.0, 1.0]


def test_by_hand() -> None:
    # Ratio 0.5 lets the upper two scores compete, and the lower of them maps to 0: only the last position is
    # left, with s = 1 for both models. Σ w·clipped δ / Σ s = (1 + 3)·δ / 2, δ being 0.04, or 0.03 when trim
    # clips the largest magnitude to element int(4·0.75 − 1) = 2 of those sorted.
    cells = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]]) * 0.01
    assert np.allclose(merged(Pcb(ratio=0.5, trim=0.0), cells, [1.0, 3.0]), [0.0, 0.0, 0.0, 0.08])
    # Then both of the upper two have norm 1, and differ by their tanh alone.
    assert np.allclose(merged(Pcb(ratio=0.5, trim=0.25), cells, [1.0, 3.0]), [0.0, 0.0, 0.0, 0.06])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("ratio", "trim"), [(0.3, 0.0), (0.9, 0.1), (1.0, 0.4), (0.05, 1e-4)])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 50])
def test_equals_the_oracle(variant: str, ratio: float, trim: float, size: int) -> None:
    cells = np.random.default_rng(size).normal(size=(3, size)).astype(np.float32)
    weights = [1.0, 0.5, 1.5]
    got = merged(VARIANTS[variant](ratio=ratio, trim=trim), cells, weights)
    assert np.allclose(got, oracles.pcb(cells.tolist(), weights, ratio, trim, variant), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=40)
@given(cells=rows(st.integers(1, 4)), ratio=st.sampled_from([0.1, 0.5, 1.0]))
def test_ties_and_zeros_give_finite_bounded_results(variant: str, cells: Any, ratio: float) -> None:
    got = merged(VARIANTS[variant](ratio=ratio, trim=0.01), cells)
    assert got.shape == cells.shape[1:]
    assert (np.abs(got) <= np.abs(cells).max(initial=0) * len(cells) + 1e-6).all()


def test_quantiles_range_over_all_tensors_and_blocks() -> None:
    rng = np.random.default_rng(7)
    columns = [
        {"w": rng.normal(size=(70, 1000)).astype(np.float32), "b": rng.normal(size=9).astype(np.float32)}
        for _ in range(2)
    ]
    got = oracles.flat(merge_table(PcbPairwise(ratio=0.1), columns))
    wanted = oracles.pcb([oracles.flat(c).tolist() for c in columns], [1.0, 1.0], 0.1, 1e-2, "c")
    # Near a window's lower end s is almost 0, and so is Σ s: compare the rest.
    clear = np.abs(got) > 1e-3
    assert clear.sum() > 5000
    assert np.allclose(got[clear], np.array(wanted)[clear], rtol=1e-2, atol=1e-3)


def test_identical_models_give_that_model_clipped() -> None:
    delta = np.array([0.1, -0.2, 0.3, 0.0, 0.25], np.float32)
    assert np.allclose(merged(PcbPairwise(ratio=1.0, trim=0.0), [delta, delta]), delta)
    got = merged(PcbPairwise(ratio=1.0, trim=1e-4), [delta, delta])
    assert np.allclose(got, [0.1, -0.2, 0.25, 0.0, 0.25])


@pytest.mark.parametrize("variant", VARIANTS)
def test_degenerate_tables(variant: str) -> None:
    merge = VARIANTS[variant]()
    assert merged(merge, np.zeros((2, 6))).tolist() == [0.0] * 6
    assert merged(merge, [[2.0], [2.0]]).tolist() == [2.0]
    assert merge_table(merge, [{"w": np.zeros((0, 3), np.float32)}] * 2)["w"].shape == (0, 3)
    assert merge_table(merge, [{"s": np.float32(3).reshape(())}])["s"].tolist() in (3.0, [3.0])


def test_many_models_do_not_overflow() -> None:
    # exp(T · norm²) itself is infinite in float32 from 89 models on.
    cells = np.random.default_rng(0).normal(size=(100, 20)).astype(np.float32)
    assert np.isfinite(merged(PcbPairwise(ratio=0.5), cells)).all()


def test_fields_are_checked() -> None:
    for fields in ({"ratio": 0.0}, {"ratio": 1.5}, {"trim": 0.5}, {"trim": -0.1}):
        with pytest.raises(ValidationError):
            Pcb(**fields)


@pytest.mark.parametrize("case", cases("pcb"), ids=str)
def test_golden(case: Case) -> None:
    arrays = case.arrays
    record = VARIANTS[case.params["variant"][0]]
    deltas = arrays["delta_flat"]
    got = merged(
        record(ratio=case.params["ratio"], trim=case.params["clamp"]),
        deltas,
        [case.params["lam"]] * len(deltas),
    )
    assert_close(got, arrays["expected"], case)
