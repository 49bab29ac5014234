"""The tables of the page of predicted and measured losses, and the words around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from deltasmith.analysis.report import Estimate, Verdict
from deltasmith.lab.loss.agreement import Pairs, estimate, median_error, signs, spearman
from deltasmith.lab.loss.claims import claims, excess_ratio, quarter
from deltasmith.lab.loss.figures import Regime, mean_over, number
from deltasmith.lab.loss.points import GROUPS, KINDS
from deltasmith.lab.page_text import table
from deltasmith.lab.rows import Results, Row

__all__ = ["sections"]

_MARKS = {"reproduced": "✓", "not": "✗", "undecided": "·"}
_GRIDS = tuple(
    f"{rule} {steps}"
    for rule in ("left", "midpoint", "trapezoid")
    for steps in (1, 2, 5, 10)
    if (rule, steps) != ("midpoint", 10)
)
_VERDICTS: tuple[Verdict, ...] = ("competitive", "decreased", "improved", "undecided")


def _title(regime: Regime) -> str:
    return "vision" if regime.name == "vision" else f"{regime.name} deltas"


def sections(found: Sequence[Results], regimes: Sequence[Regime]) -> Iterator[str]:
    """Write everything between the marks, line by line."""
    made = dict.fromkeys(str(results.settings["made"]) for results in found)
    yield f"Made {'; '.join(made)}."
    yield ""
    for section in (
        _subjects,
        _claims,
        _agreement,
        _groups,
        _beyond_the_data,
        _classes,
        _biased,
        _curved,
        _searched,
    ):
        yield from section(regimes)
        yield ""


def _subjects(regimes: Sequence[Regime]) -> Iterator[str]:
    yield "### What is measured"
    yield ""
    yield (
        "Every expert on held-out items of its own task; the loss is the mean over the tokens of the answers (of the"
        " vision models, over pictures). `margin`: what counts as no change, 2 % of what fine-tuning gained."
    )
    yield ""
    rows = []
    for regime in regimes:
        for task in regime.tasks:
            expert, base = regime.losses[task]
            accuracy = f"{100 * regime.accuracies[task]:.1f}"
            rows.append(
                (
                    _title(regime),
                    task,
                    f"{base:.4f}",
                    f"{expert:.4f}",
                    f"{regime.margins[task]:.4f}",
                    accuracy,
                )
            )
    yield from table(
        ("regime", "expert", "loss of the base", "of the expert", "margin", "right, %"), rows, left=2
    )


def _claims(regimes: Sequence[Regime]) -> Iterator[str]:
    yield "### What reproduced and what did not"
    yield ""
    yield (
        "✓ reproduced, ✗ not, · undecided. A class counts for an expert where the interval of its change, over other"
        " items, lies wholly on that side of the margin (random edits: the mean over 12 masks); ✓ asks for all experts,"
        " ✗ for the contrary in at least half of them. Of shares and points, means over experts that count the"
        " same, the 95 % interval over edits and experts decides. There are three experts to a regime, and four vision"
        " models: a ✓ says what holds of these models."
    )
    yield ""
    columns = [claims(regime) for regime in regimes]
    body = [
        (row[0].source, row[0].text, *(f"{_MARKS[one.outcome]} {one.figures}" for one in row))
        for row in zip(*columns, strict=True)
    ]
    yield from table(("source", "claim", *map(_title, regimes)), body, left=2)


def _agreement(regimes: Sequence[Regime]) -> Iterator[str]:
    yield "### Predicted against measured, by rule and number of steps"
    yield ""
    yield (
        "`signs`: per cent of edits whose predicted change has the sign of the measured one, on the same data; a zero"
        " would agree with a zero alone, and there is none. `beyond the margin`: of those edits whose measured change"
        " exceeds the margin, up or down. `ranks`: Spearman's correlation of predicted and measured. Intervals draw"
        " edits; those in brackets of their own draw experts first. `error`: median of |predicted − measured| /"
        " |measured| beyond the margin."
    )
    for regime in regimes:
        beyond = regime.beyond()
        yield ""
        yield f"**{_title(regime)}**, {len(regime.edits)} edits, {len(beyond)} of them beyond the margin"
        yield ""
        body = []
        for key in _GRIDS:
            every, far = regime.pairs(key), regime.pairs(key, beyond)
            body.append(
                (
                    _grid(key),
                    _per_cent(estimate(every, signs)),
                    _per_cent(estimate(far, signs)),
                    _plain(estimate(every, spearman)),
                    _plain(estimate(every, spearman, "experts")),
                    f"{100 * estimate(far, median_error).value:.1f} %",
                )
            )
        head = ("rule", "signs", "signs beyond the margin", "ranks", "ranks, experts drawn", "error")
        yield from table(head, body)
        yield ""
        yield f"![predicted against measured changes, {_title(regime)}](loss/predicted-{regime.name}.png)"


def _grid(key: str) -> str:
    rule, steps = key.split()
    return f"{rule}, C = {steps}"


def _per_cent(found: Estimate) -> str:
    return f"{100 * found.value:.0f} [{100 * found.low:.0f}, {100 * found.high:.0f}]"


def _plain(found: Estimate) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _groups(regimes: Sequence[Regime]) -> Iterator[str]:
    yield "### By kind of edit"
    yield ""
    yield (
        "Per cent of edits whose sign is right: by the gradient at the expert alone (left, C = 1), by the paper's rule"
        " (left, C = 5), by five midpoints; then how the measured changes fall: competitive, decreased, improved,"
        " undecided."
    )
    yield ""
    head = ["edit"]
    for regime in regimes:
        head += [f"{_title(regime)}: n", "left 1", "left 5", "midpoint 5", "classes"]
    body = []
    for group, title in GROUPS.items():
        cells = []
        for regime in regimes:
            rows = [row for row in regime.edits if row.keys["group"] == group]
            cells += _group(regime, rows) if rows else ["", "", "", "", ""]
        body.append((title, *cells))
    yield from table(head, body)


def _group(regime: Regime, rows: list[Row]) -> list[str]:
    shares = [estimate(regime.pairs(key, rows), signs).value for key in ("left 1", "left 5", "midpoint 5")]
    counted = regime.verdicts(rows)
    classes = ", ".join(str(counted[name]) for name in _VERDICTS)
    return [str(len(rows)), *(f"{100 * share:.0f}" for share in shares), classes]


def _beyond_the_data(regimes: Sequence[Regime]) -> Iterator[str]:
    yield "### Beyond the data"
    yield ""
    yield (
        "What a term computed on some items says of others, and of right and wrong answers: ranks of predicted (or"
        " measured) changes against the change measured on as many validation items, and against the accuracy lost on"
        " all test items. The signs are of edits beyond the margin on the items computed on."
    )
    yield ""
    head = ["computed on test items"]
    for regime in regimes:
        head += [f"{_title(regime)}: signs, validation", "ranks, validation", "ranks, accuracy lost"]
    body = []
    for key in ("left 1", "left 5", "midpoint 5", "measured"):
        cells = []
        for regime in regimes:
            lost = np.array([regime.lost(row) for row in regime.edits])
            far, every = (regime.pairs(key, rows, "validation") for rows in (regime.beyond(), regime.edits))
            accuracy = Pairs(every.predicted, lost, every.experts)
            cells.append(_per_cent(estimate(far, signs)))
            cells += [_plain(estimate(pairs, spearman)) for pairs in (every, accuracy)]
        body.append(("the change itself" if key == "measured" else _grid(key), *cells))
    yield from table(head, body)


def _classes(regimes: Sequence[Regime]) -> Iterator[str]:
    yield "### The three classes"
    yield ""
    yield (
        "How many of the paper's edits fall into each class (competitive, decreased, improved, undecided), over experts"
        " and, for DARE and k-DARE, over experts and 12 masks each; mean change of the loss with its interval over"
        " experts and masks."
    )
    yield ""
    head = ["edit", "setting"]
    for regime in regimes:
        head += [f"{_title(regime)}: c, d, i, u", "mean change"]
    body = []
    for k in (0.0, -1.0, -0.5, 0.5, 0.8):
        for rate in (0.1, 0.3, 0.5, 0.7, 0.9):
            cells: list[str] = []
            for regime in regimes:
                cells += _masked(regime, regime.of("second_order", k=k, rate=rate))
            body.append(("DARE" if not k else f"k-DARE, k = {k}", f"p = {rate}", *cells))
    for group in ("trim", "bitdelta", "low_rank", "expo"):
        names = dict.fromkeys(str(r.keys["edit"]) for r in regimes[0].edits if r.keys["group"] == group)
        for name in names:
            cells = []
            for regime in regimes:
                rows = regime.of("predictions", group=group, edit=name)
                changes = [[number(row, "measured")] for row in rows]
                counted = regime.verdicts(rows)
                cells += [", ".join(str(counted[one]) for one in _VERDICTS), _change(mean_over(changes))]
            body.append((GROUPS[group], name, *cells))
    yield from table(head, body, left=2)
    yield ""
    yield "![mean change of the loss under k-DARE by k and p](loss/k-dare.png)"


def _masked(regime: Regime, rows: list[Row]) -> Iterator[str]:
    found = [regime.verdict(row, mask.change) for row in rows for mask in regime.masks(row)]
    yield ", ".join(str(found.count(one)) for one in _VERDICTS)
    yield _change(mean_over([[mask.change.value for mask in regime.masks(row)] for row in rows]))


def _change(found: Estimate) -> str:
    return f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def _biased(regimes: Sequence[Regime]) -> Iterator[str]:
    yield "### Drops that are not random"
    yield ""
    yield (
        "The paper's Table 1 on our models: accuracy of the edited experts in per cent, and the mean change of the loss"
        " behind it. The paper does not state p, nor on which data the gradient was taken: `same` are the items that"
        " the loss is measured on, `other` are validation items; accuracy is over all test items."
    )
    for regime in regimes:
        yield ""
        expert = 100 * float(np.mean(list(regime.accuracies.values())))
        yield f"**{_title(regime)}**, experts {expert:.1f}"
        yield ""
        rows = regime.of("biased")
        body = []
        for rate in sorted({number(row, "rate") for row in rows}):
            for k in sorted({number(row, "k") for row in rows}):
                cells = []
                for kind in KINDS:
                    own = regime.of("biased", rate=rate, k=k, kind=kind)
                    accuracy = 100 * np.mean([row.accuracy for row in own])
                    change = np.mean([number(row, "measured") for row in own])
                    cells.append(f"{accuracy:.1f} ({change:+.3f})")
                body.append((f"{rate}", f"{k}", *cells))
        yield from table(("p", "k", "random", "by sign of ΔW", *KINDS[2:]), body)


def _curved(regimes: Sequence[Regime]) -> Iterator[str]:
    yield "### What chance costs, to second order"
    yield ""
    yield (
        "`excess`: the mean change of the loss over 12 masks, less their first-order terms (gradient times edit, which"
        " are zero on average over all masks, and most of the noise of twelve). Beside it what it is of the"
        " ½(1 − k)² p/(1 − p) Σ H_ii δ_i² that is expected, with the Hessian and with Fisher's diagonal in its place;"
        " 1 is a right forecast. Intervals draw masks; the expectations themselves have standard errors, in brackets"
        " behind the experts' names, from 16 probes. `0.5 ÷ 0`: the excess of k = 0.5 over that of k = 0 under the same"
        " masks, which should be a quarter."
    )
    for regime in regimes:
        yield ""
        yield f"**{_title(regime)}**"
        yield ""
        rows = {task: _by_setting(regime, task) for task in regime.tasks}
        head = ["p", "k"]
        for task in regime.tasks:
            one = rows[task][0.0, 0.9]
            errors = [
                100 * number(one, f"{kind}_error") / number(one, kind) for kind in ("hessian", "fisher")
            ]
            head += [f"{task}: excess", f"÷ Hessian (±{errors[0]:.0f} %)", f"÷ Fisher (±{errors[1]:.0f} %)"]
        body = []
        for rate in (0.1, 0.3, 0.5, 0.7, 0.9):
            for k in (-1.0, 0.0, 0.5):
                cells: list[str] = []
                for task in regime.tasks:
                    row = rows[task][k, rate]
                    cells.append(f"{regime.excess(row).mean():+.2g}")
                    cells += [_short(excess_ratio(regime, row, kind)) for kind in ("hessian", "fisher")]
                body.append((str(rate), str(k), *cells))
            quarters = [
                cell for task in regime.tasks for cell in ("", _short(quarter(regime, task, rate)), "")
            ]
            body.append((str(rate), "0.5 ÷ 0", *quarters))
        yield from table(head, body, left=2)


def _by_setting(regime: Regime, task: str) -> dict[tuple[float, float], Row]:
    rows = [row for row in regime.of("second_order") if row.task == task]
    return {(number(row, "k"), number(row, "rate")): row for row in rows}


def _short(found: Estimate) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _searched(regimes: Sequence[Regime]) -> Iterator[str]:
    yield "### ExPO with a line search"
    yield ""
    yield (
        "α is chosen on validation items: by a line search on the sign of the slope, and as the lowest loss of the"
        " paper's grid (−1 to 1 by 0.1). Beside it the change of the loss on test items with its interval over items,"
        " and the points of accuracy gained on all test items. `best`: the α of the grid that is best on the test"
        " items themselves."
    )
    yield ""
    head = (
        "regime",
        "expert",
        "search: α",
        "change",
        "points",
        "grid: α",
        "change",
        "points",
        "best: α",
        "change",
    )
    body = []
    for regime in regimes:
        for task in regime.tasks:
            (search,) = (row for row in regime.of("extrapolation", by="search") if row.task == task)
            grid = [row for row in regime.of("extrapolation", by="grid") if row.task == task]
            chosen = min(grid, key=_by("validation"))
            best = min(grid, key=_by("measured"))
            cells = [
                *_extrapolated(regime, search),
                *_extrapolated(regime, chosen),
                *_extrapolated(regime, best)[:2],
            ]
            body.append((_title(regime), task, *cells))
    yield from table(head, body, left=2)


def _by(key: str) -> Callable[[Row], float]:
    return lambda row: number(row, key)


def _extrapolated(regime: Regime, row: Row) -> list[str]:
    low, high = number(row, "low"), number(row, "high")
    change = f"{number(row, 'measured'):+.4f} [{low:+.4f}, {high:+.4f}]"
    return [f"{number(row, 'alpha'):+.2f}", change, f"{-regime.lost(row):+.1f}"]
