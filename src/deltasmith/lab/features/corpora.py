"""The experiment's texts: English, Python, Lua, stories; what models learn from, and what only dictionaries see.

English is public domain (`lab/corpora`) and the prose of Python's own help; Python is the standard library of the
interpreter that runs. Lua and stories are generated unless folders are given. Nothing is fetched.
"""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

from deltasmith.errors import DamagedInputError
from deltasmith.lab.features.lua_programs import programs
from deltasmith.lab.features.stories import stories

__all__ = ["DOMAINS", "Texts", "gather", "read_documents"]

DOMAINS = ("english", "python", "lua", "stories")
_LIMITS: Mapping[str, int] = MappingProxyType(
    {"english": 4_000_000, "python": 4_000_000, "lua": 3_000_000, "stories": 3_000_000}
)
"""Characters of each domain, at most."""
_HELD_BACK = 4
"""One document in so many is for dictionaries and scores alone."""
_PIECE = 6_000
"""Characters of a document that a long English text is cut into."""
_NOT_LIBRARY = frozenset(("test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3"))


@dataclass(frozen=True)
class Texts:
    """Where a user's own texts lie; None stands for the default of each domain. `seed` keys order and generators."""

    english: Path | None = None
    lua: Path | None = None
    stories: Path | None = None
    seed: int = 0

    def documents(self, domain: str) -> Iterator[str]:
        """Yield the documents of one domain in keyed order; generated ones without end."""
        rng = Random(f"{self.seed} {domain}")
        given: Path | None = getattr(self, domain, None)
        if given is not None:
            found = list(_pieces(_files(given, "*")))
        elif domain == "english":
            found = [*_pieces(_files(_public_domain(), "*.txt")), *_pieces(_help())]
        elif domain == "python":
            found = list(_library())
        else:
            yield from (programs if domain == "lua" else stories)(rng)
            return
        rng.shuffle(found)
        yield from found


def gather(folder: Path, texts: Texts) -> dict[str, Any]:
    """Write DOMAIN.train.jsonl and DOMAIN.features.jsonl of every domain into `folder`, and say what they hold.

    No document is in both: language models learn from the first, dictionaries and scores use the second.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return {domain: _gathered(folder, domain, texts) for domain in DOMAINS}


def read_documents(path: Path) -> list[str]:
    """Read the documents that `gather` wrote."""
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def _gathered(folder: Path, domain: str, texts: Texts) -> dict[str, Any]:
    kept: dict[str, list[str]] = {"train": [], "features": []}
    room = _LIMITS[domain]
    for number, text in enumerate(texts.documents(domain)):
        kept["features" if number % _HELD_BACK == 0 else "train"].append(text)
        room -= len(text)
        if room <= 0:
            break
    if min(map(len, kept.values())) == 0:
        raise DamagedInputError(
            f"there is next to no text for {domain!r}", where=domain, fix="name a folder with more"
        )
    found: dict[str, Any] = {}
    for split, documents in kept.items():
        lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents).encode()
        (folder / f"{domain}.{split}.jsonl").write_bytes(lines)
        found[split] = {
            "documents": len(documents),
            "characters": sum(map(len, documents)),
            "sha256": hashlib.sha256(lines).hexdigest(),
        }
    return found


def _files(place: Path, pattern: str) -> Iterator[str]:
    paths = [place] if place.is_file() else sorted(path for path in place.rglob(pattern) if path.is_file())
    if not paths:
        raise DamagedInputError("there are no texts", where=str(place), fix="name a folder of text files")
    for path in paths:
        try:
            yield path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a user's folder may hold pictures


def _public_domain() -> Path:
    return Path(__file__).parents[4] / "lab" / "corpora"


def _help() -> Iterator[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out
        return
    yield from (text for _, text in sorted(topics.items()))


def _library() -> Iterator[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if not _NOT_LIBRARY & set(path.relative_to(root).parts[:-1]):
            try:
                yield path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def _pieces(found: Iterable[str]) -> Iterator[str]:
    """Cut long texts at paragraphs, so that no single one fills a whole split."""
    for text in found:
        piece = ""
        for paragraph in text.split("\n\n"):
            piece += paragraph + "\n\n"
            if len(piece) >= _PIECE:
                yield piece
                piece = ""
        if piece.strip():
            yield piece
