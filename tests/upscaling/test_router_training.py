"""Training the router: it learns what can be learnt, reports what cannot, and folds its normalisation away."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from deltasmith.upscaling import router_training
from deltasmith.upscaling.examples import divide
from deltasmith.upscaling.router import Router, mean_states, real_tokens
from deltasmith.upscaling.router_training import train_router
from deltasmith.upscaling.settings import RouterShape, router_tensors

SHAPE = RouterShape(6, 32)


def drawn(spread, counts=(60, 50, 70), seed=0):
    """Clouds around one corner for each label."""
    rng = np.random.default_rng(seed)
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    states = np.eye(len(counts), 6)[labels] * 3 + rng.normal(size=(len(labels), 6)) * spread
    return torch.tensor(states, dtype=torch.float32), labels


def trained(spread=0.3, *, epochs=20, seed=0, counts=(60, 50, 70), **options):
    states, labels = drawn(spread, counts)
    divided = divide(counts, seed)
    found = train_router(states, labels, divided, SHAPE, len(counts), epochs=epochs, seed=seed, **options)
    return found, states, labels, divided


def test_separable_examples_are_separated():
    found, states, labels, _ = trained(epochs=50)
    assert found.accuracy == 1.0
    assert found.confusion == ((6, 0, 0), (0, 5, 0), (0, 0, 7))
    assert {n: a.shape for n, a in found.tensors.items()} == router_tensors(SHAPE, 3)
    weights = loaded(found)(states)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(180))
    assert weights.argmax(dim=1).tolist() == labels
    assert weights.max(dim=1).values.mean() > 0.8


def loaded(found):
    router = Router(SHAPE, 3)
    router.load_state_dict(
        {n.removeprefix("smile_router."): torch.from_numpy(a) for n, a in found.tensors.items()}
    )
    return router


def test_normalisation_is_folded_into_the_linears(monkeypatch):
    seen = []
    fold = router_training._folded
    monkeypatch.setattr(router_training, "_folded", lambda network: (seen.append(network), fold(network))[1])
    found, states, _, _ = trained(epochs=3)
    assert any(isinstance(module, torch.nn.BatchNorm1d) for module in seen[0])
    with torch.inference_mode():
        wanted = seen[0](states).softmax(dim=1)
    torch.testing.assert_close(loaded(found)(states), wanted, atol=1e-5, rtol=1e-5)


def test_the_seed_decides_and_the_callers_numbers_stay():
    torch.manual_seed(11)
    wanted = torch.rand(3)
    torch.manual_seed(11)
    first, again, other = (trained(epochs=2, seed=seed)[0] for seed in (0, 0, 1))
    torch.testing.assert_close(torch.rand(3), wanted, atol=0, rtol=0)
    assert all(np.array_equal(first.tensors[n], again.tensors[n]) for n in first.tensors)
    assert not np.array_equal(first.tensors["smile_router.weight_1"], other.tensors["smile_router.weight_1"])


def test_what_cannot_be_told_apart_is_reported_and_ends_early():
    rng = np.random.default_rng(0)
    states = torch.tensor(rng.normal(size=(400, 6)), dtype=torch.float32)
    labels = [0] * 200 + [1] * 200
    found = train_router(states, labels, divide((200, 200), 0), SHAPE, 2, epochs=200, seed=0)
    assert 0.2 < found.accuracy < 0.8
    assert sum(map(sum, found.confusion)) == 40
    assert found.epochs == found.epoch + 10 < 200


def test_what_is_reported_is_not_what_was_trained_on():
    """States of another expert, but only in what is reported, make the report bad and nothing else."""
    states, labels = drawn(0.3)
    divided = divide((60, 50, 70), 0)
    reported = list(divided.reported)
    moved = states.clone()
    moved[reported] = torch.roll(states[reported], 1, dims=1)  # the next corner
    found = train_router(moved, labels, divided, SHAPE, 3, epochs=20, seed=0)
    assert found.accuracy < 0.5
    rest = [*divided.training, *divided.choosing]
    assert loaded(found)(states[rest]).argmax(dim=1).tolist() == [labels[i] for i in rest]


def test_few_examples_and_an_odd_rest():
    found, *_ = trained(counts=(8, 8, 9), epochs=2)  # batches of 8, and one example over
    assert all(np.isfinite(a).all() for a in found.tensors.values())


def test_a_caller_may_end_it():
    def enough():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(check=enough)


def test_states_that_are_not_finite_are_kept_from_no_epoch():
    states, labels = drawn(0.3)
    states[:] = float("nan")
    found = train_router(states, labels, divide((60, 50, 70), 0), SHAPE, 3, epochs=30, seed=0)
    assert (found.epoch, found.epochs) == (0, 10)


def test_means_leave_padding_out():
    states = torch.randn(2, 3, 4)
    states[0, 2] = float("nan")
    real = torch.tensor([[1, 1, 0], [0, 0, 0]]) > 0
    found = mean_states(states, real)
    torch.testing.assert_close(found[0], states[0, :2].mean(dim=0))
    assert not found[1].any()


def test_padding_is_found_by_mask_or_by_its_id():
    ids, like = torch.tensor([[5, 0, 0]]), torch.zeros(1, 3, 2)
    mask = torch.tensor([[1, 1, 0]])
    assert real_tokens(ids, mask, like, 0).tolist() == [[True, True, False]]
    assert real_tokens(ids, None, like, 0).tolist() == [[True, False, False]]
    assert real_tokens(ids, None, like, None).tolist() == [[True, True, True]]
    assert real_tokens(None, None, like, 0).tolist() == [[True, True, True]]
    assert real_tokens(ids, mask[None, None], like, 0).tolist() == [[True, False, False]]  # a 4-D mask
