"""Packing within a budget: every tensor is coded by every candidate, and the choice with the least error is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deltasmith.api import available_threads
from deltasmith.codecs.catalogue import CodecLike, codec_from, codec_text
from deltasmith.codecs.protocol import Cell, Codec
from deltasmith.codecs.zero import Zero
from deltasmith.engine.coding import CodingTask, workers_within
from deltasmith.engine.memory import DEFAULT_MEMORY
from deltasmith.engine.progress import Progress, Silent
from deltasmith.engine.workers import Stop, run_jobs
from deltasmith.errors import RefusedError, printable
from deltasmith.packing.budget import Choice, Option, choose
from deltasmith.packing.candidates import CANDIDATES, candidates, measure
from deltasmith.packing.choosing import LINEARS, Rule, choose_all, rules_of
from deltasmith.packing.material import Rooms, task_of
from deltasmith.packing.single import Ready, prepare
from deltasmith.packing.writing import OverLimitError, PackResult, Resources, write

__all__ = ["pack_within"]

_BIT16 = 2
_AROUND = 600  # bytes of the container that belong to no tensor
_TRIES = 5
Listed = Mapping[str, tuple[Cell, Sequence[Codec]]]
"""Tensor → the cell and the codecs it may have."""


def pack_within(
    base: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    budget: float,
    among: Sequence[CodecLike] = CANDIDATES,
    where: str = LINEARS,
    rules: Sequence[tuple[str, CodecLike]] = (),
    rest: CodecLike = "lossless",
    label: str | None = None,
    statistics: str | Path | None = None,
    seed: int = 0,
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    overwrite: bool = False,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> PackResult:
    """Write the packed delta of least Σ(δ − δ̂)² that takes at most `budget` · 2 bytes per element of the model.

    The tensors that `where` names choose among the codecs `among`, each measured by coding; all others go by `rules`
    and `rest`, as in `pack`, and count. Everything else is as in `pack`.

    Raises:
        RefusedError: the budget cannot be met; the message says what can.
    """
    resources = Resources(threads or available_threads(), memory, progress or Silent(), stop or Stop())
    ready = prepare(base, model, label, statistics, seed, resources)
    listed, notes = _listed(ready.cells, Rule(where, Zero()), rules_of(rest, "*", rules)[:-1], rest, among)
    measured = _measured(ready, listed, resources)
    whole = _BIT16 * sum(cell.spec.size for cell in ready.cells)
    limit = int(budget * whole)
    _refuse_too_little(measured, limit, whole)

    def write_choice(choice: Choice) -> PackResult:
        codecs = {name: option.codec for name, option in choice.options.items()}
        order = ready.order(codecs, [*notes, _told(choice, budget)])
        return write(order, Path(out), resources, overwrite=overwrite, limit=limit)

    return _written(measured, limit, write_choice)


def _listed(
    cells: Sequence[Cell], free: Rule, rules: Sequence[Rule], rest: CodecLike, among: Sequence[CodecLike]
) -> tuple[Listed, list[str]]:
    """Return each cell with the codecs it may have: the candidates if `free` names it and no rule does."""
    codecs, notes = choose_all(cells, rules, codec_from(rest))
    ruled = {cell.spec.name for cell in cells if any(rule.names(cell) for rule in rules)}
    listed = {}
    for cell in cells:
        name = cell.spec.name
        choosing = free.names(cell) and name not in ruled
        listed[name] = (cell, candidates(cell, among) if choosing else [codecs[name]])
    return listed, notes


def _refuse_too_little(measured: Mapping[str, Sequence[Option]], limit: int, whole: int) -> None:
    """Refuse a budget that the smallest options exceed, and name theirs."""
    smallest = _AROUND + sum(min(option.nbytes for option in options) for options in measured.values())
    if smallest > limit:
        raise RefusedError(
            f"the budget of {limit:,} bytes cannot be met",
            where="pack",
            fix=f"the smallest possible is {smallest:,} bytes, --budget {math.ceil(1e4 * smallest / whole) / 1e4:g}",
        )


def _written(
    measured: Mapping[str, Sequence[Option]], limit: int, write_choice: Callable[[Choice], PackResult]
) -> PackResult:
    """Write the best choice that fits: names, hashes and header are only estimated beforehand, so try again."""
    allowed = limit - _AROUND
    for _ in range(_TRIES):
        choice = choose(measured, max(0, allowed))
        try:
            return write_choice(choice)
        except OverLimitError as error:
            allowed = choice.nbytes - max(error.excess, 1)
            last = error
    raise last


def _told(choice: Choice, budget: float) -> str:
    return f"codecs chosen for a budget of {budget:g}; no choice has a squared error more than {choice.gap:.2%} smaller"


def _measured(ready: Ready, listed: Listed, resources: Resources) -> dict[str, list[Option]]:
    """Code every tensor by every codec listed for it; nothing is kept but bytes and errors."""
    assert ready.base.checkpoint is not None
    ground, rooms = ready.base.checkpoint, Rooms()
    jobs = [
        task_of(ready.material, ground, cell, c, rooms) for cell, codecs in listed.values() for c in codecs
    ]
    found: dict[tuple[str, Codec], Option | str] = {}
    resources.progress.phase("measuring", sum(task.cell.spec.nbytes for task in jobs))

    def work(task: CodingTask, _: int) -> None:
        try:
            found[task.name, task.codec] = measure(task)
        except ValueError as error:  # values that this candidate cannot take; others may
            found[task.name, task.codec] = str(error)
        resources.progress.advance(task.cell.spec.nbytes)

    workers = workers_within(jobs, resources.memory, resources.threads)
    run_jobs(jobs, work, range(workers), resources.stop)
    return {
        name: _possible(name, {codec: found[name, codec] for codec in codecs})
        for name, (_, codecs) in listed.items()
    }


def _possible(name: str, tried: Mapping[Codec, Option | str]) -> list[Option]:
    """Return the options among what was tried, the rest of which are the reasons why there is none."""
    options = [found for found in tried.values() if isinstance(found, Option)]
    if not options:
        reasons = "; ".join(f"{codec_text(codec)}: {why}" for codec, why in tried.items())
        raise RefusedError(
            f"no codec offered can take this tensor{f' ({printable(reasons)})' if reasons else ''}",
            where=printable(name),
            fix="offer --candidate lossless, or give it another by --rule",
        )
    return options
