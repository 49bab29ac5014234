"""Which edits the loss is predicted for: the catalogue, at settings from next to nothing to ruinous."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

__all__ = ["CLASSES", "GROUPS", "KINDS", "POINTS", "Point", "k_dare", "vision_points"]


@dataclass(frozen=True)
class Point:
    """One end of a path that begins at the expert: an edit of its delta, or a merge of all experts.

    `fields` are keys of a recipe; where they hold `edits`, these are of the one expert and the others take no part.
    `start` are the keys of the recipe where the path begins instead. `draws`: how many seeds are measured.
    """

    group: str
    name: str
    fields: Mapping[str, Any]
    start: Mapping[str, Any] | None = None
    draws: int = 1


GROUPS: Mapping[str, str] = MappingProxyType(
    {
        "dare": "DARE",
        "k_dare": "k-DARE",
        "magprune": "MAGPRUNE",
        "trim": "TIES trim",
        "magnitude": "largest, per tensor",
        "dp": "DP",
        "dpa": "DPA",
        "bitdelta": "BitDelta, c × mean",
        "random": "BitDelta, random magnitudes",
        "blocks": "BitDelta, M magnitudes",
        "claq": "CLAQ",
        "low_rank": "SVD",
        "expo": "ExPO",
        "emr": "EMR",
        "merge": "merges",
        "rounding": "rounding to bfloat16",
    }
)
CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "dare": "competitive",
        "k_dare": "competitive",
        "bitdelta": "decreased",
        "low_rank": "decreased",
        "trim": "decreased",
        "expo": "improved",
    }
)
"""The paper's class of those groups to which it gives one."""

KINDS = ("random", "sign", "gradient, other items", "gradient, same items")
"""What decides which elements of a delta are multiplied by k: chance (k-DARE), or one of three biases."""

_RATES = (0.1, 0.3, 0.5, 0.7, 0.9)
_KS = (-1.0, -0.5, 0.5, 0.8)
_MATRICES = "*_proj.weight"


def k_dare(k: float, rate: float) -> Mapping[str, Any]:
    """Return the recipe keys of k-DARE on a whole delta: what is dropped is multiplied by `k` instead."""
    density = round(1 - rate, 4)
    return {"edits": [{"drop_partly": {"density": density, "k": k}}]}


def _edit(group: str, name: str, edit: str, draws: int = 1, where: str = "*", **fields: Any) -> Point:
    return Point(group, name, {"edits": [{edit: fields, "where": where}]}, draws=draws)


def _random() -> Iterator[Point]:
    for rate in _RATES:
        yield _edit("dare", f"p = {rate}", "drop", draws=2, density=round(1 - rate, 4))
    for k in _KS:
        for rate in (0.1, 0.5, 0.9):
            yield Point("k_dare", f"k = {k}, p = {rate}", k_dare(k, rate))
    for rate in (0.3, 0.5, 0.9):
        window = min(0.14, round(1.6 * (1 - rate), 4))
        yield _edit("magprune", f"p = {rate}", "drop_by_rank", density=round(1 - rate, 4), window=window)


def _selecting() -> Iterator[Point]:
    for density in (0.8, 0.5, 0.3, 0.2, 0.1):
        yield _edit("trim", f"density {density}", "keep_largest", density=density)
    for density in (0.5, 0.2):
        yield _edit("magnitude", f"density {density}", "keep_largest_in_tensor", density=density)


def _partitioned() -> Iterator[Point]:
    for density in (0.5, 0.2):
        yield _edit("dp", f"density {density}", "dynamic_prune", density=density)
    for factors in ([1.5, 1.0], [2.0, 1.5]):
        name = f"densities 0.1, 0.2 × {factors[0]}, {factors[1]}"
        yield _edit("dpa", name, "amplify_partitions", densities=[0.1, 0.2], factors=factors)


def _coded(where: str) -> Iterator[Point]:
    def coded(group: str, name: str, codec: str, draws: int = 1) -> Point:
        return _edit(group, name, "quantise", draws=draws, where=where, codec=codec)

    for factor in (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0):
        yield coded("bitdelta", f"c = {factor}", f"bitdelta:magnitude={factor}")
    for shape in ("normal", "uniform"):
        yield coded("random", f"{shape}, spread 0.5", f"bitdelta_random:distribution={shape},spread=0.5")
    for blocks in (2, 4, 8, 16):
        yield coded("blocks", f"M = {blocks}", f"magnitude_blocks:blocks={blocks},scheme=equal_count")
    for bits in (2, 3, 4):
        yield coded("claq", f"{bits} bits", f"claq:bits={bits}")
    for density in (0.5, 0.3, 0.2, 0.1, 0.05):
        yield _edit("low_rank", f"density {density}", "low_rank", where=where, density=density)


def _whole() -> Iterator[Point]:
    for step in (-10, -8, -6, -4, -2, -1, 1, 2, 4, 6, 8, 10):
        yield _edit("expo", f"α = {step / 10:+.1f}", "amplify", factor=round(1 + step / 10, 4))
    yield Point("emr", "told the task", {"preset": "emr", "task": "EXPERT"})
    yield Point("merge", "task arithmetic, λ = 0.4", {"preset": "task_arithmetic", "scale": 0.4})
    yield Point("merge", "task arithmetic, λ = 1", {"preset": "task_arithmetic"})
    yield Point("merge", "TIES, density 0.2", {"preset": "ties", "density": 0.2})
    yield Point("merge", "DARE-TIES, density 0.5", {"preset": "dare_ties", "density": 0.5})
    yield Point("merge", "DELLA, density 0.5", {"preset": "della", "density": 0.5, "window": 0.14})


_ROUNDED = {"preset": "task_arithmetic", "scale": 0.4}
_ROUNDING = Point("rounding", "of task arithmetic, λ = 0.4", {**_ROUNDED, "dtype": "bfloat16"}, _ROUNDED)

POINTS: Sequence[Point] = (
    *_random(),
    *_selecting(),
    *_partitioned(),
    *_coded(_MATRICES),
    *_whole(),
    _ROUNDING,
)


def vision_points() -> Sequence[Point]:
    """Return the edits of the vision models: the same, without those that only know a language model's matrices."""
    return (*_random(), *_selecting(), *_coded("encoder.layer.*.weight"), *_whole(), _ROUNDING)
