"""Sparse arithmetic on the CPU: which latents fire, and everything that follows from few of them firing.

Compiled loops without the interpreter's lock; each works on a range of rows (tokens) or of latents, so that several
threads share a batch without changing a bit. The definitions in plain numpy stand beside the selections; those of
decoding and of the optimiser's step are in `dense.py`, which works on any device.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

__all__ = [
    "above",
    "above_reference",
    "batch_cut",
    "batch_cut_reference",
    "by_latent",
    "compacted",
    "count_above",
    "decoded",
    "histogram",
    "likely_cut",
    "residuals",
    "top_rows",
    "top_rows_reference",
    "updated_rows",
]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

# Sums may be reordered (else they are not vectorised); nothing here depends on the sign of a zero.
_SUMS = {"reassoc", "contract", "nsz"}


def top_rows_reference(z: F32, k: int) -> tuple[I32, F32, I32]:
    """Return what `top_rows` writes, by sorting."""
    latents = np.zeros((len(z), k), np.int32)
    values = np.zeros((len(z), k), np.float32)
    counts = np.zeros(len(z), np.int32)
    for i, row in enumerate(z):
        found = np.sort(np.argsort(-row, kind="stable")[:k])
        found = found[row[found] > 0]
        counts[i] = len(found)
        latents[i, : len(found)] = found
        values[i, : len(found)] = row[found]
    return latents, values, counts


@njit(nogil=True, cache=True)
def _cut(bits: I32, n: int, k: int) -> np.int32:
    """Return t > 0 such that as few as possible, but at least k, of the patterns `bits[:n]` are >= t; else 1.

    Bisection over patterns: counting is vectorised, and no branch depends on the data.
    """
    low, high = np.int32(1), np.int32(1)
    for i in range(n):
        high = max(high, bits[i])
    high = np.int32(high + 1)  # at least k reach `low`, or low is 1; fewer than k reach `high`
    while high - low > 1:
        middle, reach = np.int32((low + high) // 2), 0
        for i in range(n):
            reach += bits[i] >= middle
        if reach >= k:
            low = middle
            if reach == k:
                break
        else:
            high = middle
    return low


@njit(nogil=True, cache=True)
def top_rows(z: F32, k: int, low: int, high: int, latents: I32, values: F32, counts: I32) -> None:
    """Write the k largest positive entries of the rows low .. high - 1 of z, in ascending order of place.

    `latents` and `values` are (rows, k), `counts` (rows,): how many there are. Among equal entries the first count.

    The k-th largest of the maxima of blocks bounds the k-th largest entry from below: k blocks hold one that large.
    So one vectorised pass finds the maxima, and only the few blocks above the bound are looked at again. Patterns of
    positive floats have the order of the floats as integers, and those of negative ones are negative.
    """
    width = z.shape[1]
    size = max(16, width // (4 * k) // 16 * 16)
    blocks = (width + size - 1) // size
    maxima, places, found = np.empty(blocks, np.int32), np.empty(width, np.int32), np.empty(width, np.int32)
    patterns = z.view(np.int32)
    for i in range(low, high):
        row = patterns[i]
        for block in range(blocks):
            part, most = row[block * size : (block + 1) * size], np.int32(0)
            for j in range(len(part)):
                most = max(most, part[j])
            maxima[block] = most
        bound, n = _cut(maxima, blocks, k), 0
        for block in range(blocks):
            if maxima[block] >= bound:
                part = row[block * size : (block + 1) * size]
                for j in range(len(part)):
                    places[n], found[n] = block * size + j, part[j]
                    n += part[j] >= bound
        cut, larger = _cut(found, n, k), 0
        for c in range(n):
            larger += found[c] > cut
        equal, at = k - larger, 0
        for c in range(n):
            if found[c] > cut or (found[c] == cut and equal > 0):
                equal -= found[c] == cut
                latents[i, at], values[i, at] = places[c], z[i, places[c]]
                at += 1
        counts[i] = at


@njit(nogil=True, cache=True)
def compacted(latents: I32, values: F32, counts: I32) -> tuple[I64, I32, F32]:
    """Close the gaps of `top_rows`: starts (rows + 1,), and the latents and values of all rows."""
    starts = np.zeros(len(counts) + 1, np.int64)
    for i in range(len(counts)):
        starts[i + 1] = starts[i] + counts[i]
    out_latents, out_values = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.float32)
    for i in range(len(counts)):
        for c in range(counts[i]):
            out_latents[starts[i] + c] = latents[i, c]
            out_values[starts[i] + c] = values[i, c]
    return starts, out_latents, out_values


def above_reference(z: F32, threshold: F32) -> tuple[I64, I32, F32]:
    """Return what `count_above` and `above` find, in numpy."""
    rows, latents = np.nonzero((z > threshold) & (z > 0))
    starts = np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=len(z)))))
    return starts, latents.astype(np.int32), z[rows, latents]


@njit(nogil=True, cache=True)
def count_above(z: F32, threshold: F32, low: int, high: int, counts: I64) -> None:
    """Count the entries of each row of z above their column's threshold, and above zero."""
    for i in range(low, high):
        n, row = 0, z[i]
        for j in range(len(row)):
            n += (row[j] > threshold[j]) & (row[j] > 0)
        counts[i] = n


