"""The loss of a language model: padding and pieces change nothing, sampled labels follow the network."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from deltasmith.analysis import language  # noqa: E402
from deltasmith.analysis.data import Example  # noqa: E402
from deltasmith.analysis.language import Chunk, LanguageChunks, language_loss, sample_labels, sampled_loss  # noqa: E402
from deltasmith.analysis.networks import computed_in  # noqa: E402
from deltasmith.analysis.torch_objective import TorchObjective  # noqa: E402
from deltasmith.kernels.bits import uniform_bits  # noqa: E402

EXAMPLES = (
    Example((1, 5, 6, 7, 8, 9, 2), 4),
    Example((1, 9, 3), 1),
    Example((4, 8, 8, 3, 2), 0),
    Example((1, 2), 1),
)


def gpt2(**options):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=13, n_positions=16, n_embd=8, n_layer=2, n_head=2, attn_implementation="eager", **options
    )
    return transformers.GPT2LMHeadModel(config).double().eval()


def llama(kind="Llama", **options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=13,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=4,
        attn_implementation="eager",
        initializer_range=0.5,  # logits large enough for a bound on them to show
        **options,
    )
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def gemma2():
    return llama("Gemma2", final_logit_softcapping=1.5).double()


NETWORKS = {
    "gpt2": gpt2,
    "llama": lambda: llama().double(),
    "tied": lambda: llama(tie_word_embeddings=True).double(),
    "gemma2": gemma2,
    "granite": lambda: llama("Granite", logits_scaling=3.0).double(),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    return NETWORKS[request.param]()


def by_hand(network, examples):
    """Return the summed cross-entropy of counted tokens, one example at a time, without a mask."""
    total = torch.zeros((), dtype=torch.float64)
    for example in examples:
        logits = network(input_ids=torch.tensor([example.tokens]), use_cache=False).logits[0].double()
        logprobs = logits.log_softmax(-1)
        for at in range(max(example.first, 1), len(example.tokens)):
            total = total - logprobs[at - 1, example.tokens[at]]
    return total


def gradients(network, loss):
    network.zero_grad()
    loss.backward()
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return found


def test_padding_changes_nothing():
    network = gpt2()  # transformers takes its norms and softmax in float64 when the network is
    chunk = Chunk.of(EXAMPLES, "cpu", padding=3)
    assert chunk.count == 3 + 2 + 4 + 1
    expected = by_hand(network, EXAMPLES) / chunk.count
    assert abs(float((language_loss(network, chunk) - expected).detach())) < 1e-12


def test_the_loss_and_its_gradient_are_those_of_the_plain_computation(network):
    chunk = Chunk.of(EXAMPLES, "cpu", padding=0)
    expected = by_hand(network, EXAMPLES) / chunk.count
    found = language_loss(network, chunk)
    assert float(found.detach()) == pytest.approx(
        float(expected.detach()), abs=1e-6
    )  # softmax in float32 in most of them
    wanted, got = gradients(network, expected), gradients(network, found)
    assert wanted.keys() == got.keys()
    assert all(torch.allclose(wanted[name], got[name], atol=1e-6) for name in wanted)


def test_pieces_change_neither_loss_nor_gradient_nor_the_objectives_slopes(network, monkeypatch):
    chunk = Chunk.of(EXAMPLES, "cpu", padding=0)
    ends = {name: torch.ones_like(p) for name, p in network.named_parameters()}
    objective = TorchObjective(network, ends, [chunk], [chunk.count], language_loss)
    whole, plain = objective.slopes(), gradients(network, language_loss(network, chunk))
    monkeypatch.setattr(language, "_PIECE", 3 * 13)
    pieces, cut = objective.slopes(), gradients(network, language_loss(network, chunk))
    assert np.allclose(whole[0], pieces[0], atol=1e-12)
    assert np.allclose(whole[1], pieces[1], atol=1e-10)
    assert all(torch.allclose(plain[name], cut[name], atol=1e-12) for name in plain)


def test_pieces_can_be_differentiated_twice(monkeypatch):
    network = gpt2()
    chunk = Chunk.of(EXAMPLES, "cpu", padding=0)
    parameters = list(network.parameters())

    def product():
        first = torch.autograd.grad(language_loss(network, chunk), parameters, create_graph=True)
        return torch.autograd.grad(sum(g.sum() for g in first), parameters)

    whole = product()
    monkeypatch.setattr(language, "_PIECE", 3 * 13)
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(whole, product(), strict=True))
    assert max(float(a.abs().max()) for a in whole) > 0.01


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_head_gets_counted_positions_only_and_never_all_at_once(name, monkeypatch):
    monkeypatch.setattr(language, "_PIECE", 3 * 13)
    network, seen = NETWORKS[name](), []
    network.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.numel()))
    language_loss(network, Chunk.of(EXAMPLES, "cpu", padding=0))
    assert seen == [13, *[3 * 13] * 3, 13]


@pytest.mark.parametrize("name", ["gemma2", "granite"])
def test_networks_that_change_their_logits_afterwards_are_found_out(name):
    network = NETWORKS[name]()
    chunk = Chunk.of(EXAMPLES, "cpu", padding=0)
    assert language._before_head(network, network.lm_head, chunk) is None
    assert not network.lm_head._forward_hooks
    assert not network.lm_head._forward_pre_hooks


def test_chunks_of_the_data_carry_their_counts():
    found = LanguageChunks.of(EXAMPLES, 3, "cpu", padding=7)
    assert found.counts == (9.0, 1.0)
    first = found.chunks[0]
    assert first.tokens.tolist()[1] == [1, 9, 3, 7, 7, 7, 7]
    assert first.mask.tolist()[1] == [1, 1, 1, 0, 0, 0, 0]
    assert first.labels.tolist()[0] == [-100, -100, -100, 8, 9, 2, -100]
    assert first.labels.tolist()[2] == [8, 8, 3, 2, -100, -100, -100]
    assert first.prompts == (4, 1, 1)


def test_bfloat16_is_autocast_over_float32_parameters():
    network = llama()
    chunk = Chunk.of(EXAMPLES, "cpu", padding=0)
    plain, rounded = (
        language_loss(network, chunk),
        computed_in("bfloat16", "cpu", language_loss)(network, chunk),
    )
    assert rounded.dtype == torch.float32
    assert 0 < abs(float((plain - rounded).detach())) < 0.1
    assert all(g.dtype == torch.float32 for g in gradients(network, rounded).values())
    assert computed_in("float32", "cpu", language_loss) is language_loss


# Sampled labels.


def test_labels_are_drawn_with_their_probabilities():
    wanted = torch.tensor([0.5, 0.0, 0.3, 0.2])
    drawn = sample_labels(wanted.log().expand(20000, 4), uniform_bits(3, 0, 20000))
    shares = torch.bincount(drawn, minlength=4) / 20000
    assert float((shares - wanted).abs().max()) < 0.015  # four standard errors
    assert shares[1] == 0
    ends = sample_labels(wanted.log().expand(2, 4), np.array([0, 2**32 - 1], np.uint32))
    assert ends.tolist() == [0, 3]


def test_the_sampled_loss_is_the_entropy_on_average_and_its_gradient_nothing(network, monkeypatch):
    chunk = Chunk.of(EXAMPLES[1:2], "cpu", padding=0)
    with torch.no_grad():
        logits = network(input_ids=chunk.tokens).logits[0, :2].double()
        entropy = float(-(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean())
        losses = [float(sampled_loss(network, chunk, key)) for key in range(300)]
        assert sampled_loss(network, chunk, 5) == sampled_loss(network, chunk, 5)
    assert len(set(losses)) > 3
    spread = np.std(losses) / math.sqrt(len(losses))
    assert abs(np.mean(losses) - entropy) < 4 * spread
    monkeypatch.setattr(language, "_PIECE", 13)
    with torch.no_grad():
        again = [float(sampled_loss(network, chunk, key)) for key in range(5)]
    assert again == pytest.approx(losses[:5], abs=1e-6)


def test_the_squared_gradient_times_the_count_estimates_the_fisher_diagonal():
    network = gpt2()
    chunk = Chunk.of(EXAMPLES[1:2], "cpu", padding=0)  # two counted tokens
    weight = network.transformer.ln_f.weight
    logits = network(input_ids=chunk.tokens).logits[0, :2]
    wanted = torch.zeros_like(weight)
    for position in logits:
        for label, p in enumerate(position.softmax(-1).tolist()):
            score = torch.autograd.grad(position.log_softmax(-1)[label], weight, retain_graph=True)[0]
            wanted += p * score.square() / 2
    drawn = torch.zeros_like(weight)
    for key in range(400):
        drawn += 2 * torch.autograd.grad(sampled_loss(network, chunk, key), weight)[0].square() / 400
    assert float((drawn.sum() - wanted.sum()).abs() / wanted.sum()) < 0.15
