"""How far the leading singular directions of two models' deltas coincide, on a few matrices spread over the model."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from deltasmith.advice.facts import Overlap
from deltasmith.engine.evaluator import Evaluator
from deltasmith.engine.surveying import surveyed
from deltasmith.engine.workers import Stop
from deltasmith.errors import InterruptedRunError
from deltasmith.kernels.linalg import thin_svd
from deltasmith.kernels.randomised import pays, randomised_svd
from deltasmith.packing.choosing import is_linear
from deltasmith.planning.plan import Plan, Row
from deltasmith.table.checkpoint import Floats

__all__ = ["RANK", "overlaps"]

RANK = 8
"""Leading directions compared: few enough that chance (RANK / dimension) stays low in small matrices."""
_MATRICES = 24
_COPIES = 6  # float32 arrays of the matrix's size alive at once, beside one per model


def overlaps(plan: Plan, memory: int, stop: Stop) -> dict[tuple[str, str], Overlap]:
    """Return for every pair of models the overlap of their RANK leading left and right singular subspaces.

    The overlap of two orthonormal bases is ‖U_aᵀ U_b‖² / RANK, the mean squared cosine of their principal angles: 1
    for the same subspace, RANK / dimension on average for random ones (`chance`, averaged over the matrices and both
    sides). Looks at up to 24 two-dimensional linears, evenly spread in the plan's order, that fit into `memory` bytes
    several times; none that fits, or a single model: an empty result. To tolerance only, as all decompositions.
    """
    models = len(plan.columns)
    evaluator = surveyed(plan, 1, stop)
    rows = [row for row in evaluator.merged_rows() if _fits(row, models, memory)]
    chosen = [rows[i * len(rows) // min(len(rows), _MATRICES)] for i in range(min(len(rows), _MATRICES))]
    pairs = list(combinations(range(models), 2))
    if not pairs:
        return {}
    found: dict[tuple[int, int], list[tuple[float, float, float]]] = {pair: [] for pair in pairs}
    for number, row in enumerate(chosen):
        if stop.asked:
            raise InterruptedRunError("interrupted", fix="run the same command again")
        factors = _factors(evaluator, row, models, number)
        m, n = row.spec.shape
        chance = RANK * (1 / m + 1 / n) / 2
        for a, b in pairs:
            first, second = factors[a], factors[b]
            if first is not None and second is not None:
                found[a, b].append((_shared(first[0], second[0]), _shared(first[1], second[1]), chance))
    labels = plan.labels
    return {(labels[a], labels[b]): _mean(seen) for (a, b), seen in found.items() if seen}


def _mean(seen: list[tuple[float, float, float]]) -> Overlap:
    left, right, chance = (float(x) for x in np.mean(seen, axis=0))
    return Overlap(left, right, chance, len(seen))


def _fits(row: Row, models: int, memory: int) -> bool:
    shape = row.spec.shape
    if len(shape) != 2 or not is_linear(row.name, shape) or min(shape) < 2 * RANK:
        return False
    return row.spec.size * 4 * (models + 1 + _COPIES) <= memory


def _factors(evaluator: Evaluator, row: Row, models: int, key: int) -> list[tuple[Floats, Floats] | None]:
    base = np.empty(row.spec.size, np.float32)
    cells = np.empty((models, row.spec.size), np.float32)
    evaluator.cells(row, 0, base, cells)
    return [_leading(cell.reshape(row.spec.shape), key) for cell in cells]


def _leading(matrix: Floats, key: int) -> tuple[Floats, Floats] | None:
    """Return (m, RANK) left and (n, RANK) right singular vectors; None of a matrix of lower rank."""
    m, n = matrix.shape
    u, s, vt = randomised_svd(matrix, RANK, key) if pays(RANK, (m, n)) else thin_svd(matrix)
    if s[RANK - 1] <= s[0] * 1e-6:
        return None
    return u[:, :RANK], vt[:RANK].T


def _shared(first: Floats, second: Floats) -> float:
    return float(np.square((first.T @ second).astype(np.float64)).sum()) / RANK
