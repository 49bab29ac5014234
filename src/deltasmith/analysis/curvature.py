"""Second order, where the first is blind: what a random edit that is unbiased costs on average.

An edit whose elements move by independent amounts of mean 0 and variance v has no slope on average, and costs
½ Σ H_ii v_i. The diagonal of the Hessian is not known; two estimates of that sum are offered, and neither forms it.
Nothing here needs torch: the derivatives come from the objective (`TorchObjective` has them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from deltasmith.analysis.objective import Matrix, Vector
from deltasmith.analysis.resampling import resampled_mean
from deltasmith.errors import InterruptedRunError, RefusedError
from deltasmith.kernels.bits import uniform_bits
from deltasmith.operation.randomness import cell_key

__all__ = [
    "Arrays",
    "Curved",
    "Expansion",
    "Kind",
    "Sampled",
    "SecondOrder",
    "expand",
    "fisher_excess",
    "hessian_excess",
    "signed_root",
]

Kind = Literal["hessian", "fisher"]
Arrays = Mapping[str, npt.NDArray[Any]]

Sampled = Callable[[Any, Any, int], Any]
"""`sampled(network, chunk, key)`: mean over the counted terms of −log p(label), labels drawn from the network itself.

The chunk's inputs are kept as they are (a sampled token is not read by the next one), each counted term draws one
label from the network's own prediction with bits of `key`, and nothing is differentiated through the drawing. The
number of terms is the chunk's count.
"""


class Curved(Protocol):
    """A loss with second derivatives, at the point where it is."""

    @property
    def names(self) -> tuple[str, ...]:
        """Name the tensors that the line moves."""

    @property
    def counts(self) -> Vector:
        """Return the weight of every chunk, (chunks,)."""

    def slopes(self) -> tuple[Vector, Matrix]:
        """Return the mean losses and the slopes along the line: see `Objective`."""

    def curvatures(self, probe: Arrays | None = None) -> Matrix:
        """Return u·(Hu) of every chunk and tensor of the probe u, (chunks, tensors); the direction by default."""

    def squares(self, sampled: Sampled, keys: Sequence[int], weights: Arrays) -> Matrix:
        """Return Σ w g² of every chunk and tensor, g the gradient of the chunk's sampled loss under its key."""


@dataclass(frozen=True)
class SecondOrder:
    """What a random, unbiased edit is expected to add to the loss, tensor by tensor."""

    kind: Kind
    excess: Mapping[str, float]
    """½ Σ H_ii v_i of each tensor, in the unit of the loss; a tensor without variance is not here."""
    total: float
    """The sum over all tensors."""
    standard_error: float | None
    """How uncertain `total` is because probes are few; None with one probe."""
    interval: tuple[float, float] | None
    """95 % of what other data of this kind would give, from resampling chunks; None with one chunk."""
    probes: int
    at: str = ""
    """The model around which it was taken: the mean of the edited one over seeds."""
    shift: float = 0.0
    """The loss of that model − the loss where the path starts: over seeds, a path ends `shift + total` higher."""

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "kind": self.kind,
            "at": self.at,
            "shift": self.shift,
            "total": self.total,
            "standard_error": self.standard_error,
            "interval": None if self.interval is None else list(self.interval),
            "probes": self.probes,
            "excess": dict(self.excess),
        }


@dataclass(frozen=True)
class Expansion:
    """The change of the loss that one given edit should make, by Taylor's expansion at the start."""

    first: Mapping[str, float]
    """g·d of each tensor."""
    second: Mapping[str, float]
    """½ d·(Hd) of each tensor: with what the other tensors' moves add to it."""
    total: float
    """The sum of both over all tensors."""
    interval: tuple[float, float] | None
    """95 % of what other data of this kind would give, from resampling chunks; None with one chunk."""

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "total": self.total,
            "interval": None if self.interval is None else list(self.interval),
            "first": dict(self.first),
            "second": dict(self.second),
        }


def _go_on() -> bool:
    return False


def _silent(done: int, of: int) -> None:
    return None


def hessian_excess(
    objective: Curved,
    variances: Arrays,
    *,
    probes: int = 8,
    seed: int = 0,
    asked: Callable[[], bool] = _go_on,
    say: Callable[[int, int], None] = _silent,
) -> SecondOrder:
    """Estimate ½ Σ H_ii v_i by Hutchinson's probes: the mean of ½ u·(Hu) over u = ± sqrt(v), signs at random.

    H is the Hessian of the mean loss where the objective is. That should be the edit's mean, over whose loss the
    excess is (`ends.mean_of`): for `drop` of one model of weight 1, the post-trained weights. `variances` holds an
    array of each tensor's shape, all >= 0 and finite; every probe costs one forward and two backward passes over the
    data. What lies off the diagonal has mean zero: it is the noise of which `standard_error` tells, and is none where
    H is diagonal. An excess can be negative, because H need not be positive.

    Paper: Hutchinson 1990 for the estimate; arXiv 2410.13841 has no such term. For k-DARE with dropout rate p the
    variances are (1 − k)² p/(1 − p) δ².

    Raises:
        ValueError: no probes, or a variance that is negative or not finite. RefusedError: a curvature is not finite.
        InterruptedRunError: asked to stop.
    """
    _check(variances, probes)
    found = []
    for probe in range(probes):
        _listen(asked)
        signs = {name: cell_key(seed, "probe", name, stream=probe) for name in variances}
        u = {name: signed_root(v, signs[name]) for name, v in variances.items()}
        found.append(0.5 * _finite(objective.curvatures(u), tuple(variances)))
        say(probe + 1, probes)
    return _second_order("hessian", np.stack(found), objective.counts, tuple(variances), seed)


