"""What each merge means, one element at a time in float64, written without looking at how it is computed.

`cells` is a list of flat lists, one per model. And the few lines that turn golden arrays into tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Rows = Sequence[Sequence[float]]


def sign(x: float) -> int:
    return (x > 0) - (x < 0)


def weighted_sum(cells: Rows, w: Sequence[float]) -> list[float]:
    return [sum(w[t] * cells[t][i] for t in range(len(cells))) for i in range(len(cells[0]))]


def elected(cells: Rows, w: Sequence[float], zero: int) -> list[int]:
    return [sign(s) or zero for s in weighted_sum(cells, w)]


def majority(cells: Rows, w: Sequence[float]) -> int:
    return sign(sum(sign(s) for s in weighted_sum(cells, w)))


def agreeing(cells: Rows, w: Sequence[float], zero: int) -> list[list[int]]:
    """List, for every position, the models whose w·δ is not 0 and has the elected sign."""
    signs = elected(cells, w, zero)
    return [[t for t in range(len(cells)) if sign(w[t] * cells[t][i]) == s != 0] for i, s in enumerate(signs)]


def elect_mean(cells: Rows, w: Sequence[float], zero: int) -> list[float]:
    out = []
    for i, models in enumerate(agreeing(cells, w, zero)):
        divisor = sum(w[t] for t in models)
        out.append(sum(w[t] * cells[t][i] for t in models) / (divisor or 1.0))
    return out


def elect_sum(cells: Rows, w: Sequence[float], zero: int) -> list[float]:
    return [sum(w[t] * cells[t][i] for t in m) for i, m in enumerate(agreeing(cells, w, zero))]


def elect_max(cells: Rows, w: Sequence[float], zero: int) -> list[float]:
    return [
        max((w[t] * cells[t][i] for t in m), key=abs, default=0.0)
        for i, m in enumerate(agreeing(cells, w, zero))
    ]


def emr(cells: Rows, w: Sequence[float], task: int, scale: float | None = None) -> list[float]:
    """Rebuild the task's delta with the paper's rescaler (one tensor), or with the one given."""
    unified = elect_max(cells, w, -1)
    own = [w[task] * x for x in cells[task]]
    kept = [u if sign(u) == sign(x) else 0.0 for u, x in zip(unified, own, strict=True)]
    below = sum(map(abs, kept))
    if scale is None:
        scale = sum(map(abs, own)) / below if below else 1.0
    return [scale * x for x in kept]


def tall_masks(cells: Rows, w: Sequence[float], mask_scale: float) -> list[list[bool]]:
    total = weighted_sum(cells, w)
    return [
        [abs(w[t] * x) > mask_scale * abs(total[i] - w[t] * x) for i, x in enumerate(cells[t])]
        for t in range(len(cells))
    ]


def sce(cells: Rows, density: float) -> list[float]:
    """Merge one tensor with unit weights."""
    models, n = len(cells), len(cells[0])
    columns = [[cells[t][i] for t in range(models)] for i in range(n)]
    spread = [sum((x - sum(c) / models) ** 2 for x in c) / models for c in columns]
    wanted = int(sum(v > 0 for v in spread) * density)
    chosen = range(n) if density == 1 else sorted(range(n), key=lambda i: (-spread[i], i))[:wanted]
    energy = [sum(cells[t][i] ** 2 for i in chosen) for t in range(models)]
    total = sum(energy)
    share = [e / total for e in energy] if total else [1 / models] * models
    out = []
    for column in columns:
        s = 1 if sum(column) >= 0 else -1
        models_in = [t for t in range(models) if sign(column[t]) == s]
        divisor = sum(share[t] for t in models_in)
        out.append(sum(share[t] * column[t] for t in models_in) / divisor if divisor else 0.0)
    return out


def cabs(cells: Rows, w: Sequence[float], n: int, m: int) -> list[float]:
    """Merge one flat tensor, block by block."""
    size = len(cells[0])
    out = [0.0] * size
    for start in range(0, size, m):
        block = range(start, min(size, start + m))
        count = n if len(block) == m else math.ceil(n * len(block) / m)
        free = set(block)
        for t in range(len(cells)):
            kept = sorted(free, key=lambda i: (-abs(cells[t][i]), i))[:count]
            free -= set(kept)
            for i in kept:
                out[i] += w[t] * cells[t][i]
    return out


def pcb(cells: Rows, w: Sequence[float], ratio: float, trim: float, variant: str) -> list[float]:
    """Merge one flat model."""
    models, n = len(cells), len(cells[0])
    signs = [[sign(x) for x in row] for row in cells]
    clipped, norms = [], []
    for row in cells:
        ordered = sorted(abs(x) for x in row)
        low, high = ordered[int(n * trim)], ordered[max(0, int(n * (1 - trim) - 1))]
        clipped.append([min(max(abs(x), low), high) for x in row])
        norms.append([(x - low) / (high - low) if high > low else 0.0 for x in clipped[-1]])
    total, divisor = [0.0] * n, [0.0] * n
    for t in range(models):
        score = []
        for i in range(n):
            if variant == "a":
                between = math.tanh(cells[t][i] * sum(row[i] for row in cells))
            elif variant == "b":
                between = math.tanh(cells[t][i] * sum(signs[u][i] * norms[u][i] for u in range(models)))
            else:
                own = signs[t][i] * norms[t][i]
                between = sum(math.tanh(own * signs[u][i] * norms[u][i]) for u in range(models))
            score.append(math.exp(models * norms[t][i] ** 2) * between)
        ordered = sorted(score)
        low, high = ordered[min(n - 1, int(n * (1 - ratio)))], ordered[-1]
        for i in range(n):
            scale = (max(score[i], low) - low) / (high - low) if high > low else float(score[i] >= high)
            total[i] += w[t] * signs[t][i] * clipped[t][i] * scale
            divisor[i] += scale
    return [total[i] / max(divisor[i], 1e-12) for i in range(n)]


def fisher(
    cells: Rows, fishers: Rows, w: Sequence[float], *, floor: float, lifted: Sequence[bool], norm: bool
) -> list[float]:
    """Merge one flat model as Matena and Raffel do."""
    sizes = [math.sqrt(sum(f * f for f in row)) or 1.0 for row in fishers] if norm else [1.0] * len(cells)
    out = []
    for i in range(len(cells[0])):
        say = [
            w[t] / sizes[t] * (max(fishers[t][i], floor) if lifted[t] else fishers[t][i])
            for t in range(len(cells))
        ]
        out.append(sum(s * row[i] for s, row in zip(say, cells, strict=True)) / sum(say))
    return out


def models_of(arrays: dict[str, Any], role: str = "ft") -> list[dict[str, Any]]:
    """Collect the golden roles ft_0, ft_1, … as tables; a single tensor becomes {"": tensor}."""
    found = []
    while f"{role}_{len(found)}" in arrays:
        value = arrays[f"{role}_{len(found)}"]
        found.append(value if isinstance(value, dict) else {"": value})
    assert found, role
    return found


def base_of(arrays: dict[str, Any], role: str = "base") -> dict[str, Any]:
    value = arrays[role]
    return value if isinstance(value, dict) else {"": value}


def deltas_of(arrays: dict[str, Any]) -> list[dict[str, Any]]:
    """Subtract the base from every fine-tuned golden table, in float32."""
    base = base_of(arrays)
    return [{name: ft[name] - base[name] for name in ft} for ft in models_of(arrays)]


def flat(table: dict[str, Any]) -> Any:
    """Concatenate a table's tensors over alphabetically sorted names."""
    return np.concatenate([table[name].reshape(-1) for name in sorted(table)])


def unflat(vector: Any, like: dict[str, Any]) -> dict[str, Any]:
    """Cut a vector into the tensors of a table, over alphabetically sorted names."""
    tables, start = {}, 0
    for name in sorted(like):
        stop = start + like[name].size
        tables[name] = np.asarray(vector[start:stop]).reshape(like[name].shape)
        start = stop
    return tables
