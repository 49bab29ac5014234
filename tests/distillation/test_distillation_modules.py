"""Base plus signs times scales, as torch modules."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from tiny_llamas import VOCABULARY, one_bit, pair

torch: Any = pytest.importorskip("torch")
pytest.importorskip("transformers")

from deltasmith.distillation.modules import LinearWithBits, install  # noqa: E402
from deltasmith.distillation.scales import Scaled  # noqa: E402


def added(base: Any, tensors: dict[str, Scaled]) -> Any:
    """Return the base with its deltas added in float32."""
    model = copy.deepcopy(base).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in tensors:
                one = tensors[name]
                delta = (one.signs * one.scale[:, :, None]).sum(0).reshape(parameter.shape)
                parameter += torch.from_numpy(delta)
    return model


TOKENS = torch.arange(24).reshape(2, 12) % VOCABULARY


@pytest.mark.parametrize("per_row", [False, True], ids=["tensor", "row"])
@pytest.mark.parametrize("passes", [1, 3])
def test_logits_are_those_of_the_decoded_delta(passes: int, per_row: bool) -> None:
    base, fine = pair()
    tensors = one_bit(base, fine, passes, per_row)
    wanted = added(base, tensors)(TOKENS).logits
    found = install(base, tensors)
    assert set(found) == set(tensors)
    assert [n for n, p in base.named_parameters() if p.requires_grad] == [
        f"{name.removesuffix('.weight')}.scale" for name in tensors
    ]
    torch.testing.assert_close(base(TOKENS).logits, wanted, rtol=1e-5, atol=1e-5)


def test_gradients_are_exact_through_later_layers() -> None:
    """Against differences in float64: a path that skipped the deltas of later layers would show."""
    torch.manual_seed(0)
    layers = [
        torch.nn.Linear(6, 6),
        torch.nn.Tanh(),
        torch.nn.Linear(6, 6),
        torch.nn.Tanh(),
        torch.nn.Linear(6, 3),
    ]
    model = torch.nn.Sequential(*layers).double()
    random = np.random.default_rng(0)
    shapes = {"0.weight": (6, 6), "2.weight": (6, 6), "4.weight": (3, 6)}
    scales = install(model, {name: _random(random, *shape, passes=2) for name, shape in shapes.items()})
    for scale in scales.values():
        scale.data = scale.data.double()
    x = torch.randn(5, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *_: model(x).square().mean(), tuple(scales.values()))


def test_a_scale_below_the_last_place_counts_in_bfloat16() -> None:
    linear = torch.nn.Linear(2, 1, bias=False, dtype=torch.bfloat16)
    torch.nn.init.ones_(linear.weight)
    signs = torch.tensor([[[1, -1]]], dtype=torch.int8)
    x = torch.tensor([[1.0, -1.0]], dtype=torch.bfloat16)
    y = LinearWithBits(linear, signs, torch.nn.Parameter(torch.full((1, 1), 1e-3)))(x)
    assert y.dtype == torch.bfloat16
    assert float(y.detach()) == pytest.approx(2e-3, rel=1e-2)  # 1 + 0.001 is 1 in bfloat16


def test_tensors_outside_linear_layers_and_tied_ones() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(6, 4)
            self.norm = torch.nn.LayerNorm(4)
            self.head = torch.nn.Linear(4, 6, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Any) -> Any:
            return self.head(self.norm(self.embed(tokens)))

    torch.manual_seed(0)
    model = Tied()
    random = np.random.default_rng(1)
    tensors = {
        "embed.weight": _random(random, 6, 4),
        "norm.weight": _random(random, 1, 4),
        "nothing.weight": _random(random, 1, 4),
    }
    wanted = added(model, tensors)
    wanted.head.weight = wanted.embed.weight
    scales = install(model, tensors)
    assert set(scales) == {"embed.weight", "norm.weight"}
    tokens = torch.tensor([[0, 3, 5]])
    torch.testing.assert_close(model(tokens), wanted(tokens))
    model(tokens).square().sum().backward()
    assert all(scale.grad.abs().sum() > 0 for scale in scales.values())


def _random(random: Any, rows: int, width: int, passes: int = 1) -> Scaled:
    signs = np.where(random.random((passes, rows, width)) < 0.5, -1, 1).astype(np.int8)
    return Scaled(signs, np.full((passes, 1), 0.1, np.float32), "scale", (passes,))
