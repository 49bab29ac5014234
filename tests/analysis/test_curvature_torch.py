"""Second order of small networks: the probes against the exact diagonals, and both against what masks do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from small_networks import Classifier, data, objective, sampled_loss_of, steps, trained  # noqa: E402

from deltasmith.analysis.curvature import expand, fisher_excess, hessian_excess  # noqa: E402
from deltasmith.kernels.bits import threshold_of, uniform_bits  # noqa: E402
from deltasmith.operation.randomness import cell_key  # noqa: E402

SIZES = (6, 4, 8)
MASKS = 4000
P, K = 0.6, 0.0


def losses_at(network: Any, stacked: dict[str, Any]) -> np.ndarray:
    """Return the loss over all data at many points, (points,)."""
    chunks = data(0, SIZES)
    inputs, labels = torch.cat([c[0] for c in chunks]), torch.cat([c[1] for c in chunks])
    # By hand, because vmap is slower to start than all points are to compute.
    inner = torch.einsum("ni,mhi->mnh", inputs, stacked["inner.weight"]) + stacked["inner.bias"][:, None]
    hidden = torch.tanh(inner)
    logits = torch.einsum("mnh,moh->mno", hidden, stacked["outer.weight"]) + stacked["outer.bias"][:, None]
    picked = logits.log_softmax(-1).gather(2, labels.expand(len(logits), -1)[..., None])[..., 0]
    return np.asarray(-picked.mean(dim=1))


def masked(delta: dict[str, Any], p: float, k: float) -> dict[str, Any]:
    """Draw k-DARE's additive edits, each with its mask: (k − 1)(M − p)/(1 − p) δ, M = 1 where dropped."""
    stacked = {}
    for name, d in delta.items():
        bits = uniform_bits(cell_key(0, "test", name), 0, MASKS * d.numel())
        dropped = torch.from_numpy((bits >= threshold_of(1 - p)).astype(np.float64))
        stacked[name] = (k - 1) * (dropped.reshape(MASKS, *d.shape) - p) / (1 - p) * d
    return stacked


def parameters(network: Any) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def gradients(network: Any) -> dict[str, Any]:
    """Return the gradient of the mean loss over all data, by parameter."""
    chunks = data(0, SIZES)
    inputs, labels = torch.cat([c[0] for c in chunks]), torch.cat([c[1] for c in chunks])
    loss = torch.nn.functional.cross_entropy(network(inputs), labels)
    names, values = zip(*network.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, values, allow_unused=True)
    return {name: g for name, g in zip(names, found, strict=True) if g is not None}


def exact_diagonal(network: Any) -> dict[str, np.ndarray]:
    """Differentiate the mean loss over all data twice, element by element."""
    chunks = data(0, SIZES)
    inputs, labels = torch.cat([c[0] for c in chunks]), torch.cat([c[1] for c in chunks])
    start = parameters(network)

    def loss(values: dict[str, Any]) -> Any:
        return torch.nn.functional.cross_entropy(
            torch.func.functional_call(network, values, (inputs,)), labels
        )

    hessian = torch.func.jacrev(torch.func.jacrev(loss))(start)
    return {
        n: np.diag(hessian[n][n].reshape(v.numel(), -1).numpy()).reshape(v.shape) for n, v in start.items()
    }


def variances_of(delta: dict[str, Any], p: float, k: float) -> dict[str, np.ndarray]:
    return {name: ((1 - k) ** 2 * p / (1 - p) * d**2).numpy() for name, d in delta.items()}


def predicted(network: Any, delta: dict[str, Any]) -> float:
    diagonal, variances = exact_diagonal(network), variances_of(delta, P, K)
    return 0.5 * float(sum((diagonal[name] * v).sum() for name, v in variances.items()))


