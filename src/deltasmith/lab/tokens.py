"""The character tokenizer of the bundled family: encode, decode, and its Hugging Face files.

No dependency beyond the standard library; `tokenizers` and `transformers` load the JSON written here as well.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasmith.errors import DamagedInputError

__all__ = ["BOS", "EOS", "PAD", "UNK", "CharTokenizer"]

PAD, BOS, EOS, UNK = 0, 1, 2, 3
_SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
# Newline parts the prompt from the answer; then every printable ASCII character in code-point order.
_ALPHABET = "\n" + "".join(sorted(string.ascii_letters + string.digits + string.punctuation + " "))


@dataclass(frozen=True)
class CharTokenizer:
    """Map each character to one number and back; characters outside the vocabulary become `<unk>`.

    `vocab` maps token text to id and holds the four special tokens as well.
    """

    vocab: Mapping[str, int]

    @classmethod
    def standard(cls) -> CharTokenizer:
        """Number the four special tokens 0 to 3 and the alphabet from 4 up."""
        return cls({token: index for index, token in enumerate((*_SPECIALS, *_ALPHABET))})

    @classmethod
    def load(cls, folder: Path | str) -> CharTokenizer:
        """Read the numbering from `folder/tokenizer.json`.

        Raises DamagedInputError when that file describes anything but a character tokenizer without merges.
        """
        path = Path(folder) / "tokenizer.json"
        model = json.loads(path.read_text(encoding="utf-8"))["model"]
        if model.get("type") != "BPE" or model.get("merges"):
            raise DamagedInputError(
                f"a {model.get('type')} tokenizer with {len(model.get('merges') or ())} merges, "
                "not one character per token",
                where=str(path),
                fix="encode with `tokenizers` instead",
            )
        vocab: dict[str, int] = {str(token): int(index) for token, index in model["vocab"].items()}
        return cls(vocab)

    def encode(self, text: str) -> list[int]:
        """Number the characters of `text`, without `<bos>` or `<eos>`."""
        return [self.vocab.get(character, UNK) for character in text]

    def decode(self, ids: Iterable[int]) -> str:
        """Join the characters of `ids`, leaving special tokens out."""
        names = {index: token for token, index in self.vocab.items()}
        return "".join(names[index] for index in ids if names[index] not in _SPECIALS)

    def files(self, context: int) -> dict[str, dict[str, Any]]:
        """Lay the numbering out as the three JSON files a Hugging Face folder holds, by file name."""
        named = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), _SPECIALS, strict=True))
        added = [_added(index, token) for index, token in enumerate(_SPECIALS)]
        config = {
            "added_tokens_decoder": {
                str(index): {key: value for key, value in entry.items() if key != "id"}
                for index, entry in enumerate(added)
            },
            **named,
            "clean_up_tokenization_spaces": False,
            "model_max_length": context,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        return {
            "tokenizer.json": _fast_tokenizer(self.vocab, added),
            "tokenizer_config.json": config,
            "special_tokens_map.json": dict(named),
        }


def _added(index: int, token: str) -> dict[str, Any]:
    return {
        "id": index,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _fast_tokenizer(vocab: Mapping[str, int], added: list[dict[str, Any]]) -> dict[str, Any]:
    # BPE with an empty merge list splits a text into characters; Fuse joins them again without spaces.
    start = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, first],
            "pair": [start, first, second],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [BOS], "tokens": ["<bos>"]}},
        },
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(vocab),
            "merges": [],
        },
    }
