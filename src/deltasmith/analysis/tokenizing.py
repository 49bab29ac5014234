"""What the analysis asks of a tokenizer: plain functions, and a tokenizer of transformers made into them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Encoded", "Message", "TextTokenizer", "Turns", "of_transformers"]

Message = Mapping[str, Any]
"""One turn of a conversation: `role` and `content`."""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Encoded:
    """A text's token ids, and the character that each begins at, or None from a tokenizer that does not tell.

    A token that stands for no character, added before or after the text, begins at 0.
    """

    ids: tuple[int, ...]
    starts: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Turns:
    """A conversation's token ids, and the spans [first, end) of them that the assistant says."""

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class TextTokenizer:
    """Number texts for a network.

    `encode` adds the special tokens that belong around a text, `encode_bare` adds none. `vocabulary` counts the rows
    of the network's embedding; `start`, `end` and `unknown` are the tokens of the beginning and the end of a
    sequence and of what the vocabulary lacks; `padding` fills up batches. `render` spells a conversation out by the
    chat template, by its second argument with or without the words that ask for an answer. `turns` is there only
    where the template itself marks what the assistant says.
    """

    encode: Callable[[str], Encoded]
    encode_bare: Callable[[str], Encoded]
    vocabulary: int
    start: int | None = None
    end: int | None = None
    unknown: int | None = None
    padding: int = 0
    render: Callable[[Sequence[Message], bool], str] | None = None
    turns: Callable[[Sequence[Message]], Turns] | None = None


def of_transformers(inner: Any, vocabulary: int, end: int | None = None) -> TextTokenizer:
    """Wrap a tokenizer of transformers; `end` stands in where it names no end-of-sequence token.

    A fast tokenizer tells where its tokens begin. Chat templates are rendered in transformers' sandbox.
    """

    def encoder(special: bool) -> Callable[[str], Encoded]:
        def encode(text: str) -> Encoded:
            if not inner.is_fast:
                ids = inner.encode(text, add_special_tokens=special, verbose=False)
                return Encoded(tuple(map(int, ids)))
            found = inner(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
            starts = tuple(int(begin) for begin, _ in found["offset_mapping"])
            return Encoded(tuple(map(int, found["input_ids"])), starts)

        return encode

    template = _template(inner)
    own_end = inner.eos_token_id
    padding = inner.pad_token_id
    return TextTokenizer(
        encode=encoder(True),
        encode_bare=encoder(False),
        vocabulary=vocabulary,
        start=inner.bos_token_id,
        end=end if own_end is None else int(own_end),
        unknown=inner.unk_token_id,
        padding=0 if padding is None else int(padding),
        render=_renderer(inner) if template else None,
        turns=_marker(inner) if inner.is_fast and template and _GENERATION.search(template) else None,
    )


def _template(inner: Any) -> str:
    """Return the chat template that a conversation without tools is rendered by, or nothing."""
    template = inner.chat_template
    if isinstance(template, Mapping):
        template = template.get("default")
    return template if isinstance(template, str) else ""


def _renderer(inner: Any) -> Callable[[Sequence[Message], bool], str]:
    def render(messages: Sequence[Message], asking: bool) -> str:
        return str(inner.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=asking))

    return render


def _marker(inner: Any) -> Callable[[Sequence[Message]], Turns]:
    def turns(messages: Sequence[Message]) -> Turns:
        found = inner.apply_chat_template(
            list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = found["input_ids"], [0, *found["assistant_masks"], 0]
        firsts = [at for at in range(len(ids)) if mask[at + 1] > mask[at]]
        ends = [at for at in range(1, len(ids) + 1) if mask[at] > mask[at + 1]]
        return Turns(tuple(map(int, ids)), tuple(zip(firsts, ends, strict=True)))

    return turns
