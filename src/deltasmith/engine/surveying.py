"""Survey passes: ask every operation what it must know, and read the table once for all that asked.

Shared (global) surveys run first, over all tensors. Surveys of one tensor run just before that tensor is written,
while its pages are still in memory, except where a later shared survey needs what they find.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from deltasmith.engine.evaluator import Evaluator, Scratch
from deltasmith.engine.workers import Stop, run_jobs
from deltasmith.operation.protocols import Found, Place, Survey, span_of
from deltasmith.operation.reference import shaped
from deltasmith.planning.plan import Plan, Row, Site
from deltasmith.table.checkpoint import Floats

__all__ = ["Asked", "needs_survey", "on_demand", "prepare", "survey_locally", "surveyed"]

_PIECE = 128
"""Elements in one piece of a sampled survey: short, so that a sample of fixed size visits many places."""

_TILE = 1 << 16
_FEWER = 16
"""How much longer the pieces of one tensor's own survey are: within a tensor, places differ less."""

Key = tuple[Site, str]
Job = tuple[Row, int, int]
Progress = Callable[[int], None]


@dataclass
class _Worker:
    """One thread's buffers and tallies."""

    scratch: Scratch
    tallies: dict[Key, Any] = field(default_factory=dict)

    def tally(self, key: Key, survey: Survey) -> Any:
        if key not in self.tallies:
            self.tallies[key] = survey.start()
        return self.tallies[key]


@dataclass(frozen=True)
class Asked:
    """What one pass is for: surveys by (site, tensor name), the name being "" for shared ones."""

    surveys: dict[Key, Survey]
    rows: dict[str, tuple[Site, ...]]

    def of(self, site: Site, name: str) -> tuple[Key, Survey]:
        """Return the survey that a site's block of one tensor belongs to."""
        key = (site, "") if (site, "") in self.surveys else (site, name)
        return key, self.surveys[key]


def prepare(evaluator: Evaluator, threads: int, tile: int, stop: Stop, progress: Progress) -> None:
    """Run every shared survey of a plan, and of the plans nested in it."""
    for below in _nested(evaluator):
        prepare(below, threads, tile, stop, progress)
        below.survey_tensor = on_demand(tile)
    rows = list(evaluator.merged_rows())
    shared = {site for row in rows for site in _sites(row) if _wants_shared(site)}
    while asked := _ask(evaluator, rows, shared):
        _pass(evaluator, asked, threads, tile, stop, progress)


def surveyed(plan: Plan, threads: int, stop: Stop) -> Evaluator:
    """Return a plan as a checkpoint to read cells from: what recipes among its models must know is found out first."""
    evaluator = Evaluator(plan)
    for below in _nested(evaluator):
        prepare(below, threads, _TILE, stop, lambda n: None)
        below.survey_tensor = on_demand(_TILE)
    return evaluator


def survey_locally(
    evaluator: Evaluator, rows: Sequence[Row], threads: int, tile: int, stop: Stop, progress: Progress
) -> None:
    """Run the remaining surveys of these tensors, round by round."""
    while asked := _ask(evaluator, rows, None):
        _pass(evaluator, asked, threads, tile, stop, progress)


def needs_survey(evaluator: Evaluator, row: Row) -> bool:
    """Tell whether an operation still has to survey this tensor."""
    return any(True for _ in _next_sites(evaluator, row, {}))


def on_demand(tile: int) -> Callable[[Evaluator, Row], None]:
    """Return what an evaluator calls to run a tensor's own surveys when that tensor is first read."""

    def survey_tensor(evaluator: Evaluator, row: Row) -> None:
        survey_locally(evaluator, [row], 1, tile, Stop(), lambda n: None)

    return survey_tensor


def _nested(evaluator: Evaluator) -> Iterator[Evaluator]:
    plan = evaluator.plan
    for checkpoint in (plan.base, *(column.checkpoint for column in plan.columns)):
        if isinstance(checkpoint, Evaluator):
            yield checkpoint


def _sites(row: Row) -> Iterator[Site]:
    for sites in row.edits:
        yield from sites
    if row.merge is not None:
        yield row.merge


def _wants_shared(site: Site) -> bool:
    survey = site.record.survey(Found())
    return survey is not None and survey.scope == "global"


def _next_sites(evaluator: Evaluator, row: Row, surveys: dict[Key, Survey]) -> Iterator[tuple[Site, Survey]]:
    """Yield the first unsatisfied edit of each column, or the merge once all columns are satisfied.

    A shared survey that another tensor has asked for already is not asked for again.
    """
    blocked = False
    for sites in row.edits:
        for site in sites:
            survey = surveys.get((site, "")) or evaluator.findings.next_survey(site, row.name)
            if survey is not None:
                yield site, survey
                blocked = True
                break
    if not blocked and row.merge is not None:
        survey = surveys.get((row.merge, "")) or evaluator.findings.next_survey(row.merge, row.name)
        if survey is not None:
            yield row.merge, survey