@njit(nogil=True, cache=True)
def above(z: F32, threshold: F32, low: int, high: int, starts: I64, latents: I32, values: F32) -> None:
    """Write the entries that `count_above` counted, row after row from `starts` on."""
    width, size = z.shape[1], 32
    for i in range(low, high):
        at = starts[i]
        for first in range(0, width, size):
            row, limit, n = z[i, first : first + size], threshold[first : first + size], 0
            for j in range(len(row)):
                n += (row[j] > limit[j]) & (row[j] > 0)
            if n > 0:  # seldom, and found out for many entries at once
                for j in range(len(row)):
                    if row[j] > limit[j] and row[j] > 0:
                        latents[at], values[at] = first + j, row[j]
                        at += 1


@njit(nogil=True, cache=True)
def histogram(z: F32, shift: int, counts: I64) -> None:
    """Count the positive entries of z by the upper bits of their patterns: bin = bits >> shift, monotone in value."""
    bits = z.view(np.uint32)
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            if z[i, j] > 0:
                counts[bits[i, j] >> shift] += 1


def batch_cut_reference(z: F32, n: int) -> tuple[I64, I32, F32]:
    """Return what `batch_cut` does, by sorting."""
    flat = z.ravel()
    kept = np.sort(np.argsort(-flat, kind="stable")[:n])
    kept = kept[flat[kept] > 0]
    starts = np.searchsorted(kept, np.arange(len(z) + 1) * z.shape[1])
    return starts, (kept % z.shape[1]).astype(np.int32), flat[kept]


