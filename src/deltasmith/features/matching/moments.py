"""Correlations of given pairs over resampled passages, from sums that are taken once per block of passages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from deltasmith.features.codes import Codes
from deltasmith.features.matching.correlation import CONSTANT, checked, columns_of

__all__ = ["BLOCKS", "BlockMoments", "block_moments", "blocks_of", "each_resampled_r", "resampled_r"]

Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int32]
BLOCKS = 128
"""At most: enough for percentile intervals, few enough that resampling is one small matrix product."""
PAIRS_AT_ONCE = 2048


@dataclass(frozen=True, eq=False)
class BlockMoments:
    """For each block the number of tokens (blocks,) and for each pair of it Σa, Σb, Σa², Σb², Σab: (blocks, pairs)."""

    tokens: Doubles
    a: Doubles
    b: Doubles
    aa: Doubles
    bb: Doubles
    ab: Doubles


def blocks_of(passage: Indices) -> Indices:
    """Group consecutive passages into at most BLOCKS blocks of about equally many tokens; (tokens,) ascending from 0.

    A passage is never cut, so what is resampled stays as independent as the passages are.

    >>> blocks_of(np.array([0, 0, 3, 3, 3, 7], np.int32)).tolist()
    [0, 0, 1, 1, 1, 2]
    """
    _, number, sizes = np.unique(passage, return_inverse=True, return_counts=True)
    if len(sizes) <= BLOCKS:
        return number.astype(np.int32)
    middles = np.cumsum(sizes) - sizes / 2
    block = np.minimum(middles * BLOCKS / len(passage), BLOCKS - 1).astype(np.int64)
    _, dense = np.unique(block, return_inverse=True)
    return dense[number].astype(np.int32)


def block_moments(
    parent: Codes, child: Codes, pairs: tuple[Indices, Indices], blocks: Indices
) -> BlockMoments:
    """Sum what the correlations of pairs are made of, apart for each block of tokens, in float64.

    `pairs` are (parents, children), any number of them; `blocks` (tokens,) int32 from 0 up, ascending.
    """
    parent, child = checked(parent), checked(child)
    if not parent.tokens == child.tokens == len(blocks):
        raise ValueError("the codes and the blocks span different tokens")
    count = int(blocks[-1]) + 1 if len(blocks) else 0
    if len(blocks) and (blocks[0] < 0 or (np.diff(blocks) < 0).any()):
        raise ValueError("the blocks are not ascending from 0")
    sides = [
        _sums(codes, picked, blocks, count) for codes, picked in zip((parent, child), pairs, strict=True)
    ]
    own, other = columns_of(parent), columns_of(child)
    ab = np.zeros((count, len(pairs[0])))
    _products(
        *pairs, own.bounds, own.tokens, own.values, other.bounds, other.tokens, other.values, blocks, ab
    )
    tokens = np.bincount(blocks, minlength=count).astype(np.float64)
    (a, aa), (b, bb) = sides
    return BlockMoments(tokens, a, b, aa, bb, ab)


def each_resampled_r(
    moments: BlockMoments, multiplicities: Doubles
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """Yield what `resampled_r` returns a few thousand pairs at a time, with where they stand: (resamples, some)."""
    tokens = (multiplicities @ moments.tokens)[:, None]
    for start in range(0, moments.ab.shape[1], PAIRS_AT_ONCE):
        some = slice(start, min(start + PAIRS_AT_ONCE, moments.ab.shape[1]))
        a, b, aa, bb, ab = (
            multiplicities @ m[:, some] for m in (moments.a, moments.b, moments.aa, moments.bb, moments.ab)
        )
        varying_a, varying_b = aa - a * a / tokens, bb - b * b / tokens
        varies = (varying_a > CONSTANT * aa) & (varying_b > CONSTANT * bb)
        spread = np.sqrt(np.where(varies, varying_a, 1.0)) * np.sqrt(np.where(varies, varying_b, 1.0))
        r = np.where(varies, (ab - a * b / tokens) / spread, 0.0)
        yield some, np.clip(r, -1, 1).astype(np.float32)


def resampled_r(moments: BlockMoments, multiplicities: Doubles) -> npt.NDArray[np.float32]:
    """Correlate every pair anew where each block occurs as often as said.

    `multiplicities` (resamples, blocks), as of `analysis.resampling.multiplicities`; -> (resamples, pairs), 0 where
    a latent does not vary over what was drawn. With ones throughout it is the r of `correlate`, to float32's precision.
    """
    found = np.zeros((len(multiplicities), moments.ab.shape[1]), np.float32)
    for some, r in each_resampled_r(moments, multiplicities):
        found[:, some] = r
    return found


def _sums(codes: Codes, picked: Indices, blocks: Indices, count: int) -> tuple[Doubles, Doubles]:
    sums, squares = np.zeros((count, codes.width)), np.zeros((count, codes.width))
    _fill_sums(codes.starts, codes.latents, codes.values, blocks, sums, squares)
    return sums[:, picked], squares[:, picked]


@njit(nogil=True, cache=True)
def _fill_sums(starts: Any, latents: Any, values: Any, blocks: Any, sums: Any, squares: Any) -> None:
    for token in range(starts.size - 1):
        for at in range(starts[token], starts[token + 1]):
            value = np.float64(values[at])
            sums[blocks[token], latents[at]] += value
            squares[blocks[token], latents[at]] += value * value


@njit(nogil=True, cache=True)
def _products(
    parents: Any, children: Any, bounds: Any, tokens: Any, values: Any,
    child_bounds: Any, child_tokens: Any, child_values: Any, blocks: Any, ab: Any,
) -> None:  # fmt: skip
    """Walk the tokens of both latents of each pair side by side."""
    for pair in range(parents.size):
        i, stop = bounds[parents[pair]], bounds[parents[pair] + 1]
        j, child_stop = child_bounds[children[pair]], child_bounds[children[pair] + 1]
        while i < stop and j < child_stop:
            if tokens[i] < child_tokens[j]:
                i += 1
            elif tokens[i] > child_tokens[j]:
                j += 1
            else:
                ab[blocks[tokens[i]], pair] += np.float64(values[i]) * np.float64(child_values[j])
                i, j = i + 1, j + 1
