"""How a published table is kept: its cells by name, where they were read, and what the paper leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from deltasmith.errors import RecipeError

__all__ = ["Claim", "Published", "Row", "Seen", "parse_rows"]

Seen = Literal["paper", "abstract", "authors' repository", "notes on the paper"]
"""Where a number was read. `notes on the paper`: a reader's notes with page numbers, not the paper itself."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: which models went in, by which method, and its cells in the table's columns.

    A cell is None where the paper leaves it empty. All scores are per cent.
    """

    models: str
    method: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Published:
    """A published table, cell by cell.

    `average` names the column that is the mean of the others, if there is one; `misprints` the rows
    (models, method) whose printed average differs from that mean by more than rounding, and the mean.
    `unstated` lists settings that the paper does not give: without them the table cannot be repeated exactly.
    """

    title: str
    paper: str
    arxiv: str
    place: str
    seen: Seen
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    average: str | None = None
    misprints: tuple[tuple[str, str, float], ...] = ()
    unstated: tuple[str, ...] = ()
    source: str = ""

    def row(self, models: str, method: str) -> Row:
        """Return one line; RecipeError (exit 2) where the table has none such."""
        for row in self.rows:
            if (row.models, row.method) == (models, method):
                return row
        known = ", ".join(f"{r.models}/{r.method}" for r in self.rows)
        raise RecipeError(f"no row {models}/{method}", where=self.title, fix=f"the rows are {known}")

    def value(self, models: str, method: str, column: str) -> float | None:
        """Return one cell, None where the paper leaves it empty; RecipeError where there is no such cell."""
        if column not in self.columns:
            raise RecipeError(
                f"no column {column!r}", where=self.title, fix=f"the columns are {', '.join(self.columns)}"
            )
        return self.row(models, method).values[self.columns.index(column)]

    def means(self) -> Iterator[tuple[Row, float, float]]:
        """Yield every row that has an average: the row, the printed average, the mean of its other cells."""
        if self.average is None:
            return
        at = self.columns.index(self.average)
        for row in self.rows:
            printed = row.values[at]
            cells = [v for i, v in enumerate(row.values) if i != at and v is not None]
            if printed is not None and cells:
                yield row, printed, sum(cells) / len(cells)

    @property
    def citation(self) -> str:
        """Say on one line where the numbers come from."""
        origin = f"arXiv {self.arxiv}, {self.place}" if self.arxiv else self.place
        read = self.seen if not self.source else f"{self.seen}: {self.source}"
        return f"{self.paper}, {origin} (read in: {read})"


@dataclass(frozen=True, slots=True)
class Claim:
    """One sentence of a paper that an experiment can confirm or not, in our words."""

    paper: str
    arxiv: str
    text: str
    value: str
    seen: Seen


def parse_rows(text: str) -> tuple[Row, ...]:
    """Read lines of `models | method | cells`, a dash being an empty cell.

    >>> parse_rows("LM+Code | TA | 73.3 - 0.0")
    (Row(models='LM+Code', method='TA', values=(73.3, None, 0.0)),)
    """
    parts = [[part.strip() for part in line.split("|")] for line in text.split("\n") if line.strip()]
    return tuple(
        Row(models, method, tuple(None if cell == "-" else float(cell) for cell in cells.split()))
        for models, method, cells in parts
    )
