"""The tree of a recipe before it means anything: scalars, listings and keyed values, each with its place."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltasmith.errors import RecipeError, printable

__all__ = ["MAX_DEPTH", "Entry", "Keyed", "Listing", "Mark", "Node", "Scalar", "describe", "lift", "plain"]

MAX_DEPTH = 50


@dataclass(frozen=True, slots=True)
class Mark:
    """A place: file, line and column (from 1), or, without a line, just what the value came from."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source

    def inner(self, key: str | int) -> Mark:
        """Return the place of a child that has no line of its own: the dotted path grows."""
        if self.line:
            return self
        return Mark(f"{self.source}{'.' if ': ' in self.source else ': '}{key}")


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number, a text, true, false or nothing (None); `text` is how it was written."""

    value: bool | int | float | str | None
    mark: Mark
    text: str = ""

    def __str__(self) -> str:
        if isinstance(self.value, str):
            return f'"{printable(self.value, limit=80)}"'
        return printable(self.text or ("nothing" if self.value is None else str(self.value)), limit=80)


@dataclass(frozen=True, slots=True)
class Listing:
    """An ordered list of nodes."""

    items: tuple[Node, ...]
    mark: Mark


@dataclass(frozen=True, slots=True)
class Entry:
    """One `key: value`; `mark` is the place of the key."""

    key: str
    mark: Mark
    value: Node


@dataclass(frozen=True, slots=True)
class Keyed:
    """Keys and values, in order; every key occurs once."""

    entries: tuple[Entry, ...]
    mark: Mark

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __contains__(self, key: str) -> bool:
        return any(entry.key == key for entry in self.entries)

    @property
    def keys(self) -> tuple[str, ...]:
        """List the keys in order."""
        return tuple(entry.key for entry in self.entries)

    def entry(self, key: str) -> Entry | None:
        """Return the entry of `key`, or None."""
        return next((entry for entry in self.entries if entry.key == key), None)

    def get(self, key: str) -> Node | None:
        """Return the value of `key`, or None."""
        found = self.entry(key)
        return found.value if found else None

    def without(self, *keys: str) -> Keyed:
        """Return the same without some keys."""
        return Keyed(tuple(e for e in self.entries if e.key not in keys), self.mark)

    def having(self, key: str, value: Node, mark: Mark | None = None) -> Keyed:
        """Return the same with `key` set: in its place if it is there, at the end if not."""
        new = Entry(key, mark or value.mark, value)
        if key in self:
            return Keyed(tuple(new if e.key == key else e for e in self.entries), self.mark)
        return Keyed((*self.entries, new), self.mark)


Node = Scalar | Listing | Keyed


def describe(node: Node) -> str:
    """Say what a node is, for a message: a scalar as it was written, anything else by its kind."""
    if isinstance(node, Scalar):
        return str(node)
    return "a list" if isinstance(node, Listing) else "a mapping"


def plain(node: Node) -> Any:
    """Return the tree as plain dicts, lists and scalars."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Listing):
        return [plain(item) for item in node.items]
    return {entry.key: plain(entry.value) for entry in node.entries}


def lift(value: Any, mark: Mark, depth: int = 0) -> Node:
    """Turn plain dicts, lists and scalars into a tree; nodes inside stay as they are, places and all."""
    if isinstance(value, (Scalar, Listing, Keyed)):
        return value
    if depth > MAX_DEPTH:
        raise RecipeError(f"{mark}: nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return Scalar(value, mark)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise RecipeError(f"{mark}: keys must be text, not {printable(repr(key))}")
        entries = ((key, mark.inner(key), item) for key, item in value.items())
        return Keyed(tuple(Entry(key, at, lift(item, at, depth + 1)) for key, at, item in entries), mark)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return Listing(tuple(lift(v, mark.inner(i), depth + 1) for i, v in enumerate(value)), mark)
    raise RecipeError(f"{mark}: {printable(type(value).__name__)} is not a kind of value a recipe can hold")
