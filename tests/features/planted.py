"""Codes of two models whose features are known, and how well recovered statuses agree with what was planted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deltasmith.features.codes import Codes
from deltasmith.features.outcome import DESCENT, FATE, Descent, Fate

COUNTS = {
    "shared": 64,
    "rotated": 8,  # the same trigger, written along another direction
    "drifted": 12,
    "removed": 16,
    "added": 16,
    "split": 8,
    "fused": 8,
    "rare": 6,
    "dead": 4,
}
RATE = 0.03  # of tokens that a feature fires on
DIRECTIONS = 64


@dataclass(frozen=True, eq=False)
class Planted:
    """Codes of a parent and a child, what is true of every latent of both, and the directions they write along."""

    parent: Codes
    child: Codes
    fates: np.ndarray
    descents: np.ndarray
    partner: np.ndarray
    """The child of every parent that is the same feature, else -1."""
    parent_directions: np.ndarray
    child_directions: np.ndarray
    rotated: np.ndarray
    """Parents whose direction is another in the child."""


def planted(
    seed: int = 0, *, tokens: int = 8000, counts: Mapping[str, int] = COUNTS, noise: float = 0.15
) -> Planted:
    """Draw features that are kept, changed, lost and gained, in random order on both sides.

    The child fires with other amplitudes (a factor of 1/2 to 2 for each latent), with noise on every activation, and
    misses or invents one firing in fifty.
    """
    rng = np.random.default_rng(seed)
    parents: list[np.ndarray] = []
    children: list[np.ndarray] = []
    fates: list[Fate] = []
    descents: list[Descent] = []
    pairs: list[tuple[int, int]] = []
    groups: list[str] = []
    for group, count in counts.items():
        for _ in range(count):
            above, below, fate, descent = _family(group, tokens, rng)
            if fate is Fate.PERSISTED:
                pairs.append((len(parents), len(children)))
            parents += above
            children += below
            fates += [fate] * len(above)
            descents += [descent] * len(below)
            groups += [group] * len(above)
    up, down = rng.permutation(len(parents)), rng.permutation(len(children))
    partner = np.full(len(parents), -1)
    for above, below in pairs:
        partner[np.flatnonzero(up == above)] = np.flatnonzero(down == below)
    own, other = _directions(len(parents), rng), _directions(len(children), rng)
    rotated = np.array(groups)[up] == "rotated"
    same = (partner >= 0) & ~rotated
    other[partner[same]] = own[same]
    child = np.stack(children, 1)[:, down]
    child = child * rng.lognormal(0, noise, child.shape) * rng.uniform(0.5, 2, child.shape[1])
    return Planted(
        Codes.of_dense(np.stack(parents, 1)[:, up].astype(np.float32)),
        Codes.of_dense(child.astype(np.float32)),
        np.array([FATE.index(fate) for fate in fates], np.int8)[up],
        np.array([DESCENT.index(descent) for descent in descents], np.int8)[down],
        partner,
        own,
        other,
        rotated,
    )


def agreement(found: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return precision and recall of every status that was planted or found."""
    scores = {}
    for place, name in enumerate(names):
        hits = int(((found == place) & (truth == place)).sum())
        claimed, planted_ = int((found == place).sum()), int((truth == place).sum())
        if claimed or planted_:
            scores[str(name)] = (hits / claimed if claimed else 0.0, hits / planted_ if planted_ else 0.0)
    return scores


def signal(tokens: int, rng: np.random.Generator, rate: float = RATE) -> np.ndarray:
    """Draw one feature's activations: on a share `rate` of the tokens, around 1."""
    return (rng.random(tokens) < rate) * rng.gamma(6.0, 1 / 6.0, tokens)


def _family(
    group: str, tokens: int, rng: np.random.Generator
) -> tuple[list[np.ndarray], list[np.ndarray], Fate, Descent]:
    """Draw what a feature is in the parent and what became of it in the child."""
    one, two = signal(tokens, rng), signal(tokens, rng)
    first = rng.random(tokens) < rng.uniform(0.42, 0.58)
    rare = np.zeros(tokens)
    rare[rng.choice(tokens, rng.integers(3, 13), replace=False)] = 1.0
    drifted = np.where(rng.random(tokens) < 0.66, one, two)
    cases = {
        "shared": ([one], [_missed(one, rng)], Fate.PERSISTED, Descent.PERSISTED),
        "rotated": ([one], [_missed(one, rng)], Fate.PERSISTED, Descent.PERSISTED),
        "drifted": ([one], [drifted], Fate.DRIFTED, Descent.DRIFTED),
        "removed": ([one], [], Fate.DISAPPEARED, Descent.EMERGED),
        "added": ([], [one], Fate.DISAPPEARED, Descent.EMERGED),
        "split": ([one], [_missed(one * first, rng), _missed(one * ~first, rng)], Fate.SPLIT, Descent.SPLIT),
        "fused": ([one, two], [_missed(one + two, rng)], Fate.FUSED, Descent.FUSED),
        "rare": ([rare], [rare], Fate.UNEXERCISED, Descent.UNEXERCISED),
        "dead": ([np.zeros(tokens)], [np.zeros(tokens)], Fate.DEAD, Descent.DEAD),
    }
    return cases[group]


def _missed(activations: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Leave out one firing in fifty, and add as many where there were none."""
    share = 0.02
    invented = (rng.random(len(activations)) < share * RATE) * 1.0
    return np.where(rng.random(len(activations)) < share, 0.0, activations) + invented * (activations == 0)


def _directions(count: int, rng: np.random.Generator) -> np.ndarray:
    rows = rng.standard_normal((count, DIRECTIONS))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
