"""What the papers claim of packed deltas, put as questions to the lab's results; verdicts as in `lab.claims`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from deltasmith.evaluate.statistics import holm
from deltasmith.lab.claims import LEVEL, Claim, Verdict
from deltasmith.lab.packed.merges import smile_name
from deltasmith.lab.rows import Results, Row
from deltasmith.lab.summary import Figure, difference

__all__ = ["judged_packed"]

Rows = tuple[Row, ...]
_BITDELTA, _VIEW = "BitDelta (arXiv 2402.10193)", "Unified View (arXiv 2410.13841)"
_EMR, _SMILE = "EMR (arXiv 2405.17461)", "SMILE (arXiv 2408.10174)"
_CLAQ, _OURS = "CLAQ (arXiv 2405.17233)", "our own question"
_BEST_SMILE = smile_name(8, -1, 1)


@dataclass(frozen=True)
class _Question:
    """Whether the rows `a` are higher than `factor` times the rows `b` plus `shift` points."""

    source: str
    text: str
    a: Rows
    b: Rows
    factor: float = 1.0
    shift: float = 0.0


def judged_packed(results: Results) -> list[Claim]:
    """Ask every question of every regime, and correct p for the number of questions to a regime (Holm)."""
    found = []
    for regime in results.settings["regimes"]:
        questions = list(_questions(results, regime))
        figures = [difference(q.a, q.b, q.factor, q.shift) for q in questions]
        adjusted = holm([figure.p_value for figure in figures])
        for question, figure, p in zip(questions, figures, adjusted, strict=True):
            measured = Figure(figure.estimate, *figure.interval)
            found.append(Claim(regime, question.source, question.text, measured, p, _verdict(measured, p)))
    return found


def _verdict(measured: Figure, p: float) -> Verdict:
    if p > LEVEL or measured.low <= 0 <= measured.high:
        return "undecided"
    return "reproduced" if measured.low > 0 else "contradicted"


def _questions(results: Results, regime: str) -> Iterator[_Question]:
    def point(group: str, name: str) -> Rows:
        return results.where(experiment="curves", regime=regime, group=group, point=name).rows

    def merge(method: str) -> Rows:
        return results.where(experiment="merges", regime=regime, method=method).rows

    def trained(codec: str, data: str) -> Rows:
        return results.where(experiment="distilled", regime=regime, codec=codec, data=data).rows

    expert, bit = point("expert", ""), point("bitdelta", "zero → −1 (paper)")
    yield _Question(
        _BITDELTA, "BitDelta without training keeps 95 % of an expert (points by which)", bit, expert, 0.95
    )
    yield _Question(
        _BITDELTA,
        "BitDelta, scales distilled on general text, keeps 95 % of an expert (points by which)",
        trained("bitdelta", "general"),
        expert,
        0.95,
    )
    text = "distilling the scales on general text adds to BitDelta"
    yield _Question(_BITDELTA, text, trained("bitdelta", "general"), trained("bitdelta", "none"))
    text = "BitDelta keeps more than low rank of the same size (rank 4)"
    yield _Question(_BITDELTA, text, bit, point("low_rank", "rank 4"))
    text = "two passes keep more than one"
    yield _Question(_BITDELTA, text, point("residual", "2 passes"), point("residual", "1 pass"))
    middle = point("degenerate", "c = 1.0")
    for other in (0.5, 0.75, 1.25, 1.5, 2.0):
        text = f"one magnitude: c = 1 keeps more than c = {other}"
        yield _Question(_VIEW, text, middle, point("degenerate", f"c = {other}"))
    random = point("random", "normal, spread 0.5")
    text = "random magnitudes are at most 2 points below equal ones (points above that)"
    yield _Question(_VIEW, text, random, _repeated(middle, random), shift=-2.0)
    text = "16 blocks of magnitude surpass the expert"
    yield _Question(_VIEW, text, point("blocks", "M = 16"), expert)
    text = "2 bits of CLAQ keep more of a delta than of the weights"
    yield _Question(_OURS, text, point("claq", "2 bits"), point("claq_weight", "2 bits"))
    text = "reserving 1 % of the elements adds to CLAQ's 2 bits"
    yield _Question(_CLAQ, text, point("claq", "2 bits, 1 % reserved"), point("claq", "2 bits"))
    for name, method in (("task arithmetic", "ta"), ("TIES", "ties")):
        yield _Question(
            _EMR, f"EMR, told the task, is higher than {name}, tuned", merge("emr"), merge(method)
        )
    text = "SMILE (router 8, whole deltas, top 1) is higher than TIES, tuned"
    yield _Question(_SMILE, text, merge(_BEST_SMILE), merge("ties"))
    text = "SMILE (router 8, whole deltas, top 1) keeps 98 % of the experts (points by which)"
    yield _Question(_SMILE, text, merge(_BEST_SMILE), merge("experts"), 0.98)
    text = "experts of 2 bits (CLAQ), half EMR's bytes, are higher than EMR"
    yield _Question(_OURS, text, merge("claq:bits=2"), merge("emr"))


def _repeated(rows: Rows, like: Rows) -> Rows:
    """Pair rows that draw nothing with those of several draws."""
    seeds = sorted({int(str(row.keys["mask_seed"])) for row in like})
    return tuple(Row({**row.keys, "mask_seed": seed}, row.task, row.right) for row in rows for seed in seeds)
