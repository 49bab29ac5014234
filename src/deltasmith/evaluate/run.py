"""Run tasks on a model: resume, record every outcome, average, and write the result file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from deltasmith import __version__
from deltasmith.engine.progress import Progress, Silent
from deltasmith.engine.workers import Stop
from deltasmith.errors import DeltasmithError, InterruptedRunError, RefusedError, ResourceError
from deltasmith.evaluate.alpaca import AlpacaEval, StoredAnnotations
from deltasmith.evaluate.journal import Journal, Key, default_journal
from deltasmith.evaluate.language import Continuation, Decoding, LanguageModel, Likelihood, TokenLoss
from deltasmith.evaluate.request import Prepared, Request, prepare
from deltasmith.evaluate.results import Evaluation, TaskResult
from deltasmith.evaluate.saving import earlier_result, refuse_another, save
from deltasmith.evaluate.streams import Memory, Session, Streamed, fixed_chunks
from deltasmith.evaluate.task import Outcome, Task

__all__ = ["Evaluated", "Opened", "evaluate_model", "evaluate_tasks"]

_BATCHES = 4  # a chunk is so many batches, to put texts alike in length together
_BATCH = 8
_PROBE = "Hello."
_STOPPED = "stopped before it was complete: "


class Opened(Protocol):
    """A model ready to be asked, as `open_language_model` returns it."""

    @property
    def model(self) -> LanguageModel:
        """Return what answers."""

    @property
    def name(self) -> str:
        """Return the name that results show."""

    @property
    def fingerprint(self) -> str:
        """Hash the weights and whatever else decides the answers."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what a reader of the results should know."""


@dataclass(frozen=True)
class Evaluated:
    """An evaluation, and what kept tasks from completing; empty `failures` mean that every task is complete."""

    evaluation: Evaluation
    failures: tuple[DeltasmithError, ...] = ()


def evaluate_model(
    source: str | Path,
    tasks: Sequence[str],
    *,
    progress: Progress | None = None,
    stop: Stop | None = None,
    **options: object,
) -> Evaluated:
    """Evaluate a model folder, or the model a recipe stands for, on `tasks`; `options` are fields of `Request`.

    Everything the request names is checked before the model is loaded. With `out` the result is written there,
    whole; finished questions go to a journal, by which an interrupted call resumes when repeated. A task that fails
    leaves the others to run: the result then is incomplete and says why, and `failures` holds the errors.
    Raises RecipeError for a request that makes no sense, DamagedInputError for a missing or damaged file,
    RefusedError where something else lies at `out`, and InterruptedRunError when asked to stop.
    """
    request = Request(source=str(source), tasks=tuple(tasks), **options)  # type: ignore[arg-type]
    stopper, listener = stop or Stop(), progress or Silent()
    prepared = prepare(request, lambda: stopper.asked)
    limit = request.limit
    wanted = {task.name: (task.digest, len(_chosen(task, limit))) for task in prepared.tasks}
    earlier = _earlier(request, wanted)
    with _threads(request.threads):
        opened = _opened(prepared, listener, stopper)
        if earlier is not None and request.out is not None:
            refuse_another(Path(request.out), earlier, wanted, (opened.fingerprint, opened.model.runtime))
            if earlier.complete:
                listener.phase(f"reading back {request.out}", 0)
        out = Path(request.out) if request.out is not None else None
        path = (
            Path(request.journal) if request.journal else default_journal(out, _keys(opened, prepared.tasks))
        )
        with Journal.open(path) as journal:
            run = _Run(
                opened, journal, limit, listener, stopper, earlier, _BATCHES * (request.batch or _BATCH)
            )
            notes = (*prepared.notes, *_untemplated(opened, prepared))
            result = run.all(prepared.tasks, prepared.sandbox, notes)
            if out is not None:
                save(out, result.evaluation)
            if result.evaluation.complete and request.journal is None:
                journal.discard(_saved(opened, prepared.tasks))
    return result


def evaluate_tasks(
    opened: Opened, tasks: Sequence[Task], *, limit: int | None = None, chunk: int = _BATCHES * _BATCH
) -> Evaluation:
    """Evaluate a model that is already open, in memory; the first error of a task is raised."""
    result = _Run(opened, None, limit, Silent(), Stop(), None, chunk).all(tasks, None, ())
    if result.failures:
        raise result.failures[0]
    return result.evaluation


