"""Warnings about values: said when they are due, with proof, and not otherwise."""

from __future__ import annotations

import numpy as np

from deltasmith.engine.glance import glance
from deltasmith.merges.sum import Sum
from tables import SHAPES, family, make_plan

Q = "model.layers.1.self_attn.q_proj.weight"


def said(base: dict, tunes: list[dict]) -> tuple[str, ...]:
    return glance(make_plan(base, tunes, Sum()))


def test_a_plausible_family_needs_no_warning() -> None:
    assert said(*family(2)) == ()


def test_fault_47_a_tensor_of_zeros() -> None:
    base, tunes = family(2)
    tunes[1][Q] = np.zeros(SHAPES[Q], np.float32)
    assert said(base, tunes) == (f"{Q} of m1 seems to be zero throughout: was it lost when it was written?",)
    tunes[1][Q][0, 0] = 1.0  # not all of it, though the glance sees only zeros
    assert said(base, tunes) == ()


def test_a_tensor_that_is_zero_in_the_base_too_is_meant_so() -> None:
    base, tunes = family(1)
    base[Q] = tunes[0][Q] = np.zeros(SHAPES[Q], np.float32)
    assert said(base, tunes) == ()


def test_fault_48_a_model_that_is_the_base() -> None:
    base, tunes = family(1)
    same = {n: v.copy() for n, v in base.items()}
    assert said(base, [tunes[0], same]) == (
        "m1 does not seem to differ from the base: is it the right model?",
    )
    same[Q][3, 3] += 1.0
    assert said(base, [tunes[0], same]) == ()


def test_fault_48_a_base_of_another_model() -> None:
    base, _ = family(1)
    other = {n: 3 * v[::-1] if v.ndim else v for n, v in base.items()}
    (warning,) = said(base, [other])
    assert "m0 is further from the base than the base is from zero" in warning
