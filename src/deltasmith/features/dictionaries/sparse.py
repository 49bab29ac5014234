"""One step of training on the CPU, where few latents fire: the arithmetic of `dense.py` over the active ones only."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from deltasmith.features.dictionaries import dense, kernels
from deltasmith.features.dictionaries.dense import Auxiliary, Forward, Tensors
from deltasmith.features.dictionaries.settings import BatchTopK, Kind, TopK
from deltasmith.features.dictionaries.torch_here import Tensor, torch

__all__ = ["Active", "Batch", "Workers", "gradients", "select", "update_"]

Array = npt.NDArray[np.float32]
Active = tuple[Any, Any, Any]
"""starts (rows + 1,) int64, latents int32, values float32: what fires in a batch, row by row."""


class Workers:
    """Share a kernel's range among threads; with one thread nothing but the call."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads - 1) if threads > 1 else None

    def run(
        self, kernel: Callable[..., None], total: int, call: Callable[[int, int], tuple[Any, ...]]
    ) -> None:
        """Call `kernel(*call(low, high))` over a partition of 0 .. total, and wait for all of it."""
        bounds = [total * part // self._threads for part in range(self._threads + 1)]
        spans = [(low, high) for low, high in pairwise(bounds) if high > low]
        waiting = [self._pool.submit(kernel, *call(*span)) for span in spans[1:]] if self._pool else []
        for span in spans[:1]:
            kernel(*call(*span))
        for one in waiting:
            one.result()


def select(z: Tensor, kind: Kind, workers: Workers) -> Active | None:
    """Return what fires in a batch in training; None where so much fires that dense arithmetic is quicker."""
    pre = z.numpy()
    width = pre.shape[1]
    if isinstance(kind, TopK | BatchTopK):
        if kind.k * _SPARSE > width:
            return None
        return (_top_of_rows if isinstance(kind, TopK) else _top_of_batch)(pre, kind.k, workers)
    limit = np.zeros(width, np.float32)
    starts = _counted(pre, limit, workers)
    return None if starts[-1] * _SPARSE > pre.size else _gathered(pre, limit, starts, workers)


_SPARSE = 8
"""Measured: matrix products over all latents overtake loops over the active ones where one in eight is active."""


def _top_of_rows(pre: Array, k: int, workers: Workers) -> Active:
    shape = len(pre), k
    latents, values = np.empty(shape, np.int32), np.empty(shape, np.float32)
    counts = np.empty(len(pre), np.int32)
    workers.run(kernels.top_rows, len(pre), lambda low, high: (pre, k, low, high, latents, values, counts))
    return kernels.compacted(latents, values, counts)


def _top_of_batch(pre: Array, k: int, workers: Workers) -> Active:
    """Gather what exceeds a guess, guess lower while that is too little, then cut exactly."""
    guess, wanted = float(kernels.likely_cut(pre, k)), k * len(pre)
    while True:
        limit = np.full(pre.shape[1], guess, np.float32)
        starts = _counted(pre, limit, workers)
        if starts[-1] >= wanted or guess == 0:
            return kernels.batch_cut(*_gathered(pre, limit, starts, workers), wanted)
        guess = guess * 0.8 if guess > 1e-4 else 0.0


def _counted(pre: Array, limit: Array, workers: Workers) -> npt.NDArray[np.int64]:
    starts = np.zeros(len(pre) + 1, np.int64)
    workers.run(kernels.count_above, len(pre), lambda low, high: (pre, limit, low, high, starts[1:]))
    return np.cumsum(starts, out=starts)


def _gathered(pre: Array, limit: Array, starts: npt.NDArray[np.int64], workers: Workers) -> Active:
    latents, values = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.float32)
    workers.run(kernels.above, len(pre), lambda low, high: (pre, limit, low, high, starts, latents, values))
    return starts, latents, values


@dataclass(frozen=True, eq=False)
class Batch:
    """What `update_` needs of a batch: few activations with their slopes, or the gradients of all rows, `full`."""

    centred: Tensor
    found: Forward
    active: Active
    slopes: Array
    full: Tensors | None


def gradients(
    weights: Tensors, centred: Tensor, z: Tensor, kind: Kind, price: float, workers: Workers
) -> tuple[Forward, Batch]:
    """Return what `dense.gradients` returns first, and as much of the rest as is worth computing ahead."""
    active = select(z, kind, workers)
    if active is None:
        found, full = dense.gradients(weights, centred, z, kind, price)
        nothing = np.zeros(len(centred) + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32)
        return found, Batch(centred, found, nothing, nothing[2], full)
    starts, latents, values = active
    given, decoder = centred.numpy(), weights["decoder"].numpy()
    gradient, squares = np.empty_like(given), np.empty(len(given), np.float32)
    slopes, paid = np.empty_like(values), np.float32(price / len(given))
    workers.run(
        kernels.residuals,
        len(given),
        lambda low, high: (
            low, high, starts, latents, values, decoder, given, gradient, slopes, squares, paid,
        ),
    )  # fmt: skip
    fires = np.zeros(len(decoder), np.bool_)
    fires[latents] = True
    found = Forward(
        torch.tensor(squares.sum(dtype=np.float64)),
        torch.tensor(values.sum(dtype=np.float64)),
        torch.tensor(len(values)),
        torch.from_numpy(fires),
        torch.from_numpy(gradient),
    )
    return found, Batch(centred, found, active, slopes, None)


def update_(
    weights: Tensors,
    batch: Batch,
    aux: Auxiliary | None,
    means: Tensors,
    squares: Tensors,
    numbers: tuple[float, ...],
    workers: Workers,
) -> None:
    """Step all weights in place, as `dense.update_` does, with the gradients of each row made where they are used."""
    width = len(weights["encoder"])
    ends, rows, values, slopes, sums = kernels.by_latent(*batch.active, batch.slopes, width)
    latent_bias, place = torch.from_numpy(sums), np.full(width, -1, np.int32)
    extra = _whole(batch.full, aux, weights) if batch.full else aux
    added = (np.empty((0, batch.centred.shape[1]), np.float32),) * 2
    if extra is not None:
        place[extra.places.numpy()] = np.arange(len(extra.places), dtype=np.int32)
        added = extra.encoder.numpy(), extra.decoder.numpy()
        latent_bias.index_add_(0, extra.places, extra.latent_bias)
    slope = dense.bias_slope(batch.found.gradient, latent_bias, weights["encoder"])
    for name, direction in (("latent_bias", latent_bias), ("output_bias", slope)):
        dense.adam_(weights[name], direction, means[name], squares[name], numbers)
    gradient, given = batch.found.gradient.numpy(), batch.centred.numpy()
    matrices = tuple((each["encoder"].numpy(), each["decoder"].numpy()) for each in (weights, means, squares))
    single = np.array(numbers, np.float32)
    workers.run(
        kernels.updated_rows,
        width,
        lambda low, high: (
            low, high, ends, rows, values, slopes, gradient, given, *matrices, place, added, single,
        ),
    )  # fmt: skip


def _whole(full: Tensors, aux: Auxiliary | None, weights: Tensors) -> Auxiliary:
    """Put the gradients of all rows where those of the auxiliary loss go."""
    if aux is not None:
        dense.add_(full, aux, weights)
    loss = torch.zeros(()) if aux is None else aux.loss
    places = torch.arange(len(full["encoder"]))
    return Auxiliary(places, full["encoder"], full["decoder"], full["latent_bias"], loss)
