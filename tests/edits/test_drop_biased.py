"""The ablations of k-DARE: by sign, and by the product with a gradient."""

from __future__ import annotations

import numpy as np
import pytest

from contracts import drawn_table
from deltasmith.edits.drop_biased import BiasByGradient, BiasBySign
from deltasmith.edits.drop_partly import DropPartly
from deltasmith.errors import RecipeError, RefusedError
from deltasmith.operation.protocols import Found, Place
from deltasmith.operation.reference import edit_table


def edited(edit, delta, gradient=None):
    statistics = None if gradient is None else {"w": np.array(gradient, np.float32)}
    return edit_table(edit, {"w": np.array(delta, np.float32)}, statistics=statistics)["w"].tolist()


def test_by_hand():
    delta = [-2.0, 2.0, 0.0, -1.0]
    assert edited(BiasBySign(density=0.5, k=0.5), delta) == [-1.0, 3.0, 0.0, -0.5]
    assert edited(BiasBySign(density=0.25, k=-1.0), delta) == [2.0, 14.0, 0.0, 1.0]  # (1 + 0.75) / 0.25 = 7
    assert edited(BiasByGradient(density=0.5, k=0.5), delta, [1, 1, 1, -1]) == [-1.0, 3.0, 0.0, -1.5]


def test_a_product_of_zero_counts_with_the_others():
    assert edited(BiasByGradient(density=0.5, k=0.0), [-2.0, 2.0], [0.0, 0.0]) == [-4.0, 4.0]
    tiny = 1e-30  # the product of two such numbers is 0 in float32
    got = edited(BiasByGradient(density=0.5, k=0.0), [-tiny, tiny], [tiny, tiny])
    assert got == [0.0, pytest.approx(2e-30)]


def test_k_one_and_density_one_change_nothing():
    table = {"w": drawn_table(3)["model.embed.weight"]}
    for edit in (BiasBySign(density=0.3, k=1.0), BiasByGradient(density=0.3, k=1.0)):
        np.testing.assert_array_equal(edit_table(edit, table, statistics=table)["w"], table["w"])
    negative = {"w": np.abs(table["w"])}
    np.testing.assert_array_equal(edit_table(BiasBySign(density=1.0, k=5.0), negative)["w"], negative["w"])


def test_nothing_is_random_and_the_mean_is_near_that_of_the_random_drop():
    delta = np.random.default_rng(1).standard_normal(1 << 16).astype(np.float32)
    edits = [
        edit_table(BiasBySign(density=0.5, k=0.5), {"w": delta}, key=lambda n, k=k: k)["w"] for k in (0, 1)
    ]
    np.testing.assert_array_equal(*edits)
    random = DropPartly(density=0.5, k=0.5).apply(delta, Place("w", delta.shape), Found())
    assert np.square(edits[0]).mean() == pytest.approx(np.square(random).mean(), rel=0.02)


def test_a_gradient_that_is_missing_or_not_finite_is_refused():
    edit, delta = BiasByGradient(density=0.5, k=0.5), np.ones(2, np.float32)
    with pytest.raises(RecipeError, match=r"bias_by_gradient has no gradient in w; write statistics: FILE"):
        edit.apply(delta, Place("w", (2,)), Found())
    with pytest.raises(RefusedError, match="the gradient has an element that is not finite in w"):
        edited(edit, delta, [1.0, np.nan])
