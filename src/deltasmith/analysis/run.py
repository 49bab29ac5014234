"""The whole analysis: find the ends of a path, load them, walk it, and put what was seen into a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import numpy as np

from deltasmith.analysis.ends import Ends, Source, is_random, mean_of, read_recipe, resolve
from deltasmith.analysis.path import Path, walk
from deltasmith.analysis.report import LossReport, Prediction
from deltasmith.analysis.requests import FEW, Precision, Request, Say, SecondOrderKind, silent
from deltasmith.analysis.rules import RULES, Rule
from deltasmith.analysis.verdict import intervals, verdict
from deltasmith.engine.memory import DEFAULT_MEMORY
from deltasmith.engine.workers import Stop
from deltasmith.errors import RecipeError, RefusedError
from deltasmith.recipe.model import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from deltasmith.analysis.curvature import SecondOrder
    from deltasmith.analysis.preparing import Ground, Line
    from deltasmith.planning.plan import Plan

__all__ = ["analyse", "begin", "loss"]

_ROUNDED = 0.01  # share of the edit's norm from which rounding is worth a note
_PIECE = 1 << 20  # elements looked at at once
_MANTISSA = {"bfloat16": 8, "float16": 11}


def loss(
    recipe: Source,
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
) -> LossReport:
    """Follow the loss along the straight path to an edited or merged model; predict, measure and explain its change.

    The weights move in `steps` parts from where the path starts to the result of `recipe` (a file, a mapping, or a
    model). At every point the gradient is multiplied with the edit, tensor by tensor; a Riemann sum of that is the
    predicted change of the loss, taken apart by tensors, beside the measured one. A positive change is harm.

    `start` is "base", a label, or a model; by default an edit of one model starts from that model, and a merge from
    the base. `data` are documents for a language model (`data.read_examples`), of at most `length` tokens each, or
    a `.npz` for a classifier (`classification.read_arrays`). `batch` examples make a chunk, which is computed and
    resampled together. Every point sees all data in the same order; inner products are added in float64.
    `dtype` "bfloat16" is autocast over float32 weights. `seed` replaces the recipe's, and seeds the resampling.

    `second_order` "hessian" adds what slope and curvature at the start alone foretell of this edit, g·d + ½ d·Hd. It
    and "fisher" estimate what a random edit (`drop`, `drop_partly`, `drop_by_rank`) costs on average over its seeds,
    ½ Σ H_ii Var_i, where the first order sees nothing. That is taken around the edit's mean, the recipe without it: on
    top of one model that is where the path starts; for a merge, or a scale, it is a third network, loaded for it.

    The class (competitive, decreased, improved, or undecided) compares the 95 % interval of the measured change with
    `margin`, nats per token: by default 2 % of what fine-tuning gained on the data, or 0.01 where that is not known.
    These boundaries are ours, the paper has none.

    Memory: two float32 copies of the weights, and the activations of one chunk's backward pass; with `second_order`
    variances and a probe of the weights' size besides.

    Paper: A Unified View of Delta Parameter Editing in Post-Trained Large-Scale Models, arXiv 2410.13841, equation 1,
    which is the rule "left" with steps=5. That rule sees only 4/5 of the second-order damage of a large edit, and
    can miss its sign; "midpoint" and "trapezoid" are exact where the loss is quadratic.

    Raises:
        MissingExtraError: torch or transformers is missing. RecipeError: an option or the recipe makes no sense.
        RefusedError: the models do not line up, nothing moves, or the loss is not finite.
        DamagedInputError: a model does not load, or the data do not tokenise.
        ResourceError: the memory does not suffice. InterruptedRunError: asked to stop.
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
    made = read_recipe(recipe, overrides, seed)
    ends = resolve(recipe, made, start)
    ground = begin(ends, request, stop or Stop(), say)
    return analyse(ground, ends)


def begin(ends: Ends, request: Request, stop: Stop, say: Say = silent) -> Ground:
    """Check that a recipe can be carried out at all, and open the start of its path. Raises what `loss` raises."""
    from deltasmith.evaluate.models.transformers_loading import check_device, require_transformers

    require_transformers("analysing a loss", "analysis")
    check_device(request.device)
    if ends.recipe is not None:
        _plan(ends.recipe, request)  # refuses what headers show, before anything is loaded
    from deltasmith.analysis.preparing import open_ground

    return open_ground(ends, request, stop, say)


