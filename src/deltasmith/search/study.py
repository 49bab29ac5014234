"""Trials in Optuna's storage, asked for and told one at a time; what a killed process left is taken up again."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy.exc
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from deltasmith.errors import DamagedInputError, ResourceError
from deltasmith.formats.claim import take_lock
from deltasmith.search.marks import Dimension, Ladder, Number
from deltasmith.search.outcome import TrialResult
from deltasmith.search.samplers import quiet
from deltasmith.search.scoring import Scored

__all__ = ["Asked", "Trials", "opened"]

_FEW = 10
"""Fewer trials than this say nothing about which number mattered."""

_BEST = 0.1
"""The part of the trials that counts as good where it is asked which number mattered."""


@dataclass(frozen=True)
class Asked:
    """A trial under way: its number, from 1, and the value of every mark."""

    number: int
    values: Mapping[str, Number]
    trial: Trial


class Trials:
    """The trials of one search, in order. Whatever is told is in the storage when the call returns."""

    def __init__(self, study: Study, dimensions: Sequence[Dimension], others: int) -> None:
        """Take an Optuna study whose sampler is set, and the number of other studies in its storage."""
        self._study = study
        self._dimensions = dimensions
        self.others = others

    @property
    def finished(self) -> tuple[TrialResult, ...]:
        """Return the trials that have been told, by number."""
        with quiet():
            trials = self._study.get_trials(deepcopy=False)
        return tuple(self._result(t) for t in trials if t.state.is_finished())

    def ask(self, point: Mapping[str, Number] | None = None) -> Asked:
        """Start the next trial: where the sampler says, or at a given point.

        A trial that was started and never told is started again, under its number and with its values.
        """
        with quiet():
            trial = self._left_over()
            if trial is None:
                if point is not None and not self._states(TrialState.WAITING):
                    raw = {d.name: d.span.raw(point[d.name]) for d in self._dimensions}
                    self._study.enqueue_trial(raw)
                trial = self._study.ask()
            values = {d.name: d.span.value(_suggest(trial, d)) for d in self._dimensions}
        return Asked(trial.number + 1, values, trial)

    def tell(self, asked: Asked, figures: Sequence[float], scored: Scored, seconds: float) -> None:
        """Finish a trial, which took `seconds` in all, with its objectives' figures."""
        shares = [name for name, answers in scored.answers.items() if answers.share]
        told = {"scores": dict(scored.scores), "seconds": [scored.merge_seconds, seconds], "shares": shares}
        with quiet():
            for key, value in told.items():
                asked.trial.set_user_attr(key, value)
            self._study.tell(asked.trial, list(figures))

    def refuse(self, asked: Asked, why: str) -> None:
        """Finish a trial whose recipe cannot be carried out; samplers pass over it."""
        with quiet():
            asked.trial.set_user_attr("refused", why)
            self._study.tell(asked.trial, state=TrialState.FAIL)

    def note(self, key: str) -> Any:
        """Return what was kept for the whole search under a key, or None."""
        with quiet():
            told = self._study.user_attrs.get(key)
        return None if told is None else json.loads(told)

    def keep(self, key: str, value: Any) -> None:
        """Keep plain data for the whole search."""
        with quiet():
            self._study.set_user_attr(key, json.dumps(value))

    def importance(self) -> dict[str, float]:
        """Say how much each number mattered for being among the best tenth of trials, as fractions of 1.

        Empty with several objectives, a single mark, fewer than ten scored trials, or equal scores.
        Paper: Watanabe et al., "PED-ANOVA" (arXiv 2304.10255), as Optuna computes it.
        """
        scored = [t for t in self.finished if t.figures]
        if len(self._study.directions) > 1 or len(self._dimensions) < 2 or len(scored) < _FEW:
            return {}
        if len({t.figures for t in scored}) < 2:
            return {}
        with quiet():
            found = optuna.importance.get_param_importances(
                self._study, evaluator=PedAnovaImportanceEvaluator(target_quantile=_BEST)
            )
        return {d.name: float(found.get(d.name, 0.0)) for d in self._dimensions}

    def _result(self, trial: FrozenTrial) -> TrialResult:
        told = trial.user_attrs
        values = {
            d.name: d.span.value(trial.params[d.name]) for d in self._dimensions if d.name in trial.params
        }
        merge, total = told.get("seconds", (math.nan, math.nan))
        figures = tuple(trial.values or ()) if trial.state == TrialState.COMPLETE else ()
        return TrialResult(
            trial.number + 1,
            values,
            figures,
            told.get("scores", {}),
            merge,
            total,
            told.get("refused", ""),
            frozenset(told.get("shares", ())),
        )

    def _states(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states)

    def _left_over(self) -> Trial | None:
        """Take up the trial that a killed process was at, if there is one; its lock says nobody else is."""
        running = self._states(TrialState.RUNNING)
        return Trial(self._study, running[0]._trial_id) if running else None


