"""One figure out of those of several training seeds: the mean, and an interval that holds every seed's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from deltasmith.lab.features.figures import Share

__all__ = ["mean", "pooled", "spread"]


def pooled(shares: Sequence[Share]) -> Share:
    """Return the mean over seeds with the hull of the seeds' intervals; with one seed its own."""
    return Share(
        mean(share.value for share in shares),
        min(share.low for share in shares),
        max(share.high for share in shares),
    )


def mean(values: Iterable[float]) -> float:
    """Average numbers."""
    found = list(values)
    return sum(found) / len(found)


def spread(values: Iterable[float], form: str = ".3f") -> str:
    """Write the mean, and for several seeds the lowest and highest: `0.123 (0.120–0.127)`."""
    found = list(values)
    text = format(mean(found), form)
    if len(found) > 1:
        text += f" ({format(min(found), form)}–{format(max(found), form)})"
    return text
