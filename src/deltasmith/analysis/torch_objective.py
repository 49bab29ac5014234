"""A torch network's loss along a line: one forward and backward pass for each chunk, no gradient ever kept.

A parameter's gradient is multiplied with the direction as soon as it is complete, and dropped. So the memory is that
of training without an optimiser: weights, activations, and one more copy of the weights (the direction instead of
the gradients).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from deltasmith.analysis.curvature import Sampled
from deltasmith.analysis.objective import Matrix, Vector
from deltasmith.errors import RefusedError

__all__ = ["LossOf", "TorchObjective", "inner_product"]

LossOf = Callable[[nn.Module, Any], Tensor]
"""Compute the mean loss of one chunk, a scalar that can be differentiated."""

Probe = Mapping[str, Tensor] | Mapping[str, npt.NDArray[Any]]
"""A tensor or array of a parameter's shape for some of the parameters."""

_Reduce = Callable[[str, Tensor], Tensor]
_PIECE = 1 << 22  # elements that are widened to float64 at once


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of two tensors of one shape, multiplied and added in float64; a scalar there."""
    x, y = a.reshape(-1), b.reshape(-1)
    total = torch.zeros((), dtype=torch.float64, device=a.device)
    for start in range(0, x.numel(), _PIECE):
        total += torch.dot(x[start : start + _PIECE].double(), y[start : start + _PIECE].double())
    return total


def _weighted_square(weights: Tensor, values: Tensor) -> Tensor:
    """Return Σ w·x² in float64, a scalar."""
    w, x = weights.reshape(-1), values.reshape(-1)
    total = torch.zeros((), dtype=torch.float64, device=values.device)
    for start in range(0, x.numel(), _PIECE):
        wide = x[start : start + _PIECE].double()
        total += torch.dot(w[start : start + _PIECE].double(), wide * wide)
    return total


class TorchObjective:
    """The mean loss of a network over chunks of data, along start + t · direction.

    `direction` names parameters of `network` (`named_parameters`) and holds a tensor of the same shape for each; the
    others rest, and get no gradient. The network is used in evaluation mode and is moved in place: `move(0.0)` brings
    it back to where it was, but for rounding in the parameters' own element type.
    """

    def __init__(
        self,
        network: nn.Module,
        direction: Mapping[str, Tensor],
        chunks: Sequence[Any],
        counts: Sequence[float],
        loss: LossOf,
    ) -> None:
        """Take a network at the start of the line; ValueError if the direction does not fit it."""
        parameters = dict(network.named_parameters())
        _refuse_misfits(direction, parameters)
        self.network = network.eval()
        self.names = tuple(direction)
        self.counts: Vector = np.asarray(counts, np.float64)
        self._parameters = parameters
        self._direction = direction
        self._chunks = chunks
        self._loss = loss
        self._t = 0.0
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in direction)
            parameter.grad = None  # what an earlier pass left would be added to the first chunk's

    @torch.no_grad()
    def move(self, t: float) -> None:
        """Go to the point start + t · direction."""
        if t != self._t:
            for name, step in self._direction.items():
                parameter = self._parameters[name]
                parameter.add_(step.to(parameter.dtype), alpha=t - self._t)
            self._t = t

    @torch.no_grad()
    def losses(self) -> Vector:
        """Return the mean loss of every chunk, (chunks,)."""
        return np.array([float(self._loss(self.network, chunk).double()) for chunk in self._chunks])

    def slopes(self) -> tuple[Vector, Matrix]:
        """Return the mean losses, (chunks,), and each tensor's inner product of gradient and direction."""
        losses = np.zeros(len(self._chunks))
        slopes = np.zeros((len(self._chunks), len(self.names)))
        for row, chunk in enumerate(self._chunks):
            with self._reducing(
                self.names, lambda name, gradient: inner_product(gradient, self._direction[name])
            ) as products:
                losses[row] = _descend(self._loss(self.network, chunk))
            slopes[row] = _row(products, self.names)
        return losses, slopes

    def curvatures(self, probe: Probe | None = None) -> Matrix:
        """Return u·(Hu) of every chunk and tensor, (chunks, tensors of the probe in its order), in float64.

        H is the Hessian of the chunk's mean loss at this point, u the probe (by default the direction), in which
        parameters that it does not name are zero; the sum over the tensors is u'Hu. One forward pass and two
        backward passes for each chunk; the memory is that of the gradient's graph, two to three times as many
        activations as `slopes` holds, and two copies of the probed parameters.

        Raises:
            ValueError: the probe does not fit the network. RefusedError: the network uses an operation that can be
            differentiated only once (fused attention).
        """
        u = self._placed(self._direction if probe is None else probe)
        found = np.zeros((len(self._chunks), len(u)))
        with self._only(u):
            for row, chunk in enumerate(self._chunks):
                found[row] = self._bend(chunk, u)
        return found

    def squares(self, sampled: Sampled, keys: Sequence[int], weights: Probe) -> Matrix:
        """Return Σ w g² of every chunk and tensor of `weights`, (chunks, tensors in its order), in float64.

        g is the gradient of `sampled(network, chunk, key)` at this point, with the chunk's own key.

        Raises:
            ValueError: the weights do not fit the network.
        """
        w = self._placed(weights)
        found = np.zeros((len(self._chunks), len(w)))
        with self._only(w):
            for row, (chunk, key) in enumerate(zip(self._chunks, keys, strict=True)):
                with self._reducing(w, lambda name, gradient: _weighted_square(w[name], gradient)) as sums:
                    _descend(sampled(self.network, chunk, key))
                found[row] = _row(sums, tuple(w))
        return found

    def _bend(self, chunk: Any, u: Mapping[str, Tensor]) -> list[float]:
        """Differentiate the slope along u once more, and return each tensor's share."""
        parameters = [self._parameters[name] for name in u]
        loss = self._loss(self.network, chunk)
        try:
            first = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
            used = [
                (g, v) for g, v in zip(first, u.values(), strict=True) if g is not None and g.requires_grad
            ]
            if not used:  # the loss is linear in all that is probed
                return [0.0] * len(u)
            gradients, vectors = zip(*used, strict=True)
            second = torch.autograd.grad(gradients, parameters, vectors, allow_unused=True)
        except RuntimeError as error:
            if "derivative" not in str(error) or "not implemented" not in str(error):
                raise
            raise RefusedError(
                f"the network cannot be differentiated twice: {str(error).splitlines()[0]}",
                fix="use --second-order fisher, or load it with eager attention",
            ) from error
        return [
            0.0 if h is None else float(inner_product(v, h)) for h, v in zip(second, u.values(), strict=True)
        ]

    def _placed(self, values: Probe) -> dict[str, Tensor]:
        """Bring arrays or tensors to where the parameters are, in their element type."""
        placed = {}
        _refuse_misfits(values, self._parameters)
        for name, value in values.items():
            like = self._parameters[name]
            placed[name] = (
                value.to(like)
                if isinstance(value, Tensor)
                else torch.tensor(value, dtype=like.dtype, device=like.device)
            )
        return placed

    @contextmanager
    def _only(self, names: Collection[str]) -> Iterator[None]:
        """Let only these parameters have gradients for a while."""
        before = {name: parameter.requires_grad for name, parameter in self._parameters.items()}
        try:
            for name, parameter in self._parameters.items():
                parameter.requires_grad_(name in names)
            yield
        finally:
            for name, parameter in self._parameters.items():
                parameter.requires_grad_(before[name])

    @contextmanager
    def _reducing(self, names: Iterable[str], reduce: _Reduce) -> Iterator[dict[str, Tensor]]:
        """Collect one number per gradient of one backward pass; every gradient is dropped once it is used."""
        numbers: dict[str, Tensor] = {}

        def watch(name: str) -> Callable[[Tensor], None]:
            def complete(parameter: Tensor) -> None:
                assert parameter.grad is not None
                numbers[name] = reduce(name, parameter.grad)
                parameter.grad = None

            return complete

        hooks = [
            self._parameters[name].register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call, unused-ignore]
                watch(name)
            )
            for name in names
        ]
        try:
            yield numbers
        finally:
            for hook in hooks:
                hook.remove()


def _refuse_misfits(values: Probe, parameters: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        if name not in parameters or tuple(parameters[name].shape) != tuple(value.shape):
            raise ValueError(f"the network has no parameter {name} of shape {tuple(value.shape)}")


def _descend(loss: Tensor) -> float:
    """Run the backward pass, unless the loss depends on nothing that moves; return the loss."""
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
    return float(loss.detach().double())


def _row(numbers: Mapping[str, Tensor], names: Sequence[str]) -> list[float]:
    """Return the numbers in order; a parameter that the loss does not use has no gradient, and adds nothing."""
    return [float(numbers[name]) if name in numbers else 0.0 for name in names]
