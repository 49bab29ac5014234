"""What was expected before the run, and what the paper reports, put to the results one by one.

Every question is answered for each training seed: `holds` where the figures say so beyond their intervals, `fails`
where they say the opposite beyond them, `open` else. Over several seeds a question has an answer where all agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from deltasmith.lab.features.figures import MODES, Run, Share

__all__ = ["DETECTS", "Answer", "Finding", "findings", "moves_back", "order_of", "recovered_choices"]

Answer = Literal["holds", "fails", "open"]
_WARM_KEEPS = 0.99
_NULL = 0.001
DETECTS = 0.5
"""F1 from which on a feature counts as a detector of a pattern at all."""
_APART = 0.9
"""A floor is far below one where its interval ends below this."""


@dataclass(frozen=True)
class Finding:
    """A question, who asked it, the answer over all seeds, and each seed's figures."""

    source: str
    text: str
    answer: Answer
    figures: tuple[str, ...]


_Question = Callable[[Run], tuple[Answer, str]]


def findings(runs: Sequence[Run]) -> list[Finding]:
    """Put every question to every run."""
    found = []
    for source, text, question in _QUESTIONS:
        answers = [question(run) for run in runs]
        said = {answer for answer, _ in answers}
        answer: Answer = said.pop() if len(said) == 1 else "open"
        found.append(Finding(source, text, answer, tuple(figures for _, figures in answers)))
    return found


def order_of(run: Run, study: str) -> list[tuple[str, str]]:
    """Return the edges from the one that keeps least to the one that keeps most."""
    return sorted(run.edges, key=lambda edge: run.kept(study, *edge).value)


def _answer(first: Share, second: Share) -> Answer:
    """Tell whether the first share lies above the second."""
    return "holds" if first.above(second) else "fails" if second.above(first) else "open"


def _floor(run: Run) -> tuple[Answer, str]:
    floor = run.floor("independent", "seed")
    if floor is None:
        return "open", "no floor"
    return ("holds" if floor.high < _APART else "fails"), str(floor)


def _restart(run: Run) -> tuple[Answer, str]:
    again = run.floor("warm", "again")
    if again is None:
        return "open", "no floor"
    return ("holds" if again.value >= _WARM_KEEPS else "fails"), str(again)


def _null(run: Run) -> tuple[Answer, str]:
    return ("holds" if run.null <= _NULL else "fails"), f"{100 * run.null:.2f} at most"


def _leak(run: Run) -> tuple[Answer, str]:
    root, *others = run.labels
    same = [run.pair(f"same-{label}") for label in others]
    other = [run.edge("independent", root, label) for label in others if (root, label) in run.edges]
    most = max(float(edge["same_index"] or 0.0) for edge in other)
    least = min(float(edge["same_index"] or 0.0) for edge in same)
    figures = f"same seed {_range(same)}, other seed {_range(other)} of the matches"
    return ("holds" if least > most + 0.05 else "fails"), figures


def _range(edges: Sequence[object]) -> str:
    found = sorted(100 * float(edge["same_index"] or 0.0) for edge in edges)  # type: ignore[index]
    return f"{found[0]:.1f}–{found[-1]:.1f}"


def _same_keeps_more(run: Run) -> tuple[Answer, str]:
    root = run.labels[0]
    answers, figures = [], []
    for label in (label for label in run.labels[1:] if (root, label) in run.edges):
        same, other = run.kept_in(f"same-{label}"), run.kept("independent", root, label)
        answers.append(_answer(same, other))
        figures.append(f"{label} {100 * same.value:.1f} against {100 * other.value:.1f}")
    return _joint(answers), "; ".join(figures)


def _joint(answers: Sequence[Answer]) -> Answer:
    return answers[0] if answers and len(set(answers)) == 1 else "open"


def _warm_keeps_more(run: Run) -> tuple[Answer, str]:
    pairs = [(run.kept("warm", *edge), run.kept("independent", *edge)) for edge in run.edges]
    gains = sorted(100 * (warm.value - alone.value) for warm, alone in pairs)
    return _joint([_answer(*pair) for pair in pairs]), f"{gains[0]:+.1f} to {gains[-1]:+.1f} points"


