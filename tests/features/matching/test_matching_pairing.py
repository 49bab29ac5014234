"""The statuses of both sides of an edge: by hand, their consistency, and on planted features."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.errors import RecipeError
from deltasmith.features.codes import Codes
from deltasmith.features.matching.correlation import Best, Correlated, correlate
from deltasmith.features.matching.pairing import Paired, fates_and_descents
from deltasmith.features.matching.thresholds import Thresholds
from deltasmith.features.outcome import DESCENT, FATE, Descent, Fate
from features.planted import agreement, planted


def of_matrix(r: list[list[float]]) -> Correlated:
    """Correlations as given; 0 stands for latents that never fire together."""
    matrix = np.array(r, np.float32)

    def best(rows: np.ndarray) -> Best:
        order = np.argsort(-rows, axis=1, kind="stable")
        top = np.take_along_axis(rows, order, 1)
        first = np.where(top[:, 0] > 0, order[:, 0], -1).astype(np.int32)
        return Best(first, top[:, 0], first, top[:, 0])  # second-best partners play no part

    parents, children = np.nonzero(matrix)
    return Correlated(parents, children, matrix[parents, children], best(matrix), best(matrix.T), 0.3)


def judged(
    r: list[list[float]], fires: list[int] | None = None, child_fires: list[int] | None = None
) -> tuple[list[str], list[str], Paired]:
    above, below = fires or [50] * len(r), child_fires or [50] * len(r[0])
    paired = fates_and_descents(of_matrix(r), np.array(above), np.array(below), Thresholds())
    return [FATE[i].value for i in paired.fate], [DESCENT[i].value for i in paired.descent], paired


@pytest.mark.parametrize(
    ("r", "fates", "descents"),
    [
        ([[0.8]], ["persisted"], ["persisted"]),
        ([[0.79]], ["drifted"], ["drifted"]),
        ([[0.5]], ["drifted"], ["drifted"]),
        ([[0.49]], ["disappeared"], ["emerged"]),
        ([[0.0]], ["disappeared"], ["emerged"]),
        ([[0.7, 0.6]], ["split"], ["split", "split"]),
        ([[0.7, 0.4]], ["drifted"], ["drifted", "emerged"]),
        ([[0.7], [0.6]], ["fused", "fused"], ["fused"]),
        # The same feature, and a part of it that split off.
        ([[0.9, 0.6]], ["persisted"], ["persisted", "split"]),
        # The same feature, and another that it took in.
        ([[0.9], [0.6]], ["persisted", "fused"], ["persisted"]),
        # A strong match that is not mutual is not the same feature.
        ([[0.9], [0.85]], ["persisted", "fused"], ["persisted"]),
        # The second parent's best child has a better parent, and no other child: it fused.
        ([[0.7, 0.0], [0.6, 0.55]], ["fused", "fused"], ["fused", "drifted"]),
        # Two children of the first parent; the second child is also the second parent's only one.
        ([[0.7, 0.65], [0.0, 0.6]], ["split", "drifted"], ["split", "split"]),
        # Split comes before fused for a parent, fused before split for a child.
        (
            [[0.7, 0.65, 0.0], [0.6, 0.0, 0.0]],
            ["split", "fused"],
            ["fused", "split", "emerged"],
        ),
        # Identical latents on both sides: the first two are one feature.
        ([[1.0, 1.0], [1.0, 1.0]], ["persisted", "fused"], ["persisted", "split"]),
    ],
)
def test_by_hand(r: list[list[float]], fates: list[str], descents: list[str]) -> None:
    found = judged(r)
    assert found[0] == fates
    assert found[1] == descents


def test_the_child_is_judged_by_the_mirrored_rules() -> None:
    rng = np.random.default_rng(0)
    mirror = {"disappeared": "emerged", "split": "fused", "fused": "split"}
    for _ in range(50):
        r = np.where(rng.random((9, 9)) < 0.4, rng.random((9, 9)), 0).round(2)
        fates, descents, _ = judged(r.tolist())
        swapped, _, _ = judged(r.T.tolist())
        assert [mirror.get(status, status) for status in swapped] == descents
        assert set(fates) <= {*Fate}


def test_mutual_partners_are_told_at_any_strength() -> None:
    _, _, paired = judged([[0.9, 0.0, 0.0], [0.0, 0.2, 0.0], [0.4, 0.0, 0.0]])
    assert paired.mutual.tolist() == [0, 1, -1]


def test_dead_and_unexercised_latents_are_told_by_their_own_firing() -> None:
    r = [[0.0, 0.0, 0.0], [0.0, 0.9, 0.0], [0.0, 0.0, 0.9]]
    fates, descents, paired = judged(r, [0, 19, 20], [0, 20, 19])
    assert fates == ["dead", "unexercised", "persisted"]
    assert descents == ["dead", "persisted", "unexercised"]
    assert paired.mutual.tolist() == [-1, 1, 2]


def test_an_unexercised_latent_is_no_second_part() -> None:
    assert judged([[0.7, 0.6]], [50], [50, 10])[0] == ["drifted"]
    assert judged([[0.7], [0.6]], [50, 10], [50])[1] == ["drifted"]


def test_thresholds_are_those_given() -> None:
    found = of_matrix([[0.6]])
    fires = np.array([5])
    for limits, wanted in (
        (Thresholds(strong=0.6, weak=0.3, min_fires=5), Fate.PERSISTED),
        (Thresholds(strong=0.7, weak=0.6, min_fires=1), Fate.DRIFTED),
        (Thresholds(strong=0.7, weak=0.61, min_fires=1), Fate.DISAPPEARED),
        (Thresholds(strong=0.6, weak=0.3, min_fires=6), Fate.UNEXERCISED),
    ):
        assert FATE[fates_and_descents(found, fires, fires, limits).fate[0]] is wanted


@pytest.mark.parametrize(
    ("strong", "weak", "min_fires", "words"),
    [
        (0.5, 0.8, 20, "weak is 0.8 and strong 0.5 in the thresholds; choose 0 < weak <= strong <= 1"),
        (1.1, 0.5, 20, "strong 1.1"),
        (0.8, 0.0, 20, "weak is 0 "),
        (0.8, float("nan"), 20, "weak is nan"),
        (0.8, 0.5, 0, "min_fires is 0 in the thresholds; choose 1 or more"),
    ],
)
def test_senseless_thresholds_are_refused(strong: float, weak: float, min_fires: int, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Thresholds(strong, weak, min_fires)


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12), st.integers(1, 8))
def test_both_sides_tell_one_story(seed: int, width: int, other: int, min_fires: int) -> None:
    rng = np.random.default_rng(seed)
    base = (rng.random((40, width)) < 0.2) * rng.integers(1, 4, (40, width))
    mixed = base @ (rng.random((width, other)) < 0.25) + (rng.random((40, other)) < 0.05)
    parent, child = (Codes.of_dense(m.astype(np.float32)) for m in (base, mixed))
    found = correlate(parent, child)
    paired = fates_and_descents(found, parent.fires, child.fires, Thresholds(min_fires=min_fires))
    fate, descent = paired.fate, paired.descent
    up, down = found.of_parents.best, found.of_children.best
    tested_up, tested_down = parent.fires >= min_fires, child.fires >= min_fires
    for i in np.flatnonzero(tested_up):
        partner, status = up[i], FATE[fate[i]]
        assert (status is Fate.DISAPPEARED) == (found.of_parents.r[i] < np.float32(0.5))
        if status is Fate.PERSISTED:
            assert paired.mutual[i] == partner
        if partner < 0 or not tested_down[partner]:
            continue
        if status is Fate.PERSISTED:
            assert DESCENT[descent[partner]] is Descent.PERSISTED
        if status is Fate.FUSED:
            assert DESCENT[descent[partner]] in (Descent.FUSED, Descent.PERSISTED)
    for j in np.flatnonzero(tested_down):
        if DESCENT[descent[j]] is Descent.SPLIT and tested_up[down[j]]:
            assert FATE[fate[down[j]]] in (Fate.SPLIT, Fate.PERSISTED)
    if tested_up.all() and tested_down.all():
        assert (fate == FATE.index(Fate.PERSISTED)).sum() == (
            descent == DESCENT.index(Descent.PERSISTED)
        ).sum()


@pytest.mark.parametrize("seed", range(5))
def test_planted_features_are_recovered(seed: int) -> None:
    made = planted(seed)
    found = correlate(made.parent, made.child)
    paired = fates_and_descents(found, made.parent.fires, made.child.fires, Thresholds())
    for status, truth, names in (
        (paired.fate, made.fates, FATE),
        (paired.descent, made.descents, DESCENT),
    ):
        scores = agreement(status, truth, names)
        assert set(scores) == set(names)
        assert all(min(score) >= 0.95 for score in scores.values()), scores
    persisted = made.fates == FATE.index(Fate.PERSISTED)
    np.testing.assert_array_equal(paired.mutual[persisted], made.partner[persisted])


def test_rotated_features_persist_though_their_directions_do_not() -> None:
    made = planted(1)
    found = correlate(made.parent, made.child)
    paired = fates_and_descents(found, made.parent.fires, made.child.fires, Thresholds())
    partner = paired.mutual[made.rotated]
    assert (paired.fate[made.rotated] == FATE.index(Fate.PERSISTED)).all()
    cosines = (made.parent_directions[made.rotated] * made.child_directions[partner]).sum(1)
    assert np.abs(cosines).max() < 0.7


def test_permuted_tokens_leave_nothing() -> None:
    for seed in range(5):
        made = planted(seed)
        order = np.random.default_rng(seed + 50).permutation(made.child.tokens)
        found = correlate(made.parent, made.child.permuted(order))
        paired = fates_and_descents(found, made.parent.fires, made.child.fires, Thresholds())
        testable = made.parent.fires >= 20
        assert not (found.of_parents.r[testable] >= 0.5).any()
        assert set(paired.fate[testable]) == {FATE.index(Fate.DISAPPEARED)}


def test_agreement_can_tell_what_is_wrong() -> None:
    truth = np.array([0, 0, 1, 1])
    assert agreement(np.array([0, 1, 1, 1]), truth, ("a", "b")) == {"a": (1.0, 0.5), "b": (2 / 3, 1.0)}
    assert agreement(np.array([0, 0, 0, 0]), truth, ("a", "b")) == {"a": (0.5, 1.0), "b": (0.0, 0.0)}
