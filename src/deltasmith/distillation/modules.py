"""Torch modules whose weight is a frozen base plus learnt scales times frozen signs.

The signs stay one byte each; a product turns those of its own layer into the type it computes in, forwards and once
more backwards, and keeps nothing of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from deltasmith.distillation.scales import Scaled

__all__ = ["AddScaled", "LinearWithBits", "install"]


class _SignProduct(torch.autograd.Function):
    """x Sᵀ with gradients for x alone: `(…, in), (out, in) int8 -> (…, out)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, signs: Tensor) -> Tensor:
        ctx.save_for_backward(signs)
        return functional.linear(x, signs.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (signs,) = ctx.saved_tensors
        (gradient,) = gradients
        return gradient @ signs.to(gradient.dtype), None


class LinearWithBits(nn.Module):
    """Compute y = x W0ᵀ + b + Σ_k α_k · (x S_kᵀ), with gradients for x and α.

    The two terms meet only here, so that a scale smaller than the last place of W0 still counts in bfloat16. α is
    float32, (passes, 1) or (passes, out).
    """

    signs: Tensor

    def __init__(self, linear: nn.Linear, signs: Tensor, scale: nn.Parameter) -> None:
        """Take over weight and bias of `linear`; `signs` is (passes, out, in) int8 on the same device."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias, self.scale = linear.weight, linear.bias, scale
        self.register_buffer("signs", signs, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute `(…, in) -> (…, out)` in the type of `x`."""
        y = functional.linear(x, self.weight, self.bias)
        for signs, scale in zip(self.signs, self.scale, strict=True):
            product: Tensor = _SignProduct.apply(x, signs)  # type: ignore[no-untyped-call]
            y = y + (product * scale).to(y.dtype)
        return y


class AddScaled(nn.Module):
    """Add Σ_k α_k · S_k to a parameter that no linear layer multiplies by: embeddings, norms, convolutions.

    The sum is rounded to the parameter's own type, as unpacking would.
    """

    signs: Tensor

    def __init__(self, signs: Tensor, scale: nn.Parameter) -> None:
        """Hold (passes, rows, width) signs and their scales."""
        super().__init__()
        self.scale = scale
        self.register_buffer("signs", signs, persistent=False)

    def forward(self, base: Tensor) -> Tensor:
        """Return the tensor with its delta."""
        delta = (self.signs.float() * self.scale[:, :, None]).sum(0)
        return (base.float() + delta.reshape(base.shape)).to(base.dtype)


def install(model: nn.Module, tensors: Mapping[str, Scaled]) -> dict[str, nn.Parameter]:
    """Give every module that holds one of `tensors` its scales, freeze all else, and return the scales by name.

    The parameters named must hold the base's values. A parameter that several modules share (a tied head) gets one
    scale in all of them. Tensors that the model does not have under that name and size are left out of the result.
    """
    model.requires_grad_(False)
    parameters = dict(model.named_parameters())
    owners: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((path, module, name))
    found = {}
    for name, one in tensors.items():
        parameter = parameters.get(name)
        if parameter is None or parameter.numel() * one.signs.shape[0] != one.signs.size:
            continue
        found[name] = _installed(model, owners[id(parameter)], parameter, one)
    return found


def _installed(
    model: nn.Module, owners: list[tuple[str, nn.Module, str]], parameter: nn.Parameter, one: Scaled
) -> nn.Parameter:
    signs = torch.from_numpy(one.signs).to(parameter.device)
    scale = nn.Parameter(torch.from_numpy(one.scale.copy()).to(parameter.device))
    for path, module, attribute in owners:
        if isinstance(module, nn.Linear) and attribute == "weight":
            model.set_submodule(path, LinearWithBits(module, signs, scale))
        else:
            parametrize.register_parametrization(module, attribute, AddScaled(signs, scale))
    return scale
