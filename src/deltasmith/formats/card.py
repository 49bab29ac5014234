"""README.md: the model card, with front matter that the hub reads and a recipe that people read.

Labels, sources and recipes come from files and command lines that nobody vouches for; nothing of them reaches
the card unescaped.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deltasmith.errors import DeltasmithError, printable
from deltasmith.formats.manifest import shown_source
from deltasmith.formats.sniff import read_head

__all__ = ["CARD_NAME", "Parent", "common_licence", "front_matter", "licence_of", "model_card"]

CARD_NAME = "README.md"

_FRONT = 64 << 10  # bytes of a foreign card that are looked at
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True, slots=True)
class Parent:
    """One input as the card shows it; `licence` is what its own card says, None where it says nothing."""

    label: str
    source: str
    role: str = "model"
    weight: str = ""
    licence: str | None = None


def model_card(
    name: str, parents: Sequence[Parent], recipe: str, *, merge: str, version: str
) -> tuple[bytes, tuple[str, ...]]:
    """Write the card of a merged model; return its bytes and warnings.

    `parents` lists the base first, if there is one; those with a hub id form `base_model`. `recipe` is YAML
    text to be shown, without paths of this machine. The licence is the parents' common one; where they
    differ or are silent it is left out, and a warning says so.
    """
    licence, warnings = common_licence(parents)
    front: dict[str, Any] = {}
    ids = list(dict.fromkeys(p.source for p in parents if _HUB_ID.fullmatch(p.source)))
    if ids:
        front["base_model"] = ids
        front["base_model_relation"] = "merge"
    front["library_name"] = "transformers"
    front["tags"] = ["merge", "deltasmith"]
    if licence is not None:
        front["license"] = licence
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=False, default_flow_style=False, width=110)
    rows = "\n".join(
        f"| {_cell(p.label)} | {_cell(shown_source(p.source))} | {_cell(p.role)} | {_cell(p.weight)} |"
        for p in parents
    )
    body = (
        f"---\n{head}---\n\n"
        f"# {_cell(name)}\n\n"
        f"This model was merged with deltasmith {_cell(version)}, merge {_cell(merge)}. "
        "`manifest.json` holds the expanded recipe and the hash of every input and of every tensor; "
        "`deltasmith verify` checks them.\n\n"
        "| label | source | role | weight |\n|---|---|---|---|\n"
        f"{rows}\n\n"
        "## Recipe\n\n"
        f"{_fenced(recipe)}"
    )
    return body.encode("utf-8"), warnings


def common_licence(parents: Sequence[Parent]) -> tuple[str | None, tuple[str, ...]]:
    """Return the licence that all parents name, or None with a warning.

    `other` and `unknown` say nothing about being the same, so they are never common.
    """
    stated = {p.licence for p in parents}
    if len(stated) == 1 and (only := next(iter(stated))) not in (None, "other", "unknown"):
        return only, ()
    if not stated or stated == {None}:
        return None, ("no input states a licence, so the card states none",)
    shown = ", ".join(f"{_plain(p.label)}: {_plain(p.licence or 'not stated')}" for p in parents)
    return None, (f"the inputs' licences are not one ({shown}), so the card states none: decide yourself",)


def licence_of(folder: Path) -> str | None:
    """Return the licence that a model's own card states, None where it has no card or states none."""
    if not (folder / CARD_NAME).exists():
        return None
    try:
        head = read_head(folder / CARD_NAME, _FRONT)
    except DeltasmithError:
        return None
    licence = front_matter(head.decode("utf-8", "replace")).get("license")
    return licence if isinstance(licence, str) and re.fullmatch(r"[A-Za-z0-9.+_-]{1,80}", licence) else None


def front_matter(card: str) -> dict[str, Any]:
    """Return the YAML mapping at the top of a card; empty where there is none or it does not parse."""
    found = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", card, re.DOTALL)
    if found is None or re.search(r"[&*][A-Za-z0-9_]", found[1]):  # no card needs YAML aliases, and bombs do
        return {}
    try:
        front = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return front if isinstance(front, dict) else {}


def _plain(text: str) -> str:
    """Make text harmless on one line of a terminal."""
    return printable(text, 120)


def _cell(text: str) -> str:
    """Make text harmless within a line of Markdown or a table cell."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~])", r"\\\1", html.escape(_plain(text), quote=False))


def _fenced(text: str) -> str:
    """Show text as a block of code, fenced by more backticks than it has in a row."""
    clean = "\n".join(printable(line, 10_000) for line in text.splitlines())
    longest = max((len(run) for run in re.findall("`+", clean)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{clean}\n{fence}\n"
