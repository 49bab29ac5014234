"""A model where nothing moves: its loss alone, beside statistics that are taken of it for other methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deltasmith.analysis.ends import Ends, Source, plain, read_recipe, resolve
from deltasmith.analysis.report import DataUsed, Estimate
from deltasmith.analysis.requests import Request, Say, silent
from deltasmith.analysis.run import begin
from deltasmith.analysis.verdict import interval
from deltasmith.engine.workers import Stop
from deltasmith.errors import RefusedError
from deltasmith.evaluate.models.opening import is_recipe

__all__ = ["FORMAT", "Standing", "at_rest", "stand"]

FORMAT = "deltasmith-standing-1"


@dataclass(frozen=True)
class Standing:
    """A model and its loss on data, in nats per token (or per example of a classifier)."""

    model: str
    data: DataUsed
    loss: Estimate
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "format": FORMAT,
            "model": self.model,
            "data": self.data.as_json(),
            "loss": self.loss.as_json(),
            "notes": list(self.notes),
        }


def at_rest(recipe: Source, start: str | None) -> bool:
    """Tell whether there is no path: a model that is its own start, or has none. Raises what `resolve` raises."""
    if is_recipe(recipe):
        return False
    if start is None:
        return True
    ends = resolve(recipe, None, start)
    here, there = (Path(str(end.source)) for end in (ends.start, ends.end))
    return ends.start.source == ends.end.source or (here.exists() and here.resolve() == there.resolve())


def stand(
    recipe: Source,
    *,
    data: str | Path,
    start: str | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    say: Say = silent,
    stop: Stop | None = None,
    **options: Any,
) -> Standing:
    """Take the loss of a model over data, with its 95 % interval from resampling chunks.

    The model is where the path of `recipe` would start (`run.loss`); a plain model is its own start. `options` are
    those of `run.loss` that concern data and computing. Raises what `run.loss` raises of one model, and RefusedError
    where the loss is not finite.
    """
    made = read_recipe(recipe, overrides, seed)
    end = plain(recipe) if made is None else resolve(recipe, made, start).start
    request = Request(data=Path(data), seed=seed or 0, margin=0.0, **options)
    ground = begin(Ends(end, end), request, stop or Stop(), say)
    counts = np.asarray(ground.laid.counts, np.float64)
    found = interval(ground.laid.losses(ground.loaded.network), counts, request.seed)
    if not np.isfinite(found.value):
        raise RefusedError("the loss is not finite on these data", where=end.name, fix="use other data")
    notes = (*ground.loaded.notes, *ground.laid.notes)
    return Standing(end.name, ground.laid.used, found, tuple(dict.fromkeys(notes)))
