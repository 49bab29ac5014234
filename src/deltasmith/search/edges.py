"""Which numbers of an optimum lie at the edge of what was searched, where a better one may lie beyond."""

from __future__ import annotations

import math
from collections.abc import Iterator

from deltasmith.search.marked import MarkedRecipe, Values
from deltasmith.search.marks import Edge, Ladder, Number, Span

__all__ = ["edge_warnings"]

_HAIR = 0.001


def edge_warnings(marked: MarkedRecipe, values: Values) -> Iterator[str]:
    """Yield a warning for every value within 2 % of an end of its range, or at the first or last choice.

    It says too where the recipe allows nothing beyond that end.
    """
    for dimension in marked.dimensions:
        value, span = values[dimension.name], dimension.span
        edge = span.edge(value)
        if edge is None:
            continue
        beyond = marked.accepts({**values, dimension.name: _beyond(span, edge)})
        fix = "widen the range and search again" if beyond else "the recipe allows nothing beyond"
        yield f"{dimension.name} = {value:g} lies at the {edge} edge of {span}; {fix}"


def _beyond(span: Span, edge: Edge) -> Number:
    """Return a value just outside a span, so near that only a limit at its very end forbids it."""
    if isinstance(span, Ladder):
        low, high = span.values[0], span.values[-1]
        whole = all(isinstance(value, int) for value in span.values)
    else:
        low, high, whole = span.low, span.high, span.integer
        if span.log and not whole:
            ratio = math.exp(_HAIR * math.log(high / low))
            return low / ratio if edge == "lower" else high * ratio
    step = 1 if whole else _HAIR * (high - low)
    return low - step if edge == "lower" else high + step
