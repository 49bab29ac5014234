"""The assignment of greatest sum: against every permutation, against the dense solver, and beside mutual partners."""

from __future__ import annotations

import sys
from itertools import permutations

import numpy as np
import pytest

from deltasmith.errors import MissingExtraError
from deltasmith.features.codes import Codes
from deltasmith.features.matching.assignment import hungarian
from deltasmith.features.matching.correlation import Best, Correlated, correlate
from deltasmith.features.matching.pairing import fates_and_descents
from deltasmith.features.matching.thresholds import Thresholds
from deltasmith.features.outcome import FATE, Fate
from features.planted import planted


def of_matrix(r: np.ndarray, keep: float = 0.3) -> Correlated:
    parents, children = np.nonzero(r >= keep)
    sides = [
        Best(
            *(np.zeros(n, kind) for kind in ("i4", "f4", "i4", "f4"))
        )  # only how many there are matters here
        for n in r.shape
    ]
    values = r[parents, children].astype(np.float32)
    return Correlated(parents.astype(np.int32), children.astype(np.int32), values, *sides, keep)


def worth(r: np.ndarray, partner: np.ndarray) -> float:
    chosen = partner >= 0
    return float(r[chosen, partner[chosen]].sum())


@pytest.mark.parametrize("shape", [(5, 5), (4, 6), (6, 4), (1, 1)])
def test_no_permutation_adds_up_to_more(shape: tuple[int, int]) -> None:
    pytest.importorskip("scipy")
    rng = np.random.default_rng(sum(shape))
    for _ in range(20):
        r = rng.random(shape).astype(np.float32)
        partner = hungarian(of_matrix(r), 0.5)
        padded = np.zeros((max(shape), max(shape)))
        padded[: shape[0], : shape[1]] = np.where(r >= 0.5, r, 0)
        best = max(padded[range(max(shape)), order].sum() for order in permutations(range(max(shape))))
        assert worth(r, partner) == pytest.approx(best)
        chosen = np.flatnonzero(partner >= 0)
        assert (r[chosen, partner[chosen]] >= 0.5).all()
        assert len(np.unique(partner[chosen])) == len(chosen)


def test_the_dense_solver_finds_the_same_sum() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(0)
    r = np.where(rng.random((150, 130)) < 0.1, rng.random((150, 130)), 0).astype(np.float32)
    kept = np.where(r >= np.float32(0.5), r, 0)
    rows, columns = optimize.linear_sum_assignment(kept, maximize=True)
    assert worth(r, hungarian(of_matrix(r), 0.5)) == pytest.approx(kept[rows, columns].sum(), rel=1e-6)


def test_it_gives_up_the_best_pair_for_a_better_sum() -> None:
    pytest.importorskip("scipy")
    r = np.array([[0.9, 0.85], [0.85, 0.0]], np.float32)
    assert hungarian(of_matrix(r), 0.5).tolist() == [1, 0]  # mutual best would be the first with the first


def test_without_pairs_nobody_has_a_partner() -> None:
    pytest.importorskip("scipy")
    assert hungarian(of_matrix(np.zeros((3, 2), np.float32)), 0.5).tolist() == [-1] * 3


def test_planted_features_get_the_partners_that_mutual_best_finds() -> None:
    pytest.importorskip("scipy")
    made = planted(3)
    found = correlate(made.parent, made.child)
    paired = fates_and_descents(found, made.parent.fires, made.child.fires, Thresholds())
    persisted = paired.fate == FATE.index(Fate.PERSISTED)
    np.testing.assert_array_equal(hungarian(found, 0.5)[persisted], paired.mutual[persisted])


def test_pairs_that_were_not_kept_cannot_be_assigned() -> None:
    pytest.importorskip("scipy")
    with pytest.raises(ValueError, match="were not kept"):
        hungarian(of_matrix(np.ones((1, 1), np.float32)), 0.2)


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    codes = Codes.of_dense(np.eye(3, dtype=np.float32))
    with pytest.raises(
        MissingExtraError, match=r"an assignment needs scipy; pip install \"deltasmith\[features\]\""
    ):
        hungarian(correlate(codes, codes), 0.5)