def fisher_excess(
    objective: Curved,
    sampled: Sampled,
    variances: Arrays,
    *,
    probes: int = 8,
    seed: int = 0,
    asked: Callable[[], bool] = _go_on,
    say: Callable[[int, int], None] = _silent,
) -> SecondOrder:
    """Estimate ½ Σ F_ii v_i, F the Fisher information of the model's own predictions, in place of the Hessian.

    F is the mean over tokens of E[s s'], where the objective is: s is the gradient of −log p(y), and the label y is
    drawn by the model. The sampled loss of a chunk of n tokens has the gradient g = Σ s / n; given the inputs, its
    terms are independent and have mean zero, so n g² is unbiased for the chunk's diagonal, whatever n. Each draw
    costs one forward and one backward pass. F is the Hessian where the model predicts the data as they are
    distributed, it is never negative, and it does not see that labels are wrong.

    Raises:
        ValueError: no probes, or a variance that is negative or not finite. RefusedError: a gradient is not finite.
        InterruptedRunError: asked to stop.
    """
    _check(variances, probes)
    terms = np.asarray(objective.counts, np.float64)[:, None]
    found = []
    for probe in range(probes):
        _listen(asked)
        keys = [cell_key(seed, "labels", str(chunk), stream=probe) for chunk in range(len(terms))]
        squares = _finite(objective.squares(sampled, keys, variances), tuple(variances))
        found.append(0.5 * terms * squares)
        say(probe + 1, probes)
    return _second_order("fisher", np.stack(found), objective.counts, tuple(variances), seed)


def expand(objective: Curved, *, seed: int = 0) -> Expansion:
    """Predict the change along the whole line from its start alone: g·d + ½ d·(Hd), per tensor.

    One gradient and one Hessian-vector product. The objective must be at the start. Exact where the loss is quadratic.

    Raises:
        RefusedError: a slope or a curvature is not finite.
    """
    _, slopes = objective.slopes()
    first = _finite(slopes, objective.names)
    second = 0.5 * _finite(objective.curvatures(), objective.names)
    total, interval = resampled_mean((first + second).sum(axis=1), objective.counts, seed)
    return Expansion(
        _named(objective.names, objective.counts, first),
        _named(objective.names, objective.counts, second),
        total,
        interval,
    )


def signed_root(variance: npt.NDArray[Any], key: int) -> npt.NDArray[Any]:
    """Return sqrt(variance) with a random sign for each element, from the bits of `key`; shape and type kept.

    >>> signed_root(np.array([4.0, 9.0, 4.0, 1.0]), key=1).tolist()
    [-2.0, -3.0, -2.0, 1.0]
    """
    bits = uniform_bits(key, 0, variance.size).reshape(variance.shape)
    root = np.sqrt(variance)
    return np.asarray(np.where(bits >> np.uint32(31), -root, root))


def _check(variances: Arrays, probes: int) -> None:
    if probes < 1:
        raise ValueError(f"cannot estimate anything from {probes} probes")
    for name, v in variances.items():
        if not (np.isfinite(v).all() and (v >= 0).all()):
            raise ValueError(f"the variances of {name} are not all finite and at least 0")


def _listen(asked: Callable[[], bool]) -> None:
    if asked():
        raise InterruptedRunError("the analysis was interrupted", fix="run the same command again")


def _finite(found: Matrix, names: tuple[str, ...]) -> Matrix:
    """Refuse derivatives that overflowed: a mean over them would say nothing."""
    if not np.isfinite(found).all():
        chunk, column = (int(i) for i in np.argwhere(~np.isfinite(found))[0])
        raise RefusedError(
            f"the derivatives of the loss of chunk {chunk} of the data are not finite",
            where=names[column],
            fix="use a wider --dtype (float64 is the widest), or leave the documents out that it comes from",
        )
    return found


def _named(names: tuple[str, ...], counts: Vector, per_chunk: Matrix) -> dict[str, float]:
    averaged = np.tensordot(counts, per_chunk, axes=(0, 0)) / counts.sum()
    return dict(zip(names, averaged.tolist(), strict=True))


def _second_order(
    kind: Kind, found: npt.NDArray[np.float64], counts: Vector, names: tuple[str, ...], seed: int
) -> SecondOrder:
    """Average (probes, chunks, tensors) in every way the result asks for."""
    probes = len(found)
    per_probe = (found.sum(axis=2) @ counts) / counts.sum()
    per_chunk = found.mean(axis=0)
    total, interval = resampled_mean(per_chunk.sum(axis=1), counts, seed)
    return SecondOrder(
        kind,
        _named(names, counts, per_chunk),
        total,
        float(per_probe.std(ddof=1) / np.sqrt(probes)) if probes > 1 else None,
        interval,
        probes,
    )
