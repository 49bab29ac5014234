"""Rows of results: which questions one model answered right, and everything that says which model it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltasmith.errors import DamagedInputError

__all__ = ["Keys", "Marks", "Results", "Row", "grouped", "load_results"]

FORMAT = 1
Marks = NDArray[np.bool_]
Keys = Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True, eq=False)
class Row:
    """One model on one task: `keys` say which model (training seed, mask seed, method, …), `right` which items."""

    keys: Keys
    task: str
    right: Marks

    @property
    def accuracy(self) -> float:
        """Divide the right answers by the items."""
        return float(self.right.mean())

    def as_json(self) -> dict[str, Any]:
        """Return plain data; `right` is the hexadecimal text of the packed marks."""
        bits = np.packbits(self.right).tobytes().hex()
        return {**self.keys, "task": self.task, "n": int(self.right.size), "right": bits}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Row:
        """Read what `as_json` returned."""
        keys = {key: value for key, value in entry.items() if key not in ("task", "n", "right")}
        bits = np.frombuffer(bytes.fromhex(entry["right"]), np.uint8)
        return cls(keys, str(entry["task"]), np.unpackbits(bits, count=int(entry["n"])).astype(np.bool_))


@dataclass(frozen=True)
class Results:
    """All rows of one experiment, and the settings they were obtained with."""

    experiment: str
    settings: Mapping[str, Any]
    rows: tuple[Row, ...] = field(repr=False)

    def save(self, path: Path) -> None:
        """Write one row per line, so that differences between two runs can be read; the file appears whole."""
        head = {"format": FORMAT, "experiment": self.experiment, "settings": dict(self.settings)}
        lines = ",\n".join(json.dumps(row.as_json()) for row in self.rows)
        text = json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{lines}\n]}}\n'
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)

    def where(self, **keys: str | int | float | bool | None) -> Results:
        """Return the results whose rows have all these keys."""
        kept = (row for row in self.rows if all(row.keys.get(key) == value for key, value in keys.items()))
        return Results(self.experiment, self.settings, tuple(kept))


def load_results(path: Path) -> Results:
    """Read what `Results.save` wrote; DamagedInputError where the file is anything else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']!r}, not {FORMAT}")
        rows = tuple(Row.from_json(entry) for entry in document["rows"])
        return Results(str(document["experiment"]), document["settings"], rows)
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise DamagedInputError(
            f"it is no file of lab results ({cause})", where=str(path), fix="run `deltasmith lab run`"
        ) from cause


def grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, Sequence[Row]]:
    """Collect rows by what `key` returns, in the order of first appearance."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return dict(groups)
