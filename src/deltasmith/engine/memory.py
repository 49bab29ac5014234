"""How the memory budget is spent: tile sizes, and how many whole matrices may be in work at once."""

from __future__ import annotations

from dataclasses import dataclass

from deltasmith.errors import ResourceError, printable
from deltasmith.operation.protocols import BLOCK, Found
from deltasmith.planning.plan import Plan, Row, Site

__all__ = ["DEFAULT_MEMORY", "Budget", "budget"]

DEFAULT_MEMORY = 512 << 20
_RESERVED = 192 << 20  # the interpreter, numpy, the compiled kernels and their compiler
_TEMPORARIES = 4  # arrays of a tile's size that an operation may hold beside its inputs and output
_WHOLE = 8  # the same for a whole matrix: factors and workspace of a decomposition
_TILE = 1 << 18  # 1 MiB of float32: small enough for caches, large enough to hide the interpreter
_FLOAT = 4
_TALLY = 8 << 20  # what a worker may count with, per model: see surveys/select.py


@dataclass(frozen=True)
class Budget:
    """What the engine may do at once: elements in a tile, worker threads, whole matrices in work."""

    tile: int
    threads: int
    matrices: int


def budget(plan: Plan, memory: int, threads: int, tile: int | None = None) -> Budget:
    """Fit the tile size to the budget; ResourceError (exit 4) naming the tensor and the budget that would do."""
    models = len(plan.columns)
    free = memory - _RESERVED
    arrays = models + 1 + _TEMPORARIES
    if tile is None:
        tile = _TILE
        while tile > BLOCK and tile * _FLOAT * arrays * threads > free:
            tile //= 2
    needs = [(_need(row, models, tile), row) for row in plan.rows if row.action == "merge"]
    if not needs:
        return Budget(tile, threads, threads)
    largest, row = max(needs, key=lambda pair: pair[0])
    needed = -(-(largest + _RESERVED) // (1 << 20))
    if memory < _RESERVED:
        raise ResourceError(
            f"a budget of {memory >> 20} MiB is too small", fix=f"give --memory {needed}M or more"
        )
    if largest > free:
        unit = "the whole tensor" if row.reach == "tensor" else f"{row.block} elements at once"
        raise ResourceError(
            f"the method needs {unit} in float32, {largest >> 20} MiB, beyond the budget of {memory >> 20} MiB",
            where=printable(row.name),
            fix=f"give --memory {needed}M or more",
        )
    whole = max((need for need, r in needs if r.reach == "tensor"), default=0)
    worker = max(1, min(largest, _need_of(tile, models)))
    if any(site.record.survey(Found()) is not None for site in _sites(plan)):
        worker += models * _TALLY
    workers = max(1, min(threads, free // worker))
    return Budget(tile, workers, max(1, free // whole) if whole else threads)


def _sites(plan: Plan) -> set[Site]:
    """Return every operation of the plan once."""
    edits = {site for row in plan.rows for group in row.edits for site in group}
    return edits | {row.merge for row in plan.rows if row.merge is not None}


def _need_of(elements: int, models: int) -> int:
    return elements * _FLOAT * (models + 1 + _TEMPORARIES)


def _need(row: Row, models: int, tile: int) -> int:
    if row.reach == "tensor":
        sites = [site for group in row.edits for site in group] + ([row.merge] if row.merge else [])
        extra = max(site.record.workspace(row.spec.shape, models) for site in sites)
        return row.spec.size * _FLOAT * (models + 1 + _WHOLE) + extra
    return _need_of(min(row.spec.size, max(row.block, tile)), models)
