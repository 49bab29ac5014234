"""What every codec must do, whatever else it does."""

from __future__ import annotations

import contextlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from codecs_examples import TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st

from deltasmith.codecs.catalogue import CODECS, codec_from, codec_name, codec_text, codec_tree
from deltasmith.codecs.protocol import Cell, Codec, Held, read_any
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES

SHAPES = [(64, 48), (7, 33), (1, 5), (130,), (1,), (), (0, 4), (3, 16, 24)]


def cell_of(codec: Codec, shape: tuple[int, ...]) -> Cell:
    dtype = DTYPES["bfloat16" if codec.domain == "stored" else "float32"]
    name = "model.layers.0.mlp.experts.up_proj.weight"
    return Cell(Spec(name, shape, dtype), Spec(name, shape, dtype), key=11)


def drawn(codec: Codec, shape: tuple[int, ...], seed: int) -> tuple[Any, Any]:
    """Return values (and predictions) of a tensor, with zeros among them."""
    random = np.random.default_rng(seed)
    delta = (random.standard_normal(shape) * random.standard_normal(shape) * 1e-3).astype(np.float32)
    delta = np.where(random.random(shape) < 0.2, np.float32(0), delta)
    if codec.domain != "stored":
        return np.asarray(delta, np.float32), None
    base = random.standard_normal(shape).astype(ml_dtypes.bfloat16)
    model = (base.astype(np.float32) + delta).astype(ml_dtypes.bfloat16)
    return np.asarray(model).view(np.uint16), np.asarray(base).view(np.uint16)


@pytest.fixture(params=TEXTS, scope="module")
def codec(request: Any) -> Codec:
    return codec_from(request.param)


def test_every_codec_has_an_example() -> None:
    assert {text.partition(":")[0] for text in TEXTS} | {"emr"} == set(CODECS)


def test_spellings_name_the_same_codec(codec: Codec) -> None:
    assert codec_from(codec_tree(codec)) == codec
    assert codec_from(codec_text(codec)) == codec
    assert type(codec).__doc__


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_decoding_lands_within_the_bound(codec: Codec, shape: tuple[int, ...]) -> None:
    cell = cell_of(codec, shape)
    if codec.refusal(cell):
        return
    values, predicted = drawn(codec, shape, seed=1)
    again = codec.decode(codec.encode(values, cell, predicted), cell, predicted)
    assert again.shape == values.shape
    if codec.bound == 0:
        assert again.tobytes() == values.tobytes()
    else:
        norm = np.linalg.norm(values.astype(np.float64))
        assert np.linalg.norm(again.astype(np.float64) - values) <= codec.bound * norm * (1 + 1e-6)


def test_any_range_decodes_to_the_same(codec: Codec) -> None:
    cell = cell_of(codec, (64, 48))
    values, predicted = drawn(codec, (64, 48), seed=2)
    arrays = codec.encode(values, cell, predicted)
    whole = codec.decode(arrays, cell, predicted).reshape(-1)
    decoder = codec.decoder(cell, Held(arrays))
    ahead = None if predicted is None else predicted.reshape(-1)
    for start, stop in [(0, 1), (5, 6), (47, 49), (1000, 3072), (3071, 3072), (9, 9)]:
        out = np.empty(stop - start, whole.dtype)
        predict = None if ahead is None else lambda first, last: ahead[first:last]
        read_any(decoder, values.size, start, out, predict)
        assert out.tobytes() == whole[start:stop].tobytes()


@pytest.mark.parametrize("shape", [(64, 48), (9, 31)], ids=str)
def test_the_error_told_is_the_error_made(codec: Codec, shape: tuple[int, ...]) -> None:
    cell = cell_of(codec, shape)
    values, predicted = drawn(codec, shape, seed=3)
    encoder = codec.encoder(cell)
    flat, ahead = values.reshape(-1), None if predicted is None else predicted.reshape(-1)
    cuts = range(0, flat.size, encoder.block)
    tallies = [
        encoder.encode(
            at, flat[at : at + encoder.block], None if ahead is None else ahead[at : at + encoder.block]
        )
        for at in cuts
    ]
    ending = encoder.finish([t.tally for t in tallies])
    if codec.domain == "stored":
        assert ending.squared_error == 0
        return
    again = codec.decode(codec.encode(values, cell), cell).astype(np.float64)
    assert np.isclose(ending.squared_norm, np.sum(values.astype(np.float64) ** 2), rtol=1e-9)
    assert np.isclose(
        ending.squared_error, np.sum((again - values) ** 2), rtol=1e-4, atol=1e-7 * ending.squared_norm
    )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 40), columns=st.integers(1, 70))
def test_any_tensor_comes_back_within_the_bound(codec: Codec, seed: int, rows: int, columns: int) -> None:
    cell = cell_of(codec, (rows, columns))
    if codec.refusal(cell):
        return
    values, predicted = drawn(codec, (rows, columns), seed)
    again = codec.decode(codec.encode(values, cell, predicted), cell, predicted)
    if codec.bound == 0:
        assert again.tobytes() == values.tobytes()
    else:
        norm = np.linalg.norm(values.astype(np.float64))
        assert np.linalg.norm(again.astype(np.float64) - values) <= codec.bound * norm * (1 + 1e-6)


def test_impossible_arrays_are_refused_and_nothing_else(codec: Codec) -> None:
    """Whatever bytes the arrays hold, decoding ends in values or in ValueError, within the tensor's own memory."""
    cell = cell_of(codec, (64, 48))
    values, predicted = drawn(codec, (64, 48), seed=4)
    arrays = codec.encode(values, cell, predicted)
    random = np.random.default_rng(5)
    for name, array in arrays.items():
        for _ in range(20):
            raw = bytearray(array.tobytes())
            if not raw:
                continue
            raw[random.integers(len(raw))] ^= 1 << random.integers(8)
            spoiled = np.frombuffer(bytes(raw), array.dtype).reshape(array.shape)
            _decodes_or_refuses(codec, cell, {**arrays, name: spoiled}, predicted)
        for cut in (array.reshape(-1)[:-1], array.reshape(-1)[:0], np.concatenate([array.reshape(-1)] * 2)):
            _decodes_or_refuses(codec, cell, {**arrays, name: cut}, predicted)
        fewer = {key: value for key, value in arrays.items() if key != name}
        with pytest.raises((ValueError, KeyError)):
            codec.decode(fewer, cell, predicted)


def _decodes_or_refuses(codec: Codec, cell: Cell, arrays: Any, predicted: Any) -> None:
    with np.errstate(all="ignore"), contextlib.suppress(ValueError):
        codec.decode(arrays, cell, predicted)


def test_the_name_in_the_table_is_the_name_of_the_record(codec: Codec) -> None:
    assert codec_name(codec) in CODECS
