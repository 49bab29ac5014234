"""Low rank: the truncation error of Eckart and Young, targets, stacks, element types, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from deltasmith.codecs.low_rank import LowRank, stack_shape
from deltasmith.codecs.protocol import Cell, Held
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES

RNG = np.random.default_rng(6)


def cell(shape, name="model.layers.0.mlp.up_proj.weight", dtype="float32"):
    return Cell(Spec(name, shape, DTYPES[dtype]), key=5)


def noise(*shape):
    return RNG.normal(size=shape).astype(np.float32) * 1e-3


def relative(codec, values, where):
    again = codec.decode(codec.encode(values, where), where)
    return np.linalg.norm((again - values).astype(np.float64)) / np.linalg.norm(values.astype(np.float64))


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (24, 24)])
@pytest.mark.parametrize("rank", [1, 7, 23])
def test_truncation_leaves_what_eckart_and_young_say(shape, rank):
    values = noise(*shape)
    spectrum = np.linalg.svd(values.astype(np.float64), compute_uv=False)
    least = np.sqrt((spectrum[rank:] ** 2).sum() / (spectrum**2).sum())
    assert relative(LowRank(rank=rank, dtype="float32"), values, cell(shape)) == pytest.approx(
        least, rel=1e-4
    )


@pytest.mark.parametrize(
    ("dtype", "unit"), [("float32", 2.0**-24), ("float16", 2.0**-11), ("bfloat16", 2.0**-8)]
)
def test_at_full_rank_only_rounding_is_left(dtype, unit):
    error = relative(LowRank(rank=40, dtype=dtype), noise(40, 60), cell((40, 60)))
    assert 0.2 * unit < error < 3 * unit
    assert error < LowRank(error=1e-6, dtype=dtype).bound


def test_the_bound_holds_where_the_error_alone_would_not():
    values = np.outer(noise(64), noise(48)).astype(np.float32)
    codec = LowRank(error=1e-4)
    assert 1e-4 < relative(codec, values, cell((64, 48))) < codec.bound
    assert LowRank(error=0.999).bound == 1.0
    assert LowRank(rank=3).bound == LowRank(error=0.1, max_rank=3).bound == 1.0


def test_energy_and_error_are_two_words_for_one_thing():
    values = noise(40, 60)
    one, two = (LowRank(**f).encode(values, cell((40, 60))) for f in ({"energy": 0.75}, {"error": 0.5}))
    assert one["left"].shape == two["left"].shape
    assert relative(LowRank(energy=0.75), values, cell((40, 60))) < 0.5 + 3 * 2.0**-8
    assert LowRank(energy=0.75).bound == LowRank(error=0.5).bound


def test_max_rank_wins():
    arrays = LowRank(error=0.01, max_rank=5).encode(noise(40, 60), cell((40, 60)))
    assert (arrays["left"].shape, arrays["right"].shape) == ((40, 5), (5, 60))


def test_experts_share_a_rank_and_their_error():
    where = cell((3, 16, 24), "model.layers.0.mlp.experts.gate_up_proj")
    values = noise(3, 16, 24)
    values[1] *= 1e-3
    arrays = LowRank(error=0.3, dtype="float32").encode(values, where)
    rank = arrays["left"].shape[2]
    assert (arrays["left"].shape, arrays["right"].shape) == ((3, 16, rank), (3, rank, 24))
    spectra = np.linalg.svd(values.astype(np.float64), compute_uv=False)
    assert rank == int(
        np.argmax([(spectra[:, r:] ** 2).sum() <= 0.09 * (spectra**2).sum() for r in range(17)])
    )
    whole = LowRank(rank=16, dtype="float32")
    assert relative(whole, values, where) < 1e-5


def test_other_tensors_are_one_matrix():
    assert stack_shape("conv.weight", (8, 3, 2, 2)) == (1, 8, 12)
    for shape in [(8, 3, 2, 2), (8, 3, 4), (1, 1, 1)]:
        where = cell(shape, "conv.weight")
        assert relative(LowRank(rank=8, dtype="float32"), noise(*shape), where) < 1e-5
        assert LowRank(rank=2).encode(noise(*shape), where)["left"].ndim == 2


def test_zeros_take_no_triplets():
    arrays = LowRank(rank=4).encode(np.zeros((6, 5), np.float32), cell((6, 5)))
    assert (arrays["left"].shape, arrays["right"].shape) == ((6, 0), (0, 5))
    assert not LowRank(rank=4).decode(arrays, cell((6, 5))).any()


@pytest.mark.parametrize("scale", [1e-12, 1e18])
def test_float16_refuses_what_its_range_would_spoil(scale):
    values = (noise(20, 30) * scale).astype(np.float32)
    with pytest.raises(ValueError, match="take dtype=bfloat16"):
        LowRank(rank=4, dtype="float16").encode(values, cell((20, 30)))
    assert relative(LowRank(rank=20), values, cell((20, 30))) < 3 * 2.0**-8


def test_values_that_are_not_finite_are_refused():
    values = noise(6, 5)
    values[2, 2] = np.inf
    with pytest.raises(ValueError, match="do not converge"):
        LowRank(rank=2).encode(values, cell((6, 5)))


def test_what_is_no_matrix_is_refused():
    assert LowRank(rank=2).refusal(cell((6,))) == "it is no matrix"
    assert LowRank(rank=2).refusal(cell(())) == "it is no matrix"
    assert LowRank(rank=2).refusal(cell((6, 5), dtype="int32")) == "its elements are int32"
    assert not LowRank(rank=2).refusal(cell((6, 5)))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rank": 2, "error": 0.1},
        {"energy": 0.5, "error": 0.1},
        {"rank": 2, "max_rank": 3},
        {"rank": 0},
        {"error": 0},
        {"error": 1},
        {"energy": 1.5},
        {"rank": 2, "dtype": "int8"},
    ],
)
def test_fields_that_do_not_go_together(fields):
    with pytest.raises(ValidationError):
        LowRank(**fields)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("left", lambda a: a[:-1]),
        ("left", lambda a: a[:, :-1]),
        ("right", lambda a: a[:, :-1]),
        ("right", lambda a: a.astype(np.float64)),
        ("left", lambda a: a[None]),
    ],
)
def test_factors_that_do_not_fit(name, change):
    arrays = LowRank(rank=3).encode(noise(6, 5), cell((6, 5)))
    with pytest.raises(ValueError, match="factors of"):
        LowRank(rank=3).decode({**arrays, name: change(arrays[name])}, cell((6, 5)))
    with pytest.raises(ValueError, match="not all of its arrays"):
        LowRank(rank=3).decode({**arrays, "more": arrays["left"]}, cell((6, 5)))


def test_ranges_within_and_across_experts_are_those_of_the_whole():
    where = cell((3, 7, 5), "mlp.experts.w1")
    codec = LowRank(rank=2)
    arrays = codec.encode(noise(3, 7, 5), where)
    whole = codec.decode(arrays, where).reshape(-1)
    dense = arrays["left"].astype(np.float64) @ arrays["right"].astype(np.float64)
    assert np.allclose(whole, dense.reshape(-1), rtol=1e-5, atol=1e-9)
    decoder = codec.decoder(where, Held(arrays))
    for start in range(0, 105, 4):
        for stop in range(start, 106, 7):
            out = np.empty(stop - start, np.float32)
            decoder.read(start, out)
            assert out.tobytes() == whole[start:stop].tobytes()


def test_the_memory_it_announces_covers_a_whole_decomposition():
    small, large = (LowRank(rank=r).workspace(cell((1024, 1024))) for r in (8, 1024))
    assert 4 * 8 * 2048 < small < 4 * 1024 * 1024
    assert large > 4 * (1024 * 1024 * 2)
