"""Bases and deltas made for one purpose: models whose surveys give a wanted figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from deltasmith.advice.experience import Experience, MergeCase, PruneCase
from deltasmith.advice.facts import Facts, Loss, Score, facts_of
from deltasmith.advice.measuring import Measured, measure
from deltasmith.advice.subspaces import overlaps
from deltasmith.engine.workers import Stop
from deltasmith.merges.sum import Sum
from tables import make_plan

SIGMA = 0.05
SHAPES = {
    "model.embed_tokens.weight": (40, 48),
    "model.layers.0.self_attn.q_proj.weight": (48, 48),
    "model.layers.0.mlp.up_proj.weight": (64, 48),
    "model.layers.1.self_attn.q_proj.weight": (48, 48),
    "model.layers.1.mlp.up_proj.weight": (64, 48),
    "model.norm.weight": (48,),
}
Arrays = dict[str, np.ndarray]


def base(seed: int = 0) -> Arrays:
    """Draw a base of standard deviation SIGMA."""
    rng = np.random.default_rng(seed)
    return {n: (rng.normal(size=s) * SIGMA).astype(np.float32) for n, s in SHAPES.items()}


def moved(ground: Arrays, size: float, seed: int) -> Arrays:
    """Move every weight by ±`size`: |δ| has one value, and so all its quantiles."""
    rng = np.random.default_rng(100 + seed)
    return {
        n: (a + size * rng.choice([-1.0, 1.0], size=a.shape)).astype(np.float32) for n, a in ground.items()
    }


def measured(ground: Arrays, models: Sequence[Mapping[str, np.ndarray]], threads: int = 1) -> list[Measured]:
    """Measure models, labelled m0, m1, …, against a base."""
    return measure(make_plan(ground, [dict(m) for m in models], Sum()), threads, Stop())


def facts(
    ground: Arrays,
    models: Sequence[Mapping[str, np.ndarray]],
    warnings: Sequence[str] = (),
    scores: Sequence[Score] = (),
    losses: Sequence[Loss] = (),
) -> Facts:
    """Survey models and boil it down."""
    plan = make_plan(ground, [dict(m) for m in models], Sum())
    found = overlaps(plan, 1 << 28, Stop())
    return facts_of(measure(plan, 1, Stop()), found, warnings, scores, losses)


def experience() -> Experience:
    """Make a lab of three seeds: small deltas (0.05) where DARE keeps all and TA wins, large (0.4) where it fails."""
    prunings, merges = [], []
    for seed in range(3):
        for regime, size, kept in (("small", 0.05, 0.97), ("large", 0.4, 0.01)):
            for task in ("a", "b"):
                best = ("dare", "magprune") if regime == "small" else ("dp",)
                prunings.append(PruneCase(seed, regime, task, size, size * SIGMA, {"dare": kept}, best))
            for models in (("a", "b"), ("a", "c"), ("a", "b", "c")):
                scale = 1.0 if regime == "small" else 0.2
                best = ("ta", "ties") if regime == "small" else ("dppa",) if seed else ("ties",)
                merges.append(
                    MergeCase(
                        seed,
                        regime,
                        models,
                        size,
                        best,
                        {"ta": scale, "ties": 2 * scale},
                        {"ties": {"density": 0.5}},
                    )
                )
    return Experience(tuple(prunings), tuple(merges))