@njit(nogil=True, cache=True)
def likely_cut(z: F32, k: int) -> float:
    """Guess, from some of the rows, a number that somewhat more than k entries a row exceed."""
    rows = min(z.shape[0], 64)
    bits = np.empty(rows * z.shape[1], np.int32)
    patterns, width = z.view(np.int32), z.shape[1]
    for i in range(rows):
        bits[i * width : (i + 1) * width] = patterns[i * z.shape[0] // rows]
    out = np.empty(1, np.int32)
    out[0] = _cut(bits, len(bits), rows * k + rows * k // 4) - 1
    return float(out.view(np.float32)[0])


@njit(nogil=True, cache=True)
def batch_cut(starts: I64, latents: I32, values: F32, n: int) -> tuple[I64, I32, F32]:
    """Keep the n largest of all activations, in their order; among equals the first."""
    bits = values.view(np.int32)
    cut, larger = _cut(bits, len(bits), n), 0
    for c in range(len(bits)):
        larger += bits[c] > cut
    equal, kept = n - larger, 0
    out_starts, out_latents, out_values = np.zeros_like(starts), np.empty_like(latents), np.empty_like(values)
    for i in range(len(starts) - 1):
        for c in range(starts[i], starts[i + 1]):
            if bits[c] > cut or (bits[c] == cut and equal > 0):
                equal -= bits[c] == cut
                out_latents[kept], out_values[kept] = latents[c], values[c]
                kept += 1
        out_starts[i + 1] = kept
    return out_starts, out_latents[:kept].copy(), out_values[:kept].copy()


@njit(nogil=True, cache=True, fastmath=_SUMS, error_model="numpy")
def decoded(
    low: int, high: int, starts: I64, latents: I32, values: F32, decoder: F32, bias: F32, out: F32
) -> None:
    """Write bias + sum of value * decoder row for the rows low .. high - 1."""
    for i in range(low, high):
        row = out[i]
        row[:] = bias
        for c in range(starts[i], starts[i + 1]):
            value, direction = values[c], decoder[latents[c]]
            for d in range(len(row)):
                row[d] += value * direction[d]


@njit(nogil=True, cache=True, fastmath=_SUMS, error_model="numpy")
def residuals(
    low: int,
    high: int,
    starts: I64,
    latents: I32,
    values: F32,
    decoder: F32,
    centred: F32,
    gradient: F32,
    slopes: F32,
    squares: F32,
    price: np.float32,
) -> None:
    """Write what is left of the rows low .. high - 1, and how the loss changes with each activation.

    `centred` (rows, width) is x - output bias. `gradient` receives 2 / rows * (x' - x), the derivative of the mean
    squared error with respect to the reconstruction; `squares` |x' - x|^2; `slopes` one number an activation, its
    derivative of the loss: gradient . decoder row + price.
    """
    width = centred.shape[1]
    factor = np.float32(2) / np.float32(centred.shape[0])
    for i in range(low, high):
        row = gradient[i]
        for d in range(width):
            row[d] = -centred[i, d]
        for c in range(starts[i], starts[i + 1]):
            value, direction = values[c], decoder[latents[c]]
            for d in range(width):
                row[d] += value * direction[d]
        square = np.float32(0)
        for d in range(width):
            square += row[d] * row[d]
            row[d] *= factor
        squares[i] = square
        for c in range(starts[i], starts[i + 1]):
            direction, slope = decoder[latents[c]], np.float32(0)
            for d in range(width):
                slope += row[d] * direction[d]
            slopes[c] = slope + price


@njit(nogil=True, cache=True)
def by_latent(
    starts: I64, latents: I32, values: F32, slopes: F32, width: int
) -> tuple[I64, I32, F32, F32, F32]:
    """Reorder activations by latent: starts (width + 1,), rows, values, slopes; and the sum of slopes (width,)."""
    ends = np.zeros(width + 1, np.int64)
    for latent in latents:
        ends[latent + 1] += 1
    for j in range(width):
        ends[j + 1] += ends[j]
    at = ends[:-1].copy()
    rows, out_values, out_slopes = np.empty_like(latents), np.empty_like(values), np.empty_like(slopes)
    sums = np.zeros(width, np.float32)
    for i in range(len(starts) - 1):
        for c in range(starts[i], starts[i + 1]):
            j = latents[c]
            rows[at[j]], out_values[at[j]], out_slopes[at[j]] = i, values[c], slopes[c]
            sums[j] += slopes[c]
            at[j] += 1
    return ends, rows, out_values, out_slopes, sums


@njit(nogil=True, cache=True, fastmath=_SUMS, error_model="numpy")
def _adam(row: F32, slope: F32, mean: F32, square: F32, numbers: F32) -> None:
    """Take one step of Adam in place. `numbers`: rate, beta1, beta2, 1 - beta1^t, 1 - beta2^t, epsilon."""
    rate, beta1, beta2 = numbers[0] / numbers[3], numbers[1], numbers[2]
    one, root, epsilon = np.float32(1), np.float32(1) / np.sqrt(numbers[4]), numbers[5]
    for d in range(len(row)):
        m = beta1 * mean[d] + (one - beta1) * slope[d]
        v = beta2 * square[d] + (one - beta2) * slope[d] * slope[d]
        mean[d], square[d] = m, v
        row[d] -= rate * m / (np.sqrt(v) * root + epsilon)


@njit(nogil=True, cache=True, fastmath=_SUMS, error_model="numpy")
def updated_rows(
    low: int,
    high: int,
    ends: I64,
    rows: I32,
    values: F32,
    slopes: F32,
    gradient: F32,
    centred: F32,
    weights: tuple[F32, F32],
    means: tuple[F32, F32],
    squares: tuple[F32, F32],
    place: I32,
    aux: tuple[F32, F32],
    numbers: F32,
) -> None:
    """Step the encoder and decoder rows of the latents low .. high - 1, gradients and all, in one pass over memory.

    Pairs are (encoder, decoder). `place[j]` >= 0 is the row of `aux` that holds further gradients of latent j. The
    part of a decoder row's gradient along the row is removed, and the row brought back to unit length afterwards.
    """
    width = gradient.shape[1]
    for_encoder, for_decoder = np.empty(width, np.float32), np.empty(width, np.float32)
    for j in range(low, high):
        if place[j] >= 0:
            for_encoder[:] = aux[0][place[j]]
            for_decoder[:] = aux[1][place[j]]
        else:
            for_encoder[:] = np.float32(0)
            for_decoder[:] = np.float32(0)
        for c in range(ends[j], ends[j + 1]):
            value, slope, left, given = values[c], slopes[c], gradient[rows[c]], centred[rows[c]]
            for d in range(width):
                for_decoder[d] += value * left[d]
                for_encoder[d] += slope * given[d]
        row = weights[1][j]
        along = np.float32(0)
        for d in range(width):
            along += for_decoder[d] * row[d]
        for d in range(width):
            for_decoder[d] -= along * row[d]
        _adam(weights[0][j], for_encoder, means[0][j], squares[0][j], numbers)
        _adam(row, for_decoder, means[1][j], squares[1][j], numbers)
        length = np.float32(0)
        for d in range(width):
            length += row[d] * row[d]
        length = np.float32(1) / np.sqrt(length)
        for d in range(width):
            row[d] *= length
