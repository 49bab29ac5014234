"""What is measured: codecs and their settings, in groups that each trade bytes for accuracy in one way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

__all__ = ["BUDGETS", "GROUPS", "POINTS", "Point"]

BUDGETS = (0.08, 0.1, 0.15, 0.2, 0.3)
"""Shares of the expert in 16 bits that `pack --budget` may take, header and document included."""


@dataclass(frozen=True)
class Point:
    """One way to pack an expert: a codec as users write it, and the edit its delta goes through before.

    `name` tells it from the others of its group. `draws`: how many seeds of its randomness are averaged.
    """

    group: str
    name: str
    codec: str
    edit: Mapping[str, Any] | None = None
    draws: int = 1


GROUPS: Mapping[str, str] = MappingProxyType(
    {
        "bitdelta": "BitDelta",
        "degenerate": "BitDelta, c times the mean magnitude",
        "random": "BitDelta, random magnitudes",
        "residual": "residual bits",
        "blocks": "magnitude blocks, equal counts",
        "widths": "magnitude blocks, equal widths",
        "low_rank": "low rank",
        "claq": "CLAQ on deltas",
        "claq_weight": "CLAQ on weights",
        "dare": "DARE, sparse",
        "magnitude": "largest magnitudes, sparse",
        "dp": "DP, sparse",
        "lossless": "lossless",
        "budget": "chosen per tensor by --budget",
    }
)
_DRAWS = 3
_DENSITIES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02)
_WHERE = "*_proj.weight"


def _points() -> Iterator[Point]:
    yield Point("bitdelta", "zero → −1 (paper)", "bitdelta")
    yield Point("bitdelta", "zero → +1 (released code)", "bitdelta:zero=plus")
    yield Point("bitdelta", "zero → 0", "bitdelta:zero=zero")
    yield Point("bitdelta", "a scale per row", "bitdelta:scale=row")
    for factor in (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0):
        yield Point("degenerate", f"c = {factor}", f"bitdelta:magnitude={factor}")
    for shape in ("normal", "uniform"):
        for spread in (0.25, 0.5, 1.0):
            codec = f"bitdelta_random:distribution={shape},spread={spread}"
            yield Point("random", f"{shape}, spread {spread}", codec, draws=_DRAWS)
    for passes in (1, 2, 3, 4):
        yield Point(
            "residual", f"{passes} pass{'es' if passes > 1 else ''}", f"residual_bits:passes={passes}"
        )
    for group, scheme in (("blocks", "equal_count"), ("widths", "equal_width")):
        for blocks in (1, 2, 4, 8, 16):
            codec = f"magnitude_blocks:blocks={blocks},scheme={scheme},zero=minus"
            yield Point(group, f"M = {blocks}", codec)
    for rank in (1, 2, 4, 8, 16, 32):
        yield Point("low_rank", f"rank {rank}", f"low_rank:rank={rank}")
    for bits in (1.0, 2.0, 2.1, 2.5, 3.0, 3.1, 4.0):
        yield Point("claq", f"{bits:g} bits", f"claq:bits={bits}")
    yield Point("claq", "2 bits, 1 % reserved", "claq:bits=2,reserve=0.01")
    yield Point("claq", "2.05 bits, 1 % reserved", "claq:bits=2.05,reserve=0.01")
    for bits in (2.0, 3.0, 4.0):
        yield Point("claq_weight", f"{bits:g} bits", f"claq:bits={bits},of=weight")
    for density in _DENSITIES:
        for group, edit in (("dare", "drop"), ("magnitude", "keep_largest"), ("dp", "dynamic_prune")):
            where = {} if group == "dp" else {"where": _WHERE}
            draws = _DRAWS if group == "dare" else 1
            yield Point(group, f"density {density}", "sparse", {edit: {"density": density}, **where}, draws)
    yield Point("lossless", "exact", "lossless")


POINTS = tuple(_points())
