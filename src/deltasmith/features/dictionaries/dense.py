"""One step of training in plain torch, on any device: the definition of what `sparse.py` does faster on the CPU.

Everything here is in scaled activations. Gradients are written out, not taped: the loss of n tokens is

    1/n * sum |x - x'|^2  +  price/n * sum of activations  +  aux * share/n * sum |e - e'|^2

where e = x - x' is taken as given and e' is what dead latents make of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deltasmith.features.dictionaries.selecting import trained
from deltasmith.features.dictionaries.settings import Kind
from deltasmith.features.dictionaries.torch_here import Tensor, torch

__all__ = ["Auxiliary", "Forward", "adam_", "add_", "auxiliary", "bias_slope", "gradients", "update_"]

Tensors = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Forward:
    """What a batch gives rise to: `error` sum |x - x'|^2, `activity` the sum of activations, `count` their number.

    `fires` (latents,) bool; `gradient` (rows, width) 2/n (x' - x).
    """

    error: Tensor
    activity: Tensor
    count: Tensor
    fires: Tensor
    gradient: Tensor


@dataclass(frozen=True, eq=False)
class Auxiliary:
    """Gradients of the auxiliary loss with respect to the rows `places` (dead,) of the dictionary, and its value."""

    places: Tensor
    encoder: Tensor
    decoder: Tensor
    latent_bias: Tensor
    loss: Tensor


def gradients(
    weights: Mapping[str, Tensor], centred: Tensor, z: Tensor, kind: Kind, price: float
) -> tuple[Forward, Tensors]:
    """Return the derivatives of the loss without its auxiliary part.

    `centred` (rows, width) is x - output_bias, z (rows, latents) are the pre-activations.
    """
    active = trained(z, kind)
    share = 2 / len(centred)
    gradient = torch.addmm(centred, active, weights["decoder"], beta=-share, alpha=share)
    slopes = gradient @ weights["decoder"].T
    if price:
        slopes += price / len(centred)
    on = active > 0
    slopes *= on
    latent_bias, times = slopes.sum(0), on.sum(0, dtype=torch.int32)
    error = torch.linalg.vector_norm(gradient) ** 2 / share**2
    return Forward(error, active.sum(), times.sum(), times > 0, gradient), {
        "encoder": slopes.T @ centred,
        "decoder": active.T @ gradient,
        "latent_bias": latent_bias,
        "output_bias": bias_slope(gradient, latent_bias, weights["encoder"]),
    }


def bias_slope(gradient: Tensor, latent_bias: Tensor, encoder: Tensor) -> Tensor:
    """Return the derivative by the output bias, which is added to x' and taken from what the encoder sees."""
    return gradient.sum(0) - latent_bias @ encoder


def auxiliary(
    weights: Mapping[str, Tensor],
    forward: Forward,
    centred: Tensor,
    z: Tensor,
    dead: Tensor,
    coefficient: float,
) -> Auxiliary:
    """Let the dead latents reconstruct what the living leave over; at most width / 2 of them on a token.

    `dead` (latents,) bool, at least one. The coefficient counts in full from width / 2 dead latents on.
    """
    places = dead.nonzero()[:, 0]
    most = max(1, centred.shape[1] // 2)
    active = z.index_select(1, places)
    if len(places) > most:
        values, at = torch.topk(active, most, dim=1, sorted=False)
        active = torch.zeros_like(active).scatter_(1, at, values)
    active = active.relu()
    decoder = weights["decoder"].index_select(0, places)
    n = len(centred)
    error = (active @ decoder).add_(forward.gradient, alpha=n / 2)  # e' - e; the gradient is -2/n e
    factor = coefficient * min(1.0, len(places) / most)
    gradient = error * (2 * factor / n)
    slopes = torch.where(active > 0, gradient @ decoder.T, 0.0)
    return Auxiliary(
        places, slopes.T @ centred, active.T @ gradient, slopes.sum(0), error.square().sum() * (factor / n)
    )


def add_(slopes: Tensors, aux: Auxiliary, weights: Mapping[str, Tensor]) -> None:
    """Add the gradients of the auxiliary loss to those of the rest, in place."""
    for name in ("encoder", "decoder", "latent_bias"):
        slopes[name].index_add_(0, aux.places, getattr(aux, name))
    slopes["output_bias"] -= aux.latent_bias @ weights["encoder"].index_select(0, aux.places)


def adam_(weight: Tensor, slope: Tensor, mean: Tensor, square: Tensor, numbers: tuple[float, ...]) -> None:
    """Take one step of Adam in place. `numbers`: rate, beta1, beta2, 1 - beta1^t, 1 - beta2^t, epsilon."""
    rate, beta1, beta2, bias1, bias2, epsilon = numbers
    mean.mul_(beta1).add_(slope, alpha=1 - beta1)
    square.mul_(beta2).addcmul_(slope, slope, value=1 - beta2)
    weight.addcdiv_(mean, square.sqrt().div_(bias2**0.5).add_(epsilon), value=-rate / bias1)


def update_(
    weights: Tensors,
    slopes: Tensors,
    aux: Auxiliary | None,
    means: Tensors,
    squares: Tensors,
    numbers: tuple[float, ...],
) -> None:
    """Step all weights in place; decoder rows keep unit length, and their gradient has no part along them."""
    if aux is not None:
        add_(slopes, aux, weights)
    rows = weights["decoder"]
    slopes["decoder"] -= (slopes["decoder"] * rows).sum(1, keepdim=True) * rows
    for name, slope in slopes.items():
        adam_(weights[name], slope, means[name], squares[name], numbers)
    rows.div_(rows.norm(dim=1, keepdim=True))
