"""The data of a loss: documents from a file as token sequences, and which of their tokens count.

Nothing here computes with a network. What counts is a function of the file and the tokenizer alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltasmith.analysis.tokenizing import Encoded, Message, TextTokenizer
from deltasmith.errors import DamagedInputError, DeltasmithError, RecipeError, printable
from deltasmith.evaluate.local.reading import Record, decoded, parse_records, read_bytes

__all__ = ["Example", "Examples", "chunked", "read_examples"]

_OBJECTS = (".jsonl", ".json")
_FORMAT = "give `text`, `prompt` and `answer`, or `messages`"
_SHOWN = 80


@dataclass(frozen=True)
class Example:
    """Token ids that a network reads together. Tokens from position `first` on are predicted and counted.

    The token at position 0 never is: nothing comes before it.
    """

    tokens: tuple[int, ...]
    first: int

    @property
    def counted(self) -> int:
        """Count the tokens that are predicted."""
        return max(0, len(self.tokens) - max(self.first, 1))


@dataclass(frozen=True)
class Examples:
    """What a data file holds, in its order: `documents` became `examples`. `name` is the file's, without folders."""

    examples: tuple[Example, ...]
    documents: int
    sha256: str
    name: str
    notes: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Count the tokens that are predicted."""
        return sum(example.counted for example in self.examples)


def read_examples(
    path: str | Path,
    tokenizer: TextTokenizer,
    *,
    length: int,
    limit: int | None = None,
    context: int | None = None,
) -> Examples:
    """Read a file of documents and number them as examples of at most `length` tokens, and of at most `context`.

    A `.jsonl` or `.json` file holds an object for each document, any other a document a line (blank lines are passed
    over). `limit` reads the first documents only. By what an object holds:

    - `text` (or a line): all tokens count but the first. Longer texts are cut into pieces that overlap by one token,
      so that every other token is predicted once. Nothing is added but what the tokenizer adds.
    - `prompt` and `answer`, numbered as one text: a token counts if it begins at or after the answer's first
      character, or, where the tokenizer does not tell where tokens begin, if it comes after what the two texts have
      in common as token sequences. The end-of-sequence token follows and counts: a model should stop.
    - `messages`, rendered by the chat template: the assistant's turns count, each an example that ends with it,
      where the template marks them (`{% generation %}`); else only the last turn does, from where the conversation
      without it, with the words that ask for an answer, ends.

    An answer's example that is too long keeps its beginning-of-sequence token and its end.

    Raises:
        RecipeError: `length` is below 2 or `limit` below 1.
        DamagedInputError: no document, no JSON, no such fields, or a document that does not tokenise, has no token
            that counts, or has a token the network lacks; each with file and line.
    """
    path = Path(path)
    used = length if context is None else min(length, context)
    for name, value, least in (("length", used, 2), ("limit", limit, 1)):
        if value is not None and value < least:
            raise RecipeError(f"{name} is {value}", fix=f"give {least} or more")
    data = read_bytes(path)
    documents = _documents(data, path)
    kept = documents[:limit]
    reader = _Reader(tokenizer, used)
    found = tuple(example for document in kept for example in reader.examples(document))
    cut = used < length and reader.cut
    notes = [f"examples of at most {used} tokens, the model's longest input"] if cut else []
    notes += [f"the first {len(kept)} of {len(documents)} documents"] if len(kept) < len(documents) else []
    return Examples(
        found, len(kept), hashlib.sha256(data).hexdigest(), path.name, (*notes, *reader.notes(found))
    )


def chunked(examples: Sequence[Example], batch: int) -> list[tuple[Example, ...]]:
    """Group `batch` examples at a time, in their order; a chunk is what is computed, and resampled, together.

    Raises:
        RecipeError: `batch` is below 1.
    """
    if batch < 1:
        raise RecipeError(f"batch is {batch}", fix="give 1 or more")
    return [tuple(examples[at : at + batch]) for at in range(0, len(examples), batch)]


def _documents(data: bytes, path: Path) -> list[Record]:
    """Return every document as an object and its place."""
    name = printable(str(path))
    if not data.strip(b"\xef\xbb\xbf \t\r\n[]"):
        raise DamagedInputError("it holds no document", where=name, fix="give one document a line")
    if path.suffix in _OBJECTS:
        return parse_records(data, name)
    text = decoded(data, name)
    lines = enumerate(text.split("\n"), 1)
    return [Record({"text": line}, f"{name}:{at}") for at, line in lines if line.strip()]


class _Reader:
    """Number documents, and count what is worth a note."""

    def __init__(self, tokenizer: TextTokenizer, length: int) -> None:
        self._tokenizer = tokenizer
        self._length = length
        self._divided = False
        self._shortened = 0
        self._last_turns = 0
        self._unknown = 0

    @property
    def cut(self) -> bool:
        """Tell whether a document was longer than an example may be."""
        return self._divided or self._shortened > 0

    def notes(self, examples: Sequence[Example]) -> Iterator[str]:
        """Say what a user may not expect of the examples."""
        if self._shortened:
            yield f"{self._shortened} examples were too long and keep only their last {self._length} tokens"
        if self._last_turns:
            yield "the chat template does not mark the assistant's turns: only the last of each conversation counts"
        if self._unknown:
            total = sum(len(example.tokens) for example in examples)
            yield f"{self._unknown} of {total} tokens are unknown to the tokenizer"

    def examples(self, document: Record) -> list[Example]:
        """Return the examples of one document, at least one, each with a token that counts."""
        keys = document.fields
        try:
            if "text" in keys or not {"prompt", "answer", "messages"} & set(keys):
                return self._text(document)
            if "messages" in keys:
                return self._messages(document)
            return [self._answer(document)]
        except DeltasmithError:
            raise
        except Exception as cause:  # a tokenizer or a chat template may raise anything over a text
            lines = str(cause).strip().splitlines() or [type(cause).__name__]
            raise _damaged(
                document, f"it does not tokenise ({printable(lines[0])})", "take the document out"
            ) from cause

    def _text(self, document: Record) -> list[Example]:
        ids = self._checked(document, self._tokenizer.encode(_string(document, "text"))).ids
        if len(ids) < 2:
            raise _damaged(
                document, "its only token has nothing before it to be predicted from", "give a longer text"
            )
        self._divided |= len(ids) > self._length
        step = self._length - 1
        return [Example(ids[at : at + self._length], 1) for at in range(0, len(ids) - 1, step)]

    def _answer(self, document: Record) -> Example:
        prompt, answer = _string(document, "prompt"), _string(document, "answer")
        if not answer:
            raise _damaged(document, "the answer is empty", "give an answer, or plain `text`")
        whole = self._checked(document, self._tokenizer.encode(prompt + answer))
        ids, end = whole.ids, self._tokenizer.end
        first = self._first(document, whole, prompt, self._tokenizer.encode)
        if end is not None and ids[-1] != end:
            ids = (*ids, end)
        return self._shortest(ids, first)

    def _messages(self, document: Record) -> list[Example]:
        messages, tokenizer = _messages(document), self._tokenizer
        if tokenizer.turns is not None:
            found = tokenizer.turns(messages)
            self._checked(document, Encoded(found.ids))
            spans = [(first, end) for first, end in found.spans if end > max(first, 1)]
            if not spans:
                raise _damaged(document, "the assistant says nothing", "give a conversation with an answer")
            return [self._shortest(found.ids[:end], first) for first, end in spans]
        if tokenizer.render is None:
            raise _damaged(
                document, "the model has no chat template for `messages`", "give `prompt` and `answer`"
            )
        if messages[-1]["role"] != "assistant":
            raise _damaged(document, "its last turn is not the assistant's", "end it with an answer")
        text, prompt = tokenizer.render(messages, False), tokenizer.render(messages[:-1], True)
        if not text.startswith(prompt) or text == prompt:
            raise _damaged(
                document,
                "the chat template renders the turns before the last answer otherwise without it",
                "give `prompt` and `answer`",
            )
        whole = self._checked(document, tokenizer.encode_bare(text))
        self._last_turns += 1
        return [self._shortest(whole.ids, self._first(document, whole, prompt, tokenizer.encode_bare))]

    def _first(self, document: Record, whole: Encoded, prompt: str, encode: Callable[[str], Encoded]) -> int:
        """Return the position of the first token that counts."""
        if whole.starts is None:
            before = encode(prompt).ids
            same = [a == b for a, b in zip(before, whole.ids, strict=False)]
            first = same.index(False) if False in same else len(same)
        else:
            begun = (at for at, start in enumerate(whole.starts) if start >= len(prompt))
            first = next(begun, len(whole.ids))
        if max(first, 1) >= len(whole.ids):
            raise _damaged(
                document,
                "no token begins within the answer",
                "end the prompt where a token ends, at a line break for example",
            )
        if all(i == self._tokenizer.unknown for i in whole.ids[first:]):
            raise _damaged(
                document,
                "the answer does not tokenise (all its tokens are unknown)",
                "give a text in the model's alphabet",
            )
        return first

    def _shortest(self, ids: tuple[int, ...], first: int) -> Example:
        """Keep the end of what is too long, and the token that the sequence begins with."""
        over = len(ids) - self._length
        if over <= 0:
            return Example(ids, first)
        self._shortened += 1
        if ids[0] != self._tokenizer.start:
            return Example(ids[over:], max(first - over, 0))
        return Example((ids[0], *ids[over + 1 :]), max(first - over, 1))

    def _checked(self, document: Record, encoded: Encoded) -> Encoded:
        """Refuse what is no text to the tokenizer, or no input to the network."""
        ids, tokenizer = encoded.ids, self._tokenizer
        own = [i for i in ids if i not in (tokenizer.start, tokenizer.end)]
        if not own:
            raise _damaged(document, "it does not tokenise (there is no token)", "give a text")
        if all(i == tokenizer.unknown for i in own):
            raise _damaged(
                document,
                f"it does not tokenise (all its {len(own)} tokens are unknown)",
                "give a text in the model's alphabet",
            )
        beyond = next((i for i in ids if not 0 <= i < tokenizer.vocabulary), None)
        if beyond is not None:
            raise _damaged(
                document,
                f"the tokenizer yields token {beyond}, and the network knows those below {tokenizer.vocabulary}",
                "take tokenizer and weights from the same model",
            )
        self._unknown += own.count(tokenizer.unknown) if tokenizer.unknown is not None else 0
        return encoded


def _string(document: Record, key: str) -> str:
    value = document.fields.get(key)
    if isinstance(value, str):
        return value
    if value is not None:
        raise _damaged(document, f"`{key}` is not a string", _FORMAT)
    there = ", ".join(sorted(map(repr, document.fields))) or "nothing"
    raise _damaged(document, f"`{key}` is missing (there is {printable(there, _SHOWN)})", _FORMAT)


def _messages(document: Record) -> list[Message]:
    value = document.fields["messages"]
    if not isinstance(value, list) or not value:
        raise _damaged(
            document, "`messages` is not a list of turns", "give objects with `role` and `content`"
        )
    for at, turn in enumerate(value):
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str) or "content" not in turn:
            raise _damaged(
                document, f"turn {at} of `messages` has no `role` and `content`", "give both for each turn"
            )
    return value


def _damaged(document: Record, what: str, fix: str) -> DamagedInputError:
    return DamagedInputError(what, where=document.where, fix=fix)
