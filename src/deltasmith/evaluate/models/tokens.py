"""What a tokenizer must tell, and one that needs no package: a character per token.

The character tokenizer reads the same `tokenizer.json` as the `tokenizers` package and numbers texts alike. Every
other kind of tokenizer is refused here, not approximated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from deltasmith.errors import DamagedInputError, RefusedError
from deltasmith.formats.json_file import read_json_object

__all__ = ["CharacterTokenizer", "Tokenizer"]

_LIMIT = 256 << 20  # bytes


class Tokenizer(Protocol):
    """Numbers texts the way lm-eval's own Hugging Face adapter does, so that scores agree with it."""

    @property
    def prefix(self) -> int:
        """Return the token that stands before a text without context: beginning of sequence, else its end."""

    @property
    def end(self) -> int:
        """Return the end-of-sequence token."""

    def encode(self, text: str) -> list[int]:
        """Number a prompt, with a beginning-of-sequence token if the tokenizer adds one by itself."""

    def encode_bare(self, text: str) -> list[int]:
        """Number a text without adding anything."""

    def decode(self, ids: Sequence[int]) -> str:
        """Spell ids out, leaving special tokens away."""

    def special(self, text: str) -> int | None:
        """Return the id of the special token that is spelled `text`, or None if there is none."""


@dataclass(frozen=True)
class CharacterTokenizer:
    """Map each character to one number and back; what the vocabulary lacks becomes the unknown token.

    `specials` are the added tokens by their spelling, which win over the characters they are spelled with;
    `start` goes before a prompt if the tokenizer's template says so, else None.
    """

    vocabulary: Mapping[str, int]
    specials: Mapping[str, int]
    unknown: int
    start: int | None
    prefix: int
    end: int

    @classmethod
    def load(cls, folder: Path, bos: int | None, eos: int) -> CharacterTokenizer:
        """Read `folder/tokenizer.json`; `bos` and `eos` are the ids that the model's config names.

        Raises:
            DamagedInputError: there is no such file, or it contradicts itself.
            RefusedError: it describes anything but a character tokenizer.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise _refused("there is no tokenizer.json", folder)
        document = read_json_object(path, _LIMIT)
        model = _mapping(document.get("model"))
        if reason := _foreign(document, model):
            raise _refused(reason, path)
        try:
            vocabulary = {str(token): int(index) for token, index in model["vocab"].items()}
            added = {str(e["content"]): int(e["id"]) for e in document.get("added_tokens") or ()}
            unknown = vocabulary[model["unk_token"]] if model.get("unk_token") else None
        except (KeyError, TypeError, ValueError, AttributeError) as cause:
            raise DamagedInputError("its vocabulary cannot be read", where=str(path)) from cause
        if unknown is None:
            raise _refused("it has no unknown token", path)
        start = _start(document.get("post_processor"), path)
        return cls(vocabulary, added, unknown, start, eos if bos is None else bos, eos)

    @cached_property
    def _names(self) -> dict[int, str]:
        hidden = set(self.specials.values())
        return {index: token for token, index in self.vocabulary.items() if index not in hidden}

    @cached_property
    def _split(self) -> re.Pattern[str]:
        longest_first = sorted(self.specials, key=len, reverse=True)
        return re.compile("|".join([*map(re.escape, longest_first), "(?s:.)"]))

    def encode(self, text: str) -> list[int]:
        """Number a prompt, after the start token if the tokenizer has one and the text does not begin with it."""
        ids = self.encode_bare(text)
        if self.start is None or ids[:1] == [self.start]:
            return ids
        return [self.start, *ids]

    def encode_bare(self, text: str) -> list[int]:
        """Number the characters and special tokens of `text`."""
        known = {**self.vocabulary, **self.specials}
        return [known.get(piece, self.unknown) for piece in self._split.findall(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Join the characters of `ids`, leaving special tokens and numbers without a character away."""
        return "".join(self._names.get(index, "") for index in ids)

    def special(self, text: str) -> int | None:
        """Return the id of the added token `text`."""
        return self.specials.get(text)


def _foreign(document: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """Say what makes this no character tokenizer, or nothing."""
    if model.get("type") != "BPE" or model.get("merges"):
        return f"it is a {model.get('type')} tokenizer with {len(model.get('merges') or ())} merges"
    odd = [key for key in ("normalizer", "pre_tokenizer") if document.get(key)]
    odd += [
        key
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback")
        if model.get(key)
    ]
    if _mapping(document.get("decoder")).get("type", "Fuse") != "Fuse":
        odd.append("decoder")
    odd += [
        f"added_tokens.{key}"
        for key in ("single_word", "lstrip", "rstrip")
        if any(_mapping(entry).get(key) for entry in document.get("added_tokens") or ())
    ]
    return f"it sets {', '.join(odd)}" if odd else ""


def _start(processor: Any, path: Path) -> int | None:
    """Return the token that the template puts before a text, or None."""
    if not processor:
        return None
    found = _mapping(processor)
    single = found.get("single") if found.get("type") == "TemplateProcessing" else None
    if isinstance(single, list) and [sorted(_mapping(part)) for part in single] == [["Sequence"]]:
        return None
    if isinstance(single, list) and [sorted(_mapping(part)) for part in single] == [
        ["SpecialToken"],
        ["Sequence"],
    ]:
        name = _mapping(single[0]["SpecialToken"]).get("id")
        ids = _mapping(_mapping(found.get("special_tokens")).get(str(name))).get("ids")
        if isinstance(ids, list) and len(ids) == 1 and isinstance(ids[0], int):
            return ids[0]
    raise _refused("it adds more than one token before a text", path)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _refused(reason: str, where: Path) -> RefusedError:
    return RefusedError(
        f"without transformers only one-character tokens are understood; {reason}",
        where=str(where),
        fix='pip install "deltasmith[eval]"',
    )