def analyse(ground: Ground, ends: Ends) -> LossReport:
    """Walk from an opened start to the end of a path, and report. Raises what `loss` raises of the end."""
    from deltasmith.analysis.curvature import expand
    from deltasmith.evaluate.models.transformers_loading import memory_errors

    request, say = ground.request, ground.say
    line = ground.line_to(ends.end.source)
    with memory_errors(request.batch):
        path = walk(
            line.objective,
            request.grids,
            asked=lambda: ground.stop.asked,
            say=lambda done, of: say("points of the path", done, of),
        )
        expansion = expand(line.objective, seed=request.seed) if request.second_order == "hessian" else None
    plan = None if ends.recipe is None else _plan(ends.recipe, request)
    notes = [*ground.loaded.notes, *line.notes, *ground.laid.notes, *_notes(ground, plan, line)]
    if ends.recipe is not None and is_random(ends.recipe):
        notes.append(
            f"the edit is random, and this is one draw (seed {ends.recipe.seed}); intervals are over data alone"
        )
    del line  # and with it the direction: the second order may need the memory for another network
    second, why = _second_order(ground, ends, path)
    report = _report(ground, ends, path, tuple(dict.fromkeys((*notes, *why))))
    return replace(report, expansion=expansion, second_order=second)


def _report(ground: Ground, ends: Ends, path: Path, notes: tuple[str, ...]) -> LossReport:
    grids = ground.request.grids
    ts = sorted(path.points)
    columns = [path.points[ts[0]].losses, path.points[ts[-1]].losses, path.measured_chunks()]
    columns += [path.predicted_chunks(grid).sum(axis=1) for grid in grids]
    first, last, measured, *changes = intervals(np.stack(columns, axis=1), path.counts, ground.request.seed)
    margin = ground.margin(first.value)
    return LossReport(
        start=ends.start.name,
        end=ends.end.name,
        data=ground.laid.used,
        start_loss=first,
        end_loss=last,
        base_loss=ground.base_loss,
        measured=measured,
        verdict=verdict(measured, margin.value),
        margin=margin.value,
        margin_reason=margin.reason,
        predictions=tuple(
            Prediction(
                grid,
                change,
                change.value - measured.value,
                verdict(change, margin.value),
                path.contributions(grid),
            )
            for grid, change in zip(grids, changes, strict=True)
        ),
        along=tuple((float(t), path.loss(t)) for t in ts),
        notes=notes,
        changes=tuple(path.measured_chunks().tolist()),
        weights=tuple(path.counts.tolist()),
    )


def _plan(recipe: Recipe, request: Request) -> Plan:
    from deltasmith import api

    return api.plan(recipe, threads=request.threads, memory=request.memory).built.plan


def _second_order(ground: Ground, ends: Ends, path: Path) -> tuple[SecondOrder | None, tuple[str, ...]]:
    """Estimate what the recipe's random edit costs on average, or say why that cannot be told."""
    from deltasmith.analysis.second_order import excess_around, network_variances

    if ground.request.second_order == "none":
        return None, ()
    if ends.recipe is None:
        return None, ("no mean over masks: it is for recipes with a random edit, and this is a model",)
    try:
        spread = network_variances(ground, ends.recipe)
    except (RecipeError, RefusedError) as error:
        return None, (f"no mean over masks: {error}",)
    return excess_around(ground, mean_of(ends, ends.recipe), path.loss(Fraction(0)), spread), ()


def _notes(ground: Ground, plan: Plan | None, line: Line) -> list[str]:
    """Say how far the figures can be trusted."""
    chunks = ground.laid.used.chunks
    notes = []
    if chunks == 1:
        notes.append(
            "the data are one chunk, which has no interval, so nothing is decided: give a smaller --batch, or more data"
        )
    elif chunks < FEW:
        notes.append(
            f"the interval comes from {chunks} chunks and is rough, probably too narrow: give a smaller --batch, "
            "or more data"
        )
    if plan is not None:
        notes += _rounding(plan, line)
    return notes


def _rounding_of(start: Tensor, step: Tensor, kind: str) -> tuple[float, float]:
    """Return the mean square of rounding start + step where it moves, summed, and the square of the step."""
    import torch

    rounding = size = 0.0
    for at in range(0, step.numel(), _PIECE):
        there, moved = (values.reshape(-1)[at : at + _PIECE] for values in (start, step))
        _, exponents = torch.frexp(there + moved)
        units = torch.exp2(exponents.double() - _MANTISSA[kind]) * (moved != 0)
        rounding += float((units.square() / 12).sum())
        size += float(moved.double().square().sum())
    return rounding, size


def _rounding(plan: Plan, line: Line) -> list[str]:
    """Bound the part of the edit that is the rounding of the written model, by its half units in the last place."""
    kinds = {row.spec.dtype.name for row in plan.rows if row.action == "merge"} & set(_MANTISSA)
    if len(kinds) != 1:
        return []
    (kind,) = kinds
    parameters = dict(line.objective.network.named_parameters())
    found = [_rounding_of(parameters[name].detach(), step, kind) for name, step in line.direction.items()]
    rounding, size = (math.fsum(column) for column in zip(*found, strict=True))
    share = (rounding / size) ** 0.5 if size else 0.0
    if share < _ROUNDED:
        return []
    return [
        f"the result is rounded to {kind}, which makes up to about {share:.0%} of the edit's norm; "
        "--set dtype=float32 shows the edit without it"
    ]
