"""Every gradient that is written out, against autograd in float64; and the quick arithmetic against the plain."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from sae_making import KINDS, begun, planted

from deltasmith.features.dictionaries import dense, sparse
from deltasmith.features.dictionaries.kernels import batch_cut_reference
from deltasmith.features.dictionaries.settings import BatchTopK, ReluL1, TopK
from deltasmith.features.dictionaries.trainer import Optimiser, Trainer

NAMES = "encoder", "decoder", "latent_bias", "output_bias"


def weights_of(seed: int, latents: int = 40, width: int = 12) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    weights = {
        "encoder": torch.randn(latents, width, generator=draws, dtype=torch.float64),
        "decoder": torch.randn(latents, width, generator=draws, dtype=torch.float64),
        "latent_bias": 0.1 * torch.randn(latents, generator=draws, dtype=torch.float64),
        "output_bias": torch.randn(width, generator=draws, dtype=torch.float64),
    }
    weights["decoder"] /= weights["decoder"].norm(dim=1, keepdim=True)
    return weights


def taped(weights, x, kind, price, dead=None, coefficient=0.0):
    """The loss as one would write it down, left to autograd."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    z = (x - leaves["output_bias"]) @ leaves["encoder"].T + leaves["latent_bias"]
    if isinstance(kind, TopK):
        values, at = z.topk(kind.k, dim=1)
        active = torch.zeros_like(z).scatter(1, at, values.relu())
    elif isinstance(kind, BatchTopK):
        cut = z.flatten().topk(kind.k * len(z)).values[-1]
        active = torch.where((z >= cut) & (z > 0), z, 0.0)
    else:
        active = z.relu()
    made = active @ leaves["decoder"] + leaves["output_bias"]
    loss = (made - x).square().sum() / len(x) + price * active.sum() / len(x)
    if dead is not None:
        count, most = int(dead.sum()), x.shape[1] // 2
        among = torch.where(dead, z, -torch.inf)
        values, at = among.topk(min(count, most), dim=1)
        revived = torch.zeros_like(z).scatter(1, at, values.relu()) @ leaves["decoder"]
        share = coefficient * min(1.0, count / most)
        loss = loss + share * (revived - (x - made).detach()).square().sum() / len(x)
    loss.backward()
    return loss.item(), {name: leaves[name].grad for name in NAMES}


