"""Training as a whole: it learns, resumes exactly, revives the dead, meets its sparsity, and says what is wrong."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch
from sae_making import DEVICES, DIRECTIONS, KINDS, begun, planted

from deltasmith.errors import DamagedInputError, RefusedError
from deltasmith.features.dictionaries.dictionary import grown
from deltasmith.features.dictionaries.settings import BatchTopK, JumpRelu, Optimiser, Relu, ReluL1, TopK
from deltasmith.features.dictionaries.trainer import Trainer


def fvu(dictionary, raw) -> float:
    left = dictionary.reconstruct(raw) - raw
    return float(left.square().sum() / (raw - raw.mean(0)).square().sum())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_the_planted_directions(kind, device):
    first = begun(kind, device=device)
    trainer = Trainer(first, Optimiser(rate=1e-2), 300)
    for i in range(300):
        report = trainer.step(planted(256, i).to(device))
    held_out = planted(2000, 10**6).to(device)
    found = trainer.finished([held_out])
    assert fvu(found, held_out) < 0.3
    assert report.fvu == pytest.approx(fvu(found, held_out), rel=0.3)
    torch.testing.assert_close(found.decoder.norm(dim=1).cpu(), torch.ones(64))
    best = (DIRECTIONS @ found.decoder.cpu().T).max(1).values
    assert best.median() > 0.95  # most of the planted directions are decoder rows; 0.4 at the beginning
    assert torch.equal(first.encoder, begun(kind, device=device).encoder)  # what was handed in is as it was


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_trainer_continues_bit_by_bit(kind, device):
    optimiser = Optimiser(dead_after=400)  # some die after the seventh step
    first = begun(kind, device=device)
    first.latent_bias[:20] = -9
    one = Trainer(first, optimiser, 12)
    for i in range(5):
        one.step(planted(64, i).to(device))
    state = one.state()
    rest = [one.step(planted(64, i).to(device)) for i in range(5, 12)]
    assert rest[0].dead < rest[-1].dead
    other = Trainer(begun(kind, device=device), optimiser, 12)
    other.restore(state)
    assert other.done == 5
    assert [other.step(planted(64, i).to(device)) for i in range(5, 12)] == rest
    for name, tensor in one.state().items():
        assert torch.equal(tensor, other.state()[name]), name


def test_a_state_is_a_copy():
    trainer = Trainer(begun(TopK(k=4)), Optimiser(), 3)
    state = trainer.state()
    before = {name: tensor.clone() for name, tensor in state.items()}
    trainer.step(planted(64, 0))
    assert all(torch.equal(before[name], tensor) for name, tensor in state.items())


def test_a_strange_state_is_refused():
    trainer = Trainer(begun(TopK(k=4)), Optimiser(), 3)
    state = trainer.state()
    del state["since"]
    with pytest.raises(
        DamagedInputError, match=r"does not belong to this training \(since\) in the checkpoint"
    ):
        trainer.restore(state)
    other = Trainer(begun(TopK(k=4), latents=65), Optimiser(), 3).state()
    with pytest.raises(DamagedInputError, match=r"does not belong to this training"):
        trainer.restore(other)
    with pytest.raises(DamagedInputError, match=r"its steps are more"):
        trainer.restore(trainer.state() | {"done": torch.tensor(4)})


def test_dead_latents_are_revived():
    """Latents that a large negative bias keeps from firing come back with the auxiliary loss, and not without."""
    alive = {}
    for aux in (0.0, 1 / 32):
        dictionary = begun(TopK(k=4))
        dictionary.latent_bias[:32] = -4.0
        trainer = Trainer(dictionary, Optimiser(rate=5e-3, aux=aux, dead_after=600), 150)
        reports = [trainer.step(planted(128, i)) for i in range(150)]
        assert reports[0].dead == 0
        assert max(report.dead for report in reports) > 0.3
        alive[aux] = int((trainer.dictionary().encode(planted(4000, 10**6)).fires[:32] > 0).sum())
    assert alive[0.0] < 12
    assert alive[1 / 32] > 24


@pytest.mark.parametrize("device", DEVICES)
def test_the_threshold_meets_k_on_held_out_activations(device):
    trainer = Trainer(begun(BatchTopK(k=4), device=device), Optimiser(rate=5e-3), 60)
    reports = [trainer.step(planted(256, i).to(device)) for i in range(60)]
    assert all(report.l0 == 4 for report in reports)
    held_out = [planted(1000, 10**6 + i).to(device) for i in range(4)]
    found = trainer.finished(held_out)
    assert found.threshold is not None
    assert found.threshold.min() == found.threshold.max() > 0
    mean = sum(found.encode(batch).fires.sum() for batch in held_out) / 4000
    assert mean == pytest.approx(4, rel=2e-3)
    child = grown(found, 8, held_out[0], 0)
    assert child.threshold is not None
    assert len(child.threshold) == 72
    Trainer(child, Optimiser(), 1).step(held_out[1])


def test_a_threshold_that_nothing_can_meet_is_zero():
    trainer = Trainer(begun(BatchTopK(k=60)), Optimiser(), 1)
    assert trainer.finished([planted(100, 3)]).threshold.max() == 0


def test_a_batch_topk_needs_held_out_activations():
    with pytest.raises(RefusedError, match="needs held-out activations to set its threshold"):
        Trainer(begun(BatchTopK(k=4)), Optimiser(), 1).finished([])


def test_the_price_of_activity_makes_codes_sparser():
    l0 = []
    for coefficient in (0.0, 1.0, 4.0):
        trainer = Trainer(begun(ReluL1(coefficient=coefficient)), Optimiser(rate=5e-3), 40)
        for i in range(40):
            report = trainer.step(planted(64, i))
        l0.append(report.l0)
    assert l0[0] > 1.3 * l0[1] > 1.6 * l0[2]


def test_training_does_not_depend_on_the_units_of_the_activations():
    """Activations in other units, with the scale that belongs to them, lead to the same directions."""
    found = []
    for factor in (1.0, 1024.0):
        first = begun(TopK(k=4))
        first = type(first)(
            first.kind, first.encoder, first.decoder, first.latent_bias * factor, first.output_bias * factor, None,
            first.scale / factor,
        )  # fmt: skip
        trainer = Trainer(first, Optimiser(), 10)
        for i in range(10):
            trainer.step(planted(64, i) * factor)
        found.append(trainer.dictionary())
    assert torch.equal(found[0].decoder, found[1].decoder)
    torch.testing.assert_close(found[0].output_bias * 1024, found[1].output_bias)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            torch.full((4, 32), float("nan")),
            "not every number is finite in the activations of step 1 of 2; check",
        ),
        (
            torch.zeros(4, 31),
            "activations of shape (4, 31), the dictionary takes (tokens, 32) in the activations of",
        ),
        (torch.zeros(0, 32), "the batch is empty in step 1 of 2; give it tokens"),
    ],
)
def test_a_bad_batch_is_named_and_changes_nothing(raw, message):
    trainer = Trainer(begun(TopK(k=4)), Optimiser(), 2)
    before = trainer.state()
    with pytest.raises(RefusedError) as error:
        trainer.step(raw)
    assert str(error.value).startswith(message)
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.state().items())


def test_an_infinite_loss_is_named():
    dictionary = begun(TopK(k=4))
    dictionary.encoder[:] *= 1e25
    with pytest.raises(RefusedError, match=r"the loss is (inf|nan) in step 1 of 2; lower the learning rate"):
        Trainer(dictionary, Optimiser(), 2).step(planted(64, 0))


def test_one_constant_token_is_no_reason_to_fail():
    report = Trainer(begun(TopK(k=4)), Optimiser(), 2).step(planted(1, 0))
    assert report.fvu == 1.0
    assert report.l0 <= 4


def test_more_steps_than_planned_are_refused():
    trainer = Trainer(begun(TopK(k=4)), Optimiser(), 1)
    trainer.step(planted(64, 0))
    with pytest.raises(RefusedError, match="all 1 steps are done in training; plan more steps"):
        trainer.step(planted(64, 0))
    with pytest.raises(RefusedError, match="0 steps of training; ask for at least one"):
        Trainer(begun(TopK(k=4)), Optimiser(), 0)


@pytest.mark.parametrize("kind", [Relu(), JumpRelu()])
def test_kinds_that_only_encode_are_refused(kind):
    with pytest.raises(
        RefusedError, match=rf"a dictionary of kind {kind.kind} can only encode in training; say which"
    ):
        Trainer(begun(kind), Optimiser(), 1)
