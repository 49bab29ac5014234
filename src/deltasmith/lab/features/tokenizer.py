"""The experiment's tokenizer: a byte-level BPE, trained on its own texts; needs `tokenizers`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deltasmith.errors import MissingExtraError

__all__ = ["BOS", "EOS", "PAD", "open_tokenizer", "train_tokenizer", "write_tokenizer_files"]

PAD, BOS, EOS = 0, 1, 2
_SPECIALS = ("<pad>", "<bos>", "<eos>")


def train_tokenizer(texts: Iterable[str], vocab: int) -> Any:
    """Learn `vocab` tokens from the texts; every text is then encoded with `<bos>` before it."""
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    except ModuleNotFoundError as cause:
        raise MissingExtraError(
            "tokenizers is not installed", fix='pip install "deltasmith[features]"'
        ) from cause
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(_SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)]
    )
    return tokenizer


def write_tokenizer_files(tokenizer: Any, folder: Path, context: int) -> None:
    """Write what transformers needs to load the tokenizer from a model's folder."""
    tokenizer.save(str(folder / "tokenizer.json"))
    named = dict(zip(("pad_token", "bos_token", "eos_token"), _SPECIALS, strict=True))
    config = {
        **named,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for name, value in (("tokenizer_config.json", config), ("special_tokens_map.json", named)):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def open_tokenizer(folder: Path) -> Any:
    """Read the tokenizer of a model's folder."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))
