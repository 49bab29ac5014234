"""Packing within a budget: every tensor is coded by every candidate, and the choice with the least error is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltasmith.api import available_threads
from deltasmith.codecs.catalogue import codec_from
from deltasmith.codecs.protocol import Cell, Codec, Domain
from deltasmith.engine.coding import CodingTask, workers_within
from deltasmith.engine.memory import DEFAULT_MEMORY
from deltasmith.engine.progress import Progress, Silent
from deltasmith.engine.workers import Stop, run_jobs
from deltasmith.formats.opening import OpenedModel
from deltasmith.packing.budget import Choice, Option, choose
from deltasmith.packing.candidates import CANDIDATES, Read, candidates, measure
from deltasmith.packing.choosing import LINEARS, Rule, choose_all, rules_of
from deltasmith.packing.material import CellValues, Material, Rooms, gather, open_statistics
from deltasmith.packing.single import CodecLike, cells_of, label_for, order_of
from deltasmith.packing.writing import OverLimitError, PackResult, Resources, open_base, write

__all__ = ["pack_within"]

_BIT16 = 2
_AROUND = 600  # bytes of the container that belong to no tensor
_TRIES = 5


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
    ground = open_base(str(base))
    material = gather(ground, str(model), label_for(model, label), resources.threads, resources.stop)
    grams, told = open_statistics(statistics)
    cells, notes = cells_of(ground, material, seed, grams)
    special = rules_of(rest, "*", rules)[:-1]
    codecs, more = choose_all(cells, special, _codec(rest))
    free = Rule(where, _codec("lossless"))
    ruled = {cell.spec.name for cell in cells if any(rule.names(cell) for rule in special)}
    options = _Options(ground, material, [_codec(c) for c in among])
    listed = {
        cell.spec.name: (
            cell,
            candidates(cell, options.among)
            if free.names(cell) and cell.spec.name not in ruled
            else [codecs[cell.spec.name]],
        )
        for cell in cells
    }
    measured = options.measure(listed, resources)
    size = sum(cell.spec.size for cell in cells)
    return _written(
        measured,
        int(budget * _BIT16 * size),
        lambda choice: write(
            order_of(ground, material, cells, _picked(choice), (*notes, *told, *more, _told(choice, budget))),
            Path(out),
            resources,
            overwrite=overwrite,
            limit=int(budget * _BIT16 * size),
        ),
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


def _picked(choice: Choice) -> dict[str, Codec]:
    return {name: option.codec for name, option in choice.options.items()}


def _codec(codec: CodecLike) -> Codec:
    return codec if isinstance(codec, Codec) else codec_from(codec)


def _told(choice: Choice, budget: float) -> str:
    return f"codecs chosen for a budget of {budget:g}; no choice has a squared error more than {choice.gap:.2%} smaller"


class _Options:
    """Measures candidates on the values of one model."""

    def __init__(self, base: OpenedModel, material: Material, among: Sequence[Codec]) -> None:
        self.base, self.material, self.among = base.checkpoint, material, among
        self._rooms = Rooms()

    def measure(
        self, listed: Mapping[str, tuple[Cell, Sequence[Codec]]], resources: Resources
    ) -> dict[str, list[Option]]:
        """Code every tensor by every codec listed for it; nothing is kept but bytes and errors."""
        found: dict[tuple[str, int], Option] = {}
        jobs = [(cell, n, codec) for cell, codecs in listed.values() for n, codec in enumerate(codecs)]
        tasks = [CodingTask(cell, codec, self._values(cell, codec.domain)) for cell, _, codec in jobs]
        resources.progress.phase("measuring", sum(cell.spec.nbytes for cell, _, _ in jobs))

        def work(job: tuple[Cell, int, Codec], _: int) -> None:
            cell, number, codec = job
            found[cell.spec.name, number] = measure(codec, cell, self._reader(cell))
            resources.progress.advance(cell.spec.nbytes)

        run_jobs(
            jobs, work, range(workers_within(tasks, resources.memory, resources.threads)), resources.stop
        )
        return {name: [found[name, n] for n in range(len(codecs))] for name, (_, codecs) in listed.items()}

    def _values(self, cell: Cell, domain: Domain) -> CellValues:
        ground = self.base if cell.base is not None else None
        return CellValues(
            self.material.checkpoint, ground, cell.spec, domain, self.material.label, self._rooms
        )

    def _reader(self, cell: Cell) -> Any:
        def read(domain: Domain) -> Read:
            return self._values(cell, domain).read

        return read
