"""What `docs/advise.md` has between its marks: the rules as a table, and the tables of the check against the lab."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deltasmith.advice.experience import bundled
from deltasmith.advice.rules.catalogue import rules_of
from deltasmith.errors import DamagedInputError
from deltasmith.evaluate.statistics import sign_test, wilson
from deltasmith.lab.advice.cases import PRUNING, mean
from deltasmith.lab.advice.check import FORMAT, Judged
from deltasmith.lab.experiments.merges import LINES
from deltasmith.lab.page_text import table
from deltasmith.lab.rows import Row, grouped

__all__ = ["Checked", "load_checked", "sections", "write_advice_page"]

NAME = "advice.json"
_SURE = 0.05
_BEGIN, _END = "<!-- advice -->", "<!-- /advice -->"
_HEAD = "# Advice\n\n"


@dataclass(frozen=True)
class Checked:
    """The file of the check: settings, judged cases, and test marks of what was advised."""

    settings: Mapping[str, Any]
    cases: tuple[Judged, ...]
    rows: tuple[Row, ...]

    def of(self, goal: str) -> list[Judged]:
        """Return the cases of pruning or merging."""
        return [case for case in self.cases if case["goal"] == goal]


def load_checked(path: Path) -> Checked:
    """Read what `lab advise` wrote; DamagedInputError where it is anything else."""
    path = path / NAME if path.is_dir() else path
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT or document["experiment"] != "advice":
            raise ValueError("its format or experiment is another")
        rows = tuple(Row.from_json(entry) for entry in document["rows"])
        return Checked(document["settings"], tuple(document["cases"]), rows)
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise DamagedInputError(
            f"it is no result of the check ({cause})", where=str(path), fix="run `deltasmith lab advise`"
        ) from cause


def write_advice_page(results: Path, page: Path) -> Path:
    """Replace what stands between the page's marks. Same results, same bytes.

    Raises DamagedInputError where `results` is no such file, or the page has one mark without the other.
    """
    checked = load_checked(results)
    text = page.read_text(encoding="utf-8") if page.is_file() else f"{_HEAD}{_BEGIN}\n{_END}\n"
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise DamagedInputError(f"it has no {_BEGIN} … {_END}", where=str(page), fix="put the marks back")
    page.write_text(f"{before}{begin}\n\n{sections(checked)}\n\n{end}{after}", encoding="utf-8")
    return page


def sections(checked: Checked) -> str:
    """Return what stands between the marks."""
    lines = [*_rules(), *_summary(checked), *_merges(checked), *_own(checked), *_prunings(checked)]
    return "\n".join(lines).strip()


def _rules() -> Iterator[str]:
    yield "## The rules"
    yield ""
    rows = [(rule.name, rule.asks, rule.bound, rule.source) for rule in rules_of(bundled())]
    yield from table(("rule", "what is compared", "bound", "source"), rows, left=4)
    yield ""


@dataclass(frozen=True)
class _Tally:
    """How often an answer was given, and was best or level with the best; mean points below the best where given."""

    given: int
    right: int
    below: float

    @classmethod
    def of(cls, cases: Sequence[Judged], answer: str) -> _Tally:
        """Count one answer over cases."""
        named = [case for case in cases if case[answer] is not None]
        right = sum(case[answer] in case["best"] for case in named)
        lost = [max(case["means"].values()) - case["means"][case[answer]] for case in named]
        return cls(len(named), right, 100 * float(np.mean(lost)) if lost else float("nan"))

    def cells(self, cases: int) -> tuple[str, ...]:
        """Return the columns of a table."""
        if not self.given:
            return ("0", str(cases), "", "", "")
        low, high = wilson(self.right, self.given)
        share = f"{self.right / self.given:.0%} [{low:.0%}, {high:.0%}]"
        return (str(self.given), str(cases - self.given), str(self.right), share, f"{self.below:.1f}")


_ANSWERS = {
    "advised": "advise",
    "without_lab": "advise, deaf to merges.json and curves.json but for the two limits",
    "majority": "the majority answer of the other training seeds",
}
_COLUMNS = ("answer", "named", "abstained", "best or level", "share [95 %]", "points below the best")


def _summary(checked: Checked) -> Iterator[str]:
    yield "## Held against the lab"
    yield ""
    yield f"Made {checked.settings['made']}; training seeds {', '.join(map(str, checked.settings['train_seeds']))}."
    yield ""
    for goal, what in (("merge", "which merge"), ("prune", "how to prune one expert at a rate of 0.9")):
        yield f"- {what}: {_verdict(checked.of(goal))}"
    yield ""
    yield (
        "A family is one training seed's models with one size of deltas. Its cases share models and are not"
        " independent: intervals of shares below, which take them to be, are too narrow."
    )
    yield ""


def _verdict(cases: Sequence[Judged]) -> str:
    """Say in a sentence whether advice beat the majority answer, by an exact sign test over families of models."""
    named = [case for case in cases if case["advised"] is not None]
    wins = losses = ours = theirs = 0
    families = grouped_cases(named, ("train_seed", "regime"))
    for members in families.values():
        a, b = (sum(case[answer] in case["best"] for case in members) for answer in ("advised", "majority"))
        wins, losses, ours, theirs = wins + (a > b), losses + (b > a), ours + a, theirs + b
    p = sign_test(wins, losses)
    counts = (
        f"of {len(cases)} cases advice named a method in {len(named)} and was best or level with the best in"
        f" {ours}, the majority answer in the same {len(named)} cases in {theirs}; it was right more often in {wins} of"
        f" {len(families)} families, and less often in {losses} (sign test, p = {p:.2g})"
    )
    if ours <= theirs:
        return f"**advice did not beat the majority answer**: {counts}."
    if p >= _SURE:
        return f"**it is not shown that advice beats the majority answer**: {counts}."
    return f"**advice beat the majority answer**: {counts}."


def _chance(cases: Sequence[Judged], methods: int) -> tuple[str, ...]:
    share = float(np.mean([len(case["best"]) / methods for case in cases]))
    below = np.mean([max(c["means"].values()) - np.mean(list(c["means"].values())) for c in cases])
    right = f"{share * len(cases):.1f}"
    return ("a method at random", str(len(cases)), "0", right, f"{share:.0%}", f"{100 * below:.1f}")


def _constant(cases: Sequence[Judged]) -> tuple[str, ...]:
    """Return the row of the one method that, always named, would have been right most often."""
    names = list(cases[0]["means"])
    tallies = {name: _Tally.of([{**case, "always": name} for case in cases], "always") for name in names}
    best = max(names, key=lambda name: (tallies[name].right, -names.index(name)))
    return (
        f"always {best}, which is known to be the best constant answer only afterwards",
        *tallies[best].cells(len(cases)),
    )


def _table(cases: Sequence[Judged], methods: int) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [
        (title, *_Tally.of(cases, answer).cells(len(cases))) for answer, title in _ANSWERS.items()
    ]
    yield from table(_COLUMNS, [*rows, _constant(cases), _chance(cases, methods)])
    yield ""


def _merges(checked: Checked) -> Iterator[str]:
    cases = checked.of("merge")
    yield "### Which merge, every method tuned"
    yield ""
    yield (
        "36 cases: 3 training seeds, 3 sizes of deltas, 4 combinations of experts; 9 methods, each with 24 trials on"
        " validation items (`merges.json`). A method is level with the best if the 95 % interval of the difference,"
        " items and mask seeds resampled in pairs, reaches zero. The best is chosen on the same items it is judged on,"
        " which favours no answer. Whatever learns has not seen the training seed it is judged on."
    )
    yield ""
    yield from _table(cases, len(LINES))
    by = grouped_cases(cases, ("regime",))
    body = []
    for (regime,), members in by.items():
        for answer in ("advised", "majority"):
            tally = _Tally.of(members, answer)
            names = ", ".join(dict.fromkeys(str(case[answer] or "abstains") for case in members))
            body.append((regime, answer, names, f"{tally.right} of {len(members)}", f"{tally.below:.1f}"))
    head = ("deltas", "answer", "methods named", "best or level", "points below the best")
    yield from table(head, body, left=3)
    yield ""


def grouped_cases(cases: Sequence[Judged], keys: Sequence[str]) -> dict[tuple[Any, ...], list[Judged]]:
    """Collect cases by some of their keys, in order of appearance."""
    found: dict[tuple[Any, ...], list[Judged]] = {}
    for case in cases:
        found.setdefault(tuple(case[key] for key in keys), []).append(case)
    return found


def _own(checked: Checked) -> Iterator[str]:
    yield "### As it comes: advice's own starting values, nothing tuned on these models"
    yield ""
    yield (
        "The recipe that `advise` would have written, merged and asked the test items; mean accuracy in per cent over"
        " the tasks merged. `majority, same values` is the majority's method with the starting values advice would give"
        " it. At λ = 1 the settings are those of the papers' examples. `best of all, tuned` is picked by test items:"
        " no one can have it."
    )
    yield ""
    found = grouped(
        checked.rows, lambda r: (r.keys["train_seed"], r.keys["regime"], r.keys["models"], r.keys["answer"])
    )
    values = {key: 100 * mean(rows) for key, rows in found.items()}
    body = []
    cases = checked.of("merge")
    groups = {regime: members for (regime,), members in grouped_cases(cases, ("regime",)).items()}
    for regime, members in {**groups, "all": cases}.items():
        body.append((regime, *(f"{value:.1f}" for value in _row(members, values))))
    head = (
        "deltas",
        "advised",
        "majority, same values",
        "majority, tuned",
        "majority, λ = 1",
        "TA, λ = 1",
        "TIES, λ = 1",
        "best at λ = 1",
        "best of all, tuned",
    )
    yield from table(head, body)
    yield ""


def _row(members: Sequence[Judged], values: Mapping[tuple[Any, ...], float]) -> Iterator[float]:
    """Yield the means over cases; where advice abstains, its column has the majority's value."""
    keys = [(case["train_seed"], case["regime"], case["models"]) for case in members]
    yield float(np.mean([values.get((*key, "advised"), values[*key, "majority"]) for key in keys]))
    yield float(np.mean([values[*key, "majority"] for key in keys]))
    yield 100 * float(np.mean([case["means"][case["majority"]] for case in members]))
    for method in (None, "ta", "ties"):
        yield 100 * float(np.mean([case["default_means"][method or case["majority"]] for case in members]))
    yield 100 * float(np.mean([max(case["default_means"].values()) for case in members]))
    yield 100 * float(np.mean([max(case["means"].values()) for case in members]))


