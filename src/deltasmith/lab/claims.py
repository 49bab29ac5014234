"""What the papers claim, put as questions to the lab's results: reproduced, contradicted, or undecided.

Every question is whether a difference is above zero: of two methods, or of a method and a share of another. It is
reproduced if the 95 % interval of the paired difference lies above zero and p is below 0.05 after Holm's correction
over the questions to one table (one regime and setting), contradicted if it lies below, undecided in between. A claim
is asked only of the regimes it was made for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Literal

from deltasmith.evaluate.statistics import holm
from deltasmith.lab.rows import Results, Row
from deltasmith.lab.summary import Figure, difference

__all__ = ["Claim", "Verdict", "judged"]

Verdict = Literal["reproduced", "contradicted", "undecided"]
LEVEL = 0.05
_SETTINGS = {"tuned": "λ tuned", "default": "λ = 1"}


@dataclass(frozen=True)
class Claim:
    """One claim about one regime, by how many points it holds, with an interval, and the verdict."""

    regime: str
    source: str
    text: str
    measured: Figure
    p_value: float
    verdict: Verdict = "undecided"


def judged(results: Mapping[str, Results]) -> list[Claim]:
    """Put every claim that the given experiments can answer to their results, and correct for their number."""
    makers = {"curves": _curves, "merges": _merges, "emr": _emr, "vision": _vision}
    tables = (table for name, make in makers.items() if name in results for table in make(results[name]))
    return [claim for table in tables for claim in _corrected(list(table))]


def _corrected(claims: list[Claim]) -> list[Claim]:
    """Decide the claims about one table."""
    adjusted = holm([claim.p_value for claim in claims])
    return [
        replace(claim, p_value=p, verdict=_verdict(claim, p))
        for claim, p in zip(claims, adjusted, strict=True)
    ]


def _verdict(claim: Claim, p: float) -> Verdict:
    if p > LEVEL or claim.measured.low <= 0 <= claim.measured.high:
        return "undecided"
    return "reproduced" if claim.measured.low > 0 else "contradicted"


def _higher(
    regime: str,
    source: str,
    text: str,
    a: tuple[Row, ...],
    b: tuple[Row, ...],
    factor: float = 1.0,
    shift: float = 0.0,
) -> Claim:
    """Claim that `a` is higher than `factor` · `b` + `shift` points."""
    found = difference(a, b, factor, shift)
    return Claim(regime, source, text, Figure(found.estimate, *found.interval), found.p_value)


def _below(
    regime: str, source: str, text: str, a: tuple[Row, ...], b: tuple[Row, ...], factor: float
) -> Claim:
    """Claim that `a` is lower than `factor` · `b`."""
    found = difference(a, b, factor)
    low, high = found.interval
    return Claim(regime, source, text, Figure(-found.estimate, -high, -low), found.p_value)


def _curves(results: Results) -> Iterator[Iterator[Claim]]:
    return (_curves_in(results, regime) for regime in results.settings["regimes"])


def _curves_in(results: Results, regime: str) -> Iterator[Claim]:
    dare, dppa, della = "DARE (arXiv 2311.03099)", "DPPA (arXiv 2403.02799)", "DELLA (arXiv 2406.11617)"
    at = partial(_pruned, results, regime)
    expert, dropped = at("expert", 0.0), at("dare", 0.9)
    if regime == "large":
        text = "DARE fails at p = 0.9: below 20 % of an expert's accuracy, our threshold (points by which)"
        yield _below(regime, f"{dare}; {dppa}", text, dropped, expert, factor=0.2)
        text = "magnitude pruning keeps more than DARE, p = 0.9"
        yield _higher(regime, dppa, text, at("magnitude", 0.9), dropped)
    else:
        text = "DARE at p = 0.9 keeps more than 90 % of an expert's accuracy (points by which)"
        yield _higher(regime, dare, text, dropped, expert, factor=0.9)
        text = "DARE keeps more than magnitude pruning, p = 0.9"
        yield _higher(regime, dare, text, dropped, at("magnitude", 0.9))
    text = "MAGPRUNE keeps more than DARE, p = 0.9"
    yield _higher(regime, della, text, at("magprune", 0.9), dropped)
    text = "DP alone keeps more than DARE, p = 0.9"
    yield _higher(regime, dppa, text, at("dp", 0.9), dropped)
    text = "DPA adds to DP at 20 % kept"
    yield _higher(regime, dppa, text, at("dp_dpa", 0.8), at("dp", 0.8))
    text = "DP+DPA with 20 % kept is at most 5 points below DARE with 90 % kept (points above that)"
    yield _higher(regime, dppa, text, at("dp_dpa", 0.8), at("dare", 0.1), shift=-5.0)


def _pruned(results: Results, regime: str, method: str, rate: float) -> tuple[Row, ...]:
    return results.where(regime=regime, method=method, rate=rate).rows


def _merges(results: Results) -> Iterator[Iterator[Claim]]:
    regimes = results.settings["regimes"]
    return (_merges_in(results, regime, setting) for regime, setting in product(regimes, _SETTINGS))


def _merges_in(results: Results, regime: str, setting: str) -> Iterator[Claim]:
    della, ties = "DELLA (arXiv 2406.11617), Tables 1, 4", "TIES (arXiv 2306.01708)"
    comparisons = (
        (della, "DELLA is higher than DARE, both with election", "della", "dare_ties"),
        (della, "DELLA is higher than TIES", "della", "ties"),
        (della, "DELLA is higher than TA with election", "della", "ta_elect"),
        (della, "DELLA is higher than DELLA without election", "della", "della_noelect"),
        (ties, "TIES is higher than task arithmetic", "ties", "ta"),
        ("DPPA (arXiv 2403.02799)", "DPPA, 20 % kept, merges better than DARE", "dppa", "dare"),
    )
    kept = results.where(regime=regime, setting=setting)
    for source, text, a, b in comparisons:
        left, right = (_flat(kept.where(method=method).rows) for method in (a, b))
        yield _higher(regime, source, f"{text}; {_SETTINGS[setting]}", left, right)


def _flat(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Count each task of each combination of models as a task of its own."""
    return tuple(Row(row.keys, f"{row.keys['models']}: {row.task}", row.right) for row in rows)