class _Unasked:
    """Stands for a model in an evaluation that asks it nothing."""

    runtime = "none: nothing was computed"
    context = 0

    def likelihoods(self, asked: Sequence[Continuation]) -> list[Likelihood]:
        raise NotImplementedError

    def windows(self, text: str) -> list[TokenLoss]:
        raise NotImplementedError

    def generate(self, prompts: Sequence[str], decoding: Decoding) -> list[str]:
        raise NotImplementedError

    def chat(self, instruction: str) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class _Named:
    """A model that is only a name."""

    name: str
    fingerprint: str = "unknown"
    notes: tuple[str, ...] = ()
    model: LanguageModel = field(default_factory=_Unasked)


class _Phases:
    """Passes on what a merge in memory is at, but not its bytes: the bar counts questions."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def phase(self, name: str, total: int) -> None:
        self._progress.phase(name, 0)

    def advance(self, nbytes: int) -> None:
        pass


def _opened(prepared: Prepared, progress: Progress, stop: Stop) -> Opened:
    """Load the model if any task asks it something, and refuse what belongs to another model."""
    opened: Opened
    if all(isinstance(task, StoredAnnotations) for task in prepared.tasks):
        opened = _Named(Path(prepared.request.source).name)
    else:
        progress.phase("loading the model", 0)
        opened = prepared.open(_Phases(progress), stop)
    for task in prepared.tasks:
        if isinstance(task, AlpacaEval):
            task.check_outputs(opened.name)
        if isinstance(task, StoredAnnotations) and task.generator != opened.name:
            raise RefusedError(
                f"the annotations are of {task.generator}, not of {opened.name}",
                where=task.path,
                fix="give its name, or the folder of that name, as MODEL",
            )
    return opened


def _chosen(task: Task, limit: int | None) -> list[str]:
    return list(task.ids[:limit])


def _key(opened: Opened, task: Task, digest: str) -> Key:
    return Key(opened.fingerprint, opened.model.runtime, task.name, digest)


def _keys(opened: Opened, tasks: Sequence[Task]) -> list[Key]:
    return [_key(opened, task, task.digest) for task in tasks]


def _saved(opened: Opened, tasks: Sequence[Task]) -> set[Key]:
    """List all keys that an evaluation writes to its journal."""
    digests = [(task, task.memory_digest()) for task in tasks if isinstance(task, Streamed)]
    return {*_keys(opened, tasks), *(_key(opened, task, digest) for task, digest in digests)}


def _untemplated(opened: Opened, prepared: Prepared) -> tuple[str, ...]:
    """Note that --chat changes nothing with a model that has no chat template."""
    if not (prepared.request.chat and any("chat" in getattr(task, "heeds", ()) for task in prepared.tasks)):
        return ()
    try:
        bare = opened.model.chat(_PROBE) == _PROBE
    except DeltasmithError:  # the tasks will say so, each for itself
        return ()
    return ("--chat: the model has no chat template, questions are asked as they are",) if bare else ()


def _earlier(request: Request, wanted: Mapping[str, tuple[str, int]]) -> Evaluation | None:
    """Read an earlier result of the same request, if there is one; refuse to go on where something else lies."""
    if request.out is None or request.overwrite:
        return None
    earlier = earlier_result(Path(request.out))
    if earlier is not None:
        refuse_another(Path(request.out), earlier, wanted)
    return earlier


def _threads(threads: int | None) -> AbstractContextManager[object]:
    if threads is None:
        return nullcontext()
    import sys

    from threadpoolctl import threadpool_limits

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    limited: AbstractContextManager[object] = threadpool_limits(threads)
    return limited


@runtime_checkable
class _Noted(Protocol):
    """A task with something to say about its outcomes beside their average."""

    def notes(self, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
        """Return remarks for the result."""


class _Nothing:
    """The memory of an evaluation without a journal."""

    def __init__(self, heard: Callable[[int], None]) -> None:
        self._heard = heard

    def get(self, request: str) -> object | None:
        return None

    def put(self, request: str, answer: object) -> None:
        self._heard(1)


@dataclass(frozen=True)
class _Run:
    """One evaluation under way."""

    opened: Opened
    journal: Journal | None
    limit: int | None
    progress: Progress
    stop: Stop
    earlier: Evaluation | None
    chunk: int

    def all(self, tasks: Sequence[Task], sandbox: str | None, notes: Sequence[str]) -> Evaluated:
        """Run every task, whatever becomes of the others."""
        results: dict[str, TaskResult] = {}
        failures: list[DeltasmithError] = []
        for task in tasks:
            results[task.name], failure = self._task(task)
            if failure is not None:
                failures.append(failure)
        evaluation = Evaluation(
            model=self.opened.name,
            fingerprint=self.opened.fingerprint,
            runtime=self.opened.model.runtime,
            tasks=results,
            sandbox=sandbox,
            version=__version__,
            notes=(*self.opened.notes, *notes),
        )
        return Evaluated(evaluation, tuple(failures))

    def _task(self, task: Task) -> tuple[TaskResult, DeltasmithError | None]:
        chosen, key = _chosen(task, self.limit), _key(self.opened, task, task.digest)
        done = self._known(task, key, chosen)
        failure: DeltasmithError | None = None
        steps = task.steps(chosen) if isinstance(task, Streamed) else len(chosen)
        self.progress.phase(task.name, steps)
        # At once, even if it is nothing: listeners take the first report for what was known before.
        self.progress.advance(
            steps if len(done) == len(chosen) else len(done) + self._remembered(task, chosen)
        )
        try:
            for outcomes in self._outcomes(task, key, [name for name in chosen if name not in done], chosen):
                _check(task, outcomes)
                if self.journal is not None:
                    self.journal.record(key, outcomes)
                done.update({o.id: o for o in outcomes})
                self._advance(len(outcomes))
        except InterruptedRunError:
            raise
        except (DeltasmithError, MemoryError, RuntimeError) as error:
            failure = _named(error, task)
        found = tuple(done[name] for name in chosen if name in done)
        notes = task.notes(found) if isinstance(task, _Noted) and found else ()
        if failure is not None:
            notes = (*notes, _STOPPED + str(failure))
        result = TaskResult(
            metric=task.metric,
            average=task.average,
            higher_is_better=task.higher_is_better,
            digest=task.digest,
            outcomes=found,
            asked=len(chosen),
            interval=_interval(task, found),
            notes=notes,
        )
        return result, failure

    def _known(self, task: Task, key: Key, chosen: Sequence[str]) -> dict[str, Outcome]:
        """Gather the outcomes that need not be found again: the result file's and the journal's."""
        known = self.journal.outcomes(key) if self.journal is not None else {}
        if self.earlier is not None:
            known |= {o.id: o for o in self.earlier.tasks[task.name].outcomes}
        return {name: known[name] for name in chosen if name in known}

    def _remembered(self, task: Task, chosen: Sequence[str]) -> int:
        """Count the requests of a task that the journal remembers."""
        if self.journal is None or not isinstance(task, Streamed):
            return 0
        answers = self.journal.answers(_key(self.opened, task, task.memory_digest()))
        return min(len(answers), len(chosen))

    def _outcomes(
        self, task: Task, key: Key, missing: Sequence[str], chosen: Sequence[str]
    ) -> Iterator[list[Outcome]]:
        if not missing:
            return
        self._heed()
        if isinstance(task, Streamed):
            memory_key = _key(self.opened, task, task.memory_digest())
            memory: Memory = _Nothing(self._advance)
            if self.journal is not None:
                memory = self.journal.answers(memory_key, self._advance)
            yield from task.stream(self.opened.model, Session(self.opened.name, chosen, memory), missing)
            return
        wanted = frozenset(missing)
        for names in fixed_chunks(chosen, self.chunk, wanted):
            yield [o for o in task.answer(self.opened.model, names) if o.id in wanted]

    def _advance(self, count: int) -> None:
        self.progress.advance(count)
        self._heed()

    def _heed(self) -> None:
        if self.stop.asked:
            raise InterruptedRunError("interrupted", fix="run the same command again to resume")


def _check(task: Task, outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        if not (math.isfinite(outcome.score) and math.isfinite(outcome.weight)):
            raise RefusedError(
                f"question {outcome.id} got the score {outcome.score}, which is no number to average",
                where=task.name,
                fix="check the model: deltasmith verify looks for values that are not finite",
            )


def _named(error: Exception, task: Task) -> DeltasmithError:
    """Turn what stopped a task into one of our errors; whatever is no lack of memory is raised again."""
    if isinstance(error, DeltasmithError):
        return error
    # torch's own error is a RuntimeError, and torch need not be there to compare with.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return ResourceError("the memory is used up", where=task.name, fix="give a smaller --batch")
    raise error


def _interval(task: Task, outcomes: Sequence[Outcome]) -> tuple[float, float] | None:
    from deltasmith.evaluate.statistics import bootstrap_interval

    counting = [o for o in outcomes if o.weight]
    if not counting:
        return None
    low, high = bootstrap_interval([o.score for o in counting], [o.weight for o in counting], task.average)
    return (float(low), float(high)) if math.isfinite(low) and math.isfinite(high) else None