def _prunings(checked: Checked) -> Iterator[str]:
    cases = checked.of("prune")
    yield "### One expert, nine tenths of its delta removed"
    yield ""
    yield (
        "27 experts (`curves.json`), four methods. Scores are shares of the expert's own. DP leaves embeddings, head"
        " and norms whole and so keeps 4 % more than the others."
    )
    yield ""
    yield from _table(cases, len(PRUNING))
    yield "Whether DARE keeps 90 % of an expert's score, told from the survey of an expert of an unseen training seed:"
    yield ""
    body = []
    for title, says in _TELLERS.items():
        told = [(says(case), case["means"]["dare"] >= 0.9) for case in cases]
        right = sum(a == b for a, b in told)
        body.append(
            (
                title,
                f"{right} of {len(cases)}",
                sum(a and not b for a, b in told),
                sum(b and not a for a, b in told),
            )
        )
    yield from table(("told by", "right", "said it keeps, wrongly", "said it fails, wrongly"), body)
    yield ""
    took = [(c["means"]["dare"] < 0.9, c["means"]["dp"] > c["means"]["dare"]) for c in cases]
    low = sum(a for a, _ in took)
    yield (
        f"DPPA's criterion, with the test scores themselves: DARE keeps less than 90 % of the score of"
        f" {low} experts. DP keeps more than DARE of {sum(a and b for a, b in took)} of these, and of"
        f" {sum(b and not a for a, b in took)} of the other {len(cases) - low}."
    )
    yield ""


def _fine(case: Judged) -> bool:
    """Tell whether the relative size lies below the limit that the other training seeds gave."""
    return float(case["relative"]) <= float(str(case["limits"]).split()[2])


def _below(limit: float) -> Callable[[Judged], bool]:
    return lambda case: bool(case["q90"] <= limit)


def _always(case: Judged) -> bool:
    return True


_TELLERS: Mapping[str, Callable[[Judged], bool]] = {
    "relative size below its lower limit": _fine,
    "90th percentile of abs δ up to 0.005": _below(0.005),
    "90th percentile of abs δ up to 0.01": _below(0.01),
    "always `keeps`": _always,
}
