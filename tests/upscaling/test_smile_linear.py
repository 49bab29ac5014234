"""The mixture of one linear: golden outputs, a direct float64 evaluation, routing, given weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import golden_cases
from deltasmith.upscaling.factors import factors, splitter
from deltasmith.upscaling.settings import Settings

pytest.importorskip("torch")

import torch

from deltasmith.upscaling.linear import MixedConv1D, Mixture, SmileLinear, given_weights, route


def mixed(base, bias, tuned, biases, settings, *, dtype=torch.float32):
    """Make a SmileLinear of arrays; `mixture` is its own."""
    linear = torch.nn.Linear(base.shape[1], base.shape[0], bias=bias is not None)
    found = factors([t - base for t in tuned], *base.shape, settings, splitter("cpu"))
    if bias is not None:
        found["smile_bias"] = np.stack([b - bias for b in biases])
    mixture = Mixture(len(tuned), settings.top_k)
    module = SmileLinear(linear, mixture, settings.rank(*base.shape), settings.router_rank)
    arrays = found | {"weight": base} | ({} if bias is None else {"bias": bias})
    module.load_state_dict({n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in arrays.items()})
    return module.to(dtype)


def direct(base, bias, tuned, biases, settings, x):
    """Evaluate the definition in float64, token by token."""
    lines = []
    for token in x.astype(np.float64):
        parts, norms = [], []
        for weight, own in zip(tuned, biases, strict=True):
            u, s, vt = np.linalg.svd((weight - base).astype(np.float64), full_matrices=False)
            k = settings.expert_rank if settings.expert_rank > 0 else len(s)
            norms.append(np.sqrt(((vt[: settings.router_rank] @ token) ** 2).sum()))
            parts.append((u[:, :k] * s[:k]) @ vt[:k] @ token + (own - bias))
        likely = np.exp(norms) / np.exp(norms).sum()
        best = np.argsort(-likely, kind="stable")[: settings.top_k]
        weights = likely[best] / likely[best].sum()
        lines.append(base @ token + bias + sum(w * parts[i] for w, i in zip(weights, best, strict=True)))
    return np.array(lines)


def drawn(seed=0, rows=12, columns=20, experts=3, tokens=9):
    rng = np.random.default_rng(seed)

    def draw(*shape, spread=1.0):
        return (rng.normal(size=shape) * spread).astype(np.float32)

    base, bias = draw(rows, columns, spread=0.2), draw(rows, spread=0.2)
    tuned = [base + draw(rows, columns, spread=0.1) for _ in range(experts)]
    biases = [bias + draw(rows, spread=0.1) for _ in range(experts)]
    return base, bias, tuned, biases, draw(tokens, columns)


def settings_of(experts=3, **numbers):
    return Settings(tuple(f"e{i}" for i in range(experts)), **numbers)


@pytest.mark.parametrize("case", golden_cases.cases("smile"), ids=str)
def test_golden(case):
    arrays, params = case.arrays, case.params
    count = params["experts"]
    settings = settings_of(
        count, router_rank=params["gate_k"], expert_rank=params["k"], top_k=params["top_k"]
    )
    module = mixed(
        arrays["base_weight"],
        arrays["base_bias"],
        [arrays[f"ft_weight_{i}"] for i in range(count)],
        [arrays[f"ft_bias_{i}"] for i in range(count)],
        settings,
    )
    with torch.inference_mode():
        got = module(torch.from_numpy(arrays["x"])).numpy()
    golden_cases.assert_close(got, arrays["expected_y"], case)


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("rank", [4, 12, -1])
@pytest.mark.parametrize("tokens", [1, 9])
def test_equals_the_definition(top_k, rank, tokens):
    *given, x = drawn(tokens=tokens)
    settings = settings_of(router_rank=3, expert_rank=rank, top_k=top_k)
    module = mixed(*given, settings, dtype=torch.float64)
    with torch.inference_mode():
        got = module(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(got, direct(*given, settings, x), atol=1e-6, rtol=0)


def test_one_expert_of_full_rank_is_the_expert():
    base, bias, tuned, biases, x = drawn(experts=1)
    module = mixed(base, bias, tuned, biases, settings_of(1, router_rank=2, expert_rank=12))
    with torch.inference_mode():
        got = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, x @ tuned[0].T + biases[0], atol=1e-5)


def test_without_bias_and_with_more_dimensions():
    base, _, tuned, _, x = drawn(tokens=12)
    settings = settings_of(router_rank=3, expert_rank=4)
    module = mixed(base, None, tuned, None, settings)
    zero = np.zeros(12, np.float32)
    with torch.inference_mode():
        got = module(torch.from_numpy(x).view(3, 4, 20))
    assert got.shape == (3, 4, 12)
    wanted = direct(base, zero, tuned, [zero] * 3, settings, x)
    np.testing.assert_allclose(got.reshape(12, 12).numpy(), wanted, atol=1e-5)


def test_no_tokens():
    *given, _ = drawn()
    module = mixed(*given, settings_of(router_rank=3, expert_rank=4))
    assert module(torch.zeros(0, 20)).shape == (0, 12)


def test_a_token_does_not_depend_on_its_neighbours():
    *given, x = drawn(tokens=9)
    module = mixed(*given, settings_of(router_rank=3, expert_rank=4, top_k=2), dtype=torch.float64)
    tokens = torch.from_numpy(x).double()
    with torch.inference_mode():
        together = module(tokens)
        alone = torch.cat([module(token[None]) for token in tokens])
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=0)


def test_ties_go_to_the_earlier_expert():
    gate = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    chosen = route(torch.tensor([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]]), gate, 5, 2)
    assert chosen.index.tolist() == [[0, 1], [0, 2], [1, 3]]
    torch.testing.assert_close(chosen.weight, torch.full((3, 2), 0.5))
    many = route(torch.ones(5, 1), torch.ones(200, 1), 200, 3)
    assert many.index.tolist() == [[0, 1, 2]] * 5


def test_routing_in_half_precision_does_not_overflow():
    chosen = route(torch.full((1, 4), 60.0, dtype=torch.float16), torch.eye(4, dtype=torch.float16), 2, 1)
    assert chosen.weight.dtype == torch.float32
    assert chosen.index.tolist() == [[0]]
    assert chosen.weight.tolist() == [[1.0]]


@pytest.mark.parametrize("rank", [12, -1])
def test_given_weights_overrule_the_gate(rank):
    base, bias, tuned, biases, x = drawn(tokens=8)
    module = mixed(base, bias, tuned, biases, settings_of(router_rank=3, expert_rank=rank))
    tokens = torch.from_numpy(x)
    module.mixture.weights = torch.tensor([0.0, 1.0, 0.0])
    with torch.inference_mode():
        np.testing.assert_allclose(module(tokens).numpy(), x @ tuned[1].T + biases[1], atol=1e-5)
        module.mixture.weights = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.0, 0.5]])
        got = module(tokens.view(2, 4, 20)).numpy()
    np.testing.assert_allclose(got[0], x[:4] @ base.T + bias, atol=1e-5)
    halves = x[4:] @ (tuned[0] + tuned[2]).T / 2 + (biases[0] + biases[2]) / 2
    np.testing.assert_allclose(got[1], halves, atol=1e-5)


def test_given_weights_need_their_batch():
    with pytest.raises(ValueError, match="weights are set for 2 rows, and 5 tokens came"):
        given_weights(torch.ones(2, 3), 5)


def test_new_experts_change_nothing():
    linear = torch.nn.Linear(6, 5)
    grown = SmileLinear(linear, Mixture(2, 1), 3, 2)
    x = torch.randn(4, 6)
    torch.testing.assert_close(grown(x), linear(x))
    assert grown.weight is linear.weight


def test_the_transposed_linear_of_gpt2():
    conv = pytest.importorskip("transformers").pytorch_utils.Conv1D(12, 20)
    base, bias, tuned, biases, x = drawn()
    settings = settings_of(router_rank=3, expert_rank=4, top_k=2)
    straight = mixed(base, bias, tuned, biases, settings)
    module = MixedConv1D(conv, Mixture(3, 2), 4, 3)
    state = straight.state_dict()
    module.load_state_dict(state | {"weight": state["weight"].T})
    with torch.inference_mode():
        tokens = torch.from_numpy(x).view(3, 3, 20)
        torch.testing.assert_close(module(tokens), straight(tokens), atol=1e-5, rtol=0)


def test_gradients_reach_the_chosen_experts():
    *given, x = drawn()
    module = mixed(*given, replace(settings_of(router_rank=3, expert_rank=4), top_k=2))
    module(torch.from_numpy(x)).sum().backward()
    assert module.smile_u.grad.abs().sum() > 0
    assert module.smile_gate.grad.abs().sum() > 0
