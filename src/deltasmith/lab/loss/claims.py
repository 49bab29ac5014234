"""What the paper says of edits and their loss, put to the lab's experts one by one; and questions of our own.

A claim holds of an expert where the interval of its measured change, over other items, lies on the claimed side of
the margin. It is `reproduced` where it holds of all experts of a regime (for a random edit: of the mean over its
masks), `not` where it holds of fewer than half and is refuted for at least half, and `undecided` else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from deltasmith.analysis.report import Estimate, Verdict
from deltasmith.lab.loss.figures import Regime, change_of, mean_over, number, ratio_of
from deltasmith.lab.loss.points import KINDS
from deltasmith.lab.rows import Row

__all__ = ["Finding", "Outcome", "claims", "excess_ratio", "quarter"]

Outcome = Literal["reproduced", "not", "undecided"]
_COMPETITIVE_RATES = (0.1, 0.5, 0.9)
_VIEW, _OURS = "Unified View", "second order (ours)"


@dataclass(frozen=True)
class Finding:
    """A claim in one regime: what became of it, and the figures."""

    source: str
    text: str
    outcome: Outcome
    figures: str


def claims(regime: Regime) -> list[Finding]:
    """Put every claim to one regime."""
    return [*_classes(regime), *_biased(regime), *_curved(regime), *_rules(regime)]


def _classes(regime: Regime) -> Iterator[Finding]:
    for k, name in ((0.0, "DARE"), (0.5, "k-DARE, k = 0.5,"), (-1.0, "k-DARE, k = −1,")):
        for rate in _COMPETITIVE_RATES:
            rows = regime.of("second_order", k=k, rate=rate)
            yield _all(regime, f"{name} at p = {rate} is competitive", rows, ("competitive",))
    for group, edit, name in (
        ("bitdelta", "c = 1.0", "BitDelta"),
        ("low_rank", "density 0.1", "SVD, a tenth of the triplets,"),
        ("trim", "density 0.2", "TIES trim to a fifth"),
    ):
        rows = regime.of("predictions", group=group, edit=edit)
        yield _all(regime, f"{name} decreases", rows, ("decreased",))
    searched = regime.of("extrapolation", by="search")
    text = "ExPO improves, α from the line search on other items (beyond the margin)"
    yield _all(regime, text, searched, ("improved",))
    best = [min(_grid(regime, task), key=lambda row: number(row, "measured")) for task in regime.tasks]
    text = "ExPO improves for some α (the best in hindsight, interval below 0)"
    lower = sum(change_of(row).high < 0 for row in best)
    yield Finding(_VIEW, text, _by_count(lower, len(best) - lower, len(best)), _counted(lower, best))


def _grid(regime: Regime, task: str) -> list[Row]:
    return [row for row in regime.of("extrapolation", by="grid") if row.task == task]


def _all(regime: Regime, text: str, rows: Sequence[Row], wanted: Sequence[Verdict]) -> Finding:
    found = [regime.verdict(row) for row in rows]
    holds = sum(one in wanted for one in found)
    refuted = sum(one not in (*wanted, "undecided") for one in found)
    return Finding(_VIEW, text, _by_count(holds, refuted, len(rows)), _counted(holds, rows))


def _by_count(holds: int, refuted: int, of: int) -> Outcome:
    if of and holds == of:
        return "reproduced"
    return "not" if 2 * holds < of <= 2 * refuted else "undecided"


def _counted(holds: int, rows: Sequence[Row]) -> str:
    mean = np.mean([number(row, "measured") for row in rows])
    return f"{holds} of {len(rows)}; mean {mean:+.4f}"


def _biased(regime: Regime) -> Iterator[Finding]:
    for kind, text, wanted in (
        (KINDS[1], "bias by the sign of ΔW destroys nothing: at most 5 points lost at p = 0.5", False),
        (KINDS[2], "bias by ΔW·∇L (other items) destroys: 20 points lost or more at p = 0.5", True),
        (KINDS[3], "bias by ΔW·∇L (same items) destroys: 20 points lost or more at p = 0.5", True),
    ):
        for below in (True, False):
            rows = [r for r in regime.of("biased", kind=kind, rate=0.5) if (number(r, "k") < 1) is below]
            lost = mean_over([[regime.lost(r) for r in rows if r.task == task] for task in regime.tasks])
            said = f"{text}, k {'<' if below else '>'} 1"
            yield Finding(_VIEW, said, _side(lost, 20.0 if wanted else 5.0, wanted), _points(lost))


def _side(found: Estimate, line: float, above: bool) -> Outcome:
    """Say whether an interval lies on the claimed side of a line."""
    if (found.low > line) if above else (found.high < line):
        return "reproduced"
    return "not" if ((found.high < line) if above else (found.low > line)) else "undecided"


def _points(found: Estimate) -> str:
    return f"{found.value:.1f} lost [{found.low:.1f}, {found.high:.1f}]"


def _curved(regime: Regime) -> Iterator[Finding]:
    for rate in (0.1, 0.5, 0.9):
        for kind, name in (("hessian", "the Hessian"), ("fisher", "Fisher's diagonal")):
            text = f"{name} foretells DARE's mean excess at p = {rate} within a factor of 2 (measured / expected)"
            found = [excess_ratio(regime, row, kind) for row in regime.of("second_order", k=0.0, rate=rate)]
            yield _inside(text, found, 0.5, 2.0)
    yield _warned(regime)
    for rate in (0.1, 0.5, 0.9):
        text = f"k = 0.5 has a quarter of DARE's excess at p = {rate} (between 0.2 and 0.3)"
        yield _inside(text, [quarter(regime, task, rate) for task in regime.tasks], 0.2, 0.3)


def _warned(regime: Regime) -> Finding:
    """Ask whether what is expected of a random edit lies on the same side of the margin as what it does."""
    rows = [row for row in regime.of("second_order") if regime.verdict(row) != "undecided"]
    groups = [
        [100.0 * _told(regime, row) for row in rows if row.task == task]
        for task in dict.fromkeys(row.task for row in rows)
    ]
    share = mean_over(groups)
    text = (
        "the expected excess (Hessian) lies beyond the margin where DARE or k-DARE decrease, and there alone"
    )
    figures = f"{share.value:.0f} % of {len(rows)} [{share.low:.0f}, {share.high:.0f}]"
    return Finding(_OURS, f"{text} (in 90 % of settings)", _side(share, 90.0, True), figures)


def _told(regime: Regime, row: Row) -> bool:
    return (number(row, "hessian") > regime.margins[row.task]) == (regime.verdict(row) == "decreased")


def _inside(text: str, found: Sequence[Estimate], low: float, high: float) -> Finding:
    holds = sum(low <= one.low and one.high <= high for one in found)
    refuted = sum(one.high < low or one.low > high for one in found)
    figures = f"{holds} of {len(found)}; {', '.join(f'{one.value:.2f}' for one in found)}"
    return Finding(_OURS, text, _by_count(holds, refuted, len(found)), figures)


def excess_ratio(regime: Regime, row: Row, kind: str) -> Estimate:
    """Return the measured excess of a row's masks over what second order expects of it."""
    return ratio_of(regime.excess(row), number(row, kind))


