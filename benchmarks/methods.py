"""What is measured: each merge, the folders it reads, its counterpart in mergekit, what is expected of it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GIANT", "MERGES", "PLAN", "Merge"]


@dataclass(frozen=True, slots=True)
class Merge:
    """One recipe of `recipes/`, run in the work folder.

    `inputs` are the folders it reads, in the work folder; `rival` names a recipe of `mergekit/`. `at_most`
    and `stretch` are multiples of the floor's wall time; `cpu_factor` says how many times ours mergekit's CPU
    seconds must be.
    """

    name: str
    title: str
    inputs: tuple[str, ...]
    rival: str | None = None
    at_most: float | None = None
    stretch: float | None = None
    cpu_factor: float | None = None


_EXPERTS = ("family/math", "family/code", "family/chat")
_ALL = ("family/base", *_EXPERTS)

MERGES = (
    Merge("linear", "linear", _EXPERTS, "linear", 1.7, 1.2),
    Merge("task_arithmetic", "task arithmetic", _ALL, "task_arithmetic", 1.7, 1.2),
    Merge("dare", "DARE, summed", _ALL, "dare", 1.7, 1.2),
    Merge("dare_ties", "DARE-TIES", _ALL, "dare_ties", cpu_factor=20),
    Merge("ties", "TIES, exact global trim", _ALL, "ties", 3, 2, 20),
    Merge("ties_mergekit", "TIES, trim per tensor", _ALL, "ties", cpu_factor=20),
    Merge("della", "DELLA", _ALL, "della", 4, cpu_factor=20),
    Merge("slerp", "SLERP of two", _EXPERTS[:2], "slerp"),
)
GIANT = Merge("giant", "TIES on one tensor of 2³¹ elements", ("giant/base", "giant/math", "giant/code"))
PLAN = "plan22213"
