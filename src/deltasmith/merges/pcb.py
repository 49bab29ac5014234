"""PCB: parameter competition. Deltas compete within their model and between models; the best are averaged."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from deltasmith.operation.protocols import Found, Merge, Place, Survey
from deltasmith.surveys import select
from deltasmith.surveys.sums import Bounds, chain, per_model, together
from deltasmith.table.checkpoint import Floats

__all__ = ["Clip", "Pcb", "PcbPairwise", "PcbSigned"]


@dataclass(frozen=True)
class Clip:
    """The smallest and largest magnitude of one model after trimming."""

    low: float
    high: float

    def __call__(self, delta: Floats) -> Floats:
        """Clip |δ|."""
        return np.minimum(np.maximum(np.abs(delta), np.float32(self.low)), np.float32(self.high))

    def normalise(self, delta: Floats) -> Floats:
        """Map the clipped |δ| to [0, 1]; 0 everywhere where all magnitudes are equal."""
        width = np.float32(self.high) - np.float32(self.low)
        if not width > 0:
            return np.zeros_like(delta)
        return (self(delta) - np.float32(self.low)) / width


@dataclass(frozen=True)
class Window:
    """The scores of one model that count: from the (1 − ratio) quantile to the largest."""

    low: float
    high: float

    def __call__(self, score: Floats) -> Floats:
        """Map scores to [0, 1]: 0 up to `low`, 1 at `high` (also where the two are equal)."""
        low, high = np.float32(self.low), np.float32(self.high)
        if not high > low:
            return (score >= high).astype(np.float32)
        scaled: Floats = (np.maximum(score, low) - low) / (high - low)
        return scaled


def _all_kept(ends: select.Cut) -> bool:
    """Tell whether nothing was cut off: then the cut knows no smallest score."""
    return ends.keep >= ends.total


class _Pcb(Merge):
    """Common to the three: clipping, the competition within a model, the selection, the average."""

    ratio: Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)]
    trim: Annotated[float, Field(ge=0.0, lt=0.5, allow_inf_nan=False)]

    @abstractmethod
    def _between(self, i: int, cells: Sequence[Floats], clips: Sequence[Clip]) -> Floats:
        """Return how model i fares against the others, in (−T, T), at every position."""

    def _score(self, i: int, clips: Sequence[Clip], cells: Sequence[Floats], place: Place) -> Floats:
        """Return β of model i: exp(T·norm²) · between, up to a factor that the window cancels."""
        flat = [cell.reshape(-1) for cell in cells]
        norm = clips[i].normalise(flat[i])
        # exp(T(norm² − 1)) instead of exp(T·norm²): the same after the window, and finite for any T.
        within = np.exp(np.float32(len(flat)) * (norm * norm - np.float32(1)))
        score: Floats = within * self._between(i, flat, clips)
        return score

    def survey(self, found: Found) -> Survey | None:
        """Ask for the clips of every model, then for the window of its scores, over the whole model."""
        clipping = together(found.shared, {"clip": lambda own: per_model(own, self._ask_clip)})
        if clipping is not None:
            return clipping
        ask = partial(self._ask_window, clips=self._clips(found))
        return together(found.shared, {"window": lambda own: per_model(own, ask)})

    def _ask_clip(self, i: int, own: Sequence[Any]) -> Survey | None:
        def order(findings: Sequence[Any], index: Callable[[int], int]) -> Survey | None:
            return select.next_survey(
                findings,
                scope="global",
                keep=lambda total: max(1, total - max(0, index(total))),
                score=lambda cells, place: cells[i].reshape(-1),
            )

        def low(findings: Sequence[Any]) -> Survey | None:
            return order(findings, lambda d: int(d * self.trim))

        def high(findings: Sequence[Any]) -> Survey | None:
            return order(findings, lambda d: int(d * (1 - self.trim) - 1))

        def bounds(findings: Sequence[Any]) -> Survey | None:
            return None if findings else Bounds(lambda cells, place: np.abs(cells[i]))

        asked = together(own, {"low": low, "high": high})
        if asked is not None or not any(_all_kept(select.cut(chain(own, end))) for end in ("low", "high")):
            return asked
        return together(own, {"bounds": bounds})

    def _ask_window(self, i: int, own: Sequence[Any], clips: Sequence[Clip]) -> Survey | None:
        """Find the (1 − ratio) quantile of the scores, which are signed, and the largest."""

        def order(findings: Sequence[Any], sign: float, count: Callable[[int], int]) -> Survey | None:
            def score(cells: Sequence[Floats], place: Place) -> Floats:
                signed = self._score(i, clips, cells, place) * np.float32(sign)
                return np.asarray(np.maximum(signed, np.float32(0)), np.float32)

            return select.next_survey(findings, scope="global", keep=count, score=score)

        def above(total: int) -> int:
            return max(1, total - int(total * (1 - self.ratio)))

        def positive(findings: Sequence[Any]) -> Survey | None:
            return order(findings, 1.0, above)

        def extent(findings: Sequence[Any]) -> Survey | None:
            return None if findings else Bounds(partial(self._score, i, clips))

        def negative(findings: Sequence[Any]) -> Survey | None:
            # The k-th largest score is the (d − k + 1)-th largest of the negated ones.
            return order(findings, -1.0, lambda total: total - above(total) + 1)

        asked = together(own, {"positive": positive, "extent": extent})
        if asked is not None:
            return asked
        ends = select.cut(chain(own, "positive"))
        if ends.threshold > 0 or _all_kept(ends):
            return None
        return together(own, {"negative": negative})

    @staticmethod
    def _clips(found: Found) -> list[Clip]:
        findings = chain(found.shared, "clip")
        models = sorted(findings[0]) if findings else []
        clips = []
        for own in (chain(findings, i) for i in models):
            cuts = [select.cut(chain(own, end)) for end in ("low", "high")]
            low, high = (chain(own, "bounds")[0][0] if _all_kept(c) else c.threshold for c in cuts)
            clips.append(Clip(low, high))
        return clips

    @staticmethod
    def _window(findings: Sequence[Any]) -> Window:
        ends, (least, largest) = select.cut(chain(findings, "positive")), chain(findings, "extent")[0]
        negative = chain(findings, "negative")
        below = select.cut(negative).threshold if negative else 0.0
        return Window(least if _all_kept(ends) else ends.threshold - below, largest)

    def apply(self, cells: Floats, place: Place, found: Found) -> Floats:
        """Return Σ w·clipped δ·s / Σ s of the tile, s being the windowed scores."""
        total: Floats = np.zeros(cells.shape[1:], np.float32).reshape(-1)
        if total.size == 0:
            return total.reshape(cells.shape[1:])
        divisor = np.zeros_like(total)
        clips, findings = self._clips(found), chain(found.shared, "window")
        rows = [cell.reshape(-1) for cell in cells]
        for i, (row, clip, weight) in enumerate(zip(rows, clips, place.weights, strict=True)):
            scale = self._window(chain(findings, i))(self._score(i, clips, rows, place))
            total += np.sign(row) * clip(row) * scale * np.float32(weight)
            divisor += scale
        return np.asarray(total / np.maximum(divisor, np.float32(1e-12)), np.float32).reshape(cells.shape[1:])


class Pcb(_Pcb):
    """Score deltas by size within their model and agreement with the others; average the best, by score.

    Over the whole model: magnitudes are clipped to their `trim` and 1 − `trim` quantiles and mapped to
    norm in [0, 1]. The score of model i's delta is exp(T·norm²) · tanh(δ_i · Σ_j δ_j), T being the number of
    models; the top `ratio` of each model's scores is mapped to s in [0, 1], the rest to 0. The result is
    Σ w·clipped δ·s / Σ s: weights enter the sum only, as the authors' λ. A position at which no model is
    selected is 0. Where all scores of a model that count are equal, s is 1 for them.

    Of the three variants in the authors' repository this is the one in its main file, used for language
    models, and so the default; which one the paper's tables use is not established. Real deltas are so small
    that the tanh is linear; deltas near 1 saturate it.

    Paper: Du et al. 2024, Parameter Competition Balancing for Model Merging, arXiv 2410.02396, as in the
    authors' `pcb-merging.py`. Quantiles are order statistics as there: element int(d·q) and int(d·(1 − q) −
    1) of the sorted magnitudes, so even a tiny `trim` clips the largest to the second largest.
    """

    ratio: Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)] = 0.1
    """The fraction of each model's deltas that compete, by score."""
    trim: Annotated[float, Field(ge=0.0, lt=0.5, allow_inf_nan=False)] = 1e-4
    """The fraction of magnitudes clipped at either end."""

    def _between(self, i: int, cells: Sequence[Floats], clips: Sequence[Clip]) -> Floats:
        """Return tanh(δ_i · Σ_j δ_j)."""
        total = np.add.reduce(np.stack(cells), axis=0)
        return np.asarray(np.tanh(cells[i] * total), np.float32)