def quarter(regime: Regime, task: str, rate: float) -> Estimate:
    """Return the excess of k = 0.5 over that of k = 0 under the same masks, of one expert."""
    half, none = (
        next(regime.excess(row) for row in regime.of("second_order", k=k, rate=rate) if row.task == task)
        for k in (0.5, 0.0)
    )
    return ratio_of(half, none)


def _rules(regime: Regime) -> Iterator[Finding]:
    beyond = regime.beyond()
    tests: Sequence[tuple[str, Callable[[Row], bool]]] = (
        (
            "the left rule, C = 5, has the sign of what lies beyond the margin",
            lambda r: _same_sign(r, "left 5"),
        ),
        ("the left rule, C = 1 (the gradient alone), has that sign", lambda r: _same_sign(r, "left 1")),
        (
            "the left rule, C = 5, makes damage look smaller than it is",
            lambda r: number(r, "left 5") < number(r, "measured"),
        ),
    )
    for text, test in tests:
        groups = [[100.0 * test(row) for row in beyond if row.task == task] for task in regime.tasks]
        share = mean_over([group for group in groups if group])
        figures = f"{share.value:.0f} % of {len(beyond)} [{share.low:.0f}, {share.high:.0f}]"
        yield Finding("equation 1", f"{text} (in 90 % of edits)", _side(share, 90.0, True), figures)


def _same_sign(row: Row, key: str) -> bool:
    return bool(np.sign(number(row, key)) == np.sign(number(row, "measured")))
