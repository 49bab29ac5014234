"""A torch network on a line: slopes and curvatures against torch.func, and what is left behind (nothing)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from small_networks import Classifier, Tied, data, loss_of, objective, sampled_loss_of, steps  # noqa: E402

from deltasmith.analysis.path import walk  # noqa: E402
from deltasmith.analysis.rules import Grid  # noqa: E402
from deltasmith.analysis.torch_objective import TorchObjective, inner_product  # noqa: E402
from deltasmith.errors import RefusedError  # noqa: E402

Network = Any


def functional(network: Network, chunk: Any) -> Callable[[dict[str, Any]], Any]:
    """The chunk's loss as a function of the parameters."""
    return lambda parameters: torch.nn.functional.cross_entropy(
        torch.func.functional_call(network, parameters, (chunk[0],)), chunk[1]
    )


def values(network: Network) -> dict[str, Any]:
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def test_slopes_are_the_inner_products_of_each_chunks_gradient() -> None:
    network = Classifier(0)
    direction = steps(network, 0)
    start = values(network)
    line = objective(network, direction)
    line.move(0.7)
    losses, slopes = line.slopes()
    moved = {name: start[name] + 0.7 * direction[name] for name in start}
    for row, chunk in enumerate(data(0, (5, 3, 4))):
        gradient = torch.func.grad(functional(network, chunk))(moved)
        expected = [float((gradient[name] * direction[name]).sum()) for name in line.names]
        np.testing.assert_allclose(slopes[row], expected, rtol=1e-12, atol=1e-15)
        assert losses[row] == pytest.approx(float(functional(network, chunk)(moved)), rel=1e-13)
    np.testing.assert_allclose(line.losses(), losses, rtol=1e-14)


def test_nothing_is_left_behind() -> None:
    network = Classifier(1)
    line = objective(network, steps(network, 1))
    line.slopes()
    line.curvatures()
    line.squares(sampled_loss_of, [1, 2, 3], steps(network, 2))
    for parameter in network.parameters():
        assert parameter.grad is None
        assert not parameter._post_accumulate_grad_hooks


def test_hooks_go_when_the_loss_fails() -> None:
    network = Classifier(1)

    def failing(net: Network, chunk: Any) -> Any:
        raise KeyError("no such chunk")

    with pytest.raises(KeyError):
        objective(network, steps(network, 1), loss=failing).slopes()
    assert not any(p._post_accumulate_grad_hooks for p in network.parameters())


def test_parameters_outside_the_direction_rest_and_get_no_gradient() -> None:
    network = Classifier(2)
    start = values(network)
    seen: list[bool] = []

    def watching(net: Network, chunk: Any) -> Any:
        seen.append(net.outer.weight.requires_grad or net.outer.bias.requires_grad)
        return loss_of(net, chunk)

    direction = {name: step for name, step in steps(network, 2).items() if name.startswith("inner")}
    line = objective(network, direction, loss=watching)
    line.move(1.0)
    line.slopes()
    assert line.names == ("inner.weight", "inner.bias")
    assert seen == [False] * 3
    assert torch.equal(network.outer.weight, start["outer.weight"])
    assert not torch.equal(network.inner.weight, start["inner.weight"])
    line.curvatures(steps(network, 3))  # a probe may name others: for a while they have gradients
    assert not network.outer.weight.requires_grad
    assert network.inner.weight.requires_grad


def test_a_parameter_that_the_loss_does_not_use_adds_nothing() -> None:
    network = Classifier(3)
    line = objective(network, steps(network, 3))
    idle = line.names.index("idle")
    assert not line.slopes()[1][:, idle].any()
    assert not line.curvatures()[:, idle].any()
    alone = objective(network, {"idle": torch.ones(2, dtype=torch.float64)})
    assert not alone.slopes()[1].any()
    assert alone.slopes()[0].all()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_moving_back_to_the_start_restores_it_within_rounding(dtype: str) -> None:
    """Eleven moves on and one back: each rounds by half a unit in the last place, at most."""
    network = Classifier(4, getattr(torch, dtype))
    start = values(network)
    direction = steps(network, 4, spread=0.01)
    walk(objective(network, direction), [Grid("left", 5), Grid("midpoint", 5)])
    for name, parameter in network.named_parameters():
        room = 6 * np.spacing((start[name].abs() + direction[name].abs()).numpy())
        assert (np.abs((parameter.detach() - start[name]).numpy()) <= room).all(), name


def test_the_same_chunks_are_read_at_every_point() -> None:
    network = Classifier(5)
    seen: list[int] = []

    def watching(net: Network, chunk: Any) -> Any:
        seen.append(id(chunk))
        return loss_of(net, chunk)

    walk(objective(network, steps(network, 5), loss=watching), [Grid("trapezoid", 4)])
    assert seen == seen[:3] * 5


