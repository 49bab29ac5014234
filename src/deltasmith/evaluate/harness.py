"""Tasks of lm-eval (the Language Model Evaluation Harness), by name, asked question by question.

lm-eval builds the prompts, filters the answers and scores them; what is here lets it ask any `LanguageModel`, and
turns a task into numbered questions, so that an evaluation resumes and compares like any other. Loading tasks, with
all that lm-eval does wrong quietly or loudly there, is in `harness_loading.py`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltasmith.errors import RefusedError
from deltasmith.evaluate.harness_loading import explained, hushed, load_harness_tasks, running_code
from deltasmith.evaluate.language import Continuation, Decoding, LanguageModel
from deltasmith.evaluate.task import Average, Outcome

if TYPE_CHECKING:
    from deltasmith.evaluate.sandbox import Tier

__all__ = ["HarnessTask", "harness_model", "harness_tasks"]

_DEFAULT_TOKENS = 256  # lm-eval's own, where a task says nothing
_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SILENT_WHEN_GREEDY = ("until", "do_sample", "temperature", "top_p", "top_k", *_TOKENS)
_ELSEWHERE = (
    "dataset_path",
    "dataset_kwargs",
    "metadata",
)  # where data lie; the documents are hashed themselves


def harness_tasks(
    names: Sequence[str],
    *,
    include_path: str | Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    tier: Tier | None = None,
) -> list[HarnessTask]:
    """Load lm-eval tasks, groups and tags by name; a group stands for its tasks.

    `include_path` is a folder of further task files, which win over lm-eval's own; `limit` keeps the first
    questions; `shots` replaces the number of worked examples, except where a task fixes it at 0. Generated code
    runs only behind `tier` of our sandbox. Prompts are those of lm-eval's `simple_evaluate`, its seeds included.

    Raises:
        RecipeError: there is no such task. MissingExtraError: lm-eval or a package of the task is not installed.
        DamagedInputError: the data set is not to be had.
        RefusedError: the task runs code and `tier` is None or would be passed by; it samples, or looks at
        pictures; or none of its metrics has a score for each question.
    """
    loaded = load_harness_tasks(names, include_path=include_path, shots=shots, tier=tier)
    return [_task(name, task, limit, tier) for name, task in loaded.items()]


@dataclass(frozen=True)
class _Measure:
    """A metric that is an average over questions: how one question's value becomes score and weight."""

    name: str
    kind: str
    higher_is_better: bool
    declared: frozenset[str]

    def key(self, found: Mapping[str, Any]) -> str | None:
        """Return the first `metric,filter` that holds this metric, or what a metric of several figures is spread to."""
        named = (key for key in found if key.partition(",")[0] == self.name)
        spread = (key for key in found if key.partition(",")[0] not in self.declared)
        return next(named, next(spread, None))

    @property
    def average(self) -> Average:
        """Say how scores become lm-eval's figure."""
        return "perplexity" if self.kind.endswith("perplexity") else "mean"

    def outcome(self, value: Any) -> tuple[float, float]:
        """Return score and weight; those measured over a text are (log-likelihood, units)."""
        if self.kind == "mean":
            return float(value), 1.0
        if self.kind == "perplexity":
            return -float(value), 1.0
        logprob, units = value
        return -float(logprob) / units / (math.log(2) if self.kind == "bits_per_byte" else 1.0), float(units)


