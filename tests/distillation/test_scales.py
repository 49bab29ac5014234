"""Packed tensors taken apart into signs and scales."""

from __future__ import annotations

import numpy as np
import pytest

from deltasmith.codecs.catalogue import codec_from
from deltasmith.codecs.protocol import Cell
from deltasmith.distillation.scales import SCALES, scaled
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES

TEXTS = [
    "bitdelta",
    "bitdelta:zero=zero",
    "bitdelta:scale=row",
    "residual_bits:passes=1",
    "residual_bits:passes=3",
]


def cell_of(shape: tuple[int, ...]) -> Cell:
    spec = Spec("model.layers.0.mlp.experts.up_proj.weight", shape, DTYPES["float32"])
    return Cell(spec, spec)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("shape", [(12, 7), (3, 8, 5), (9,), (1, 1)], ids=str)
def test_signs_times_scales_are_what_decoding_gives(text: str, shape: tuple[int, ...]) -> None:
    codec, cell = codec_from(text), cell_of(shape)
    random = np.random.default_rng(0)
    delta = np.where(random.random(shape) < 0.3, 0, random.standard_normal(shape)).astype(np.float32)
    if not delta.any():
        delta[...] = 0.5
    arrays = codec.encode(delta, cell)
    found = scaled(codec, arrays, cell)
    assert found is not None
    assert set(np.unique(found.signs)) <= {-1, 0, 1}
    assert found.signs.dtype == np.int8
    again = (found.signs * found.scale[:, :, None].astype(np.float64)).sum(0).reshape(shape)
    np.testing.assert_allclose(again, codec.decode(arrays, cell), rtol=1e-5, atol=1e-6)
    stored = found.restored(found.scale)
    assert stored.tobytes() == np.asarray(arrays[found.array]).tobytes()
    assert stored.shape == arrays[found.array].shape


def test_other_codecs_have_no_scales() -> None:
    cell = cell_of((4, 4))
    codec = codec_from("sparse")
    assert scaled(codec, codec.encode(np.ones((4, 4), np.float32), cell), cell) is None
    empty = cell_of((0, 4))
    for name in SCALES:
        codec = codec_from(name)
        assert scaled(codec, codec.encode(np.empty((0, 4), np.float32), empty), empty) is None