def _smaller_change(run: Run) -> tuple[Answer, str]:
    root, first, second = run.labels[:3]
    changes = {label: run.changes(root, label)["all"] for label in (first, second)}
    near, far = sorted(changes, key=lambda label: changes[label])
    kept = {label: run.kept("warm", root, label) for label in (first, second)}
    said = ", ".join(
        f"{label}: weights {changes[label]:.3f}, keeps {100 * kept[label].value:.1f}" for label in (near, far)
    )
    return _answer(kept[near], kept[far]), said


def _nearer_keeps(run: Run) -> tuple[Answer, str]:
    shares = {label: _along(run, label) for label in [parent["label"] for parent in run.sweep["parents"]]}
    first, second = shares.values()
    ends = ((first[0], first[-1]), (second[-1], second[0]))
    figures = "; ".join(
        f"{label}: {100 * series[0].value:.0f} → {100 * series[-1].value:.0f}"
        for label, series in shares.items()
    )
    return _joint([_answer(*pair) for pair in ends]), figures


def _along(run: Run, label: str) -> list[Share]:
    points = [point for point in run.sweep["points"] if not point["refused"]]
    return [Share.of(point["kept"][label]["rates"]["persisted"]) for point in points]


def moves_back(run: Run) -> tuple[Answer, str]:
    """Tell whether a merge between the two keeps more of the base than either fine-tune does."""
    root = str(run.sweep["root"])
    series = _along(run, root)
    values = [point["value"] for point in run.sweep["points"] if not point["refused"]]
    at = max(range(len(series)), key=lambda place: series[place].value)
    best, ends = series[at], (series[0], series[-1])
    shown = ((ends[0], values[0]), (best, values[at]), (ends[1], values[-1]))
    said = ", ".join(f"{100 * share.value:.0f} at {value}" for share, value in shown)
    inside = 0 < at < len(series) - 1
    return (
        "holds" if inside and all(best.above(end) for end in ends) else "open" if inside else "fails"
    ), said


def _orders(run: Run) -> tuple[Answer, str]:
    agree = differ = 0
    for one, other in combinations(MODES, 2):
        for first, second in combinations(run.edges, 2):
            there = [_answer(run.kept(study, *first), run.kept(study, *second)) for study in (one, other)]
            if "open" not in there:
                agree += there[0] == there[1]
                differ += there[0] != there[1]
    said = f"{agree} of {agree + differ} pairs that are told apart in both of two modes"
    return ("open" if not agree + differ else "holds" if not differ else "fails"), said


def _cosine(run: Run) -> tuple[Answer, str]:
    found = []
    for edge in run.edges:
        cosine = run.edge("warm", *edge)["cosines"]["share_above_07"]
        found.append((float(cosine or 0.0), run.kept("warm", *edge)))
    gaps = [100 * (cosine - kept.value) for cosine, kept in found]
    blind = all(cosine > kept.high for cosine, kept in found)
    return ("holds" if blind else "fails"), f"{min(gaps):+.1f} to {max(gaps):+.1f} points above r ≥ 0.8"


def _assignment(run: Run) -> tuple[Answer, str]:
    gaps = []
    for study in ("warm", "independent"):
        for parent, child in run.edges:
            edge = run.edge(study, parent, child)
            if edge["hungarian"] is not None:
                gaps.append(abs(100 * (edge["hungarian"] - edge["rates"]["persisted"]["value"])))
    return (
        "open" if not gaps else "holds" if max(gaps) <= 3 else "fails"
    ), f"{max(gaps, default=0):.1f} points at most"


def _random(run: Run) -> tuple[Answer, str]:
    root = run.labels[0]
    if "control" not in run.data["studies"]:
        return "open", "no control"
    floor, control = run.floor("independent", "seed"), run.kept_in("control")
    warm = run.kept("control-warm", root, "random")
    said = f"afresh {control}, warm {warm}; floor {floor}"
    return ("open" if floor is None else _answer(floor, control)), said


def _evidence(run: Run) -> tuple[Answer, str]:
    said = [run.edge("independent", *edge)["verdict"] == "fewer than the floor" for edge in run.edges]
    return (
        "holds" if all(said) else "fails" if not any(said) else "open"
    ), f"{sum(said)} of {len(said)} edges"


def _warm_evidence(run: Run) -> tuple[Answer, str]:
    said = [run.edge("warm", *edge)["verdict"] == "fewer than the floor" for edge in run.edges]
    return (
        "holds" if all(said) else "fails" if not any(said) else "open"
    ), f"{sum(said)} of {len(said)} edges"


