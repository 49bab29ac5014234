"""Regular expressions over texts that anyone may have written, within a time: a process of its own does the matching.

Some expressions take time exponential in the text. Python's engine cannot be told to give up; a process can be ended.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence

from deltasmith.errors import RecipeError, ResourceError, printable

__all__ = ["SECONDS", "check_expression", "spans_of"]

SECONDS = 20.0
"""For one expression over all texts; an ordinary one takes well under a second for a megabyte."""

# Reads {"expression", "texts"}, writes for every text a list of [begin, end] of group 1, or of the match.
_WORKER = """
import json, re, sys
asked = json.load(sys.stdin)
pattern = re.compile(asked["expression"], re.MULTILINE)
group = 1 if pattern.groups else 0
found = [[m.span(group) for m in pattern.finditer(text)] for text in asked["texts"]]
json.dump(found, sys.stdout)
"""


def check_expression(name: str, expression: str) -> None:
    """Refuse what is no regular expression: RecipeError that says where it goes wrong."""
    where = f"the pattern {printable(name, 60)!r}"
    try:
        re.compile(expression, re.MULTILINE)
    except re.error as cause:
        at = "" if cause.pos is None else f" at character {cause.pos + 1}"
        raise RecipeError(
            f"{printable(expression, 80)!r} is no regular expression ({cause.msg}{at})",
            where=where,
            fix="write it as Python's re does",
        ) from cause
    except (OverflowError, RecursionError, MemoryError) as cause:
        raise RecipeError(
            f"{printable(expression, 80)!r} is too large", where=where, fix="write it shorter"
        ) from cause


def spans_of(
    name: str, expression: str, texts: Sequence[str], seconds: float = SECONDS
) -> list[list[tuple[int, int]]]:
    r"""Find an expression in every text: the (begin, end) of group 1 where it has groups, else of the whole match.

    `^` and `$` are the ends of lines; other flags are written in the expression, as in `(?i)error`. Matches whose
    group took no part, and empty ones, are left out.

    Raises:
        RecipeError: it is no expression. ResourceError: it takes longer than `seconds`.

    >>> spans_of("names", r"(\w+) =", ["x = 1; yy = 2", "none"])
    [[(0, 1), (7, 9)], []]
    """
    check_expression(name, expression)
    asked = json.dumps({"expression": expression, "texts": list(texts)})
    command = [sys.executable, "-I", "-S", "-X", "utf8", "-c", _WORKER]
    try:
        done = subprocess.run(
            command, input=asked, capture_output=True, encoding="ascii", timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as cause:
        raise ResourceError(
            f"{printable(expression, 80)!r} has not finished after {seconds:g} s",
            where=f"the pattern {printable(name, 60)!r}",
            fix="avoid repetitions within repetitions, such as (a+)+",
        ) from cause
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it was ended"])[-1]
        raise ResourceError(
            f"{printable(expression, 80)!r} cannot be matched ({printable(last, 120)})",
            where=f"the pattern {printable(name, 60)!r}",
            fix="write it simpler",
        )
    return [[(begin, end) for begin, end in spans if 0 <= begin < end] for spans in json.loads(done.stdout)]
