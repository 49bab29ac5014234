"""How a search is to be done, and what it needs for that."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from deltasmith.errors import MissingExtraError, RecipeError
from deltasmith.recipe.problems import listed

__all__ = ["SAMPLERS", "Settings", "require_extra"]

SAMPLERS = ("tpe", "cmaes", "nsga2", "grid", "random", "dpa")


@dataclass(frozen=True)
class Settings:
    """Say with which sampler to search, for what, how long and from which seed.

    `trials` at least 1, those of earlier runs included; `objectives` as `objectives_of` reads them (none: the
    mean, or for `dpa` the retention); `grid_points` of every mark without steps or choices, at least 2.
    Raises RecipeError for numbers out of range and for more objectives than the sampler has a use for.
    """

    trials: int = 50
    sampler: str = "tpe"
    objectives: tuple[str, ...] = ()
    seed: int = 0
    grid_points: int = 5

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise RecipeError(f"unknown sampler {self.sampler!r}", fix=f"choose {listed(SAMPLERS)}")
        for name, value, least in (("trials", self.trials, 1), ("grid points", self.grid_points, 2)):
            if value < least:
                raise RecipeError(f"{name} must be at least {least}, not {value}")
        if len(self.objectives) > 1 and self.sampler != "nsga2":
            raise RecipeError(
                f"{self.sampler} climbs one objective, not {len(self.objectives)}", fix="use --sampler nsga2"
            )

    @property
    def goals(self) -> tuple[str, ...]:
        """Return the objectives' names, never none."""
        return self.objectives or (("retention",) if self.sampler == "dpa" else ("mean",))


def require_extra(sampler: str) -> None:
    """Raise MissingExtraError where Optuna, or the package its CMA-ES needs, is not installed."""
    wanted = ("optuna", "cmaes") if sampler == "cmaes" else ("optuna",)
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"tune needs {missing[0]}", fix='pip install "deltasmith[search]"')