def test_probes_find_the_exact_diagonal_term() -> None:
    network = trained(Classifier(0), data(0, SIZES))
    delta = steps(network, 0, spread=0.05)
    found = hessian_excess(objective(network, delta, SIZES), variances_of(delta, P, K), probes=60)
    assert found.standard_error is not None
    assert abs(found.total - predicted(network, delta)) < 4 * found.standard_error
    assert found.standard_error < 0.3 * abs(found.total)
    assert found.excess["idle"] == 0.0


def mean_and_error(changes: np.ndarray) -> tuple[float, float]:
    return float(changes.mean()), float(changes.std(ddof=1) / np.sqrt(len(changes)))


@pytest.mark.parametrize("spread", [0.02, 0.04])
def test_masks_cost_what_is_predicted(spread: float) -> None:
    """Dropping, measured: the mean change over thousands of masks is the predicted excess, and grows as δ².

    The slope of each mask is known, and zero on average: taking it away leaves the sampling error of the rest.
    """
    network = trained(Classifier(1), data(0, SIZES))
    start = parameters(network)
    delta = steps(network, 1, spread=spread)
    edits = masked(delta, P, K)
    changes = losses_at(network, {n: start[n] + e for n, e in edits.items()}) - losses_at(
        network, {n: v[None] for n, v in start.items()}
    )
    first = sum((edits[n].reshape(MASKS, -1) @ g.reshape(-1)).numpy() for n, g in gradients(network).items())
    plain, plain_error = mean_and_error(changes)
    mean, error = mean_and_error(changes - first)
    expected = predicted(network, delta)
    assert abs(plain - expected) < 4 * plain_error
    assert error < 0.03 * expected
    assert mean == pytest.approx(expected, abs=4 * error + 0.02 * expected)  # what is left is of higher order


def test_the_excess_grows_as_the_square_of_the_delta() -> None:
    network = Classifier(2)
    delta = steps(network, 2)
    twice = {name: 2 * d for name, d in delta.items()}
    one, four = (
        hessian_excess(objective(network, d, SIZES), variances_of(d, P, K), probes=3) for d in (delta, twice)
    )
    assert four.total == pytest.approx(4 * one.total, rel=1e-12)


def test_the_expansion_predicts_a_small_edit_to_third_order() -> None:
    network = Classifier(3)
    direction = steps(network, 3, spread=1.0)
    misses = []
    for size in (1e-2, 5e-3):
        line = objective(network, {name: size * d for name, d in direction.items()}, SIZES)
        found = expand(line)
        here = line.losses()
        line.move(1.0)
        change = float((line.losses() - here) @ line.counts / line.counts.sum())
        line.move(0.0)
        misses.append(found.total - change)
    assert misses[0] / misses[1] == pytest.approx(8, rel=0.1)


def exact_fisher(network: Any) -> dict[str, np.ndarray]:
    """Sum over all labels, each with its probability, the squared gradient of −log p, over every input."""
    chunks = data(0, SIZES)
    inputs = torch.cat([c[0] for c in chunks])
    total = {name: np.zeros(tuple(v.shape)) for name, v in network.named_parameters()}
    for one in inputs:
        for label in range(3):
            logs = network(one[None]).log_softmax(-1)[0]
            gradients = torch.autograd.grad(-logs[label], list(network.parameters()), allow_unused=True)
            for name, g in zip(total, gradients, strict=True):
                if g is not None:
                    total[name] += float(logs[label].detach().exp()) * g.numpy() ** 2 / len(inputs)
    return total


def test_sampled_labels_find_the_exact_fisher_term() -> None:
    network = Classifier(4)
    delta = steps(network, 4, spread=0.05)
    variances = variances_of(delta, P, K)
    found = fisher_excess(objective(network, delta, SIZES), sampled_loss_of, variances, probes=100)
    fisher = exact_fisher(network)
    exact = {name: 0.5 * float((fisher[name] * v).sum()) for name, v in variances.items()}
    assert found.standard_error is not None
    assert abs(found.total - sum(exact.values())) < 4 * found.standard_error
    assert found.standard_error < 0.1 * found.total
    assert found.excess == pytest.approx(exact, rel=0.5)