@pytest.mark.parametrize("kind", [TopK(k=3), TopK(k=30), BatchTopK(k=3), ReluL1(coefficient=1)])
def test_gradients_are_those_of_autograd(kind):
    weights, x = (
        weights_of(1),
        torch.randn(30, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2)),
    )
    price = 0.7 if isinstance(kind, ReluL1) else 0.0
    centred = x - weights["output_bias"]
    z = centred @ weights["encoder"].T + weights["latent_bias"]
    found, slopes = dense.gradients(weights, centred, z, kind, price)
    loss, expected = taped(weights, x, kind, price)
    assert (found.error + price * found.activity).item() / 30 == pytest.approx(loss, rel=1e-12)
    for name in NAMES:
        torch.testing.assert_close(slopes[name], expected[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("count", [1, 4, 6, 20])
def test_the_auxiliary_gradients_are_those_of_autograd(count):
    weights, x = (
        weights_of(1),
        torch.randn(30, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2)),
    )
    dead = torch.zeros(40, dtype=torch.bool)
    dead[torch.arange(count) * 2] = True
    centred = x - weights["output_bias"]
    z = centred @ weights["encoder"].T + weights["latent_bias"]
    found, slopes = dense.gradients(weights, centred, z, TopK(k=3), 0.0)
    aux = dense.auxiliary(weights, found, centred, z, dead, 0.3)
    dense.add_(slopes, aux, weights)
    loss, expected = taped(weights, x, TopK(k=3), 0.0, dead, 0.3)
    assert (found.error.item() / 30 + aux.loss.item()) == pytest.approx(loss, rel=1e-12)
    for name in NAMES:
        torch.testing.assert_close(slopes[name], expected[name], rtol=1e-10, atol=1e-12)


def trainers(kind, **optimiser):
    """Two trainers of one dictionary: as it is, and on the plain path."""
    pair = [Trainer(begun(kind, latents=200), Optimiser(**optimiser), 40) for _ in range(2)]
    pair[1]._workers = None
    return pair


@pytest.mark.parametrize("kind", KINDS)
def test_the_quick_gradients_are_those_of_the_plain_path(kind, monkeypatch):
    monkeypatch.setattr(sparse, "_SPARSE", 1)
    quick, plain = trainers(kind, dead_after=100)
    for each in (quick, plain):
        each._since[::3] = 100  # the auxiliary loss takes part
    raw = planted(64, 5)
    quick.step(raw)
    plain.step(raw)
    for name in NAMES:  # after one step the mean gradient is a tenth of the gradient
        mine, expected = quick.state()[f"mean.{name}"] * 10, plain.state()[f"mean.{name}"] * 10
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_both_paths_learn_the_same(kind, monkeypatch):
    monkeypatch.setattr(sparse, "_SPARSE", 1)
    quick, plain = trainers(kind)
    for i in range(10):
        mine, expected = quick.step(planted(64, i)), plain.step(planted(64, i))
        assert mine.loss == pytest.approx(expected.loss, rel=1e-4)
        assert mine.fvu == pytest.approx(expected.fvu, rel=1e-4)
        assert mine.l0 == pytest.approx(expected.l0, rel=1e-2)
        assert mine.dead == expected.dead
    torch.testing.assert_close(quick.dictionary().decoder, plain.dictionary().decoder, rtol=1e-2, atol=1e-3)


def test_the_gradient_along_decoder_rows_is_removed():
    trainer = Trainer(begun(TopK(k=4)), Optimiser(), 3)
    rows = trainer.dictionary().decoder
    trainer.step(planted(64, 5))
    along = (trainer.state()["mean.decoder"] * rows).sum(1)
    assert along.abs().max() < 1e-6
    assert trainer.state()["mean.decoder"].norm() > 1e-3


def test_adam_is_that_of_torch():
    weight = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = weight.clone().requires_grad_()
    adam = torch.optim.Adam([theirs], lr=0.01, betas=(0.8, 0.95), eps=1e-6)
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for t in range(1, 6):
        slope = torch.randn(50, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        theirs.grad = slope.clone()
        adam.step()
        dense.adam_(weight, slope, mean, square, (0.01, 0.8, 0.95, 1 - 0.8**t, 1 - 0.95**t, 1e-6))
    torch.testing.assert_close(weight, theirs.detach())


@pytest.mark.parametrize("loud", [0, 100, 640])
def test_a_batch_is_cut_exactly_however_bad_the_guess(loud):
    """The guess looks at every tenth of 640 rows; some of those are louder than the rest."""
    z = torch.randn(640, 80, generator=torch.Generator().manual_seed(0))
    z[:loud:10] *= 1000
    found = sparse.select(z, BatchTopK(k=5), sparse.Workers(1))
    for mine, expected in zip(found, batch_cut_reference(z.numpy(), 3200), strict=True):
        np.testing.assert_array_equal(mine, expected)


def test_a_batch_with_too_little_to_keep():
    z = -torch.ones(70, 80)
    z[3, 4] = 1
    starts, latents, values = sparse.select(z, BatchTopK(k=5), sparse.Workers(1))
    assert (starts[-1], latents.tolist(), values.tolist()) == (1, [4], [1.0])


def test_the_number_of_workers_changes_no_bit():
    results = []
    for threads in (1, 3):
        trainer = Trainer(begun(TopK(k=4)), Optimiser(), 5)
        trainer._workers = sparse.Workers(threads)
        for i in range(5):
            trainer.step(planted(64, i))
        results.append(trainer.state())
    for name, tensor in results[0].items():
        np.testing.assert_array_equal(tensor, results[1][name])


def test_an_error_in_a_worker_is_not_lost():
    def kernel(low, high):
        if low > 0:
            raise ValueError("here")

    with pytest.raises(ValueError, match="here"):
        sparse.Workers(2).run(kernel, 10, lambda low, high: (low, high))
