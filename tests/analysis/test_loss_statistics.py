"""Gradient, Fisher diagonal and Gram matrices against what they are by definition, on networks of a few numbers."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from small_networks import Classifier, Tied, data, loss_of, sampled_loss_of  # noqa: E402

from deltasmith.analysis.statistics import Ready, Run  # noqa: E402
from deltasmith.engine.workers import Stop  # noqa: E402
from deltasmith.errors import InterruptedRunError, RefusedError, ResourceError  # noqa: E402

SIZES = (5, 1, 3, 4)
"""Rows of each example: a text's tokens, as it were."""


def ready(network=None, sizes=SIZES, batch=2):
    found = network or Classifier(3)
    chunks = data(0, sizes)

    def lay_out(size):
        groups = [chunks[at : at + size] for at in range(0, len(chunks), size)]
        joined = [tuple(torch.cat(parts) for parts in zip(*group, strict=True)) for group in groups]
        return joined, [float(len(x)) for x, _ in joined]

    return Ready(
        found,
        "net",
        len(sizes),
        (),
        loss_of,
        sampled_loss_of,
        lay_out,
        batch,
        lambda: iter(chunks),
        lambda net, chunk: net(chunk[0]),
    )


def run(prepared, seed=0, memory=1 << 20, stop=None):
    names = {name: f"file.{name}" for name in prepared.parameters}
    return Run(prepared, names, seed, memory, stop or Stop(), lambda done, of: None)


def everything(sizes=SIZES):
    inputs, labels = zip(*data(0, sizes), strict=True)
    return torch.cat(inputs), torch.cat(labels)


@pytest.mark.parametrize("batch", [1, 3, 9])
def test_the_gradient_is_that_of_the_mean_over_all_data(batch):
    prepared = ready(batch=batch)
    found = dict(run(prepared).gradient())
    network = Classifier(3)
    loss_of(network, everything()).backward()
    for name, parameter in network.named_parameters():
        wanted = np.zeros(2) if parameter.grad is None else parameter.grad.numpy()
        np.testing.assert_allclose(found[f"file.{name}"], wanted, rtol=1e-6, atol=1e-8)
        assert found[f"file.{name}"].dtype == np.float32
    assert list(found) == sorted(found)
    assert all(parameter.grad is None for parameter in prepared.network.parameters())


def exact_fisher(network, inputs):
    """Average over rows the expectation over labels of the squared gradient of -log p(label)."""
    sums = {name: np.zeros(tuple(p.shape)) for name, p in network.named_parameters()}
    for row in inputs:
        for label in range(3):
            network.zero_grad()
            log_p = network(row[None]).log_softmax(-1)[0, label]
            log_p.backward()
            for name, parameter in network.named_parameters():
                if parameter.grad is not None:
                    sums[name] += float(log_p.detach().exp()) * parameter.grad.numpy() ** 2
    return {name: total / len(inputs) for name, total in sums.items()}


def test_the_fisher_diagonal_is_unbiased_for_one_row_whatever_the_examples_hold():
    draws = 250
    mean = {}
    for seed in range(draws):
        for name, values in run(ready(), seed).fisher():
            assert (values >= 0).all()
            mean[name] = mean.get(name, 0) + values / draws
    wanted = exact_fisher(Classifier(3), everything()[0])
    flat = np.concatenate([mean[f"file.{name}"].ravel() for name in wanted])
    exact = np.concatenate([values.ravel() for values in wanted.values()])
    # Of 250 × 4 squares, each relatively uncertain by about √2: 4.5 % of the large ones, and these make the norm.
    assert np.linalg.norm(flat - exact) < 0.1 * np.linalg.norm(exact)
    assert abs(flat.sum() / exact.sum() - 1) < 0.1


def test_the_fisher_diagonal_is_that_of_its_seed():
    one, again, other = (dict(run(ready(), seed).fisher()) for seed in (1, 1, 2))
    assert all(np.array_equal(one[name], again[name]) for name in one)
    assert not np.array_equal(one["file.outer.weight"], other["file.outer.weight"])


@pytest.mark.parametrize("memory", [1 << 20, 128])
def test_grams_are_the_mean_products_of_inputs(memory):
    prepared = ready()
    inputs = everything()[0]
    working = run(prepared, memory=memory)
    found = dict(working.grams())
    inside = torch.tanh(prepared.network.inner(inputs)).detach()
    assert list(found) == ["file.inner.weight::gram", "file.outer.weight::gram"] == working.planned("gram")
    for name, x in (("inner", inputs), ("outer", inside)):
        np.testing.assert_allclose(found[f"file.{name}.weight::gram"], (x.T @ x / len(x)).numpy(), rtol=1e-6)
    assert working.notes == []


def test_a_gram_that_fits_no_memory_is_refused():
    with pytest.raises(
        ResourceError, match=r"its Gram matrix needs 1 MiB, beyond the 0 MiB .* file.outer.weight"
    ):
        list(run(ready(), memory=100).grams())


def test_a_layer_that_is_an_embedding_has_no_gram():
    with pytest.raises(RefusedError, match="no linear layer"):
        list(run(ready(Tied(0))).grams())


@pytest.mark.parametrize("kind", ["gradient", "fisher", "grams"])
def test_a_stop_is_heard(kind):
    stop = Stop()
    stop.ask()
    with pytest.raises(InterruptedRunError):
        list(getattr(run(ready(), stop=stop), kind)())
