import doctest

import numpy as np
import pytest

from deltasmith.codecs import dense as module
from deltasmith.codecs.dense import Dense
from deltasmith.codecs.protocol import Cell, Held
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES


def test_examples():
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("name", DTYPES)
def test_every_element_type_comes_back_to_the_bit(name):
    dtype = DTYPES[name]
    random = np.random.default_rng(3)
    words = np.frombuffer(random.bytes(60 * dtype.itemsize), f"u{dtype.itemsize}").reshape(5, 12)
    cell = Cell(Spec("w", (5, 12), dtype))
    arrays = Dense().encode(words, cell)
    assert arrays["values"].shape == (5, 12)
    assert arrays["values"].nbytes == words.nbytes
    assert arrays["values"].dtype.name == {"float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}.get(name, name)
    assert Dense().decode(arrays, cell).tobytes() == words.tobytes()


def test_arrays_of_another_size_or_type_are_refused():
    cell = Cell(Spec("w", (4,), DTYPES["float16"]))
    for arrays in ({}, {"values": np.zeros(3, np.float16)}, {"values": np.zeros(4, np.float32)}):
        with pytest.raises(ValueError, match="values is not an array of 4 elements of float16"):
            Dense().decoder(cell, Held(arrays))
