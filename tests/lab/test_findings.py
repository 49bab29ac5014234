"""What the committed results show: findings that must hold, each with its interval."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deltasmith.lab import summary
from deltasmith.lab.claims import judged
from deltasmith.lab.experiments.curves import RATES
from deltasmith.lab.page import load_all
from deltasmith.lab.rows import Results, Row
from deltasmith.lab.summary import difference, figure

RESULTS = Path(__file__).parents[2] / "lab" / "results"
REGIMES = ("small", "medium", "large")


@pytest.fixture(scope="module")
def results() -> dict[str, Results]:
    return load_all(RESULTS)


@pytest.fixture(scope="module", autouse=True)
def fewer_draws() -> Iterator[None]:
    """Spare time: what is asserted here has no need of p-values below 0.001."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary, "DRAWS", 1_000)
        yield


def curve(results: dict[str, Results], regime: str, method: str, rate: float) -> tuple[Row, ...]:
    return results["curves"].where(regime=regime, method=method, rate=rate).rows


def kept(results: dict[str, Results], regime: str, method: str, rate: float) -> tuple[float, float]:
    """Return the interval of the share of the experts' accuracy that is kept."""
    found = figure(curve(results, regime, method, rate))
    dense = figure(curve(results, regime, "expert", 0.0)).value
    return found.low / dense, found.high / dense


def test_three_training_seeds_and_five_mask_seeds(results: dict[str, Results]) -> None:
    for name in ("curves", "merges"):
        assert {row.keys["train_seed"] for row in results[name].rows} == {0, 1, 2}
        assert {row.keys["mask_seed"] for row in results[name].rows} == set(range(5))


def test_dare_at_nine_tenths_keeps_small_deltas(results: dict[str, Results]) -> None:
    assert kept(results, "small", "dare", 0.9)[0] >= 0.8


def test_dare_at_nine_tenths_loses_large_deltas(results: dict[str, Results]) -> None:
    assert kept(results, "large", "dare", 0.9)[1] <= 0.2


def test_magnitude_beats_dare_where_deltas_are_large(results: dict[str, Results]) -> None:
    magnitude, dare = (curve(results, "large", method, 0.9) for method in ("magnitude", "dare"))
    assert difference(magnitude, dare).interval[0] > 0


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("rate", RATES)
def test_magprune_is_never_more_than_two_points_below_dare(
    regime: str, rate: float, results: dict[str, Results]
) -> None:
    magprune, dare = (curve(results, regime, method, rate) for method in ("magprune", "dare"))
    assert figure(magprune).value - figure(dare).value >= -2.0


def test_an_expert_averaged_with_itself_answers_as_the_expert(results: dict[str, Results]) -> None:
    for regime in REGIMES:
        averaged = results["controls"].where(regime=regime, base="itself").rows
        experts = results["emr"].where(regime=regime, method="experts").rows
        of = {(row.keys["train_seed"], row.task): row.right for row in experts}
        assert averaged
        for row in averaged:
            assert (row.right == of[row.keys["train_seed"], row.task]).all()


def test_nothing_is_left_of_experts_without_a_common_base(results: dict[str, Results]) -> None:
    for regime in REGIMES:
        averaged = results["controls"].where(regime=regime, base="none", method="average").rows
        assert figure(averaged).high < 5.0


def test_every_claim_has_a_verdict_the_interval_bears_out(results: dict[str, Results]) -> None:
    claims = judged(results)
    assert len({(claim.regime, claim.text) for claim in claims}) == len(claims)
    for claim in claims:
        if claim.verdict == "reproduced":
            assert claim.measured.low > 0
        if claim.verdict == "contradicted":
            assert claim.measured.high < 0
