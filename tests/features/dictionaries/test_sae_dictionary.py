"""What a dictionary says of activations, how it begins and how it grows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from sae_making import DEVICES, begun, planted

from deltasmith.errors import RefusedError
from deltasmith.features.dictionaries.dictionary import Dictionary, fresh, grown, scale_of
from deltasmith.features.dictionaries.selecting import selected
from deltasmith.features.dictionaries.settings import BatchTopK, JumpRelu, Relu, ReluL1, TopK


def by_hand(kind, threshold=None) -> Dictionary:
    """Return two inputs, three latents: x0, x1 and their mean, with an output bias of (1, 1)."""
    encoder = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    decoder = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    bias = torch.tensor([0.0, 0.0, 0.25])
    return Dictionary(kind, encoder, decoder, bias, torch.ones(2), threshold, 1.0)


TOKENS = torch.tensor(
    [[3.0, 2.0], [1.0, 0.0], [0.0, 0.0]]
)  # pre-activations (2, 1, 1.75), (0, -1, -.25), (-1, -1, -.75)


@pytest.mark.parametrize(
    ("dictionary", "codes", "first"),
    [
        (by_hand(TopK(k=2)), [[2, 0, 1.75], [0, 0, 0], [0, 0, 0]], [4.05, 2.4]),
        (by_hand(TopK(k=1)), [[2, 0, 0], [0, 0, 0], [0, 0, 0]], [3.0, 1.0]),
        (by_hand(ReluL1(coefficient=1)), [[2, 1, 1.75], [0, 0, 0], [0, 0, 0]], [4.05, 3.4]),
        (
            by_hand(JumpRelu(), torch.tensor([2.0, 0.5, -3.0])),
            [[0, 1, 1.75], [0, 0, 0], [0, 0, 0]],
            [2.05, 3.4],
        ),
    ],
)
def test_by_hand(dictionary, codes, first):
    found = dictionary.encode(TOKENS)
    np.testing.assert_array_equal(found.dense(), np.array(codes, np.float32))
    dense = selected(dictionary.pre_activations(TOKENS), dictionary.kind, dictionary.threshold)
    assert dense.tolist() == codes
    np.testing.assert_allclose(dictionary.reconstruct(TOKENS)[0], first, rtol=1e-6)
    np.testing.assert_array_equal(dictionary.reconstruct(TOKENS)[2], [1, 1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [TopK(k=4), TopK(k=64), BatchTopK(k=4), ReluL1(coefficient=1.0)])
def test_codes_equal_the_dense_definition(kind, device):
    dictionary = begun(kind, device=device)
    if isinstance(kind, BatchTopK):
        dictionary = replace(dictionary, threshold=torch.linspace(-1, 4, 64, device=device))
    raw = planted(300, 2).to(device)
    z = dictionary.pre_activations(raw)
    expected = selected(z, kind, dictionary.threshold)
    np.testing.assert_array_equal(dictionary.encode(raw).dense(), expected.cpu().numpy())
    found = dictionary.reconstruct(raw).cpu()
    torch.testing.assert_close(found, (expected @ dictionary.decoder + dictionary.output_bias).cpu())


def test_tokens_are_encoded_each_alone(monkeypatch):
    dictionary, raw = begun(TopK(k=4)), planted(100, 2)
    whole = dictionary.encode(raw)
    monkeypatch.setattr("deltasmith.features.dictionaries.dictionary._ROOM", 4 * 64 * 7)
    parts = dictionary.encode(raw)
    np.testing.assert_array_equal(parts.latents, whole.latents)
    np.testing.assert_allclose(parts.values, whole.values, rtol=1e-5)
    assert dictionary.encode(raw[:0]).tokens == 0
    assert dictionary.reconstruct(raw[:0]).shape == (0, 32)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            torch.zeros(3, 5),
            "activations of shape (3, 5), the dictionary takes (tokens, 2) in the activations; use ",
        ),
        (
            torch.zeros(2),
            "activations of shape (2,), the dictionary takes (tokens, 2) in the activations; use ",
        ),
        (torch.tensor([[1.0, float("nan")]]), "not every number is finite in the activations; check "),
        (torch.tensor([[1.0, float("inf")]]), "not every number is finite in the activations; check "),
    ],
)
def test_what_cannot_be_encoded(raw, message):
    with pytest.raises(RefusedError) as error:
        by_hand(TopK(k=2)).encode(raw)
    assert str(error.value).startswith(message)


def test_a_batch_topk_without_threshold_cannot_encode():
    with pytest.raises(RefusedError, match="has no threshold yet"):
        by_hand(BatchTopK(k=2)).encode(TOKENS)


def test_codes_of_another_dictionary_cannot_be_decoded():
    codes = begun(TopK(k=4)).encode(planted(5, 1))
    with pytest.raises(RefusedError, match="codes of 64 latents for a dictionary of 3"):
        by_hand(TopK(k=2)).decode(codes)


def test_scale_of_brings_the_root_mean_square_to_one():
    raw = planted(100, 3)
    assert float((raw * scale_of(raw)).square().mean()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("raw", [torch.zeros(3, 2), torch.zeros(0, 2), torch.full((2, 2), float("nan"))])
def test_scale_of_nothing_is_refused(raw):
    with pytest.raises(RefusedError, match="in the sample of activations; choose another site"):
        scale_of(raw)


def test_a_fresh_dictionary():
    raw = planted(512, 1)
    dictionary = begun(TopK(k=4))
    torch.testing.assert_close(dictionary.decoder.norm(dim=1), torch.ones(64))
    assert torch.equal(dictionary.encoder, dictionary.decoder)
    torch.testing.assert_close(dictionary.output_bias, raw.mean(0))
    assert dictionary.latent_bias.eq(0).all()
    assert torch.equal(dictionary.decoder, begun(TopK(k=4)).decoder)
    assert not torch.equal(dictionary.decoder, begun(TopK(k=4), seed=1).decoder)


def test_nothing_is_drawn_from_the_global_generator():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    child = grown(begun(TopK(k=4)), 8, planted(64, 3), 5)
    assert torch.equal(torch.rand(1), expected)
    assert child.latents == 72


def test_a_fresh_relu_reconstructs_at_about_the_right_length():
    raw = planted(512, 1)
    dictionary = begun(ReluL1(coefficient=1.0), latents=640)
    centred = raw - dictionary.output_bias
    share = (dictionary.reconstruct(raw) - dictionary.output_bias).norm() / centred.norm()
    assert 0.7 < share < 1.4


@pytest.mark.parametrize(
    ("kind", "latents", "scale", "message"),
    [
        (TopK(k=5), 4, 1.0, "k = 5 of 4 latents in the dictionary; choose a smaller k or more latents"),
        (BatchTopK(k=5), 4, 1.0, "k = 5 of 4 latents in the dictionary; choose a smaller k or more latents"),
        (ReluL1(coefficient=0), 0, 1.0, "0 latents in the dictionary; ask for at least one"),
        (TopK(k=1), 4, 0.0, "a scale of 0.0 in the dictionary; give a positive number"),
        (TopK(k=1), 4, float("nan"), "a scale of nan in the dictionary; give a positive number"),
    ],
)
def test_nonsense_is_refused(kind, latents, scale, message):
    with pytest.raises(RefusedError) as error:
        fresh(kind, latents, planted(8, 1), scale, 0)
    assert str(error.value) == message


def test_a_child_begins_as_its_parent_with_spare_latents_after_it():
    parent = replace(begun(TopK(k=4)), latent_bias=torch.linspace(-0.1, 0.1, 64))
    raw = planted(512, 9) + 3 * torch.eye(32)[0]  # the child's activations have moved
    child = grown(parent, 8, raw, 5)
    assert child.latents == 72
    torch.testing.assert_close(child.encoder[:64], parent.encoder)
    torch.testing.assert_close(child.decoder[:64], parent.decoder)
    torch.testing.assert_close(child.latent_bias[:64], parent.latent_bias)
    assert torch.equal(child.output_bias, parent.output_bias)
    assert child.scale == parent.scale
    torch.testing.assert_close(child.decoder.norm(dim=1), torch.ones(72))
    fires = child.encode(raw).fires
    assert (fires[64:] > 0).all()  # spare latents are not born dead
    again = grown(parent, 8, raw, 5)
    assert torch.equal(again.encoder, child.encoder)
    assert not torch.equal(grown(parent, 8, raw, 6).encoder, child.encoder)


def test_spare_latents_point_at_what_is_left_over():
    parent, raw = begun(TopK(k=1)), planted(64, 9)
    left = raw - parent.reconstruct(raw)
    left /= left.norm(dim=1, keepdim=True)
    child = grown(parent, 5, raw, 0)
    nearest = (child.decoder[64:] @ left.T).max(1)
    torch.testing.assert_close(nearest.values, torch.ones(5))
    assert len(set(nearest.indices.tolist())) == 5


def test_a_parent_with_rows_of_any_length_is_normalised():
    lengths, bias = torch.linspace(0.5, 3, 64)[:, None], torch.linspace(-1, 1, 64)
    parent = replace(begun(Relu()), decoder=begun(Relu()).decoder * lengths, latent_bias=bias)
    raw = planted(100, 3)
    child = grown(parent, 0, raw, 0)
    torch.testing.assert_close(child.decoder.norm(dim=1), torch.ones(64))
    torch.testing.assert_close(child.reconstruct(raw), parent.reconstruct(raw))


def test_spare_latents_need_no_residuals():
    parent = begun(TopK(k=4))
    constant = parent.output_bias.expand(6, 32).clone()  # is reconstructed exactly
    child = grown(parent, 3, constant, 0)
    torch.testing.assert_close(child.decoder[64:].norm(dim=1), torch.ones(3))


def test_a_child_of_another_kind_has_no_threshold():
    parent = replace(begun(JumpRelu()), threshold=torch.ones(64))
    child = grown(parent, 4, planted(100, 3), 0, kind=BatchTopK(k=3))
    assert (child.kind, child.threshold) == (BatchTopK(k=3), None)
    with pytest.raises(RefusedError, match="-1 spare latents"):
        grown(parent, -1, planted(100, 3), 0)