def _suggest(trial: Trial, dimension: Dimension) -> float:
    span = dimension.span
    if isinstance(span, Ladder):
        return trial.suggest_int(dimension.name, 0, len(span.values) - 1)
    if span.integer:
        return trial.suggest_int(dimension.name, int(span.low), int(span.high), log=span.log)
    return trial.suggest_float(dimension.name, span.low, span.high, log=span.log)


@contextmanager
def opened(
    storage: Path | None,
    digest: str,
    dimensions: Sequence[Dimension],
    directions: Sequence[bool],
    sampler: BaseSampler,
) -> Iterator[Trials]:
    """Open the search that `digest` names in an SQLite file, or start it; without a file it lives in memory.

    `directions` tell of each objective whether it is maximised. The file is locked meanwhile. It is trusted:
    Optuna keeps the state of CMA-ES in it as a pickle.

    Raises:
        RefusedError: another process works on the file.
        DamagedInputError: the file is no storage of Optuna's.
        ResourceError: it cannot be written.
    """
    lock = None if storage is None else take_lock(storage)
    try:
        with _database(storage) as database:
            wanted = [StudyDirection.MAXIMIZE if up else StudyDirection.MINIMIZE for up in directions]
            with quiet():
                others = sum(name != digest for name in optuna.get_all_study_names(database))
                study = optuna.create_study(
                    storage=database,
                    study_name=digest,
                    directions=wanted,
                    load_if_exists=True,
                    sampler=sampler,
                )
            yield Trials(study, dimensions, others)
    except (sqlalchemy.exc.OperationalError, optuna.exceptions.StorageInternalError) as cause:
        reason = getattr(cause.__cause__ or cause, "orig", cause)
        raise ResourceError(
            f"the storage cannot be used ({reason})",
            where=str(storage),
            fix="free some space, or name another --storage",
        ) from cause
    finally:
        if lock is not None:
            lock.release()


@contextmanager
def _database(storage: Path | None) -> Iterator[Any]:
    """Open Optuna's storage in a file, whatever characters its name has, and close it properly."""
    if storage is None:
        yield optuna.storages.InMemoryStorage()
        return

    def connect() -> sqlite3.Connection:
        # Optuna commits several times a trial. A log ahead of the file makes that cheap: a killed process still
        # loses nothing, a power failure perhaps the last trials.
        connection = sqlite3.connect(storage, timeout=60.0)
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
            connection.execute("PRAGMA synchronous=NORMAL").close()
        except BaseException:
            connection.close()
            raise
        return connection

    try:
        with quiet():
            database = optuna.storages.RDBStorage("sqlite://", engine_kwargs={"creator": connect})
    except (sqlalchemy.exc.OperationalError, optuna.exceptions.StorageInternalError):
        raise
    except (sqlalchemy.exc.SQLAlchemyError, RuntimeError) as cause:
        # RuntimeError: a table layout of another version of Optuna.
        raise DamagedInputError(
            "it is no storage of trials that this version reads",
            where=str(storage),
            fix="name another --storage",
        ) from cause
    try:
        yield database
    finally:
        with quiet():
            database.remove_session()
            database.engine.dispose()
