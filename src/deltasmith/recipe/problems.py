"""Problems of a recipe: collected while it is read, raised together, each with its place and a suggestion."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field

from deltasmith.errors import RecipeError, printable
from deltasmith.recipe.tree import Mark

__all__ = ["Problem", "Problems", "RecipeProblems", "listed", "nearest", "quoted", "suggestion"]

_SHOWN = 50


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where it stands, what it is, and what to do about it (if there is a hint)."""

    mark: Mark
    what: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{self.mark}: {self.what}"
        return printable(f"{line}; {self.fix}" if self.fix else line, limit=600)


class RecipeProblems(RecipeError):
    """All problems of one recipe; `str()` gives a line each, and their number first if there are several."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        """Hold the problems, at least one, in the order they are to be shown."""
        self.problems = tuple(problems)
        first = self.problems[0]
        super().__init__(first.what, where=str(first.mark), fix=first.fix)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return str(self.problems[0])
        lines = [f"{len(self.problems)} problems in the recipe", *map(str, self.problems[:_SHOWN])]
        if len(self.problems) > _SHOWN:
            lines.append(f"… and {len(self.problems) - _SHOWN} more")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[type[RecipeProblems], tuple[tuple[Problem, ...]]]:
        return RecipeProblems, (self.problems,)


@dataclass
class Problems:
    """The problems found so far; `reports` counts them with repetitions, to tell whether a part was right."""

    found: list[Problem] = field(default_factory=list)
    reports: int = 0

    def add(self, mark: Mark, what: str, fix: str = "") -> None:
        """Note one problem; the same one is noted once."""
        self.reports += 1
        problem = Problem(mark, what, fix)
        if problem not in self.found:
            self.found.append(problem)

    def error(self) -> RecipeProblems:
        """Return the error that holds them all: file by file as they were met, by line and column."""
        files = {
            source: order for order, source in reversed(list(enumerate(p.mark.source for p in self.found)))
        }
        place = {id(p): (files[p.mark.source], p.mark.line, p.mark.column) for p in self.found}
        return RecipeProblems(sorted(self.found, key=lambda p: place[id(p)]))

    def raise_any(self) -> None:
        """Raise the error if there is anything to report."""
        if self.found:
            raise self.error()


def quoted(word: object) -> str:
    """Put a word from a recipe into double quotes, unprintable characters escaped, its length bounded."""
    return f'"{printable(str(word), limit=80)}"'


def listed(words: Iterable[str], last: str = "or") -> str:
    """Write a list of words as people do.

    >>> listed(["majority", "positive", "none"])
    'majority, positive or none'
    """
    *front, end = words
    return f"{', '.join(front)} {last} {end}" if front else end


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most like `word`, if one is like it at all."""
    candidates = sorted(set(known))
    same = [name for name in candidates if name == word.lower().replace("-", "_")]
    near = same or difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    return near[0] if near else None


def suggestion(word: str, known: Iterable[str], kind: str = "") -> str:
    """Return `did you mean "…"?` for the nearest known word, or else the known words if they are few.

    >>> suggestion("densitty", ["density", "window"])
    'did you mean "density"?'
    """
    candidates = sorted(set(known))
    near = nearest(word, candidates)
    if near is not None:
        return f'did you mean "{near}"?'
    if kind and 0 < len(candidates) <= 16:
        return f"{kind}: {', '.join(candidates)}"
    return ""
