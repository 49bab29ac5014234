"""The histograms of deltas: kernels equal definitions, and cells mean what they say."""

from __future__ import annotations

import numpy as np
import pytest

from deltasmith.kernels.spectrum import (
    CELLS,
    STEPS,
    add_sizes,
    add_sizes_definition,
    add_steps,
    add_steps_definition,
)


def values(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    out = (rng.normal(size=n) * 10.0 ** rng.integers(-9, 3, size=n)).astype(np.float32)
    out[::7] = 0.0
    out[1::11] = -0.0
    return out


@pytest.mark.parametrize("n", [0, 1, 2, 63, 64, 65, 1000])
def test_sizes_equal_their_definition(n: int) -> None:
    ours, defined = np.zeros(CELLS, np.int64), np.zeros(CELLS, np.int64)
    add_sizes(values(n), ours)
    add_sizes_definition(values(n), defined)
    assert np.array_equal(ours, defined)
    assert ours.sum() == n


@pytest.mark.parametrize(("mantissa", "smallest"), [(7, 1), (10, 113)])
@pytest.mark.parametrize("n", [0, 1, 65, 1000])
def test_steps_equal_their_definition(n: int, mantissa: int, smallest: int) -> None:
    found = []
    for add in (add_steps, add_steps_definition):
        zeros, steps = np.zeros(256, np.int64), np.zeros((256, STEPS), np.int64)
        add(values(n, 1), values(n, 2), mantissa, smallest, zeros, steps)
        found.append((zeros, steps))
    assert np.array_equal(found[0][0], found[1][0])
    assert np.array_equal(found[0][1], found[1][1])
    assert found[0][0].sum() + found[0][1].sum() == n


def test_a_cell_is_a_bfloat16_number() -> None:
    counts = np.zeros(CELLS, np.int64)
    add_sizes(np.array([1.0, -1.0, 1.0078, 1.0079, 0.0], np.float32), counts)
    one = 0x3F80
    assert counts[one] == 3  # 1, -1 and what lies below the next cell at 1 + 1/128
    assert counts[one + 1] == 1
    assert counts[0] == 1


def test_steps_of_bfloat16() -> None:
    zeros, steps = np.zeros(256, np.int64), np.zeros((256, STEPS), np.int64)
    base = np.array([1.5, 1.5, 1.5, 0.25], np.float32)
    delta = np.array([2.0**-7, 2.0**-9, 0.0, 2.0**-8], np.float32)
    add_steps(base, delta, 7, 1, zeros, steps)
    assert steps[127, 32] == 1  # one step
    assert steps[127, 30] == 1  # a quarter of a step
    assert steps[125, 33] == 1  # beside 0.25 the step is 2^-9
    assert zeros[127] == 1