@dataclass(frozen=True)
class HarnessTask:
    """One task of lm-eval. The score is its first metric under its first filter; the details hold all of them."""

    name: str
    digest: str
    _inner: Any = field(repr=False)
    _measure: _Measure
    _questions: Mapping[str, tuple[Any, ...]] = field(repr=False)
    _tier: Tier | None = None
    _remarks: tuple[str, ...] = ()

    @property
    def metric(self) -> str:
        """Return the first metric that is an average over questions."""
        return self._measure.name

    @property
    def average(self) -> Average:
        """Say how scores become one figure."""
        return self._measure.average

    @property
    def higher_is_better(self) -> bool:
        """Say which way is up, by lm-eval's word."""
        return self._measure.higher_is_better

    @property
    def ids(self) -> Sequence[str]:
        """Return lm-eval's document numbers."""
        return tuple(self._questions)

    def answer(self, model: LanguageModel, ids: Sequence[str]) -> list[Outcome]:
        """Answer the named questions, in their order, and let lm-eval filter and score the answers."""
        asked = {name: [_fresh(one) for one in self._questions[name]] for name in ids}
        everything = [one for some in asked.values() for one in some]
        adapter = harness_model(model)
        for kind in dict.fromkeys(one.request_type for one in everything):
            requests = [one for one in everything if one.request_type == kind]
            for one, response in zip(requests, getattr(adapter, kind)(requests), strict=True):
                one.resps = [response] * (one.repeats or 1)  # greedy: every repetition is the same
        with hushed(), running_code(self._tier), explained(self.name):
            for filtering in self._inner._filters:
                filtering.apply(everything)
            return [self._outcome(name, some) for name, some in asked.items()]

    def notes(self, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
        """Give the figures of the other metrics and filters as lm-eval aggregates them, and what was changed."""
        if not outcomes:
            return self._remarks
        figures = []
        aggregations = self._inner.aggregation()
        main = self._measure.key(outcomes[0].detail["metrics"])
        for key in dict.fromkeys(key for o in outcomes for key in o.detail["metrics"] if key != main):
            values = [_tuples(o.detail["metrics"][key]) for o in outcomes if key in o.detail["metrics"]]
            with hushed():
                figure = _aggregated(aggregations.get(key.partition(",")[0]), values)
            if figure is not None:
                figures.append(f"{key} {figure:.4g}")
        return (*self._remarks, *([f"also: {'; '.join(figures)}"] if figures else []))

    def _outcome(self, name: str, instances: Sequence[Any]) -> Outcome:
        """Score one document under every filter."""
        found: dict[str, Any] = {}
        for key in instances[0].filtered_resps:
            values = self._inner.process_results(
                instances[0].doc, [one.filtered_resps[key] for one in instances]
            )
            found |= {f"{metric},{key}": value for metric, value in values.items()}
        main = self._measure.key(found)
        # lm-eval leaves a document out of the average of a metric that it has no value for.
        score, weight = (0.0, 0.0) if main is None else self._measure.outcome(found[main])
        detail = {
            "metrics": {key: value for key, value in found.items() if _is_json(value)},
            "responses": [one.resps[0] for one in instances],
        }
        return Outcome(name, score, weight, detail)


def harness_model(model: LanguageModel) -> Any:
    """Return the model as lm-eval's `LM`, for its own `simple_evaluate`.

    Log-likelihood, rolling log-likelihood (each token of a text once; see `CausalModel`) and greedy generation;
    a request for anything but greedy generation is refused.
    """
    from lm_eval.api.model import LM

    class HarnessModel(LM):  # type: ignore[misc, unused-ignore]
        """Answers lm-eval's requests."""

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            asked = [_cut_before_space(*one.args) for one in requests]
            return [(found.logprob, found.greedy) for found in model.likelihoods(asked)]

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            texts = [one.args[0] for one in requests]
            return [-math.fsum(window.loss for window in model.windows(text)) for text in texts]

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            groups: dict[Decoding, list[int]] = {}
            for i, one in enumerate(requests):
                groups.setdefault(_decoding(one.args[1]), []).append(i)
            texts = [""] * len(requests)
            for decoding, some in groups.items():
                found = model.generate([requests[i].args[0] for i in some], decoding)
                for i, text in zip(some, found, strict=True):
                    texts[i] = text
            return texts

    return HarnessModel()


def _cut_before_space(context: str, text: str) -> Continuation:
    """Move white space at the end of the context into the continuation, as lm-eval's adapter does."""
    bare = context.rstrip()
    return Continuation(bare, context[len(bare) :] + text)


def _decoding(options: Mapping[str, Any]) -> Decoding:
    """Read lm-eval's generation options, or refuse those that are not greedy."""
    odd = sorted(set(options) - set(_SILENT_WHEN_GREEDY))
    if options.get("do_sample") or (options.get("do_sample") is None and options.get("temperature")):
        odd.append(f"do_sample (temperature {options.get('temperature')})")
    if odd:
        raise RefusedError(
            f"the task asks for {', '.join(odd)}, and answers here are greedy", fix="use its greedy variant"
        )
    until = options.get("until") or ()
    tokens = next((options[key] for key in _TOKENS if options.get(key) is not None), _DEFAULT_TOKENS)
    return Decoding(int(tokens), (until,) if isinstance(until, str) else tuple(map(str, until)))


def _task(name: str, inner: Any, limit: int | None, tier: Tier | None) -> HarnessTask:
    """Build every prompt of a task, in lm-eval's order, on which the draw of worked examples depends."""
    with hushed(), explained(name):
        inner.build_all_requests(limit=limit)
    questions: dict[str, list[Any]] = {}
    for one in inner.instances:
        questions.setdefault(str(one.doc_id), []).append(one)
        if one.request_type == "generate_until":
            _decoding(one.args[1])
    for some in questions.values():
        some.sort(key=lambda one: one.idx)
    measure, remarks = _measure(name, inner)
    return HarnessTask(
        name=name,
        digest=_digest(name, inner),
        _inner=inner,
        _measure=measure,
        _questions={key: tuple(some) for key, some in questions.items()},
        _tier=tier,
        _remarks=remarks,
    )


def _measure(name: str, inner: Any) -> tuple[_Measure, tuple[str, ...]]:
    """Choose the first metric that is an average over questions."""
    from lm_eval.api import metrics

    kinds = {getattr(metrics, k): k for k in ("mean", "perplexity", "weighted_perplexity", "bits_per_byte")}
    aggregations = inner.aggregation()
    upwards = inner.higher_is_better()
    passed: list[str] = []
    for metric, aggregation in aggregations.items():
        if (kind := kinds.get(aggregation)) is not None:
            remarks = (f"{', '.join(passed)} comes first, but has no score per question",) if passed else ()
            shown = f"pass@{k[0]}" if (k := _kwargs(inner, metric).get("k")) else metric
            up = bool(upwards.get(metric, kind == "mean"))
            return _Measure(shown, kind, up, frozenset(aggregations)), remarks
        passed.append(metric)
    raise RefusedError(
        f"its metrics ({', '.join(passed)}) have no score per question, so models could not be compared",
        where=name,
        fix="run this task with lm-eval itself",
    )


def _kwargs(inner: Any, metric: str) -> Mapping[str, Any]:
    """Return what a task's file gives to a metric's function."""
    found: Mapping[str, Any] = getattr(inner, "_metric_fn_kwargs", {}).get(metric, {})
    return found


def _digest(name: str, inner: Any) -> str:
    """Hash lm-eval's version, the task's settings with the source of its functions, documents and prompts."""
    from importlib.metadata import version

    config = {key: value for key, value in inner.dump_config().items() if key not in _ELSEWHERE}
    state = hashlib.sha256(repr((version("lm_eval"), name, inner.VERSION)).encode())
    for part in (config, *((one.doc, one.arguments) for one in inner.instances)):
        state.update(json.dumps(part, sort_keys=True, default=_plain).encode())
    return state.hexdigest()


def _plain(value: Any) -> str:
    """Write what JSON has no word for so that it is the same in every process: no addresses."""
    return f"{type(value).__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _fresh(instance: Any) -> Any:
    """Copy a request without the answers of an earlier model."""
    one = copy.copy(instance)
    one.resps, one.filtered_resps = [], {}
    return one


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _tuples(value: Any) -> Any:
    """Give back the tuples that a journal in JSON has turned into lists."""
    return tuple(value) if isinstance(value, list) else value


def _aggregated(aggregation: Any, values: Sequence[Any]) -> float | None:
    """Aggregate one metric as lm-eval does, or return None where that needs more than what is kept of it."""
    if aggregation is None:
        return None
    try:
        return float(aggregation(list(values)))
    except Exception:  # aggregations are anybody's code; a side figure is not worth a failure
        return None
