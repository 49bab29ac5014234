"""The variance that a recipe's random edit gives every element of the model it makes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from deltasmith.edits.amplify import Amplify
from deltasmith.engine.evaluator import Evaluator
from deltasmith.engine.surveying import prepare, survey_locally
from deltasmith.engine.workers import Stop, run_jobs
from deltasmith.errors import RecipeError, printable
from deltasmith.merges.sum import Sum
from deltasmith.operation.protocols import BLOCK
from deltasmith.operation.reference import shaped
from deltasmith.planning.plan import Plan, Row, Site
from deltasmith.recipe.model import operation_text
from deltasmith.table.checkpoint import Floats

__all__ = ["variances"]

_TILE = 4 * BLOCK
_KNOWN = "second order is for one `drop`, `drop_partly` or `drop_by_rank` of each model"


def variances(plan: Plan, *, threads: int = 1, stop: Stop | None = None) -> dict[str, Floats]:
    """Return, for every tensor that a random edit changes, the variance of each element over seeds, float32.

    A model's edits may be any that are not random, then one that tells its `variance` (`drop`, `drop_partly`,
    `drop_by_rank`), then `amplify`. The variance of the edited delta is multiplied by the squares of what amplifies
    it, of the model's weight and of the recipe's scale. The models' masks are independent, so under `merge: sum`
    their variances add. Tensors without a random edit are left out. A model that is itself a recipe counts as it is:
    its own random edits are those of its seed. The rounding of a file is not counted.

    Raises:
        RecipeError: the merge is not `sum`, no model has such an edit, a tensor of one model has two, or another
        edit makes the variance unknown.
    """
    stop = stop or Stop()
    rows = [row for row in plan.rows if row.action == "merge"]
    for row in rows:
        if plan.space != "delta" or row.merge is None or not isinstance(row.merge.record, Sum):
            raise RecipeError("the variance of this merge is not known", fix="use `merge: sum` of deltas")
    sites = {row.name: [_random_site(plan, row, index) for index in range(len(plan.columns))] for row in rows}
    if not any(site for found in sites.values() for site in found):
        raise RecipeError("no edit of the recipe is random with a known variance", fix=_KNOWN)
    evaluator = Evaluator(plan)
    prepare(evaluator, threads, _TILE, stop, lambda n: None)
    survey_locally(evaluator, rows, threads, _TILE, stop, lambda n: None)
    totals = {row.name: np.zeros(row.spec.shape, np.float32) for row in rows if any(sites[row.name])}

    def work(job: tuple[Row, int, int], state: None) -> None:
        row, start, end = job
        total = np.zeros(end - start)
        for index, site in enumerate(sites[row.name]):
            _refuse_unknown(evaluator, row, index, site, start, end)
            if site is not None:
                total += _tile(evaluator, row, index, site, start, end)
        if row.name in totals:
            totals[row.name].reshape(-1)[start:end] = total

    run_jobs(_tiles(rows), work, [None] * threads, stop)
    return totals


def _random_site(plan: Plan, row: Row, index: int) -> Site | None:
    """Find the one edit of a column that tells its variance; refuse a second one, and what may not follow it."""
    if not row.present[index]:
        return None
    edits = row.edits[index]
    known = [site for site in edits if hasattr(site.record, "variance")]
    if not known:
        return None
    after = [site for site in edits if site.position > known[0].position]
    for site in after:
        if not isinstance(site.record, Amplify):
            raise _unknown(plan, row, index, f"{operation_text(site.record)} follows a random edit")
    return known[0]


def _unknown(plan: Plan, row: Row, index: int, why: str) -> RecipeError:
    return RecipeError(
        f"the variance is not known, because {why}",
        where=f"{printable(plan.columns[index].label)}, {printable(row.name)}",
        fix=_KNOWN,
    )


def _tiles(rows: list[Row]) -> Iterator[tuple[Row, int, int]]:
    for row in rows:
        step = row.block * max(1, _TILE // row.block)
        for start in range(0, row.spec.size, step):
            yield row, start, min(row.spec.size, start + step)


def _refuse_unknown(
    evaluator: Evaluator, row: Row, index: int, site: Site | None, start: int, end: int
) -> None:
    """Refuse a column that another seed would change where its variance is not counted.

    Whether an edit is random, only its values tell: a codec may round at random, and nothing is random at density 1.
    """
    before = None if site is None else site.position
    others = [s for s in row.edits[index] if before is None or s.position < before]
    if not row.present[index] or not others:
        return
    seed = evaluator.plan.seed
    reseeded = Evaluator(replace(evaluator.plan, seed=seed + 1), evaluator.findings)
    ours, theirs = (_cell(e, row, index, before, start, end) for e in (evaluator, reseeded))
    if not np.array_equal(ours, theirs, equal_nan=True):
        raise _unknown(evaluator.plan, row, index, f"{operation_text(others[-1].record)} is random")


def _cell(e: Evaluator, row: Row, index: int, before: int | None, start: int, end: int) -> Floats:
    base, out = np.zeros(end - start, np.float32), np.empty(end - start, np.float32)
    e.read_base(row, start, base)
    e.cell(row, start, index, base, out, before=before)
    return out


def _tile(
    evaluator: Evaluator, row: Row, index: int, site: Site, start: int, end: int
) -> npt.NDArray[np.float64]:
    """Return elements [start, end) of one column's share of the variance, float64."""
    record: Any = site.record
    delta = _cell(evaluator, row, index, site.position, start, end)
    tile = shaped(record.reach, row.name, row.spec.shape, delta)
    place = evaluator.edit_place(row, start, end, site)
    variance = record.variance(tile, place, evaluator.findings.of(site, row.name)).reshape(-1)
    factor = row.weights[index] * row.scale
    for later in row.edits[index]:
        if later.position > site.position:
            assert isinstance(later.record, Amplify)
            factor *= float(np.float32(later.record.factor))
    scaled: npt.NDArray[np.float64] = variance.astype(np.float64) * factor**2
    return scaled
