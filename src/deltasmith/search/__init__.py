"""The search for a recipe's numbers: marks, trials, samplers, and the call `tune`.

Optuna is needed once a search begins, and imported only then (`deltasmith[search]`).
"""

from __future__ import annotations

from deltasmith.search.marked import MarkedRecipe, load_marked
from deltasmith.search.outcome import TrialResult, Tuned
from deltasmith.search.scoring import CommandScorer, Scored, Scorer, TaskScorer
from deltasmith.search.settings import SAMPLERS, Settings
from deltasmith.search.tuning import tune

__all__ = [
    "SAMPLERS",
    "CommandScorer",
    "MarkedRecipe",
    "Scored",
    "Scorer",
    "Settings",
    "TaskScorer",
    "TrialResult",
    "Tuned",
    "load_marked",
    "tune",
]
