"""The check: every case of the lab is judged by advice that has not seen its training seed.

Cross-validated: thresholds, starting values and the cases that advice learns from come from the other training seeds.
Not cross-validated: the rules themselves, which people wrote who had seen the lab's tables.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from deltasmith.advice.candidates import recipe_of
from deltasmith.advice.deciding import Decision, candidates_for, decide, settings_for
from deltasmith.advice.experience import Experience, MergeCase, PruneCase
from deltasmith.advice.facts import Facts
from deltasmith.advice.rules.catalogue import rules_of
from deltasmith.advice.run import survey
from deltasmith.lab import REGIMES
from deltasmith.lab.advice.cases import PRUNING, Standing, Surveyed, merge_cases, prune_cases, standings
from deltasmith.lab.bench import Bench
from deltasmith.lab.experiments.merges import LINES, MASK_SEEDS
from deltasmith.lab.made import made
from deltasmith.lab.rows import Row, load_results

__all__ = [
    "FORMAT",
    "Judged",
    "answers",
    "check_advice",
    "learn",
    "majority",
    "survey_family",
    "write_experience",
]

FORMAT = 1
Say = Callable[[str], None]
Judged = Mapping[str, Any]
TASKS = ("math", "code", "ins")


def survey_family(family: Path, seeds: Sequence[int], say: Say) -> Surveyed:
    """Survey every expert and every combination of experts under FAMILY/seedN."""
    found: dict[tuple[int, str, tuple[str, ...]], Facts] = {}
    for seed in seeds:
        root = family / f"seed{seed}"
        for regime in REGIMES:
            say(f"seed {seed}, {regime}: surveys")
            for size in (1, 2, 3):
                for tasks in combinations(TASKS, size):
                    folders = [root / regime / task for task in tasks]
                    found[seed, regime, tasks] = survey(root / "base", folders, threads=1).facts()
    return found


def learn(results: Path, surveyed: Surveyed) -> Experience:
    """Collect the cases that advice may learn from."""
    tuned = standings(load_results(results / "merges.json"), "tuned")
    curves = load_results(results / "curves.json")
    return Experience(tuple(prune_cases(curves, surveyed)), tuple(merge_cases(tuned, surveyed)))


def majority(cases: Sequence[MergeCase | PruneCase], names: Sequence[str]) -> str:
    """Return the method most often best or level with the best; of equals the first in `names`."""
    counts = Counter(method for case in cases for method in case.best)
    return max(names, key=lambda name: (counts[name], -names.index(name)))


def answers(surveyed: Surveyed, experience: Experience) -> Iterator[tuple[MergeCase | PruneCase, Judged]]:
    """Judge every case by what advice, and a majority, would say that know the other training seeds alone."""
    for seed in sorted({case.seed for case in experience.merges}):
        known = experience.without(seed)
        rules = rules_of(known)
        bare = tuple(rule for rule in rules if rule.name != "our lab")
        groups: tuple[tuple[Sequence[MergeCase | PruneCase], Sequence[MergeCase | PruneCase]], ...] = (
            (experience.prunings, known.prunings),
            (experience.merges, known.merges),
        )
        for cases, others in groups:
            for case in (case for case in cases if case.seed == seed):
                models = (case.task,) if isinstance(case, PruneCase) else case.models
                facts = surveyed[seed, case.regime, models]
                names = PRUNING if isinstance(case, PruneCase) else tuple(line.name for line in LINES)
                yield case, _judged(facts, decide(facts, rules), decide(facts, bare), majority(others, names))


def _judged(facts: Facts, decision: Decision, bare: Decision, common: str) -> Judged:
    limits = {line.rule: line.bound for line in decision.evidence if line.rule == "relative size"}
    return {
        "goal": facts.goal,
        "relative": round(facts.relative, 5),
        "advised": decision.method,
        "left": list(decision.left),
        "without_lab": bare.method,
        "left_without_lab": list(bare.left),
        "majority": common,
        "limits": limits.get("relative size", ""),
    }


def check_advice(family: Path, results: Path, out: Path, seeds: Sequence[int], say: Say) -> Experience:
    """Judge all cases, merge what was advised with its own starting values, ask the test items, and write `out`.

    Returns what advice may learn of all seeds together.
    """
    surveyed = survey_family(family, seeds, say)
    experience = learn(results, surveyed)
    merged = load_results(results / "merges.json")
    by_setting = {s: {_key(c): c for c in standings(merged, s)} for s in ("tuned", "default")}
    cases: list[Judged] = []
    rows: list[Row] = []
    for case, judged in answers(surveyed, experience):
        entry = {"train_seed": case.seed, "regime": case.regime, **judged, "best": list(case.best)}
        if isinstance(case, PruneCase):
            cases.append({**entry, "models": case.task, "q90": case.q90, "means": dict(case.kept)})
            continue
        key = (case.seed, case.regime, case.models)
        entry |= {"models": "+".join(case.models), "means": _rounded(by_setting["tuned"][key].means)}
        default = by_setting["default"][key]
        entry |= {"default_best": list(default.best), "default_means": _rounded(default.means)}
        cases.append(entry)
        say(f"seed {case.seed}, {case.regime}, {entry['models']}: {judged['advised'] or 'abstains'}")
        rows += _own(family, case, judged, surveyed[key], experience.without(case.seed))
    _write(out, seeds, cases, rows)
    return experience


def _key(case: Standing) -> tuple[int, str, tuple[str, ...]]:
    return case.seed, case.regime, case.models


def _rounded(means: Mapping[str, float]) -> dict[str, float]:
    return {method: round(value, 5) for method, value in means.items()}


def _own(family: Path, case: MergeCase, judged: Judged, facts: Facts, known: Experience) -> Iterator[Row]:
    """Yield test marks of what is advised, and of the majority's method, with the starting values advice gives them."""
    bench = Bench(family / f"seed{case.seed}", case.seed, case.regime, TASKS)
    random = {line.name: line.random for line in LINES}
    for answer in ("advised", "majority"):
        method = judged[answer]
        if method is None:
            continue
        start = settings_for(method, facts, known)
        named = [(task, str(bench.expert(task))) for task in case.models]
        recipe = recipe_of(candidates_for("merge")[method], str(bench.base), named, start.scale, start.fields)
        for mask_seed in range(MASK_SEEDS if random.get(method) else 1):
            marks = bench.marks(bench.merged({**recipe, "seed": mask_seed}), case.models, "test")
            keys = {**bench.keys, "mask_seed": mask_seed, "models": "+".join(case.models), "answer": answer}
            keys |= {"method": method, "scale": start.scale, "fields": json.dumps(dict(start.fields))}
            for task in case.models:
                yield Row(keys, task, marks[task])


def write_experience(experience: Experience, path: Path) -> None:
    """Write what advice may learn, as the package carries it."""
    path.write_text(json.dumps(experience.as_json(), indent=1) + "\n", encoding="utf-8")


def _write(out: Path, seeds: Sequence[int], cases: Sequence[Judged], rows: Sequence[Row]) -> None:
    document = {
        "format": FORMAT,
        "experiment": "advice",
        "settings": {"made": made(), "train_seeds": list(seeds), "regimes": list(REGIMES)},
    }
    parts = {
        "cases": [json.dumps(case) for case in cases],
        "rows": [json.dumps(row.as_json()) for row in rows],
    }
    lists = ",\n".join(f' "{name}": [\n' + ",\n".join(lines) + "\n]" for name, lines in parts.items())
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1)[:-2] + f",\n{lists}\n}}\n", encoding="utf-8")
    partial.replace(out)
