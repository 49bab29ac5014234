"""A sweep: one recipe at many settings, and at each of them the change of the loss, measured and predicted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np

from deltasmith.analysis.ends import End, Ends, Source, is_random, mean_of, resolve
from deltasmith.analysis.requests import FEW, Precision, Request, Say, SecondOrderKind, silent
from deltasmith.analysis.rules import RULES, Rule
from deltasmith.analysis.run import begin
from deltasmith.analysis.sweep_axes import Plane, Value, read_plane
from deltasmith.analysis.sweep_records import Forecast, Sweep, SweepPoint
from deltasmith.analysis.verdict import intervals, verdict
from deltasmith.engine.memory import DEFAULT_MEMORY
from deltasmith.engine.workers import Stop
from deltasmith.errors import InterruptedRunError, RecipeError, RefusedError, printable
from deltasmith.evaluate.models.opening import is_recipe
from deltasmith.recipe.model import Recipe

if TYPE_CHECKING:
    from deltasmith.analysis.curvature import Arrays, SecondOrder
    from deltasmith.analysis.objective import Matrix, Vector
    from deltasmith.analysis.path import Path
    from deltasmith.analysis.preparing import Ground
    from deltasmith.analysis.torch_objective import TorchObjective
    from deltasmith.analysis.verdict import Margin

__all__ = ["InterruptedSweepError", "sweep"]

_ROOM = 3
"""Copies of the weights that are still needed beside the start: its copy, an end, and the making of one."""
_PROPORTIONAL = 1e-5
"""How far from a multiple, in parts of the largest, variances of float32 may lie and still count as one."""


class InterruptedSweepError(InterruptedRunError):
    """The sweep was stopped; `sweep` holds the points that were finished, or is None where there is none."""

    def __init__(self, sweep: Sweep | None) -> None:
        """Hold what is done."""
        self.sweep = sweep
        done = 0 if sweep is None else len(sweep.points)
        super().__init__(f"the sweep was interrupted after {done} points", fix="run the same command again")


def sweep(
    recipe: Source,
    axes: str,
    *,
    data: str | FilePath,
    start: str | None = None,
    rules: Sequence[Rule] = RULES,
    steps: int = 5,
    second_order: SecondOrderKind = "none",
    probes: int = 8,
    device: str = "cpu",
    dtype: Precision = "float32",
    batch: int = 4,
    length: int = 512,
    limit: int | None = None,
    margin: float | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    say: Say = silent,
    stop: Stop | None = None,
) -> Sweep:
    """Measure and predict the change of the loss at every point of `axes`: `k=-1:1:0.25, p=0.1:0.9:0.2`.

    Names and values are those of `sweep_axes.read_plane`, the options those of `run.loss`. Start and data are loaded
    once, and all points see the same data. The recipe is computed anew at every point, with the same seed: the masks
    of one `p` are those of another, cut at another height, and the whole sweep is one draw. An axis `seed=1:5:1`
    shows other draws. Between points the start is put back exactly, from a copy of its weights where there is memory
    for one (in all three to four copies of the weights), else from its files. A point that changes nothing costs
    nothing; one whose loss is not finite is recorded as such.

    `second_order` estimates what each point's change is on average over seeds: that of the recipe without its random
    edits, measured, and what those cost around it (`run.loss`). Where two points have that mean in common, and
    variances that are multiples of each other, as those of `drop` and `drop_partly` are ((1 − k)² p/(1 − p) δ²), one
    estimate serves both.

    Raises:
        RecipeError: whatever is wrong with axes and recipe, at any point, before a network is loaded.
        InterruptedSweepError: asked to stop; it holds the finished points.
        What `run.loss` raises of models and data, and RefusedError where no point has a finite loss.
    """
    request = Request(
        data=FilePath(data),
        rules=rules,
        steps=steps,
        second_order=second_order,
        probes=probes,
        device=device,
        dtype=dtype,
        batch=batch,
        length=length,
        limit=limit,
        margin=margin,
        seed=seed or 0,
        threads=threads,
        memory=memory,
    )
    if not is_recipe(recipe):
        raise RecipeError(
            f"{printable(str(recipe))} is a model, and has nothing to sweep", fix="give a recipe (*.yaml)"
        )
    plane = read_plane(recipe, axes, overrides)
    run = _Run(plane, request, seed, stop or Stop(), say)
    first = run.recipe(next(plane.points()))
    ends = resolve(recipe, first, start)
    return run.walk(ends)


@dataclass(eq=False)
class _Run:
    """One sweep at work: what has been found so far, and how to find the rest."""

    plane: Plane
    request: Request
    seed: int | None
    stop: Stop
    say: Say
    points: list[SweepPoint] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    excesses: list[_Excess] = field(default_factory=list)

    def recipe(self, point: Mapping[str, Value]) -> Recipe:
        """Return the recipe at a point, with the run's seed unless that is swept."""
        made = self.plane.recipe(point)
        return made if self.seed is None or "seed" in point else replace(made, seed=self.seed)

    def walk(self, ends: Ends) -> Sweep:
        """Visit every point, and put together what was found."""
        try:
            ground = begin(ends, self.request, self.stop, self.say)
        except InterruptedRunError as cause:
            raise InterruptedSweepError(None) from cause
        from deltasmith.analysis.torch_objective import TorchObjective

        laid = ground.laid
        still = TorchObjective(ground.loaded.network, {}, laid.chunks, laid.counts, laid.loss)
        place = _Place(ground, ends, still, still.losses(), _Restorer(ground, self.note))
        self.note(*self.plane.notes, *ground.loaded.notes, *laid.notes)
        total = len(self.plane)
        for at, point in enumerate(self.plane.points()):
            self.say("points of the sweep", at, total)
            try:
                self.points.append(self._visit(place, point))
            except InterruptedRunError as cause:
                self.note(f"interrupted: {at} of {total} points are finished")
                raise InterruptedSweepError(self._found(place) if self.points else None) from cause
            finally:
                place.restorer.restore()
        self.say("points of the sweep", total, total)
        if all(point.refused for point in self.points):
            raise RefusedError(f"no point of the sweep can be measured: {self.points[0].refused}")
        return self._found(place)

    def note(self, *notes: str) -> None:
        """Keep notes, each once."""
        self.notes |= dict.fromkeys(notes)

    def _visit(self, place: _Place, values: Mapping[str, Value]) -> SweepPoint:
        """Go to one point and back."""
        if self.stop.asked:
            raise InterruptedRunError("the sweep was interrupted")
        recipe = self.recipe(values)
        expected = self._expected(place, recipe)
        try:
            path = self._path(place, recipe)
        except RefusedError as cause:  # an edit may overflow at one point, and not at others
            self.note(f"no figures at {_told(values)}: {cause.what}")
            return self._point(
                place, values, np.full((len(place.losses), 1), math.nan), (None, None), cause.what
            )
        zero = np.zeros(len(place.losses))
        predicted = [
            zero if path is None else path.predicted_chunks(g).sum(axis=1) for g in self.request.grids
        ]
        measured = zero if path is None else path.measured_chunks()
        return self._point(place, values, np.stack([measured, *predicted], axis=1), expected)

    def _path(self, place: _Place, recipe: Recipe) -> Path | None:
        """Walk from the start to what a recipe makes; None where that is the start itself."""
        import torch

        from deltasmith.analysis.networks import differences, direction
        from deltasmith.analysis.path import walk
        from deltasmith.analysis.torch_objective import TorchObjective
        from deltasmith.evaluate.models.transformers_loading import memory_errors

        ground = place.ground
        last = ground.load(recipe)
        self.note(*last.notes, *differences(ground.loaded, last))
        ours, theirs = ground.loaded.network, dict(last.network.named_parameters())
        same = (n in theirs and torch.equal(p, theirs[n]) for n, p in ours.named_parameters())
        if len(theirs) == len(dict(ours.named_parameters())) and all(same):
            return None
        laid = ground.laid
        with memory_errors(self.request.batch):
            steps = direction(ours, last.network)
            objective = TorchObjective(ours, steps, laid.chunks, laid.counts, laid.loss)
            return walk(objective, self.request.grids, asked=lambda: self.stop.asked)

    def _point(
        self,
        place: _Place,
        values: Mapping[str, Value],
        chunks: Matrix,
        expected: tuple[float | None, float | None],
        refused: str = "",
    ) -> SweepPoint:
        """Turn what the chunks say, (chunks, 1 + rules), into figures with intervals and classes."""
        margin = place.margin.value
        measured, *changes = intervals(chunks, place.still.counts, self.request.seed)
        grids = self.request.grids if changes else ()
        return SweepPoint(
            values=dict(values),
            end_loss=place.loss + measured.value,
            measured=measured,
            verdict=verdict(measured, margin),
            predictions=tuple(
                Forecast(grid, change, change.value - measured.value, verdict(change, margin))
                for grid, change in zip(grids, changes, strict=True)
            ),
            expected=expected[0],
            expected_error=expected[1],
            refused=refused,
        )

    def _expected(self, place: _Place, recipe: Recipe) -> tuple[float | None, float | None]:
        """Return the change of the loss on average over seeds, and its standard error; None if not known."""
        from deltasmith.analysis.second_order import excess_around, network_variances

        if self.request.second_order == "none":
            return None, None
        try:
            spread = network_variances(place.ground, recipe)
        except (RecipeError, RefusedError) as cause:
            self.note(f"no mean over masks: {cause}")
            return None, None
        mean = mean_of(place.ends, recipe)
        for excess in self.excesses:
            if excess.mean == mean and (times := _multiple(spread, excess.spread)) is not None:
                return excess.expected(times)
        found = excess_around(place.ground, mean, place.loss, spread)
        self.excesses.append(_Excess(mean, spread, found))
        return self.excesses[-1].expected(1.0)

    def _found(self, place: _Place) -> Sweep:
        """Put together what there is so far."""
        ground, ends, still = place.ground, place.ends, place.still
        first = self.recipe(self.points[0].values)
        if is_random(first) and "seed" not in self.points[0].values:
            self.note(
                f"the edit is random, and the whole sweep is one draw of it (seed {first.seed}): an axis "
                f"seed={first.seed}:{first.seed + 4}:1 shows others"
            )
        chunks = still.counts.size
        if chunks < FEW:
            self.note(f"intervals from {chunks} chunk{'s' * (chunks > 1)} are rough: give a smaller --batch")
        (start,) = intervals(place.losses[:, None], still.counts, self.request.seed)
        return Sweep(
            start=ends.start.name,
            end=ends.end.name,
            axes=self.plane.axes,
            data=ground.laid.used,
            start_loss=start,
            base_loss=ground.base_loss,
            margin=place.margin.value,
            margin_reason=place.margin.reason,
            points=tuple(self.points),
            second_order=next((excess.found for excess in self.excesses if excess.found.probes), None),
            notes=tuple(self.notes),
        )


