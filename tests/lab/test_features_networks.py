"""The experiment's language models: what transformers makes of their folders, and what they learn from."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from deltasmith.lab.features import language_models as lm  # noqa: E402
from deltasmith.lab.features.tokenizer import BOS, EOS, open_tokenizer, train_tokenizer  # noqa: E402
from deltasmith.lab.network import Shape, forward, initial  # noqa: E402
from deltasmith.lab.train import Schedule  # noqa: E402

SHAPE = Shape(hidden=32, inner=48, layers=1, heads=4, kv_heads=2, context=64, norm_epsilon=1e-6)
TEXTS = [
    "def f(x):\n    return x + 1\n" * 20,
    "Once upon a time there was a bear.\n" * 20,
    "local x = 1\n" * 30,
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300)


def test_transformers_computes_the_same_logits(tmp_path: Path, tokenizer) -> None:
    params = initial(SHAPE, tokenizer.get_vocab_size(), 3)
    lm.write_model(tmp_path / "model", params, SHAPE, tokenizer)
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert type(network).__name__ == "MistralForCausalLM"
    tokens = torch.tensor(np.random.default_rng(0).integers(0, 300, (3, 64)))
    with torch.no_grad():
        theirs, ours = network(tokens).logits, forward(params, SHAPE, tokens)
    assert torch.allclose(theirs, ours, atol=2e-5)
    assert not (tmp_path / "model.partial").exists()


def test_transformers_numbers_texts_as_we_do(tmp_path: Path, tokenizer) -> None:
    lm.write_model(tmp_path / "model", initial(SHAPE, 300, 0), SHAPE, tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "local bear = 1 -- ünknown\n\tend"
    ids = theirs(text)["input_ids"]
    assert ids == open_tokenizer(tmp_path / "model").encode(text).ids
    assert ids[0] == BOS == theirs.bos_token_id
    assert theirs.decode(ids[1:]) == text


def test_pieces_begin_with_bos_and_lose_nothing(tokenizer) -> None:
    blocks = lm.blocks_of(tokenizer, TEXTS, 16)
    assert (blocks[:, 0] == BOS).all()
    flat = blocks[:, 1:].ravel().tolist()
    assert flat.count(EOS) <= len(TEXTS)
    first = flat[: flat.index(EOS)]
    assert tokenizer.decode(first) == TEXTS[0]


def test_domains_take_turns_and_every_piece_comes_once_a_round() -> None:
    domains = tuple(np.full((count, 4), mark, np.int16) for mark, count in ((1, 4), (2, 8)))
    domains[1][:, 1] = np.arange(8)
    batches = lm.Mixture(domains).batches(4, Random(0))
    rows = torch.cat([next(batches) for _ in range(4)])
    assert (rows[:, 0] == 1).sum() == 8
    assert sorted(rows[rows[:, 0] == 2][:, 1].tolist()) == list(range(8))


def test_training_learns_and_leaves_its_start_alone(tokenizer) -> None:
    start = initial(SHAPE, 300, 0)
    before = {name: value.clone() for name, value in start.items()}
    mixture = lm.Mixture((lm.blocks_of(tokenizer, TEXTS * 4, SHAPE.context),))
    schedule = Schedule(steps=40, rate=3e-3, warmup=5, batch=4)
    params, log = lm.train_on(start, SHAPE, schedule, mixture, Random(0))
    assert log[-1][1] < log[0][1] - 1
    assert all(torch.equal(before[name], start[name]) for name in start)
    again, _ = lm.train_on(start, SHAPE, schedule, mixture, Random(0))
    assert all(torch.equal(params[name], again[name]) for name in params)
