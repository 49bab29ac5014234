"""One line of evidence: a number, what it is held against, where that comes from, and what follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from deltasmith.advice.facts import Facts

__all__ = ["Effect", "Evidence", "Rule"]

Effect = Literal["notes", "warns", "excludes", "keeps", "narrows", "stops"]
"""`notes`, `warns`: no candidate is touched. `excludes`: the methods named are out. `keeps`: only the methods named
stay, which were not shown to be worse. `narrows`: only the methods named stay, and they are level. `stops`: nothing can
be recommended."""


@dataclass(frozen=True)
class Evidence:
    """What a rule has found: of which models, the number as text, the bound, the source, and what follows."""

    rule: str
    about: str
    number: str
    bound: str
    source: str
    says: str
    effect: Effect = "notes"
    methods: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {**vars(self), "methods": list(self.methods)}


@dataclass(frozen=True)
class Rule:
    """A question to the facts: `asks` what is compared, `bound` with what, and `source` why; `judge` answers."""

    name: str
    asks: str
    bound: str
    source: str
    judge: Callable[[Rule, Facts], tuple[Evidence, ...]]

    def found(
        self,
        about: str,
        number: str,
        says: str,
        effect: Effect = "notes",
        methods: tuple[str, ...] = (),
        bound: str | None = None,
    ) -> Evidence:
        """Return a line of evidence under this rule's bound and source."""
        return Evidence(
            self.name,
            about,
            number,
            self.bound if bound is None else bound,
            self.source,
            says,
            effect,
            methods,
        )

    def __call__(self, facts: Facts) -> tuple[Evidence, ...]:
        """Judge the facts."""
        return self.judge(self, facts)