def test_tied_parameters_move_and_count_once() -> None:
    network = Tied(0)
    tokens = torch.tensor([0, 1, 4, 2, 3, 3])
    chunk = (tokens[:-1], tokens[1:])
    step = torch.linspace(-0.3, 0.3, 20, dtype=torch.float64).reshape(5, 4)
    line = TorchObjective(network, {"embedding.weight": step}, [chunk], [5.0], loss_of)
    before = network.head.weight.detach().clone()
    here = float(loss_of(network, chunk).detach())
    line.move(1e-6)
    assert torch.allclose(network.head.weight, before + 1e-6 * step, rtol=0, atol=1e-18)
    there = float(loss_of(network, chunk).detach())
    line.move(0.0)
    assert line.slopes()[1].shape == (1, 1)
    assert float(line.slopes()[1].sum()) == pytest.approx((there - here) / 1e-6, rel=1e-4)
    twice = torch.autograd.functional.hessian(lambda w: tied_loss(w, chunk), before)
    assert float(line.curvatures().sum()) == pytest.approx(
        float(torch.einsum("ab,abcd,cd->", step, twice, step)), rel=1e-10
    )


def tied_loss(weight: Any, chunk: Any) -> Any:
    logits = torch.tanh(weight[chunk[0]]) @ weight.T
    return torch.nn.functional.cross_entropy(logits, chunk[1])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_curvatures_are_those_of_the_whole_hessian() -> None:
    """u_i·(Hu)_i with every cross term, chunk by chunk, against torch.func.hessian."""
    network = Classifier(6)
    line = objective(network, steps(network, 6))
    u = {name: step for name, step in steps(network, 7, spread=1.0).items() if name != "outer.bias"}
    got = line.curvatures(u)
    assert got.shape == (3, 4)
    for row, chunk in enumerate(data(0, (5, 3, 4))):
        hessian = torch.func.hessian(functional(network, chunk))(values(network))
        for column, i in enumerate(u):
            share = sum(
                (u[i].reshape(-1) @ hessian[i][j].reshape(u[i].numel(), -1) @ u[j].reshape(-1)) for j in u
            )
            assert got[row, column] == pytest.approx(float(share), rel=1e-10, abs=1e-13)
    as_arrays = {name: step.numpy() for name, step in u.items()}
    np.testing.assert_array_equal(line.curvatures(as_arrays), got)


def test_a_loss_that_is_linear_in_the_probe_has_no_curvature() -> None:
    network = Classifier(8)

    def linear(net: Network, chunk: Any) -> Any:
        return net.inner.weight.sum() * 3.0

    assert not objective(network, steps(network, 8), loss=linear).curvatures().any()


def test_a_network_that_can_be_differentiated_once_only_is_refused() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.sin()

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            raise RuntimeError("derivative for aten::_fused_attention_backward is not implemented")

    def fused(net: Network, chunk: Any) -> Any:
        return Once.apply(net.inner.weight).sum()

    network = Classifier(9)
    with pytest.raises(RefusedError, match=r"cannot be differentiated twice.*--second-order fisher"):
        objective(network, steps(network, 9), loss=fused).curvatures()


def test_squares_are_weighted_sums_of_squared_gradients() -> None:
    network = Classifier(10)
    line = objective(network, steps(network, 10))
    weights = {name: step.abs() for name, step in steps(network, 11).items()}
    got = line.squares(sampled_loss_of, [7, 8, 9], weights)
    parameters = list(network.parameters())
    for row, (chunk, key) in enumerate(zip(data(0, (5, 3, 4)), (7, 8, 9), strict=True)):
        gradients = torch.autograd.grad(sampled_loss_of(network, chunk, key), parameters, allow_unused=True)
        expected = [
            0.0 if g is None else float((w * g * g).sum())
            for g, w in zip(gradients, weights.values(), strict=True)
        ]
        np.testing.assert_allclose(got[row], expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["inner.weight", "nowhere"])
def test_what_does_not_fit_the_network_is_refused(name: str) -> None:
    network = Classifier(11)
    misfit = {name: torch.zeros(3, 3, dtype=torch.float64)}
    with pytest.raises(ValueError, match=f"no parameter {name} of shape"):
        objective(network, misfit)
    with pytest.raises(ValueError, match=f"no parameter {name} of shape"):
        objective(network, steps(network, 0)).curvatures(misfit)


def test_inner_products_are_added_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Terms that cancel: in float32 nothing would be left; in pieces, too."""
    monkeypatch.setattr("deltasmith.analysis.torch_objective._PIECE", 3)
    a = torch.tensor([1e4, 1e-3, -1e4, 2e-3], dtype=torch.float32)
    b = torch.tensor([1e4, 1.0, 1e4, 1.0], dtype=torch.float32)
    assert float(inner_product(a, b)) == pytest.approx(3e-3, rel=1e-6)
    assert float(inner_product(torch.zeros(0), torch.zeros(0))) == 0.0
