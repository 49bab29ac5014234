"""What counts as the same feature, as a drifted one, and as fired often enough to tell."""

from __future__ import annotations

from dataclasses import dataclass

from deltasmith.errors import RecipeError

__all__ = ["Thresholds"]


@dataclass(frozen=True)
class Thresholds:
    """Hold the three numbers that statuses depend on. RecipeError where they make no sense."""

    strong: float = 0.8
    """Correlation from which on two features are the same, in [weak, 1]. 0.8 is Horn and Elliott's (2024)."""
    weak: float = 0.5
    """Correlation below which two features have nothing to do with each other, in (0, strong]."""
    min_fires: int = 20
    """A feature that fires on fewer held-out tokens is left untested; at least 1."""

    def __post_init__(self) -> None:
        if not 0 < self.weak <= self.strong <= 1:  # also refuses nan
            raise RecipeError(
                f"weak is {self.weak:g} and strong {self.strong:g}",
                where="the thresholds",
                fix="choose 0 < weak <= strong <= 1",
            )
        if self.min_fires < 1:
            raise RecipeError(
                f"min_fires is {self.min_fires}", where="the thresholds", fix="choose 1 or more"
            )
