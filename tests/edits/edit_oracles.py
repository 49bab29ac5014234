"""The edits once more as slow, obvious loops over Python numbers, to compare with."""

from __future__ import annotations

import math

import numpy as np

MASK64 = 2**64 - 1


def splitmix_bits(key: int, index: int) -> int:
    """Step a sequential SplitMix64 generator `index` + 1 times; return the upper half of its last output."""
    state = key
    for _ in range(index + 1):
        state = (state + 0x9E3779B97F4A7C15) & MASK64
    z = state
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return (z ^ (z >> 31)) >> 32


def is_kept(key: int, index: int, probability: float) -> bool:
    return splitmix_bits(key, index) < round(probability * 2**32)


def ranks(row: list[float]) -> list[int]:
    """Count, for each element, the elements that are larger, or equal and earlier."""
    return [
        sum(abs(y) > abs(x) or (abs(y) == abs(x) and j < i) for j, y in enumerate(row))
        for i, x in enumerate(row)
    ]


def drop(delta: list[float], key: int, density: float) -> list[float]:
    return [x / density if is_kept(key, i, density) else 0.0 for i, x in enumerate(delta)]


def drop_partly(delta: list[float], key: int, density: float, k: float) -> list[float]:
    """k-DARE's formula, literally, with the rate p."""
    p = 1 - density
    kept = [is_kept(key, i, density) for i in range(len(delta))]
    return [x * (1 - k * p) / (1 - p) if keep else k * x for x, keep in zip(delta, kept, strict=True)]


def paper_probability(rank: int, n: int, density: float, window: float) -> float:
    """DELLA's formula, literally: one minus p_min + (eps / n) * rank."""
    p_min = (1.0 - density) - window / 2
    return 1.0 - (p_min + window / n * rank)


def inclusive_probability(rank: int, n: int, density: float, window: float) -> float:
    """The released code: ascending ranks 0 .. n - 1 spread over density - window/2 .. density + window/2."""
    ascending = n - 1 - rank
    return (density - window / 2) + ascending / (n - 1) * window


def drop_by_rank(rows, key, probability) -> list[list[float]]:
    """`probability(rank, n)` is the chance to keep; a row of one element stays."""
    out, index = [], 0
    for row in rows:
        kept = []
        for x, rank in zip(row, ranks(row), strict=True):
            p = 1.0 if len(row) == 1 else probability(rank, len(row))
            kept.append(x / p if is_kept(key, index, p) else 0.0)
            index += 1
        out.append(kept)
    return out


def keep_largest(tables: dict[str, list[float]], count: int) -> dict[str, list[float]]:
    """Sort all elements by magnitude, then tensor name, then index; keep the first `count`."""
    order = sorted((-abs(x), name, i) for name, xs in tables.items() for i, x in enumerate(xs))
    chosen = {(name, i) for _, name, i in order[:count]}
    return {n: [x if (n, i) in chosen else 0.0 for i, x in enumerate(xs)] for n, xs in tables.items()}


def keep_middle(values: list[float], removed: int, kept: int) -> list[float]:
    return [x if removed <= r < removed + kept else 0.0 for x, r in zip(values, ranks(values), strict=True)]


def dp_densities(deltas, layers, density, spread=0.08, layer_factor=3.0, linear_factor=5.0):
    """DP's two stages over {name: list of values} and {name: layer}, without any clamping."""
    size = {n: len(v) for n, v in deltas.items()}
    share = {}
    for layer in sorted(set(layers.values())):
        pooled = [abs(x) for n, v in deltas.items() if layers[n] == layer for x in v]
        mean = math.fsum(pooled) / len(pooled)
        share[layer] = 100.0 * sum(x > layer_factor * mean for x in pooled) / len(pooled)
    centre = sum(share.values()) / len(share)
    offsets = {layer: o - centre for layer, o in share.items()}
    most = max(abs(o) for o in offsets.values())
    of_layer = {layer: density + (spread * o / most if most > 1e-9 else 0.0) for layer, o in offsets.items()}

    ratio = {}
    for name, values in deltas.items():
        mean = math.fsum(abs(x) for x in values) / len(values)
        ratio[name] = 100.0 * sum(abs(x) > linear_factor * mean for x in values) / len(values)
    average = sum(ratio.values()) / len(ratio)
    if average == 0.0:
        return {n: of_layer[layers[n]] for n in deltas}
    ratio = {n: g / average for n, g in ratio.items()}
    weighted = sum(size[n] * g for n, g in ratio.items()) / sum(size.values())
    ratio = {n: g - weighted for n, g in ratio.items()}
    most = max(abs(g) for g in ratio.values())
    return {n: of_layer[layers[n]] + (spread * g / most if most > 1e-9 else 0.0) for n, g in ratio.items()}


def larger_of(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Combine as the released `my_max`: y where it is larger in magnitude, or x is zero and y is not."""
    out = x.copy()
    for i in np.ndindex(x.shape):
        if abs(y[i]) > abs(x[i]) or (x[i] == 0.0 and y[i] != 0.0):
            out[i] = y[i]
    return out
