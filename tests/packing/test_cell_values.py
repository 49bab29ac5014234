"""What a codec is given to code: the same whichever way the values were read."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from deltasmith.errors import RefusedError
from deltasmith.formats.opening import open_model
from deltasmith.formats.rooms import Rooms
from deltasmith.packing import material
from deltasmith.packing.material import CellValues
from models import draw, read_model, tuned, write_model

NAME = "model.layers.0.mlp.down_proj.weight"


class Hidden:
    """A checkpoint that is no file of its own."""

    def __init__(self, behind):
        self.specs, self.sources, self.read, self.raw = (
            behind.specs,
            behind.sources,
            behind.read,
            behind.raw,
        )


@pytest.fixture
def pair(tmp_path):
    base = draw(0)
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "m", tuned(base, 1), shards=2)
    return tmp_path


def cell(model, base, domain="delta"):
    return CellValues(model, base, model.specs[NAME], domain, "m", Rooms())


@pytest.mark.parametrize("piece", [1, 50, 1 << 18])
def test_words_from_files_give_the_differences_of_their_values(pair, monkeypatch, piece):
    monkeypatch.setattr(material, "_PIECE", piece)
    model, base = (open_model(str(pair / name)).checkpoint for name in ("m", "base"))
    mine, ground = (read_model(pair / name)[NAME].astype(np.float32).reshape(-1) for name in ("m", "base"))
    for start, stop in ((0, mine.size), (7, 130), (5, 5)):
        got, words = cell(model, base).read(start, stop)
        assert words is None
        assert np.array_equal(got, (mine - ground)[start:stop])
        for m, b in ((Hidden(model), base), (model, Hidden(base))):
            assert np.array_equal(cell(m, b).read(start, stop)[0], got)


def test_other_element_types_and_a_missing_base(pair):
    write_model(pair / "half", draw(0), "float16")
    model, base, half = (open_model(str(pair / name)).checkpoint for name in ("m", "base", "half"))
    mine, other = (read_model(pair / name)[NAME].astype(np.float32).reshape(-1) for name in ("m", "half"))
    assert np.array_equal(cell(model, half).read(0, mine.size)[0], mine - other)
    assert np.array_equal(cell(half, model).read(0, mine.size)[0], other - mine)
    assert np.array_equal(cell(model, None).read(0, mine.size)[0], mine)
    assert np.array_equal(cell(model, base, "weight").read(3, 9)[0], mine[3:9])


def test_stored_words_and_their_prediction(pair):
    model, base = (open_model(str(pair / name)).checkpoint for name in ("m", "base"))
    mine, ground = (read_model(pair / name)[NAME].view(np.uint16).reshape(-1) for name in ("m", "base"))
    words, predicted = cell(model, base, "stored").read(4, 90)
    assert np.array_equal(words, mine[4:90])
    assert np.array_equal(predicted, ground[4:90])
    words, predicted = cell(model, None, "stored").read(0, 10)
    assert np.array_equal(words, mine[:10])
    assert not predicted.any()


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_values_that_are_not_finite_are_refused_by_their_place(pair, monkeypatch, value):
    monkeypatch.setattr(material, "_PIECE", 64)
    arrays = dict(draw(0))
    arrays[NAME] = arrays[NAME].copy()
    arrays[NAME].reshape(-1)[70] = value
    write_model(pair / "bad", {n: a.astype(ml_dtypes.bfloat16) for n, a in arrays.items()})
    bad, base = (open_model(str(pair / name)).checkpoint for name in ("bad", "base"))
    for model, ground in ((bad, base), (base, bad)):
        with pytest.raises(RefusedError, match="the first at element 70"):
            cell(model, ground).read(3, 200)