class PcbSigned(_Pcb):
    """As `Pcb`, but let a delta compete with the signed, normalised deltas: tanh(δ_i · Σ_j sign(δ_j)·norm_j).

    Paper: Du et al. 2024, arXiv 2410.02396, as in the authors' `vision/pcb.py` (there with λ = 1.2).
    """

    ratio: Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)] = 0.05
    """The fraction of each model's deltas that compete, by score."""
    trim: Annotated[float, Field(ge=0.0, lt=0.5, allow_inf_nan=False)] = 1e-2
    """The fraction of magnitudes clipped at either end."""

    def _between(self, i: int, cells: Sequence[Floats], clips: Sequence[Clip]) -> Floats:
        """Return tanh(δ_i · Σ_j sign(δ_j)·norm_j)."""
        signed = [np.sign(cell) * clip.normalise(cell) for cell, clip in zip(cells, clips, strict=True)]
        return np.asarray(np.tanh(cells[i] * np.add.reduce(np.stack(signed), axis=0)), np.float32)


class PcbPairwise(_Pcb):
    """As `Pcb`, but compare normalised deltas pair by pair: Σ_j tanh(n_i·n_j), n = sign(δ)·norm.

    The one variant whose result scales exactly as the deltas do.

    Paper: Du et al. 2024, arXiv 2410.02396, as in the authors' `pcb_ES.py` (evolutionary search of the
    weights).
    """

    ratio: Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)] = 0.05
    """The fraction of each model's deltas that compete, by score."""
    trim: Annotated[float, Field(ge=0.0, lt=0.5, allow_inf_nan=False)] = 1e-2
    """The fraction of magnitudes clipped at either end."""

    def _between(self, i: int, cells: Sequence[Floats], clips: Sequence[Clip]) -> Floats:
        """Return Σ_j tanh(n_i·n_j)."""
        signed = [np.sign(cell) * clip.normalise(cell) for cell, clip in zip(cells, clips, strict=True)]
        pairs = [np.tanh(signed[i] * other) for other in signed]
        return np.asarray(np.add.reduce(np.stack(pairs), axis=0), np.float32)
