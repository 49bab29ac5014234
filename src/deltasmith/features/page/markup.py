"""HTML in small pieces: numbers as people read them, and tables. Whatever is not made here passes through `text`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from deltasmith.features.outcome import Rate
from deltasmith.features.page.escaping import text

__all__ = ["Cell", "amount", "interval", "number", "percent", "share", "table"]

Cell = str
"""A table's cell: HTML, already escaped."""
NONE = '<span class="none">–</span>'


def percent(value: float | None, digits: int = 1) -> str:
    """Write a share as a percentage.

    >>> percent(0.4753), percent(None)
    ('47.5 %', '–')
    """
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f} %"


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with so many decimals."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def amount(value: float) -> str:
    """Write a count with thin spaces between the thousands."""
    return f"{value:,.0f}".replace(",", "\u202f")


def interval(rate: Rate, times: float = 100) -> str:
    """Write the interval of a rate, or nothing."""
    if rate.low is None or rate.high is None:
        return ""
    digits = 1 if times == 100 else 2
    return f"{times * rate.low:.{digits}f} – {times * rate.high:.{digits}f}"


def share(rate: Rate | None) -> Cell:
    """Write a share with its interval beneath."""
    if rate is None or math.isnan(rate.value):
        return NONE
    below = interval(rate)
    return f"{percent(rate.value)}" + (f"<small>{below}</small>" if below else "")


def table(
    caption: str, headers: Sequence[str], rows: Iterable[Sequence[Cell]], *, kind: str = "", note: str = ""
) -> str:
    """Lay out rows; the first cell of each names it. Headers are text, cells HTML, `note` text beneath."""
    head = "".join(f'<th scope="col">{text(header)}</th>' for header in headers)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    below = f'<p class="note">{text(note, 1000)}</p>' if note else ""
    named = f' class="{kind}"' if kind else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}"><table{named}>'
        f"<caption>{text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{below}"
    )
