"""Tokens that latents raise and lower: the direct path, against the network itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from small_readers import VOCABULARY, gpt2, mistral  # noqa: E402

from deltasmith.features import effects as effects_module  # noqa: E402
from deltasmith.features.dictionaries.dictionary import Dictionary, fresh  # noqa: E402
from deltasmith.features.dictionaries.settings import TopK  # noqa: E402
from deltasmith.features.effects import direct_path, effects_of  # noqa: E402
from deltasmith.features.hooks import at_site  # noqa: E402
from deltasmith.features.site import Site  # noqa: E402

DOWN = "model.layers.0.mlp.down_proj"
LAST = "transformer.h.1.mlp.c_proj"


def dictionary(width: int, latents: int = 30) -> Dictionary:
    sample = torch.randn(50, width, generator=torch.Generator().manual_seed(1))
    return fresh(TopK(k=2), latents, sample, 1.0, 0)


def norm_of(network: Any) -> Any:
    return network.model.norm if hasattr(network, "model") else network.transformer.ln_f


def bent(network: Any, site: Site, direction: Any) -> Any:
    """Return how the logits of the last position answer to a push along a direction, (vocabulary,).

    The residual that reaches the final norm is taken with and without the push; the norm's length, which the push
    changes too, is held at one.
    """
    ids = torch.tensor([[1, 5, 9, 13]])
    norm = norm_of(network)
    kept: list[Any] = []
    with torch.no_grad(), Hooked(norm, kept):
        network(ids)
        with at_site(network, site, lambda x: x + direction):
            network(ids)
        before, after = (residual[0, -1].double() for residual in kept)
        moved = after - before
        if isinstance(norm, torch.nn.LayerNorm):
            moved -= moved.mean()
        logits = network.get_output_embeddings().weight.double() @ (moved * norm.weight.double())
        return logits - logits.mean()


class Hooked:
    """Keep what flows into a module."""

    def __init__(self, module: Any, kept: list[Any]) -> None:
        self.handle = module.register_forward_pre_hook(lambda _, args: kept.append(args[0]))

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


@pytest.mark.parametrize(
    ("make", "site", "width"),
    [
        (mistral, f"{DOWN}:in", 24),
        (mistral, f"{DOWN}:out", 16),
        (mistral, "model.layers.0.mlp:out", 16),
        (mistral, "model.layers.0:out", 16),
        (gpt2, f"{LAST}:in", 64),
        (gpt2, "transformer.h.1:out", 16),
    ],
)
def test_the_direct_path_of_a_last_layer_is_what_the_network_does(make: Any, site: str, width: int) -> None:
    network, place = make(), Site.parse(site)
    with torch.no_grad():
        norm_of(network).weight.add_(torch.linspace(-0.5, 0.5, 16))
    found = dictionary(width)
    path = direct_path(network, place)
    effects = effects_of(network, place, found)
    for latent in (0, 7, 29):
        expected = bent(network, place, found.decoder[latent])
        assert not isinstance(path, str)
        told = path.logits(found.decoder[latent : latent + 1])[0]
        np.testing.assert_allclose(told.numpy(), expected.numpy(), rtol=2e-3, atol=2e-4)
        order = torch.argsort(told, descending=True)
        assert effects.raised[latent].tolist() == order[:10].tolist()
        assert effects.lowered[latent].tolist() == order.flip(0)[:10].tolist()
        np.testing.assert_allclose(effects.raised_by[latent], told[order[:10]].numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            effects.lowered_by[latent], told[order.flip(0)[:10]].numpy(), rtol=1e-4, atol=1e-5
        )


def test_latents_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network, site, found = mistral(), Site(DOWN, "in"), dictionary(24)
    whole = effects_of(network, site, found)
    monkeypatch.setattr(effects_module, "_ROOM", 4 * VOCABULARY * 7)
    parts = effects_of(network, site, found)
    for name, array in vars(parts).items():
        assert array.shape == (30, 10)
        assert array.dtype == (np.float32 if name.endswith("by") else np.int32)
        np.testing.assert_allclose(array, getattr(whole, name), rtol=1e-4, atol=1e-6)


def test_a_gain_kept_as_one_more_than_its_weight() -> None:
    config = transformers.GemmaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    torch.manual_seed(0)
    network = transformers.GemmaForCausalLM(config).eval()
    with torch.no_grad():
        network.model.norm.weight.normal_()
    path = direct_path(network, Site(DOWN, "in"))
    assert not isinstance(path, str)
    torch.testing.assert_close(path.gain, 1 + network.model.norm.weight, rtol=1e-4, atol=1e-4)
    assert not path.centred


@pytest.mark.parametrize(
    ("site", "why"),
    [
        ("model.layers.0.mlp.gate_proj:out", "the module does not write to the residual stream"),
        ("model.layers.0.mlp.up_proj:in", "the module does not write to the residual stream"),
        ("model.layers.0.mlp:in", "the module does not write to the residual stream"),
        ("model.norm:out", "the module does not write to the residual stream"),
    ],
)
def test_sites_without_a_direct_path(site: str, why: str) -> None:
    network, place = mistral(), Site.parse(site)
    assert direct_path(network, place) == f"no tokens are given for latents at {site}: {why}"
    effects = effects_of(network, place, dictionary(16))
    assert all(array.shape == (30, 0) for array in vars(effects).values())
    assert (effects.raised.dtype, effects.lowered_by.dtype) == (np.int32, np.float32)


def test_a_norm_between_the_module_and_the_residual_stream() -> None:
    config = transformers.Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    network = transformers.Gemma2ForCausalLM(config)
    told = direct_path(network, Site(DOWN, "in"))
    assert isinstance(told, str)
    assert told.endswith("a norm lies between the module and the residual stream")
    assert not isinstance(direct_path(network, Site("model.layers.0", "out")), str)


def test_an_architecture_whose_norm_is_not_known() -> None:
    network = mistral()
    network.model.final, network.model.norm = network.model.norm, torch.nn.Identity()
    del network.model.norm
    told = direct_path(network, Site(DOWN, "in"))
    assert isinstance(told, str)
    assert told.endswith("the final norm was not found")


def test_a_dictionary_of_another_width_has_no_effects() -> None:
    assert effects_of(mistral(), Site(DOWN, "in"), dictionary(16)).raised.shape == (30, 0)
