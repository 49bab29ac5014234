"""Pruning one expert: the densities asked for, the masks that seeds decide, the search on validation items."""

from __future__ import annotations

import numpy as np
import pytest
from bench_tools import bundled

from deltasmith.lab.experiments import curves


def test_every_method_and_rate_has_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "RATES", (0.5, 0.8))
    monkeypatch.setattr(curves, "AMPLIFIED", (0.8,))
    monkeypatch.setattr(curves, "MASK_SEEDS", 2)
    rows = list(curves.run(bundled(test=1, validation=1)))
    assert len(rows) == 3 * (2 + 2 * (2 * 2 + 3) + 1)
    amplified = [row for row in rows if row.keys["method"] == "dp_dpa"]
    assert {row.keys["rate"] for row in amplified} == {0.8}
    assert all(int(str(row.keys["evaluations"])) >= 3 for row in amplified)


@pytest.mark.parametrize("method", ["dare", "magprune", "magnitude", "magnitude_rescaled", "dp"])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_rate_is_the_share_removed(method: str, rate: float) -> None:
    bench = bundled()
    base, pruned = bench.tensors(bench.base), curves._pruned(bench, "math", curves._edits(method, rate), 0)
    expert = bench.tensors(bench.expert("math"))
    names = [name for name in base if name.endswith("_proj.weight")]
    moved = sum(int((pruned[n] != base[n]).sum()) for n in names)
    dense = sum(int((expert[n] != base[n]).sum()) for n in names)
    # Some deltas are 0 already, and rounding to bfloat16 swallows some small ones.
    assert moved / dense == pytest.approx(1 - rate, abs=0.1)


def test_mask_seeds_give_other_masks_and_the_same_seed_the_same() -> None:
    bench = bundled()
    masks = [curves._pruned(bench, "math", curves._edits("dare", 0.9), seed) for seed in (0, 1, 0)]
    name = "model.layers.0.mlp.up_proj.weight"
    assert not np.array_equal(masks[0][name], masks[1][name])
    np.testing.assert_array_equal(masks[0][name], masks[2][name])


@pytest.mark.parametrize("rate", curves.RATES)
def test_the_window_leaves_probabilities_above_nothing(rate: float) -> None:
    window = curves.window_at(rate)
    assert 0 < window <= 0.14
    assert (1 - rate) - window / 2 > 0
    assert (1 - rate) + window / 2 < 1