def _ask(evaluator: Evaluator, rows: Sequence[Row], shared: set[Site] | None) -> Asked | None:
    """Collect the surveys of the next pass. With `shared`, only what shared surveys need, now or later.

    Sampled surveys get a pass of their own, since it reads almost nothing.
    """
    surveys: dict[Key, Survey] = {}
    wanted: dict[str, list[Site]] = {}
    for row in rows:
        for site, survey in _next_sites(evaluator, row, surveys):
            if survey.scope == "global":
                surveys[site, ""] = survey
            elif shared is None or any(later in shared for later in _after(row, site)):
                surveys[site, row.name] = survey
            else:
                continue
            wanted.setdefault(row.name, []).append(site)
    if not surveys:
        return None
    if sampled := {key: survey for key, survey in surveys.items() if survey.sample}:
        surveys = sampled
    rows_of = {
        name: tuple(s for s in sites if (s, "") in surveys or (s, name) in surveys)
        for name, sites in wanted.items()
    }
    return Asked(surveys, {name: sites for name, sites in rows_of.items() if sites})


def _after(row: Row, site: Site) -> Iterator[Site]:
    """Yield the operations that see what `site` yields: later edits of its column, and the merge."""
    if site.column >= 0:
        yield from (s for s in row.edits[site.column] if s.position > site.position)
        if row.merge is not None:
            yield row.merge


def _pass(
    evaluator: Evaluator, asked: Asked, threads: int, tile: int, stop: Stop, progress: Progress
) -> None:
    models = len(evaluator.plan.columns)
    workers = [_Worker(Scratch(models)) for _ in range(threads)]
    sample = max(survey.sample for survey in asked.surveys.values())
    jobs = _pieces(evaluator, asked, sample) if sample else _spans(evaluator, asked, tile)

    def work(job: Job, worker: _Worker) -> None:
        row, start, end = job
        if end > start:
            _tally(evaluator, asked, job, bool(sample), worker)
        progress((end - start) * row.spec.dtype.itemsize)

    run_jobs(jobs, work, workers, stop)
    for (site, name), survey in asked.surveys.items():
        tallies = [w.tallies[site, name] for w in workers if (site, name) in w.tallies]
        conclusion = survey.conclude(tallies or [survey.start()])
        findings = evaluator.findings
        if name:
            findings.local[site, name] = (*findings.local.get((site, name), ()), conclusion)
        else:
            findings.shared[site] = (*findings.shared.get(site, ()), conclusion)


def _spans(evaluator: Evaluator, asked: Asked, tile: int) -> Iterator[Job]:
    """Cut the rows into jobs of whole blocks, about a tile each."""
    for name in asked.rows:
        row = evaluator.plan.by_name[name]
        step = row.block * max(1, tile // row.block)
        for start in range(0, row.spec.size, step):
            yield row, start, min(row.spec.size, start + step)


def _pieces(evaluator: Evaluator, asked: Asked, sample: int) -> Iterator[Job]:
    """Spread pieces evenly over each tensor, at least one in each.

    About `sample` elements in all where one survey is for all tensors, and in each tensor that has its own.
    """
    rows = [evaluator.plan.by_name[name] for name in asked.rows]
    total = sum(row.spec.size for row in rows)
    for row in rows:
        size, span = row.spec.size, span_of(row.reach, row.name, row.spec.shape)
        alone = any((site, row.name) in asked.surveys for site in asked.rows[row.name])
        ground = size if alone else total
        piece = span * max(1, _PIECE * (_FEWER if alone else 1) // span)
        count = max(1, round(sample / max(ground, 1) * size / piece))
        if ground <= sample or count * piece >= size:
            yield row, 0, size
            continue
        for i in range(count):
            start = i * (size // count) // span * span
            yield row, start, min(size, start + piece)


def _tally(evaluator: Evaluator, asked: Asked, job: Job, sampled: bool, worker: _Worker) -> None:
    """Compute the cells that the asked sites need, and hand them over block by block (a sample: as one piece)."""
    row, start, stop = job
    sites = asked.rows[row.name]
    base, cells = worker.scratch.take(stop - start)
    if any(site.column < 0 for site in sites):
        evaluator.cells(row, start, base, cells, survey=True)
    else:
        evaluator.read_base(row, start, base, survey=True)
    for site in sites:
        key, survey = asked.of(site, row.name)
        acc = worker.tally(key, survey)
        seen = cells
        if site.column >= 0:
            seen = cells[site.column : site.column + 1]
            evaluator.cell(row, start, site.column, base, seen[0], before=site.position, survey=True)
        step = row.block if getattr(survey, "blockwise", True) and not sampled else stop - start
        for first in range(start, stop, step):
            last = min(stop, first + step)
            survey.tally(
                acc,
                _block(site, row, seen, first - start, last - start),
                _place(evaluator, row, first, last, site),
            )


def _place(evaluator: Evaluator, row: Row, start: int, stop: int, site: Site) -> Place:
    if site.column < 0:
        return evaluator.place(row, start, stop)
    return evaluator.edit_place(row, start, stop, site)


def _block(site: Site, row: Row, cells: Floats, start: int, stop: int) -> Any:
    """Cut one block out of (models, n) cells: one array where it is all of them, else one array per model."""
    if stop - start == cells.shape[1]:
        return cells.reshape(len(cells), *_shaped(site, row, cells[0]).shape)
    return [_shaped(site, row, cell[start:stop]) for cell in cells]


def _shaped(site: Site, row: Row, cell: Floats) -> Floats:
    """View a block as its operation wants it; a sampled piece of a whole matrix stays flat."""
    reach = site.record.reach
    if reach == "tensor" and cell.size != row.spec.size:
        return cell
    return shaped(reach, row.name, row.spec.shape, cell)
