"""Verdicts on claims: only what the intervals bear out."""

from __future__ import annotations

import numpy as np
import pytest

from deltasmith.lab.claims import _below, _higher, _verdict
from deltasmith.lab.rows import Row
from deltasmith.lab.summary import difference, figure


def rows(share: float, seeds: int = 3, masks: int = 1, n: int = 300) -> tuple[Row, ...]:
    """Return a method that is right on the first items, a little differently under every seed."""
    found = []
    for seed in range(seeds):
        for mask in range(masks):
            right = np.arange(n) < round((share + 0.01 * (seed - 1)) * n)
            found.append(Row({"train_seed": seed, "mask_seed": mask}, "math", right))
    return tuple(found)


@pytest.mark.parametrize(
    ("a", "b", "shift", "verdict"),
    [
        (0.9, 0.5, 0.0, "reproduced"),
        (0.5, 0.9, 0.0, "contradicted"),
        (0.5, 0.5, 0.0, "undecided"),
        (0.88, 0.9, -5.0, "reproduced"),
        (0.7, 0.9, -5.0, "contradicted"),
    ],
)
def test_a_comparison(a: float, b: float, shift: float, verdict: str) -> None:
    claim = _higher("small", "paper", "a is higher than b", rows(a, masks=2), rows(b), shift=shift)
    assert _verdict(claim, claim.p_value) == verdict


@pytest.mark.parametrize(
    ("kept", "verdict"), [(0.95, "reproduced"), (0.5, "contradicted"), (0.81, "undecided")]
)
def test_a_share_kept(kept: float, verdict: str) -> None:
    claim = _higher("small", "paper", "keeps 90 %", rows(kept), rows(0.9), factor=0.9)
    assert _verdict(claim, claim.p_value) == verdict


def test_a_share_not_reached() -> None:
    claim = _below("large", "paper", "keeps less than 20 %", rows(0.02), rows(0.9), factor=0.2)
    assert claim.measured.value == pytest.approx(16.0)
    assert claim.measured.low < 16.0 < claim.measured.high
    assert _verdict(claim, claim.p_value) == "reproduced"


def test_correction_can_take_a_verdict_back() -> None:
    claim = _higher("small", "paper", "a is higher than b", rows(0.9), rows(0.5))
    assert _verdict(claim, 0.2) == "undecided"


def test_figures_average_seeds_and_pair_items() -> None:
    found = figure(rows(0.6))
    assert found.value == pytest.approx(60.0)
    assert found.low < 60 < found.high
    same = difference(rows(0.6), rows(0.6))
    assert (same.estimate, same.interval) == (0.0, (0.0, 0.0)) or same.interval[0] <= 0 <= same.interval[1]
