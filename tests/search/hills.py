"""Scorers whose scores are a formula of the recipe's numbers, and recipes with marks over tiny models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltasmith.search.scoring import Scored
from models import family, write_recipe


class KilledError(BaseException):
    """Stands for a process that dies: nobody catches it."""


@dataclass
class Hill:
    """Scores two tasks: `low` is best at scale 0.3, `high` at scale 0.7; both like a first weight of 1.

    `seen` holds the recipes that were scored; the call whose number is `dies` ends the process, as it were.
    """

    dies: int = -1
    name: str = "hill"
    better: bool = True
    formula: Callable[[Mapping[str, Any]], dict[str, float]] | None = None
    seen: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def tasks(self) -> Mapping[str, bool]:
        return {"low": self.better, "high": self.better}

    @property
    def digest(self) -> str:
        return self.name

    def score(self, recipe: Mapping[str, Any]) -> Scored:
        self.seen.append(recipe)
        if len(self.seen) == self.dies:
            raise KilledError
        if self.formula is not None:
            return Scored(self.formula(recipe), 0.25)
        weight, scale = recipe["models"][0].get("weight", 1.0), recipe.get("scale", 1.0)
        sign = 1 if self.better else -1
        lost = (weight - 1.0) ** 2
        return Scored(
            {"low": sign * (1 - (scale - 0.3) ** 2 - lost), "high": sign * (1 - (scale - 0.7) ** 2 - lost)}
        )


def marked(root: Path, **fields: Any) -> Path:
    """Write a base, two models, and a recipe with marks at a weight and at the scale."""
    made = family(root, experts=2)
    models = [
        {"model": "./m0", "label": "a", "weight": {"tune": [0.1, 2.0]}},
        {"model": "./m1", "label": "b"},
    ]
    given = {"base": "./base", "models": models, "merge": "sum", "scale": {"tune": [0.05, 1.0]}}
    return write_recipe(made.root / "recipe.yaml", given | fields)
