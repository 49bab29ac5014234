"""The plain definition of a run: whole tensors, one thread, no cleverness. The engine must equal it.

Used by tests, by notebooks, and by anyone who wants to read what a recipe means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from deltasmith.operation.protocols import Edit, Found, Merge, Place, Reach, block_of, span_of
from deltasmith.table.checkpoint import Floats

__all__ = ["blocks", "edit_table", "merge_table", "shaped"]

Table = Mapping[str, Floats]


def blocks(reach: Reach, name: str, shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield the fixed [start, stop) survey blocks of one tensor."""
    size = int(np.prod(shape, dtype=np.int64))
    step = block_of(reach, name, shape)
    for start in range(0, size, step):
        yield start, min(size, start + step)


def shaped(reach: Reach, name: str, shape: tuple[int, ...], flat: Floats) -> Floats:
    """View flat elements as an operation of this reach wants them: (n,), (rows, width) or the whole shape."""
    if reach == "element":
        return flat
    if reach == "row":
        return flat.reshape(-1, span_of("row", name, shape))
    return flat.reshape(shape)


def _surveyed(
    operation: Edit | Merge, table: Mapping[str, Sequence[Floats]], place: Callable[[str, slice], Place]
) -> dict[str, Found]:
    """Ask the operation for surveys until it is satisfied, for the model and for each tensor."""
    found = {name: Found() for name in table}

    def run(names: Sequence[str], survey_of: str) -> object:
        survey = operation.survey(found[survey_of])
        assert survey is not None
        acc = survey.start()
        for name in names:
            flat = [cell.reshape(-1) for cell in table[name]]
            for start, stop in blocks(operation.reach, name, table[name][0].shape):
                where = replace(place(name, slice(start, stop)), start=start)
                survey.tally(acc, [cell[start:stop] for cell in flat], where)
        return survey.conclude([acc])

    names = sorted(table)
    while names and (asked := operation.survey(found[names[0]])) and asked.scope == "global":
        shared = (*found[names[0]].shared, run(names, names[0]))
        found = {name: Found(shared=shared) for name in names}
    for name in names:
        while operation.survey(found[name]) is not None:
            found[name] = replace(found[name], local=(*found[name].local, run([name], name)))
    return found


def _statistics(
    statistics: Sequence[Table], name: str, span: slice, reach: Reach
) -> Callable[[int, str], Floats]:
    """Return the reader of a tile's statistics: the same elements of a diagonal, or a whole Gram matrix."""

    def look_up(index: int, suffix: str) -> Floats:
        values = statistics[index][name + suffix]
        return values if suffix or reach == "tensor" else values.reshape(-1)[span]

    return look_up


def edit_table(
    edit: Edit,
    table: Table,
    *,
    key: Callable[[str], int] = lambda name: 0,
    statistics: Table | None = None,
) -> dict[str, Floats]:
    """Apply one edit to a whole table of deltas, {name: array}; `key` gives each tensor's random key."""

    def place(name: str, span: slice = slice(None)) -> Place:
        lookup = None if statistics is None else _statistics([statistics], name, span, edit.reach)
        shape = table[name].shape
        block = block_of(edit.reach, name, shape)
        return Place(name, shape, block=block, key=key(name), statistics=lookup)

    found = _surveyed(edit, {n: [np.asarray(d, order="C")] for n, d in table.items()}, place)
    edited = {}
    for name, delta in table.items():
        tile = shaped(edit.reach, name, delta.shape, np.asarray(delta, order="C").reshape(-1))
        edited[name] = edit.apply(tile, place(name), found[name]).reshape(delta.shape)
    return edited


def merge_table(
    merge: Merge,
    columns: Sequence[Table],
    *,
    weights: Sequence[float] | None = None,
    labels: Sequence[str] | None = None,
    statistics: Sequence[Table] | None = None,
) -> dict[str, Floats]:
    """Merge columns of cells (deltas or weights, as the merge's space says), tensor by tensor."""
    models = len(columns)
    weights = tuple(weights) if weights is not None else (1.0,) * models
    labels = tuple(labels) if labels is not None else tuple(f"m{i}" for i in range(models))

    def place(name: str, span: slice = slice(None)) -> Place:
        lookup = None if statistics is None else _statistics(statistics, name, span, merge.reach)
        shape = columns[0][name].shape
        block = block_of(merge.reach, name, shape)
        return Place(name, shape, block=block, weights=weights, labels=labels, statistics=lookup)

    rows = {name: [np.asarray(c[name], order="C") for c in columns] for name in columns[0]}
    found = _surveyed(merge, rows, place)
    merged = {}
    for name, cells in rows.items():
        shape = cells[0].shape
        tiles = [shaped(merge.reach, name, shape, cell.reshape(-1)) for cell in cells]
        merged[name] = merge.apply(np.stack(tiles), place(name), found[name]).reshape(shape)
    return merged
