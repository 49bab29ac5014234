"""Texts from disk as documents: a folder, a file of JSON objects, or any other file. Nothing is numbered here."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deltasmith.errors import DamagedInputError, printable
from deltasmith.evaluate.local.reading import decoded, parse_records, read_bytes

__all__ = ["Document", "Texts", "read_texts"]

_OBJECTS = (".jsonl", ".json")
_WILD = "*?["


@dataclass(frozen=True)
class Document:
    """One text, and where it stands, for errors."""

    text: str
    where: str


@dataclass(frozen=True)
class Texts:
    """The documents of one corpus in their order. `source` is the file's or folder's name, without those above it.

    `sha256` is that of the file, or of the names and hashes of a folder's documents; `notes` say what was passed over.
    """

    documents: tuple[Document, ...]
    source: str
    sha256: str
    notes: tuple[str, ...]


def read_texts(name: str, path: Path) -> Texts:
    """Read a corpus called `name`.

    A .jsonl or .json file holds an object for each document, with `text`, or `prompt` and `answer`, which are joined;
    any other file is one document. Of a folder every UTF-8 text file below it is read like this, folder by folder in
    the order of names; hidden files, links, what is no text, and .json files that hold anything but such objects ("no
    documents") are passed over and counted. FOLDER/**/*.py, with any pattern, reads the matching files alone. Blank
    documents do not count.

    Raises:
        DamagedInputError: it cannot be read, is no UTF-8, has an object without `text`, or holds no document.
    """
    where = printable(str(path))
    if path.is_dir():
        return _of_files(name, path, path, _below(path))
    if not path.exists() and (split := _pattern(path)) is not None:
        folder, pattern = split
        found = [file for file in sorted(folder.glob(pattern)) if not file.is_dir()]
        return _of_files(name, path, folder, iter(found))
    data = read_bytes(path)
    if not data.strip(b"\xef\xbb\xbf \t\r\n[]"):
        raise _empty(name, where)
    documents = tuple(_documents(data, path.suffix, where))
    if not documents:
        raise _empty(name, where)
    return Texts(documents, path.name, hashlib.sha256(data).hexdigest(), ())


def _of_files(name: str, path: Path, folder: Path, files: Iterator[Path]) -> Texts:
    """Read the documents of every file, and count the files that have none."""
    passed: Counter[str] = Counter()
    documents: list[Document] = []
    state = hashlib.sha256()
    for file in files:
        relative = file.relative_to(folder).as_posix()
        told = _read(file, relative)
        if isinstance(told, str):
            passed[told] += 1
            continue
        found, digest = told
        documents += found
        state.update(repr((relative, digest)).encode("utf-8", "surrogateescape"))
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(passed.items()))
    if not documents:
        raise _empty(name, printable(str(path)), counted)
    notes = (f"{name}: passed over {counted}",) if passed else ()
    return Texts(tuple(documents), path.name or path.resolve().name, state.hexdigest(), notes)


def _read(file: Path, relative: str) -> tuple[list[Document], str] | str:
    """Return a file's documents and hash, or what it is instead of text.

    DamagedInputError for a .jsonl file of anything but objects with text: it was meant to hold documents.
    """
    if any(part.startswith(".") for part in relative.split("/")):
        return "hidden"
    if file.is_symlink():
        return "links"
    if not file.is_file():
        return "not regular"
    try:
        data = file.read_bytes()
    except OSError:
        return "unreadable"
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return "no UTF-8"
    if "\0" in text:
        return "binary"
    if not text.strip():
        return "blank"
    try:
        found = _documents(data, file.suffix, printable(relative))
    except DamagedInputError:
        if file.suffix == ".json":
            return "no documents"
        raise
    return (found, hashlib.sha256(data).hexdigest()) if found else "blank"


def _documents(data: bytes, suffix: str, where: str) -> list[Document]:
    """Return the documents of one file that are not blank."""
    found = _objects(data, where) if suffix in _OBJECTS else [Document(decoded(data, where), where)]
    return [document for document in found if document.text.strip()]


def _below(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder in the order of names; hidden folders and links to folders stay closed."""
    for above, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(above, name) for name in sorted(names))


def _pattern(path: Path) -> tuple[Path, str] | None:
    """Split a path at its first part with a wildcard."""
    for at, part in enumerate(path.parts):
        if any(sign in part for sign in _WILD):
            return Path(*path.parts[:at]), "/".join(path.parts[at:])
    return None


def _objects(data: bytes, where: str) -> Iterator[Document]:
    for record in parse_records(data, where):
        text = record.fields.get("text")
        prompt, answer = record.fields.get("prompt"), record.fields.get("answer")
        if text is None and isinstance(prompt, str) and isinstance(answer, str):
            text = prompt + answer
        if not isinstance(text, str):
            raise DamagedInputError(
                "`text` is missing" if text is None else "`text` is no string",
                where=record.where,
                fix='give an object {"text": …} for each document',
            )
        yield Document(text, record.where)


def _empty(name: str, where: str, passed: str = "") -> DamagedInputError:
    what = f"the corpus {name!r} holds no text" + (f" (passed over {passed})" if passed else "")
    return DamagedInputError(what, where=where, fix="name a file or folder with UTF-8 texts")