def _few_persist(run: Run) -> tuple[Answer, str]:
    universal = Share.of(run.study("independent")["universal"]["share"])
    warm = Share.of(run.study("warm")["universal"]["share"])
    said = f"in all models: {universal} afresh, {warm} warm"
    return (
        "holds" if universal.high < 0.5 and warm.high < 0.5 else "fails" if universal.low > 0.5 else "open"
    ), said


def _case(name: str, wanted: bool, children: tuple[str, ...]) -> _Question:
    """Ask whether the base's best detector of a pattern persists in all these models, or in none."""

    def question(run: Run) -> tuple[Answer, str]:
        root = run.labels[0]
        pattern = next(one for one in run.patterns() if one["name"] == name)
        detectors = next(m["detectors"] for m in pattern["members"] if m["label"] == root)
        if not detectors:
            return "open", "no feature follows it"
        best = detectors[0]
        if best["marking"]["f1"] < DETECTS:
            return "open", f"no feature of the {root} tells it (best F1 {best['marking']['f1']:.2f})"
        ends = {
            step["child"]: step
            for step in best["along"]
            if step["side"] == "parent" and step["parent"] == root
        }
        kept = [ends[child]["status"] == "persisted" for child in children if child in ends]
        said = [
            f"{child} {ends[child]['status']} (r {ends[child]['r']:.2f})"
            for child in children
            if child in ends
        ]
        head = f"F1 {best['marking']['f1']:.2f}"
        answer: Answer = "open" if not kept else "holds" if all(one == wanted for one in kept) else "fails"
        return answer, f"{head}; {', '.join(said)}"

    return question


def recovered_choices(run: Run) -> tuple[Answer, str]:
    """Tell whether the best mean accuracy leaves one domain further behind than the best smallest recovery does."""
    mean, smallest = run.sweep["best_mean"], run.sweep["best_smallest"]
    if mean is None or smallest is None:
        return "open", "no choice"
    at_mean = run.sweep["points"][mean["at"]]["smallest_recovered"]
    said = f"t = {mean['value']} by the mean (smallest recovered {_cent(at_mean)}), "
    said += f"t = {smallest['value']} by the smallest ({_cent(smallest['score'])})"
    if mean["at"] == smallest["at"]:
        return "fails", said
    return "holds", said


def _cent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


_PLAN, _ISSUE, _PILOT, _PAPER = "expected", "required", "pilot", "paper"
_QUESTIONS: tuple[tuple[str, str, _Question], ...] = (
    (_ISSUE, "a warm restart on the same model keeps at least 99 % of the features", _restart),
    (_ISSUE, "after a permutation of the tokens at most 0.1 % seem to be kept", _null),
    (_PLAN, "two dictionaries of one model, trained afresh, share fewer than 90 % of their features", _floor),
    (_PLAN, "one seed for base and child lets matches share their index far more often", _leak),
    (_PLAN, "one seed for base and child keeps more features than two", _same_keeps_more),
    (_PLAN, "a warm start keeps more than dictionaries trained afresh, on every edge", _warm_keeps_more),
    (_PLAN, "of the two fine-tunes, the one whose weights changed less keeps more", _smaller_change),
    (_PLAN, "a merge nearer to a fine-tune keeps more of its features, from end to end", _nearer_keeps),
    (_PLAN, "a model that nothing has trained shares fewer features with the base than the floor", _random),
    (_PILOT, "between the two fine-tunes, merges keep more of the base than either end", moves_back),
    (_PILOT, "edges come in one order in all three modes", _orders),
    (_PILOT, "under a warm start, decoder cosine ≥ 0.7 keeps more than r ≥ 0.8, on every edge", _cosine),
    (_PILOT, "mutual best and Hungarian assignment differ by at most 3 points", _assignment),
    (
        _PILOT,
        "the best mean accuracy chooses another t than the best smallest recovered share",
        recovered_choices,
    ),
    (_PLAN, "afresh, every edge keeps fewer features than its floor", _evidence),
    (_PLAN, "warm, every edge keeps fewer features than its floor", _warm_evidence),
    (_PAPER, "few features (fewer than half) persist in all four models", _few_persist),
    (
        _PAPER,
        "the feature of variable assignment is in all four models",
        _case("variable assignment", True, ("lua", "stories", "merged")),
    ),
    (
        _PAPER,
        "the feature of Python's exceptions has no partner in Lua",
        _case("Python exceptions", False, ("lua",)),
    ),
)
