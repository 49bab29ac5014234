"""Where the next trial looks: Optuna's samplers, seeded anew for every trial.

A resumed search therefore goes on as an uninterrupted one would.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

__all__ = ["Reseeded", "quiet", "sampler_of"]

_POPULATION = 20
"""Of NSGA-II: Optuna's 50 would spend the few hundred trials that a merge gets on its first generations."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna's log lines and warnings from the user, and leave everybody else's as they were."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)


class Reseeded(BaseSampler):
    """A sampler made anew, with a seed of its own, for every trial and every draw.

    Nothing is carried over in memory: what a trial draws depends on the seed, the trial's number, the
    parameter's name and the trials in the storage.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        """Take a function from a seed to a sampler, and the seed of the whole search."""
        self._make = make
        self._seed = seed

    def _for(self, trial: FrozenTrial, what: str) -> BaseSampler:
        told = f"{self._seed}:{trial.number}:{what}".encode()
        return self._make(int.from_bytes(hashlib.sha256(told).digest()[:4], "little"))

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Let the sampler prepare."""
        self._for(trial, "before").before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Ask the sampler what it draws together."""
        return self._for(trial, "space").infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw together."""
        return self._for(trial, "together").sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one parameter by itself."""
        sampler = self._for(trial, f"one:{param_name}")
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Let the sampler take note of a result."""
        self._for(trial, "after").after_trial(study, trial, state, values)


def sampler_of(name: str, seed: int) -> BaseSampler:
    """Return the sampler `tpe`, `cmaes` or `nsga2`; any other name gets a random one."""
    samplers = optuna.samplers
    makers: dict[str, Callable[[int], BaseSampler]] = {
        "tpe": lambda own: samplers.TPESampler(seed=own),
        "cmaes": lambda own: samplers.CmaEsSampler(seed=own, warn_independent_sampling=False),
        "nsga2": lambda own: samplers.NSGAIISampler(seed=own, population_size=_POPULATION),
    }
    return Reseeded(makers.get(name, lambda own: samplers.RandomSampler(seed=own)), seed)
