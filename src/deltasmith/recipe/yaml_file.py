"""Strict YAML: bytes to a tree with places. No meaning here; see `checks`.

The YAML 1.2 core rules for scalars (`1e-3` is a number; `no`, `on`, `12:30` and dates are text; `012` is
twelve), and less than YAML allows otherwise: no aliases, anchors, tags, repeated keys or second documents.
The reader is a loop over parser events, so that depth and size are refused before they cost anything.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from deltasmith.errors import RecipeError, printable
from deltasmith.recipe.problems import Problem, RecipeProblems
from deltasmith.recipe.tree import MAX_DEPTH, Entry, Keyed, Listing, Mark, Node, Scalar, plain

__all__ = ["MAX_BYTES", "MAX_NODES", "parse", "read_text", "resolve_scalar", "to_yaml"]

MAX_BYTES = 1_000_000
MAX_NODES = 20_000

_INT = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def resolve_scalar(text: str) -> bool | int | float | str | None:
    """Return what an unquoted scalar stands for by the YAML 1.2 core schema.

    >>> [resolve_scalar(t) for t in ("1e-3", "no", "012", "0o12", "12:30", "~")]
    [0.001, 'no', 12, 10, '12:30', None]
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        # Python refuses to convert thousands of digits; as a float such a number is infinite anyway.
        return int(text) if len(text) <= 400 else float("-inf" if text[0] == "-" else "inf")
    if _BASED.fullmatch(text):
        return int(text[2:], 8 if text[1] == "o" else 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INFINITE.fullmatch(text):
        return float("-inf" if text[0] == "-" else "inf")
    return float("nan") if text in (".nan", ".NaN", ".NAN") else text


def read_text(path: Path, name: str) -> str:
    """Read a recipe file: a regular file of at most 1 MB of UTF-8 text without a byte order mark."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise RecipeError(f"{name} is {kind}", fix="give the path of a recipe file")
        if status.st_size > MAX_BYTES:
            raise RecipeError(
                f"{name} is larger than 1 MB ({status.st_size:,} bytes)", fix="a recipe is short text"
            )
        with path.open("rb") as file:
            return decode(file.read(MAX_BYTES + 1), name)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RecipeError(f"cannot read the recipe {name}: {reason}", fix="check the path") from error


def decode(data: bytes, name: str) -> str:
    """Decode UTF-8 text; refuse what some editors put in front of it, and what is no text at all."""
    if data.startswith(b"\xef\xbb\xbf"):
        raise RecipeError(f"{name} starts with a byte order mark", fix="save it as UTF-8 without BOM")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise RecipeError(f"{name} is UTF-16", fix="save it as UTF-8")
    if b"\0" in data:
        raise RecipeError(f"{name} is a binary file, not a recipe", fix="give the path of a YAML file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{name} is not UTF-8 text (byte {error.start})", fix="save it as UTF-8") from error


def parse(text: str, name: str) -> Node:
    """Turn YAML text into a tree; anything unusual is one RecipeError with its place."""
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise RecipeError(f"{name} is larger than 1 MB", fix="a recipe is short text")
    if text.startswith("\ufeff"):
        raise RecipeError(f"{name} starts with a byte order mark", fix="save it as UTF-8 without BOM")
    for number, line in enumerate(text.split("\n"), 1):
        indent = line[: len(line) - len(line.lstrip())]
        if "\t" in indent and line.strip() and not line.lstrip().startswith("#"):
            raise _error(Mark(name, number, indent.index("\t") + 1), "a tab in the indentation", "use spaces")
    try:
        return _Builder(name).build(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.reader.ReaderError as error:
        row = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        bad = printable(text[error.position : error.position + 1])
        raise _error(Mark(name, row, column), f"the character {bad} may not stand in a recipe") from error
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        mark = Mark(name, at.line + 1, at.column + 1) if at else Mark(name)
        what = error.problem or error.context or "cannot be read"
        raise _error(mark, f"not valid YAML: {what}", "check quotes, colons and indentation") from error


def _error(mark: Mark, what: str, fix: str = "") -> RecipeProblems:
    return RecipeProblems([Problem(mark, what, fix)])


@dataclass
class _Open:
    """A list or mapping whose end has not come yet; `key` is the one that waits for its value."""

    mark: Mark
    keyed: bool
    items: list[Node] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)
    key: Scalar | None = None

    def close(self) -> Node:
        return (
            Keyed(tuple(self.entries.values()), self.mark)
            if self.keyed
            else Listing(tuple(self.items), self.mark)
        )


@dataclass
class _Builder:
    """Builds the tree from parser events, one level of `stack` per open list or mapping."""

    name: str
    stack: list[_Open] = field(default_factory=list)
    root: Node | None = None
    nodes: int = 0

    def build(self, events: Iterator[Any]) -> Node:
        documents = 0
        for event in events:
            mark = Mark(self.name, event.start_mark.line + 1, event.start_mark.column + 1)
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _error(mark, "a second document", "a recipe file holds one recipe")
            elif isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise _error(mark, "anchors and aliases are not allowed", "write the value out")
            elif isinstance(event, yaml.NodeEvent):
                self._node(event, mark)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._put(self.stack.pop().close())
        if self.root is None or (isinstance(self.root, Scalar) and self.root.value is None):
            raise RecipeError(f"{self.name} is empty", fix="a recipe needs at least `models:`")
        return self.root

    def _node(self, event: Any, mark: Mark) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise _error(mark, f"more than {MAX_NODES:,} values", "split the recipe")
        if event.tag is not None:
            raise _error(mark, f"the tag {printable(event.tag, limit=60)} is not allowed", "leave it out")
        if isinstance(event, yaml.ScalarEvent):
            value = resolve_scalar(event.value) if event.style is None else event.value
            self._put(Scalar(value, mark, event.value))
            return
        if len(self.stack) >= MAX_DEPTH:
            raise _error(mark, f"nested more than {MAX_DEPTH} levels deep", "flatten the recipe")
        if self.stack and self.stack[-1].keyed and self.stack[-1].key is None:
            raise _error(mark, "a key must be text", "write `key: value`")
        self.stack.append(_Open(mark, isinstance(event, yaml.MappingStartEvent)))

    def _put(self, node: Node) -> None:
        if not self.stack:
            self.root = node
            return
        top = self.stack[-1]
        if not top.keyed:
            top.items.append(node)
        elif top.key is None:
            top.key = self._key(top, node)
        else:
            text = str(top.key.value)
            top.entries[text] = Entry(text, top.key.mark, node)
            top.key = None

    def _key(self, top: _Open, node: Node) -> Scalar:
        if not isinstance(node, Scalar) or not isinstance(node.value, str):
            raise _error(node.mark, f"the key {node} is not text", "put it in quotes")
        if earlier := top.entries.get(node.value):
            first = f"line {earlier.mark.line}"
            raise _error(node.mark, f"the key {node} occurs twice (first in {first})", "remove one of them")
        return node


class _Dumper(yaml.SafeDumper):
    """Writes YAML that 1.1 and 1.2 readers understand alike: a text either would misread is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write a value that occurs twice twice."""
        return True

    def represent(self, data: Any) -> None:
        """Write the outermost collection as a block, even where it is short."""
        node = self.represent_data(data)
        if isinstance(node, yaml.CollectionNode):
            node.flow_style = False
        self.serialize(node)


_Dumper.add_implicit_resolver(
    "tag:deltasmith,number", re.compile(f"^(?:{_FLOAT.pattern}|{_BASED.pattern})$"), list("-+.0123456789")
)


def to_yaml(value: Any) -> str:
    """Write plain dicts, lists and scalars as YAML that `parse` reads back to the same values."""
    data = plain(value) if isinstance(value, (Scalar, Listing, Keyed)) else value
    text: str = yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100, allow_unicode=True
    )
    return text
