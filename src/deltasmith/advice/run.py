"""`advise`: read the models once, let the rules speak, and say what suits them, or that nothing does."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasmith.advice.candidates import PRUNINGS, recipe_of
from deltasmith.advice.deciding import Decision, Settings, candidates_for, decide, not_excluded, settings_for
from deltasmith.advice.experience import Experience, bundled
from deltasmith.advice.facts import Facts, Loss, Overlap, facts_of
from deltasmith.advice.losses import loss_terms, refuse_unready
from deltasmith.advice.measuring import Measured, combined, measure
from deltasmith.advice.risks import Risk, risks_of
from deltasmith.advice.rules.catalogue import rules_of
from deltasmith.advice.scoring import read_scores
from deltasmith.advice.subspaces import overlaps
from deltasmith.advice.tokens import token_differences
from deltasmith.advice.writing import recipe_text, refuse_occupied, write_recipe
from deltasmith.api import available_threads
from deltasmith.engine.glance import glance
from deltasmith.engine.memory import DEFAULT_MEMORY, budget
from deltasmith.engine.workers import Stop
from deltasmith.recipe.build import Built, build
from deltasmith.recipe.checks import from_dict
from deltasmith.table.names import numbered

__all__ = ["Advice", "Option", "Survey", "advise", "survey"]

_RESERVED = 192 << 20
_THREAD = 3 << 20  # bytes a thread holds per column: a tile of 2 MiB and its histograms


@dataclass(frozen=True)
class Option:
    """A candidate with its starting values and the recipe that carries it out."""

    name: str
    title: str
    settings: Settings
    recipe: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "method": self.name,
            "title": self.title,
            "scale": self.settings.scale,
            "fields": dict(self.settings.fields),
            "source": self.settings.source,
            "recipe": self.recipe,
        }


@dataclass(frozen=True, eq=False)
class Survey:
    """What was measured of models before any rule spoke."""

    measured: list[Measured]
    overlaps: dict[tuple[str, str], Overlap]
    warnings: tuple[str, ...]

    def facts(self) -> Facts:
        """Boil it down to what rules compare."""
        return facts_of(self.measured, self.overlaps, self.warnings)


@dataclass(frozen=True, eq=False)
class Advice:
    """Evidence, risks, and one recommendation: `recommended` is None where the advice is to measure first."""

    facts: Facts
    decision: Decision
    recommended: Option | None
    alternatives: tuple[Option, ...]
    risks: tuple[Risk, ...]
    commands: tuple[str, ...]
    measured: list[Measured]

    @property
    def abstains(self) -> bool:
        """Tell whether nothing is recommended."""
        return self.recommended is None

    @property
    def text(self) -> str | None:
        """Return the recommended recipe as YAML, with paths as they were given."""
        return None if self.recommended is None else recipe_text(self.recommended.recipe, self.head)

    @property
    def head(self) -> str:
        """Return what stands above the recipe: where it comes from."""
        if self.recommended is None:
            return ""
        return f"deltasmith advise: {self.recommended.title}; {self.decision.why}\n{self.recommended.settings.source}"

    def as_json(self) -> dict[str, Any]:
        """Return plain data: verdict, evidence, options, risks, and figures by model, layer and projection."""
        return {
            "goal": self.facts.goal,
            "verdict": "stops" if self.decision.stopped else "abstains" if self.abstains else "recommends",
            "why": self.decision.why,
            "recommended": None if self.recommended is None else self.recommended.as_json(),
            "alternatives": [option.as_json() for option in self.alternatives],
            "evidence": [line.as_json() for line in self.decision.evidence],
            "overruled": list(self.decision.overruled),
            "risks": [vars(risk) for risk in self.risks],
            "commands": list(self.commands),
            "figures": {by: list(_figures(self.measured, by)) for by in ("model", "layer", "projection")},
        }


def advise(
    base: str | Path,
    models: Sequence[str | Path],
    *,
    scores: Sequence[str] = (),
    data: str | Path | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    stop: Stop | None = None,
) -> Advice:
    """Say which method and starting values suit these models, on what evidence, or that the evidence does not tell.

    Of one model: how to remove nine tenths of its delta. Of several: how to merge them. Reads base and models once,
    within `memory` bytes, and a few matrices again; runs no network unless `data` is given (extra [analysis]). Labels
    are the folders' names, numbered where two are equal. `scores` are pairs of result files of `evaluate`,
    `[LABEL=]EXPERT.json,PRUNED.json`: an expert's, and that of DARE at a rate of 0.9 on it. With `out` the recommended
    recipe is written there, if one is; an existing file only with `overwrite`.

    Raises what `plan` raises, and RefusedError where `out` is taken; with `data` what `loss` raises, MissingExtraError
    before anything is read.
    """
    if out is not None:
        refuse_occupied(Path(out), overwrite=overwrite)
    if data is not None:
        refuse_unready(data)
    sources = [str(model) for model in models]
    labels = numbered([Path(source).name or source for source in sources], reserved=["base"])
    read = read_scores(scores, labels)
    found = survey(base, sources, threads=threads, memory=memory, stop=stop)
    named = list(zip(labels, sources, strict=True))
    lab = bundled()
    losses: tuple[Loss, ...] = ()
    if data is not None:
        facts = facts_of(found.measured, found.overlaps, found.warnings, read)
        options = [_option(name, facts, lab, str(base), named) for name in not_excluded(facts, rules_of(lab))]
        wanted = [(option.name, option.recipe) for option in options]
        losses = loss_terms(wanted, data, threads=threads, memory=memory, stop=stop)
    facts = facts_of(found.measured, found.overlaps, found.warnings, read, losses)
    advice = _advice(facts, lab, str(base), named, found.measured)
    if out is not None and advice.recommended is not None:
        write_recipe(advice.recommended.recipe, advice.head, Path(out))
    return advice


def survey(
    base: str | Path,
    models: Sequence[str | Path],
    *,
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    stop: Stop | None = None,
) -> Survey:
    """Measure what the rules are to judge: one pass over all tensors, then a few matrices' singular directions."""
    sources = [str(model) for model in models]
    labels = numbered([Path(source).name or source for source in sources], reserved=["base"])
    entries = [{"model": source, "label": label} for source, label in zip(sources, labels, strict=True)]
    built = build(from_dict({"base": str(base), "models": entries, "merge": "sum"}, Path()))
    limits = budget(built.plan, memory, threads or available_threads())
    free = memory - _RESERVED
    workers = max(1, min(limits.threads, free // (_THREAD * (len(models) + 1))))
    stopper = stop or Stop()
    measured = measure(built.plan, workers, stopper)
    return Survey(measured, overlaps(built.plan, free, stopper), tuple(_warnings(built)))


def _warnings(built: Built) -> Iterator[str]:
    yield from built.plan.warnings
    yield from glance(built.plan)
    if not isinstance(built.base, Built) and built.base is not None:
        for label, model in zip(built.recipe.labels, built.models, strict=True):
            if not isinstance(model, Built):
                yield from token_differences(built.base, model, label)


def _advice(
    facts: Facts, lab: Experience, base: str, named: Sequence[tuple[str, str]], measured: list[Measured]
) -> Advice:
    decision = decide(facts, rules_of(lab))
    options = {name: _option(name, facts, lab, base, named) for name in decision.among}
    recommended = None if decision.method is None else options[decision.method]
    others = tuple(option for name, option in options.items() if name != decision.method)
    commands = tuple(_commands(facts, decision, base, named))
    return Advice(facts, decision, recommended, others, risks_of(measured), commands, measured)


def _option(name: str, facts: Facts, lab: Experience, base: str, named: Sequence[tuple[str, str]]) -> Option:
    candidate, settings = candidates_for(facts.goal)[name], settings_for(name, facts, lab)
    recipe = recipe_of(candidate, base, named, settings.scale, settings.fields)
    return Option(name, candidate.title, settings, recipe)


def _commands(facts: Facts, decision: Decision, base: str, named: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield what to run next: what would separate the candidates, or what else the model could be packed by."""
    places = " ".join(shlex.quote(place) for place in (base, *(path for _, path in named)))
    if decision.stopped:
        yield f"deltasmith diff {places}"
        return
    if decision.method is None:
        yield f"deltasmith advise {places} --data TEXT.jsonl"
        if facts.goal == "prune" and not facts.scores:
            dare = recipe_of(PRUNINGS["dare"], base, named, 1.0, PRUNINGS["dare"].fields)
            yield f"echo {shlex.quote(json.dumps(dare))} > dare.yaml"
            yield f"deltasmith evaluate {shlex.quote(named[0][1])} --tasks TASK=FILE --out expert.json"
            yield "deltasmith evaluate dare.yaml --tasks TASK=FILE --out dare.json"
            yield f"deltasmith advise {places} --scores expert.json,dare.json"
        else:
            yield "deltasmith evaluate CANDIDATE.yaml --tasks TASK=FILE --out CANDIDATE.json, for each; then compare"
    else:
        yield "deltasmith tune RECIPE.yaml --validation TASK=FILE, with `scale: {tune: [0.05, 2]}`: λ decides most"
    if facts.goal == "prune":
        yield f"deltasmith pack {places} OUT --codec claq:bits=2, to store it: two bits a weight, nothing dropped"


def _figures(measured: Sequence[Measured], by: str) -> Iterator[dict[str, Any]]:
    for group in combined(measured, by):
        models = {}
        for label, column in group.columns.items():
            spectrum, size = column.spectrum, max(1, column.change.size)
            norm = column.change.relative_norm
            models[label] = {
                "quantiles": {str(q): spectrum.quantile(q) for q in (0.5, 0.9, 0.99)},
                "above": {str(limit): spectrum.above(limit) / size for limit in (0.002, 0.005, 0.01, 0.03)},
                "relative_norm": norm if norm < float("inf") else None,
                "unmoved": column.change.zero_fraction,
                "outliers_3": spectrum.above(3 * column.change.mean) / size if column.change.total else 0.0,
                "outliers_5": spectrum.above(5 * column.change.mean) / size if column.change.total else 0.0,
            }
        pairs = [
            {"models": list(pair), "cosine": change.cosine, "sign_conflict": change.sign_conflict}
            for pair, change in group.pairs.items()
        ]
        yield {"name": group.name, "tensors": group.tensors, "models": models, "pairs": pairs}
