"""EMR as it is stored: the authors' unified vector and masks, bit for bit, and what they rebuild."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from deltasmith.codecs.emr import Emr, mask_block, unified_block
from deltasmith.codecs.protocol import Cell, Held
from deltasmith.errors import RecipeError
from deltasmith.kernels.sign_bits import unpack_flags
from deltasmith.merges.emr import RESCALERS
from deltasmith.surveys.sums import Totals
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES
from golden_cases import Case, assert_close, cases


def packed(case: Case) -> tuple[Any, Any, Any]:
    """Return what a packer makes of a case: unified vectors, and bits and sums of every task, by tensor."""
    arrays = case.arrays
    deltas = [
        {name: arrays[f"ft_{t}"][name] - base for name, base in arrays["base"].items()}
        for t in range(case.params["tasks"])
    ]
    unified = {name: unified_block(np.stack([d[name].reshape(-1) for d in deltas])) for name in deltas[0]}
    masks = [{n: mask_block(unified[n], d[n].reshape(-1)) for n in d} for d in deltas]
    return deltas, unified, masks


def cell_of(delta: Any, dtype: str = "float32") -> Cell:
    return Cell(Spec("w", delta.shape, DTYPES[dtype]))


@pytest.mark.parametrize("case", cases("emr"), ids=str)
def test_golden_unified_vector_masks_and_models(case: Case) -> None:
    arrays = case.arrays
    deltas, unified, masks = packed(case)
    for name, vector in unified.items():
        expected = arrays["expected_unified"][name].reshape(-1)
        assert (vector + 0.0).tobytes() == (expected + 0.0).tobytes()  # theirs may be -0.0
    for task, delta in enumerate(deltas):
        for name, tensor in delta.items():
            bits = unpack_flags(masks[task][name][0], 0, tensor.size).reshape(tensor.shape)
            assert np.array_equal(bits, arrays[f"expected_mask_{task}"][name])
    for task in range(len(deltas)):
        sums = Totals({n: s.sum(axis=0)[:5] for n, (_, s) in masks[task].items()})
        assert_close(RESCALERS["l1"](sums), arrays["expected_rescaler_paper"][task], case)
        assert_close(RESCALERS["l1_tensor_mean"](sums), arrays["expected_rescaler_tensor_mean"][task], case)
        assert_close(RESCALERS["l2"](sums), arrays["expected_rescaler_l2"][task], case)
    rescaler = RESCALERS["l1_tensor_mean"](Totals({n: s.sum(axis=0)[:5] for n, (_, s) in masks[0].items()}))
    for name, tensor in deltas[0].items():
        stored = {
            "unified": unified[name].reshape(tensor.shape),
            "mask": masks[0][name][0],
            "rescaler": np.float32([rescaler]),
        }
        rebuilt = Emr().decode(stored, cell_of(tensor))
        assert_close(arrays["base"][name] + rebuilt, arrays["expected_recon_0"][name], case)
        total = masks[0][name][1].sum(axis=0)
        told = total[5] - 2 * rescaler * total[2] + rescaler**2 * total[3]
        assert told == pytest.approx(np.sum((rebuilt.astype(np.float64) - tensor) ** 2), rel=1e-5)


def stored(shape: tuple[int, ...] = (37, 19), dtype: Any = np.float32) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    deltas = (rng.standard_normal((3, *shape)) * 1e-3).astype(np.float32)
    unified = unified_block(deltas.reshape(3, -1))
    mask, _ = mask_block(unified, deltas[1].reshape(-1))
    arrays = {
        "unified": unified.astype(dtype).reshape(shape),
        "mask": mask,
        "rescaler": np.float32([0.8]),
    }
    kept = np.where(unified * deltas[1].reshape(-1) > 0, unified, 0).reshape(shape)
    return arrays, kept, cell_of(deltas[1])


@pytest.mark.parametrize(("dtype", "error"), [("float32", 0), ("bfloat16", 2**-8), ("float16", 2**-10)])
def test_any_stored_type_decodes_any_range(dtype: str, error: float) -> None:
    arrays, kept, cell = stored(dtype=ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    whole = Emr(dtype=dtype).decode(arrays, cell)
    wanted = kept * np.float32(0.8)
    assert np.array_equal(whole == 0, wanted == 0)
    assert (np.abs(whole - wanted) <= error * np.abs(wanted)).all()
    decoder = Emr().decoder(cell, Held(arrays))
    for start, stop in [(0, 1), (5, 300), (9, 9), (702, 703)]:
        out = np.empty(stop - start, np.float32)
        decoder.read(start, out)
        assert np.array_equal(out, whole.reshape(-1)[start:stop])


def test_one_model_alone_cannot_be_coded() -> None:
    with pytest.raises(
        RecipeError, match="needs all models at once in w; give them together: `deltasmith pack"
    ):
        Emr().encode(np.ones(3, np.float32), cell_of(np.ones(3)))


def test_the_unified_vector_takes_the_models_type_unless_told() -> None:
    kinds = {d: Emr().stored_type(cell_of(np.ones(3), d)) for d in ("bfloat16", "float16", "float64")}
    assert kinds == {"bfloat16": "bfloat16", "float16": "float16", "float64": "float32"}
    assert Emr(dtype="float16").stored_type(cell_of(np.ones(3))) == "float16"


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        ({"unified": np.zeros((37, 18), np.float32)}, "unified is float32 of shape"),
        ({"unified": np.zeros((37, 19), np.int32)}, "unified is int32"),
        ({"mask": np.zeros(8, np.uint8)}, "mask is uint8 of shape"),
        ({"rescaler": np.float32([np.inf])}, "rescaler is not finite"),
    ],
)
def test_what_is_wrong_with_arrays_is_said(spoiled: Any, message: str) -> None:
    arrays, _, cell = stored()
    with pytest.raises(ValueError, match=message):
        Emr().decode({**arrays, **spoiled}, cell)
    for name in arrays:
        with pytest.raises(ValueError, match=f"{name} is missing"):
            Emr().decode({k: v for k, v in arrays.items() if k != name}, cell)


def test_where_votes_cancel_the_most_negative_is_taken() -> None:
    deltas = np.array([[2.0, 0.0, -1.0], [-2.0, 0.0, 3.0]], np.float32)
    unified = unified_block(deltas)
    assert unified.tolist() == [-2.0, 0.0, 3.0]
    assert unpack_flags(mask_block(unified, deltas[0])[0], 0, 3).tolist() == [False, False, False]
    assert unpack_flags(mask_block(unified, deltas[1])[0], 0, 3).tolist() == [True, False, True]
