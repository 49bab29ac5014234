"""The variance of a recipe's random edit: against formulas, and against the spread over seeds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from deltasmith.analysis.variances import variances
from deltasmith.edits.amplify import Amplify
from deltasmith.edits.drop import Drop, DropMatchL1, DropUnscaled
from deltasmith.edits.drop_by_rank import DropByRank
from deltasmith.edits.drop_partly import DropPartly
from deltasmith.edits.keep_largest import KeepLargest
from deltasmith.edits.quantise import Quantise
from deltasmith.engine.workers import Stop
from deltasmith.errors import InterruptedRunError, RecipeError
from deltasmith.merges.elect import Elect
from deltasmith.merges.linear import Linear
from deltasmith.merges.sum import Sum
from deltasmith.operation.protocols import Edit
from deltasmith.planning.align import Wishes, align
from deltasmith.planning.plan import Column, EditRule, Plan
from deltasmith.table.checkpoint import DictCheckpoint
from tables import make_plan, run, table

SHAPES = {"layers.0.q.weight": (6, 10), "layers.0.norm.weight": (5,), "empty": (0, 4), "scalar": ()}
BASE = table(0, shapes=SHAPES)
TUNES = [{n: BASE[n] + d for n, d in table(i, 0.1, SHAPES).items()} for i in (1, 2)]
DELTAS = [{n: t[n] - BASE[n] for n in SHAPES} for t in TUNES]


def plan(*edits: Edit, models: int = 1, **how: object) -> Plan:
    merge = how.pop("merge", Sum())
    return make_plan(BASE, TUNES[:models], merge, edits, **how)  # type: ignore[arg-type]


def separately(*columns: tuple[EditRule, ...], **wishes: object) -> Plan:
    """A plan whose models have edits of their own."""
    made = tuple(
        Column(f"m{i}", DictCheckpoint(t), 1.0, rules)
        for i, (t, rules) in enumerate(zip(TUNES, columns, strict=False))
    )
    return align(DictCheckpoint(BASE), made, Wishes(Sum(), "delta", **wishes))  # type: ignore[arg-type]


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == sorted(expected)
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=0, err_msg=name)


@pytest.mark.parametrize("threads", [1, 2])
def test_dropping_partly(threads: int) -> None:
    p, k = 0.7, -0.5
    found = variances(plan(DropPartly(density=1 - p, k=k)), threads=threads)
    assert_equal(found, {n: (1 - k) ** 2 * p / (1 - p) * d.astype(float) ** 2 for n, d in DELTAS[0].items()})


def test_amplifiers_weight_and_scale_enter_squared() -> None:
    edits = (Drop(density=0.25), Amplify(factor=1.5), Amplify(factor=-2.0))
    found = variances(plan(*edits, weights=(0.5,), scale=3.0))
    factor = 3.0 * (1.5 * -2.0 * 0.5 * 3.0) ** 2
    assert_equal(found, {n: factor * d.astype(float) ** 2 for n, d in DELTAS[0].items()})


def test_edits_before_it_have_been_applied() -> None:
    """Trimmed first, so what was trimmed has no variance; and an amplifier before it counts, too."""
    found = variances(plan(KeepLargest(density=0.5), Amplify(factor=2.0), Drop(density=0.5)))
    trimmed = run(plan(KeepLargest(density=0.5), Amplify(factor=2.0))).arrays()
    for name, values in found.items():
        delta = trimmed[name] - BASE[name]
        np.testing.assert_allclose(values, delta.astype(float) ** 2, rtol=1e-4, atol=1e-7)
    assert np.mean(found["layers.0.q.weight"] == 0) > 0.3


def test_models_add_up_under_sum() -> None:
    found = variances(plan(Drop(density=0.5), models=2, weights=(0.3, 2.0), scale=0.5))
    expected = {
        n: 0.25 * (0.09 * a.astype(float) ** 2 + 4.0 * DELTAS[1][n].astype(float) ** 2)
        for n, a in DELTAS[0].items()
    }
    assert_equal(found, expected)


def test_a_model_without_a_random_edit_adds_nothing() -> None:
    found = variances(separately((EditRule(Drop(density=0.5)),), (EditRule(KeepLargest(density=0.5)),)))
    assert_equal(found, {n: d.astype(float) ** 2 for n, d in DELTAS[0].items()})


def test_tensors_outside_its_globs_are_left_out() -> None:
    rules = (EditRule(Drop(density=0.5), "*norm*"), EditRule(DropPartly(density=0.5, k=0.5), "*q*"))
    found = variances(separately(rules))
    square = {n: d.astype(float) ** 2 for n, d in DELTAS[0].items()}
    expected = {n: square[n] * f for n, f in (("layers.0.norm.weight", 1.0), ("layers.0.q.weight", 0.25))}
    assert_equal(found, expected)


@pytest.mark.parametrize(
    "edits",
    [
        (DropByRank(density=0.5, window=0.6), Amplify(factor=0.5)),
        (KeepLargest(density=0.6), DropPartly(density=0.3, k=0.5)),
    ],
    ids=["by rank", "after a trim"],
)
def test_it_is_the_spread_over_seeds(edits: tuple[Edit, ...]) -> None:
    """The engine's own masks: the variance of what a merge computes, for two models with weights and a scale."""
    made = plan(*edits, models=2, weights=(1.0, 0.5), scale=2.0)
    found = variances(made)
    name = "layers.0.q.weight"
    runs = np.stack([run(replace(made, seed=seed)).arrays()[name] for seed in range(300)])
    measured = runs.astype(float).var(axis=0)
    assert measured.sum() == pytest.approx(float(found[name].sum()), rel=0.05)
    far = np.abs(measured - found[name]) > 0.45 * found[name] + 1e-10
    assert far.mean() <= 0.05


@pytest.mark.parametrize(
    ("edits", "says"),
    [
        ((), "no edit of the recipe is random"),
        ((KeepLargest(density=0.5),), "no edit of the recipe is random"),
        ((Drop(density=0.5), Drop(density=0.5)), "drop.*follows a random edit in m0, empty"),
        ((Drop(density=0.5), KeepLargest(density=0.5)), "keep_largest.*follows a random edit"),
        ((DropUnscaled(density=0.5), Drop(density=0.5)), r"drop_unscaled\(density=0.5\) is random in m0"),
        ((DropMatchL1(density=0.5), Drop(density=0.5)), "is random"),
        ((Quantise(codec="bitdelta_random"), Drop(density=0.5)), r"quantise.* is random"),
    ],
)
def test_recipes_whose_variance_is_not_known_are_refused(edits: tuple[Edit, ...], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        variances(plan(*edits))


def test_a_random_edit_beside_it_is_refused_too() -> None:
    with pytest.raises(RecipeError, match=r"drop_unscaled.* is random in m1"):
        variances(separately((EditRule(Drop(density=0.5)),), (EditRule(DropUnscaled(density=0.5)),)))


def test_other_merges_are_refused() -> None:
    for merge, space in ((Elect(), "delta"), (Linear(), "weight")):
        with pytest.raises(RecipeError, match=r"variance of this merge is not known.*merge: sum"):
            variances(plan(Drop(density=0.5), models=2, merge=merge, space=space))


def test_an_interruption_is_heard() -> None:
    stop = Stop()
    stop.ask()
    with pytest.raises(InterruptedRunError):
        variances(plan(Drop(density=0.5)), stop=stop)