def _emr(results: Results) -> Iterator[Iterator[Claim]]:
    return (_emr_in(results, regime) for regime in results.settings["regimes"])


def _emr_in(results: Results, regime: str) -> Iterator[Claim]:
    source = "EMR (arXiv 2405.17461), main table and ablation"
    comparisons = (
        ("EMR, which knows the task, is higher than tuned task arithmetic", "emr", "ta"),
        ("EMR, which knows the task, is higher than tuned TIES", "emr", "ties"),
        ("the mask adds to the elected vector", "elect_mask", "elect"),
        ("the rescaler adds to the mask", "emr", "elect_mask"),
    )
    for text, a, b in comparisons:
        left, right = (results.where(regime=regime, method=method).rows for method in (a, b))
        yield _higher(regime, source, text, left, right)


def _vision(results: Results) -> Iterator[Iterator[Claim]]:
    yield _vision_in(results)


def _vision_in(results: Results) -> Iterator[Claim]:
    fusion, ties, emr = "FusionBench, CLIP ViT-B/32", "TIES (arXiv 2306.01708)", "EMR (arXiv 2405.17461)"
    comparisons = (
        (
            fusion,
            "task arithmetic, tuned, is higher than the average",
            ("ta", "tuned"),
            ("average", "default"),
        ),
        (ties, "TIES is higher than task arithmetic; λ tuned", ("ties", "tuned"), ("ta", "tuned")),
        (ties, "TIES is higher than task arithmetic; λ = 1", ("ties", "default"), ("ta", "default")),
        (fusion, "RegMean is higher than task arithmetic, tuned", ("regmean", "tuned"), ("ta", "tuned")),
        (fusion, "Iso-C is higher than task arithmetic, tuned", ("iso_c", "tuned"), ("ta", "tuned")),
        (emr, "EMR, which knows the task, is higher than tuned TIES", ("emr", "default"), ("ties", "tuned")),
    )
    for source, text, a, b in comparisons:
        left, right = (results.where(method=method, setting=setting).rows for method, setting in (a, b))
        yield _higher("vision", source, text, left, right)
