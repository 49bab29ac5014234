"""Golden vectors: outputs of the authors' own code, and the one rule by which ours are compared with them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Case:
    """One call of the reference code: its parameters, its inputs and what came out."""

    id: str
    method: str
    dialect: str
    params: dict[str, Any]
    note: str
    tolerance: dict[str, Any]
    file: str = field(repr=False)

    @property
    def arrays(self) -> dict[str, Any]:
        """Load {role: array} or {role: {tensor name: array}}; roles end at the first dot."""
        roles: dict[str, Any] = {}
        with np.load(FOLDER / self.file) as stored:
            for key in stored.files:
                role, dot, name = key.partition(".")
                if dot:
                    roles.setdefault(role, {})[name] = stored[key]
                else:
                    roles[role] = stored[key]
        return roles

    def __str__(self) -> str:
        return self.id


@cache
def _index() -> tuple[Case, ...]:
    rows = json.loads((FOLDER / "index.json").read_text())["cases"]
    keys = ("id", "method", "dialect", "params", "note", "tolerance", "file")
    return tuple(Case(**{k: row[k] for k in keys}) for row in rows)


def cases(method: str, dialect: str | None = None) -> list[Case]:
    """Return the cases of one method; an empty answer is an error, so that no test can pass on nothing."""
    found = [c for c in _index() if c.method == method and dialect in (None, c.dialect)]
    assert found, f"no golden case for {method} ({dialect})"
    return found


def assert_close(got: Any, expected: Any, case: Case) -> None:
    """Assert |got - expected| <= atol + rtol * |expected| elementwise, and equal shapes."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape, (case.id, got.shape, expected.shape)
    bound = case.tolerance["atol"] + case.tolerance["rtol"] * np.abs(expected)
    worst = np.abs(got - expected) - bound
    assert not np.isnan(got).any(), case.id
    assert (worst <= 0).all(), f"{case.id}: worst excess {worst.max()}"
