"""BitDelta and its sampled kin: the papers' numbers, the released code's arrays, and streaming like in one piece."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from deltasmith.codecs.bitdelta import BitDelta
from deltasmith.codecs.bitdelta_random import BitDeltaRandom
from deltasmith.codecs.protocol import Cell, Codec, Held
from deltasmith.kernels.sign_bits import PIECE, released_mask, released_words, unpack_flags
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES
from golden_cases import Case, assert_close, cases


def cell_of(shape: tuple[int, ...], key: int = 7, name: str = "w") -> Cell:
    return Cell(Spec(name, shape, DTYPES["float32"]), key=key)


def round_trip(codec: Codec, delta: Any, key: int = 7) -> Any:
    cell = cell_of(delta.shape, key)
    return codec.decode(codec.encode(delta, cell), cell)


def relative(codec: Codec, delta: Any) -> float:
    again = round_trip(codec, delta).astype(np.float64)
    return float(np.linalg.norm(again - delta) / np.linalg.norm(delta.astype(np.float64)))


def deltas(kind: str, shape: tuple[int, ...] = (700, 1000)) -> Any:
    rng = np.random.default_rng(0)
    drawn = {
        "gaussian": rng.standard_normal,
        "laplace": lambda size: rng.laplace(size=size),
        "uniform": lambda size: rng.uniform(-1, 1, size=size),
    }[kind](shape)
    return (drawn * 1e-3).astype(np.float32)


# --- by hand


@pytest.mark.parametrize(("zero", "becomes"), [("minus", -2.0), ("plus", 2.0), ("zero", 0.0)])
def test_signs_and_their_mean_by_hand(zero: str, becomes: float) -> None:
    delta = np.array([[1.0, -2.0, 0.0, 5.0, -0.0, -4.0]], np.float32)
    assert round_trip(BitDelta(zero=zero), delta).tolist() == [[2, -2, becomes, 2, becomes, -2]]
    tripled = round_trip(BitDelta(zero=zero, magnitude=3), delta)
    assert tripled.tolist() == [[6, -6, 3 * becomes, 6, 3 * becomes, -6]]


def test_rows_are_output_units() -> None:
    delta = np.arange(-11, 13, dtype=np.float32).reshape(2, 3, 4)
    codec = BitDelta(scale="row")
    assert codec.encode(delta, cell_of((2, 3, 4)))["scale"].tolist() == [5.5, 6.5]
    experts = codec.encode(delta, cell_of((2, 3, 4), name="model.experts.up"))
    assert experts["scale"].tolist() == np.abs(delta).mean(axis=2).reshape(-1).tolist()
    assert codec.encode(delta.reshape(-1), cell_of((24,)))["scale"].tolist() == [6.0]


def test_sizes() -> None:
    arrays = BitDelta().encode(deltas("gaussian"), cell_of((700, 1000)))
    assert {name: array.nbytes for name, array in arrays.items()} == {"signs": 87_504, "scale": 4}
    some = BitDelta(zero="zero").encode(deltas("gaussian"), cell_of((700, 1000)))
    assert some["zeros"].nbytes == 0
    delta = deltas("gaussian")
    delta[400, 7] = 0
    assert BitDelta(zero="zero").encode(delta, cell_of((700, 1000)))["zeros"].nbytes == PIECE // 8


# --- the papers


@pytest.mark.parametrize(("kind", "error"), [("gaussian", 0.6028), ("laplace", 0.7071), ("uniform", 0.5)])
def test_relative_errors(kind: str, error: float) -> None:
    delta = deltas(kind)
    assert relative(BitDelta(), delta) == pytest.approx(error, abs=1.5e-3)
    best = relative(BitDelta(), delta)
    assert all(relative(BitDelta(magnitude=c), delta) > best for c in (0.9, 1.1))


@pytest.mark.parametrize("case", cases("bitdelta"), ids=str)
def test_golden_released_code(case: Case) -> None:
    arrays = case.arrays
    delta = arrays["ft_0"] - arrays["base"]
    cell = cell_of(delta.shape)
    codec = BitDelta(zero="plus")
    stored = codec.encode(delta, cell)
    mask = unpack_flags(stored["signs"], 0, delta.size).reshape(delta.shape).T
    assert np.array_equal(mask, arrays["expected_mask_bool"])
    assert np.array_equal(released_words(mask), arrays["expected_mask_packed"])
    assert np.array_equal(released_mask(arrays["expected_mask_packed"]), mask)
    assert_close(stored["scale"][0], arrays["expected_coeff_fp32"], case)
    # The released code subtracts in the models' type before anything else.
    rounded = delta.astype(ml_dtypes.bfloat16 if case.params["dtype"] == "bfloat16" else np.float32)
    theirs = codec.encode(rounded.astype(np.float32), cell)
    assert_close(theirs["scale"][0], arrays["expected_coeff"], case)
    near = codec.decode(theirs, cell)
    assert_close(arrays["base"] + near, arrays["expected_recon"], case)
    x = arrays["x"].astype(np.float64)
    assert_close(x @ (arrays["base"].astype(np.float64) + near).T, arrays["expected_y"], _looser(case))


def _looser(case: Case) -> Case:
    """Allow a float32 product of dozens of terms its rounding."""
    return Case(**{**case.__dict__, "tolerance": {"rtol": 3e-6, "atol": 1e-6}})


def test_the_golden_cases_have_zeros_and_both_types() -> None:
    assert {c.params["dtype"] for c in cases("bitdelta")} == {"float32", "bfloat16"}
    assert any(((c.arrays["ft_0"] - c.arrays["base"]) == 0).any() for c in cases("bitdelta"))


@pytest.mark.parametrize("case", cases("bitdelta_degenerate"), ids=str)
def test_golden_magnitude_factor(case: Case) -> None:
    delta = case.arrays["delta_0"]
    for i, factor in enumerate(case.params["cs"]):
        got = round_trip(BitDelta(zero="zero", magnitude=factor), delta)
        assert_close(got, case.arrays[f"expected_c_{i}"], case)


# --- streaming


@pytest.mark.parametrize(
    "codec",
    [
        BitDelta(),
        BitDelta(zero="zero", scale="row"),
        BitDelta(zero="plus", scale="row"),
        BitDeltaRandom(zero="zero"),
    ],
    ids=str,
)
def test_blocks_and_ranges_over_several_blocks(codec: Any) -> None:
    shape = (1031, 2100)  # two blocks and a bit; rows end inside blocks and pieces
    delta = deltas("gaussian", shape)
    delta[delta > 0.0015] = 0
    delta[32:400] += np.float32(1e-5)
    cell = cell_of(shape)
    encoder, flat = codec.encoder(cell), delta.reshape(-1)
    cuts = list(range(0, flat.size, encoder.block))
    assert len(cuts) == 3
    coded = {at: encoder.encode(at, flat[at : at + encoder.block].copy()) for at in reversed(cuts)}
    whole = codec.encode(delta, cell)
    for stream in encoder.streams:
        joined = b"".join(bytes(coded[at].parts[stream.name]) for at in cuts)
        assert joined == whole[stream.name].tobytes()
    ending = encoder.finish([coded[at].tally for at in cuts])
    again = codec.decode(whole, cell).astype(np.float64)
    assert ending.squared_error == pytest.approx(np.sum((again - delta) ** 2), rel=1e-6)
    assert ending.squared_norm == pytest.approx(np.sum(delta.astype(np.float64) ** 2), rel=1e-12)
    if codec.zero == "zero":
        assert (again[delta == 0] == 0).all()
        assert isinstance(codec, BitDeltaRandom) or (again[delta != 0] != 0).all()
    decoder = codec.decoder(cell, Held(whole))
    for start, stop in [(encoder.block - 3, encoder.block + 70_001), (PIECE - 1, PIECE + 1), (1, flat.size)]:
        out = np.empty(stop - start, np.float32)
        decoder.read(start, out)
        assert np.array_equal(out, again.reshape(-1)[start:stop].astype(np.float32))


def test_the_mean_is_that_of_float64() -> None:
    delta = deltas("gaussian", (1500, 1500))
    scale = BitDelta().encode(delta, cell_of(delta.shape))["scale"]
    assert scale[0] == np.float32(np.abs(delta.astype(np.float64)).mean())
    rows = BitDelta(scale="row").encode(delta, cell_of(delta.shape))["scale"]
    assert np.array_equal(rows, np.abs(delta.astype(np.float64)).mean(axis=1).astype(np.float32))
    assert rows.shape == (1500,)


def test_a_row_of_its_own_scale_is_nearer() -> None:
    delta = deltas("gaussian") * np.linspace(0.1, 3, 700, dtype=np.float32)[:, None]
    assert relative(BitDelta(scale="row"), delta) == pytest.approx(0.6028, abs=2e-3)
    assert relative(BitDelta(), delta) > 0.7


def test_extremes_do_not_overflow() -> None:
    delta = np.full(70_000, 3e38, np.float32)
    delta[::2] *= -1
    assert np.array_equal(round_trip(BitDelta(), delta), delta)
    assert np.isfinite(round_trip(BitDelta(magnitude=4), delta)).all()
    tiny = np.full(9, 1e-45, np.float32)
    assert np.array_equal(round_trip(BitDelta(), tiny), tiny)


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        (
            {"signs": np.zeros(8, np.uint8)},
            r"signs is uint8 of shape \(8,\) instead of uint8 of shape \(16,\)",
        ),
        ({"signs": np.zeros(16, np.int8)}, "signs is int8"),
        ({"scale": np.float32([np.nan])}, "scale is not finite"),
        ({"scale": np.float32([1, 2])}, "scale is float32 of shape"),
        ({"zeros": np.zeros(9, np.uint8)}, "zeros is uint8 of shape"),
        ({"zero_pieces": np.zeros(2, np.uint8)}, "zero_pieces is"),
    ],
    ids=lambda x: str(x)[:20],
)
def test_what_is_wrong_with_arrays_is_said(spoiled: Any, message: str) -> None:
    delta = np.zeros(100, np.float32)
    codec, cell = BitDelta(zero="zero"), cell_of((100,))
    with pytest.raises(ValueError, match=message):
        codec.decode({**codec.encode(delta, cell), **spoiled}, cell)


# --- sampled magnitudes


@pytest.mark.parametrize(
    ("distribution", "spread", "deviation"),
    [("normal", 0.5, 0.4879), ("uniform", 0.5, 0.5), ("normal", 0.0, 0.0), ("uniform", 1.0, 0.8660)],
)
def test_drawn_magnitudes_have_the_mean_and_keep_the_signs(
    distribution: Any, spread: float, deviation: float
) -> None:
    delta = deltas("gaussian")
    again = round_trip(BitDeltaRandom(distribution=distribution, spread=spread), delta).astype(np.float64)
    mean = np.abs(delta.astype(np.float64)).mean()
    assert np.abs(again).mean() == pytest.approx(mean, rel=2e-3)
    assert (np.sign(again) * np.sign(delta) >= 0).all()
    wanted = deviation if (distribution, spread) != ("uniform", 1.0) else None
    got = np.abs(again).std() / mean
    if wanted is not None:
        assert got == pytest.approx(wanted, rel=5e-3, abs=1e-6)
    else:  # clipped below 0: narrower than asked for
        assert 0.8 < got < 1


def test_the_normal_draws_are_normal() -> None:
    delta = np.ones((300, 1000), np.float32)
    drawn = np.sort(round_trip(BitDeltaRandom(spread=0.2), delta).reshape(-1))
    from statistics import NormalDist

    for place in (0.02, 0.2, 0.5, 0.8, 0.98):
        wanted = 1 + 0.2 * NormalDist().inv_cdf(place)
        assert drawn[int(place * drawn.size)] == pytest.approx(wanted, abs=4e-3)


def test_draws_follow_the_stored_key_and_not_the_cell() -> None:
    delta = deltas("gaussian", (40, 50))
    codec = BitDeltaRandom()
    arrays = codec.encode(delta, cell_of((40, 50), key=2**64 - 1))
    assert arrays["key"].tolist() == [2**64 - 1]
    one = codec.decode(arrays, cell_of((40, 50), key=0))
    assert np.array_equal(one, codec.decode(arrays, cell_of((40, 50), key=5)))
    other = round_trip(codec, delta, key=6)
    assert not np.array_equal(one, other)
    assert np.abs(np.corrcoef(np.abs(one).ravel(), np.abs(other).ravel())[0, 1]) < 0.1


def test_no_spread_is_bitdelta() -> None:
    delta = deltas("laplace")
    assert np.array_equal(round_trip(BitDeltaRandom(spread=0), delta), round_trip(BitDelta(), delta))


def test_bounds() -> None:
    assert BitDelta().bound == BitDelta(magnitude=2).bound == 1
    assert BitDelta(magnitude=3).bound == 2
    assert BitDeltaRandom(distribution="uniform", spread=0).bound == pytest.approx(np.sqrt(2))
    flat = np.ones(4096, np.float32)  # the bound of a factor of 3 is reached where all magnitudes are equal
    assert relative(BitDelta(magnitude=3), flat) == pytest.approx(2)
