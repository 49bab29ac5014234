"""Activations at a site, and losses with something else in their place, against the network read by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from small_readers import VOCABULARY, gpt2, mistral, pieces_of  # noqa: E402

from deltasmith.engine.workers import Stop  # noqa: E402
from deltasmith.errors import InterruptedRunError, RecipeError, RefusedError  # noqa: E402
from deltasmith.features import recorder as recorder_module  # noqa: E402
from deltasmith.features.recorder import Recorder, group_of  # noqa: E402
from deltasmith.features.site import Site  # noqa: E402

DOWN = "model.layers.0.mlp.down_proj"
PIECES = pieces_of([12, 2, 7, 12, 9])


@pytest.fixture(scope="module")
def network() -> Any:
    return mistral()


def by_hand(network: Any, module: str, side: str) -> Any:
    """What flows at a site, one piece at a time, without filling."""
    found: list[Any] = []

    def keep(_: Any, args: Any, output: Any) -> None:
        value = args[0] if side == "in" else output
        found.append((value[0] if isinstance(value, tuple) else value)[0, 1:])

    handle = network.get_submodule(module).register_forward_hook(keep)
    with torch.no_grad():
        for ids, length in zip(PIECES.ids, PIECES.lengths, strict=True):
            network(torch.from_numpy(ids[None, :length].astype(np.int64)))
    handle.remove()
    return torch.cat(found)


@pytest.mark.parametrize(
    ("module", "side", "width"),
    [
        (DOWN, "in", 24),
        (DOWN, "out", 16),
        ("model.layers.0", "out", 16),
        ("model.layers.0.self_attn", "out", 16),
        ("lm_head", "out", VOCABULARY),
    ],
)
def test_activations_are_what_flows_there(network: Any, module: str, side: Any, width: int) -> None:
    recorder = Recorder(network, Site(module, side))
    found = recorder.activations(PIECES)
    assert recorder.width == width
    assert found.shape == (PIECES.tokens, width)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, by_hand(network, module, side), rtol=1e-4, atol=1e-5)


def test_activations_of_another_architecture() -> None:
    network = gpt2()
    site = Site("transformer.h.1.mlp.c_proj", "in")
    found = Recorder(network, site).activations(PIECES)
    torch.testing.assert_close(found, by_hand(network, site.module, "in"), rtol=1e-4, atol=1e-5)


def test_a_named_argument_is_an_input_too(network: Any) -> None:
    found = Recorder(network, Site("model.layers.0.self_attn", "in")).activations(PIECES)
    normed = by_hand(network, "model.layers.0.input_layernorm", "out")
    torch.testing.assert_close(found, normed, rtol=1e-4, atol=1e-5)


def test_some_rows_and_other_batches(network: Any) -> None:
    recorder = Recorder(network, Site(DOWN, "in"))
    every = recorder.activations(PIECES).split(PIECES.analysed.tolist())
    some = recorder.activations(PIECES, [3, 1], batch=1)
    torch.testing.assert_close(some, torch.cat([every[3], every[1]]), rtol=1e-4, atol=1e-5)
    in_threes = recorder.activations(PIECES, batch=3)
    torch.testing.assert_close(in_threes, torch.cat(every), rtol=1e-4, atol=1e-5)
    assert recorder.activations(PIECES, []).shape == (0, 24)


def test_nothing_behind_the_site_is_computed(network: Any) -> None:
    recorder = Recorder(network, Site(DOWN, "in"))
    assert recorder.width == 24
    seen: list[str] = []
    handles = [
        network.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
        for name in ("model.layers.0.mlp.gate_proj", DOWN, "lm_head")
    ]
    recorder.activations(PIECES)
    for handle in handles:
        handle.remove()
    assert seen == ["model.layers.0.mlp.gate_proj"]
    assert not network.get_submodule(DOWN)._forward_pre_hooks


def test_activations_are_kept_while_their_pieces_are(network: Any) -> None:
    recorder = Recorder(network, Site(DOWN, "in"))
    mine = PIECES.taken([0, 1])
    assert recorder.kept_activations(mine) is recorder.kept_activations(mine)
    assert len(recorder._kept) == 1
    del mine
    assert len(recorder._kept) == 0


def test_a_network_in_bfloat16_is_read_in_float32() -> None:
    network = mistral().to(torch.bfloat16)
    recorder = Recorder(network, Site(DOWN, "in"))
    found = recorder.activations(PIECES)
    assert found.dtype == torch.float32
    assert torch.equal(found, found.to(torch.bfloat16).float())
    assert np.isfinite(recorder.losses(PIECES, torch.zeros_like).nats).all()


def test_groups_have_about_8192_tokens() -> None:
    assert [group_of(context) for context in (2, 256, 8192, 32768)] == [4096, 32, 1, 1]


# Losses.


def losses_by_hand(network: Any) -> tuple[Any, Any]:
    nats, named = [], []
    for ids, length in zip(PIECES.ids, PIECES.lengths, strict=True):
        tokens = torch.from_numpy(ids[:length].astype(np.int64))
        with torch.no_grad():
            logits = network(tokens[None]).logits[0, :-1].double()
        nats += (-logits.log_softmax(-1)[torch.arange(length - 1), tokens[1:]]).tolist()
        named += (logits.argmax(-1) == tokens[1:]).tolist()
    return np.array(nats), np.array(named)


def test_losses_are_of_every_analysed_token(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(network, Site(DOWN, "in"))
    nats, named = losses_by_hand(network)
    found = recorder.losses(PIECES)
    np.testing.assert_allclose(found.nats, nats, rtol=1e-4)
    assert found.named.tolist() == named.tolist()
    assert found.mean == pytest.approx(nats.mean(), rel=1e-5)
    monkeypatch.setattr(recorder_module, "_LOGITS", 1)  # a piece at a time
    np.testing.assert_allclose(recorder.losses(PIECES).nats, nats, rtol=1e-4)


@pytest.mark.parametrize("site", ["model.layers.0.self_attn:out", f"{DOWN}:in", "model.layers.0.mlp:in"])
def test_the_same_in_its_place_changes_nothing(network: Any, site: str) -> None:
    recorder = Recorder(network, Site.parse(site))
    seen: list[Any] = []

    def same(raw: Any) -> Any:
        seen.append(raw)
        return raw.clone()

    assert np.array_equal(recorder.losses(PIECES, same).nats, recorder.losses(PIECES).nats)
    torch.testing.assert_close(torch.cat(seen), recorder.activations(PIECES))


@pytest.mark.parametrize("side", ["in", "out"])
def test_zeros_in_its_place_are_a_module_that_adds_nothing(side: Any) -> None:
    """Where nothing but the residual stream is left, the MLP might as well have no weights: but for position 0."""
    network, without = mistral(), mistral()
    with torch.no_grad():
        without.get_submodule(DOWN).weight.zero_()
    zeroed = Recorder(network, Site(DOWN, side)).losses(PIECES, torch.zeros_like).nats
    first = np.isin(np.arange(PIECES.tokens), np.concatenate(([0], np.cumsum(PIECES.analysed)[:-1])))
    np.testing.assert_allclose(zeroed[~first], losses_by_hand(without)[0][~first], rtol=1e-4)
    np.testing.assert_allclose(zeroed[first], losses_by_hand(network)[0][first], rtol=1e-4)


def test_a_tuple_keeps_its_other_parts(network: Any) -> None:
    recorder = Recorder(network, Site("model.layers.0.self_attn", "out"))
    without = mistral()
    with torch.no_grad():
        without.get_submodule("model.layers.0.self_attn.o_proj").weight.zero_()
    zeroed = recorder.losses(PIECES, torch.zeros_like).nats
    assert np.abs(zeroed - losses_by_hand(network)[0]).max() > 0.01
    first = np.concatenate(([0], np.cumsum(PIECES.analysed)[:-1]))
    later = ~np.isin(np.arange(PIECES.tokens), first)
    np.testing.assert_allclose(zeroed[later], losses_by_hand(without)[0][later], rtol=1e-4)


def test_a_named_argument_is_replaced_too(network: Any) -> None:
    named, before = (
        Recorder(network, Site.parse(site)).losses(PIECES, torch.zeros_like).nats
        for site in ("model.layers.0.self_attn:in", "model.layers.0.input_layernorm:out")
    )
    np.testing.assert_allclose(named, before, rtol=1e-5)
    assert np.abs(named - losses_by_hand(network)[0]).max() > 0.01


def test_plain_losses_are_computed_once(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(network, Site(DOWN, "in"))
    plain, zeroed = recorder.plain_losses(PIECES)
    assert zeroed == recorder.losses(PIECES, torch.zeros_like).mean != plain.mean
    monkeypatch.setattr(recorder, "losses", lambda *_: pytest.fail("computed again"))
    assert recorder.plain_losses(PIECES) == (plain, zeroed)


# Refusals.


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("model.embed_tokens:in", "no floating-point tensor flows there in model.embed_tokens:in"),
        ("model.layers:out", "the module is not computed in a pass in model.layers:out"),
    ],
)
def test_sites_that_are_none(network: Any, site: str, message: str) -> None:
    recorder = Recorder(network, Site.parse(site))
    with pytest.raises(RefusedError, match=message) as caught:
        _ = recorder.width
    assert caught.value.exit_code == 1


def test_a_tensor_that_has_not_every_position(network: Any) -> None:
    class Flat(torch.nn.Module):
        def forward(self, hidden: Any) -> Any:
            return hidden

    changed = mistral()
    mlp = changed.get_submodule("model.layers.0.mlp")
    mlp.flat, plain = Flat(), mlp.forward

    def forward(hidden: Any) -> Any:
        mlp.flat(hidden.flatten(0, 1))
        return plain(hidden)

    mlp.forward = forward
    with pytest.raises(
        RefusedError, match=r"a tensor of shape \[2, 16\] flows there, not one of \(texts, positions"
    ):
        _ = Recorder(changed, Site("model.layers.0.mlp.flat", "in")).width


def test_a_module_that_is_computed_twice(network: Any) -> None:
    changed = mistral(num_hidden_layers=2)
    changed.model.layers[1].mlp = changed.model.layers[0].mlp
    recorder = Recorder(changed, Site(DOWN, "in"))
    with pytest.raises(RefusedError, match="the module is 2 times computed in a pass"):
        recorder.losses(PIECES, torch.zeros_like)


def test_an_unknown_module_at_once(network: Any) -> None:
    with pytest.raises(RecipeError, match="the network has no module"):
        Recorder(network, Site("nowhere", "in"))


def test_asked_to_stop(network: Any) -> None:
    stop = Stop()
    recorder = Recorder(network, Site(DOWN, "in"), stop=stop)
    recorder.activations(PIECES)
    stop.ask()
    for work in (recorder.activations, recorder.losses):
        with pytest.raises(InterruptedRunError):
            work(PIECES)
