import numpy as np
import pytest

from deltasmith.kernels.groups import count_groups, count_lengths, gather, plan, scatter, sort_and_plan


def cursors_of(counts):
    flat = counts.T.reshape(-1)
    return np.ascontiguousarray((np.cumsum(flat) - flat).reshape(-1, 4).T).view(np.uint64)


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 1003])
def test_scatter_is_a_stable_sort_by_exponent_and_gather_undoes_it(size):
    random = np.random.default_rng(size)
    predicted = random.integers(0, 1 << 16, size, dtype=np.uint16)
    values = np.arange(size, dtype=np.uint16)
    shift, mask = np.uint16(7), np.uint16(255)
    counts = np.zeros((4, 256), np.int64)
    count_groups(predicted, shift, mask, counts)
    exponents = (predicted >> 7) & 255
    assert np.array_equal(counts.sum(0), np.bincount(exponents, minlength=256))
    order = np.empty_like(values)
    scatter(values, predicted, shift, mask, cursors_of(counts), order)
    assert np.array_equal(order, np.argsort(exponents, kind="stable"))
    back = np.empty_like(values)
    gather(order, predicted, shift, mask, cursors_of(counts), back)
    assert np.array_equal(back, values)


def test_sorting_and_planning_in_one_call():
    random = np.random.default_rng(7)
    predicted = random.normal(0, 0.02, 10_001).astype(np.float32).view(np.uint32)
    values = random.integers(0, 1 << 12, predicted.size).astype(np.uint32)
    shift, mask = np.uint32(23), np.uint32(255)
    counts = np.zeros((4, 256), np.int64)
    count_groups(predicted, shift, mask, counts)
    order, again = np.empty_like(values), np.empty_like(values)
    scatter(values, predicted, shift, mask, cursors_of(counts), order)
    out = np.full((64, 4), -1)
    count = sort_and_plan(values, predicted, shift, mask, 500, again, out)
    assert np.array_equal(again, order)
    assert out[:count].tolist() == planned(order, counts.sum(0), 500).tolist()
    assert count > 2


@pytest.mark.parametrize("word", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_bit_lengths(word):
    width = np.dtype(word).itemsize * 8
    values = np.array(
        [0] + [1 << b for b in range(width)] + [(1 << b) - 1 for b in range(1, width + 1)], word
    )
    lengths = np.zeros(width + 1, np.int64)
    count_lengths(values, 1, lengths)
    assert (
        lengths.tolist() == np.bincount([int(v).bit_length() for v in values], minlength=width + 1).tolist()
    )


def planned(values, totals, least=100, rows=64):
    out = np.empty((rows, 4), np.int64)
    return out[: plan(values, totals, values.dtype.itemsize * 8, least, out)]


def test_rare_exponents_go_with_the_one_below():
    totals = np.zeros(256, np.int64)
    totals[[3, 100, 101, 102, 120]] = 5, 1000, 40, 1000, 7
    groups = planned(np.ones(totals.sum(), np.uint16), totals)
    assert groups[:, 0].tolist() == [0, 100, 102]
    assert groups[:, 1].tolist() == [5, 1040, 1007]


def test_no_group_is_empty_and_there_are_no_more_than_rows():
    totals = np.full(256, 200, np.int64)
    groups = planned(np.ones(totals.sum(), np.uint16), totals, rows=16)
    assert len(groups) == 16
    assert groups[:, 1].sum() == totals.sum()
    assert np.all(groups[:, 1] > 0)
    alone = np.zeros(256, np.int64)
    alone[0] = 1000
    assert planned(np.ones(1000, np.uint16), alone)[:, :2].tolist() == [[0, 1000]]


def test_wide_distances_lose_low_bits_and_equal_tokens_share_a_frame():
    random = np.random.default_rng(2)
    totals = np.zeros(256, np.int64)
    totals[[110, 111]] = 20_000
    wide = random.integers(0, 1 << 14, 20_000).astype(np.uint16)
    half = random.integers(0, 1 << 13, 20_000).astype(np.uint16)
    narrow = random.integers(0, 5, 20_000).astype(np.uint16)
    a, b = planned(np.concatenate([wide, half]), totals)
    assert a[2] >= 5  # 14 bits do not fit a byte, and are noise
    assert b[3] == 1
    a, b = planned(np.concatenate([wide, narrow]), totals)
    assert b[2] == 0
    assert b[3] == 0
