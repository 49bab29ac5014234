"""Small networks without folders, a tokenizer of characters, and pieces of made-up text. Networks need transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deltasmith.analysis.tokenizing import Encoded, TextTokenizer
from deltasmith.features.pieces import Pieces

VOCABULARY = 67
START = 1


def characters(start: int | None = START, vocabulary: int = VOCABULARY) -> TextTokenizer:
    """A token a character: 3 and up; `?` is unknown, 2."""

    def encode(text: str) -> Encoded:
        return Encoded(tuple(2 if c == "?" else 3 + ord(c) % 64 for c in text))

    return TextTokenizer(encode=encode, encode_bare=encode, vocabulary=vocabulary, start=start, unknown=2)


def mistral(seed: int = 0, **changes: Any) -> Any:
    """One layer, 16 wide, 24 inside."""
    import torch
    import transformers

    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    torch.manual_seed(seed)
    return transformers.MistralForCausalLM(transformers.MistralConfig(**(sizes | changes))).eval()


def gpt2(seed: int = 0) -> Any:
    """Two layers, 16 wide, with layer norms, biases and tied embeddings."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3
    )
    network = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "ln" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return network


def pieces_of(lengths: Sequence[int], context: int = 12, seed: int = 0) -> Pieces:
    """Random ids, each piece a passage of its own; domains take turns."""
    rng = np.random.default_rng(seed)
    count = len(lengths)
    numbers = np.arange(count, dtype=np.int32)
    ids = rng.integers(3, VOCABULARY, (count, context)).astype(np.int32)
    ids[:, 0] = START
    ids[np.arange(context)[None, :] >= np.array(lengths)[:, None]] = 0
    return Pieces(ids, np.array(lengths, np.int32), (numbers % 2).astype(np.int32), numbers, numbers, numbers)