@dataclass(frozen=True, eq=False)
class _Place:
    """Where all paths start: the ground, an objective that stays there, and its losses, (chunks,)."""

    ground: Ground
    ends: Ends
    still: TorchObjective
    losses: Vector
    restorer: _Restorer

    @property
    def loss(self) -> float:
        """Return the mean loss."""
        counts = self.still.counts
        return float(self.losses @ counts / counts.sum())

    @property
    def margin(self) -> Margin:
        """Return the change that counts as none."""
        return self.ground.margin(self.loss)


@dataclass(frozen=True, eq=False)
class _Excess:
    """An estimate of the second order, and the mean and the variances it was made for."""

    mean: End
    spread: Arrays
    found: SecondOrder

    def expected(self, times: float) -> tuple[float, float | None]:
        """Return the change from the start, and its standard error, of an edit of so many times the variances."""
        error = self.found.standard_error
        return self.found.shift + times * self.found.total, None if error is None else times * error


class _Restorer:
    """Puts a network back where it was, to the bit: a path's moves there and back leave rounding behind."""

    def __init__(self, ground: Ground, note: Callable[[str], None]) -> None:
        from deltasmith.analysis.free_memory import free_on_machine

        self._ground = ground
        parameters = dict(ground.loaded.network.named_parameters())
        size = sum(p.numel() * p.element_size() for p in parameters.values())
        free = free_on_machine()
        copies = _ROOM if ground.request.device == "cpu" else 1
        self._kept: dict[str, Any] | None = None
        if free is None or copies * size <= free:
            self._kept = {name: p.detach().to("cpu", copy=True) for name, p in parameters.items()}
        else:
            note("there is no memory for a copy of the start, which is loaded again after every point")

    def restore(self) -> None:
        """Put the network back."""
        import torch

        kept = self._kept
        if kept is None:
            kept = dict(self._ground.load(self._ground.start.source).network.named_parameters())
        with torch.no_grad():
            for name, parameter in self._ground.loaded.network.named_parameters():
                parameter.copy_(kept[name])


def _multiple(found: Arrays, reference: Arrays) -> float | None:
    """Return the number that turns one family of variances into another; None where none does.

    >>> _multiple({"w": np.array([2.0, 4.0])}, {"w": np.array([1.0, 2.0])}), _multiple({"w": np.ones(2)}, {})
    (2.0, None)
    """
    if found.keys() != reference.keys():
        return None
    ours = sum(float(np.vdot(found[n].astype(np.float64), reference[n].astype(np.float64))) for n in found)
    squares = sum(float(np.square(v.astype(np.float64)).sum()) for v in reference.values())
    if squares == 0.0:
        return None
    times = ours / squares
    largest = max(float(v.max(initial=0.0)) for v in found.values())
    off = max(float(np.abs(found[n] - times * reference[n]).max(initial=0.0)) for n in found)
    return times if off <= _PROPORTIONAL * largest else None


def _told(values: Mapping[str, Value]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())
