"""A text grammar: rules that expand by chance, with values that stay the same throughout one text. No vocabulary."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

__all__ = ["Grammar", "rules_of"]

_MARK = re.compile(r"\[([a-z_]+)\]|\{([a-z_]+)\}")
_ARTICLE = re.compile(r"\b([Aa])n? (?=([A-Za-z]))")


@dataclass(frozen=True)
class Grammar:
    """Write texts: `[rule]` is replaced by one of the rule's alternatives, `{name}` by the text's own value."""

    rules: Mapping[str, tuple[str, ...]]

    def expand(self, text: str, rng: Random, values: Mapping[str, str]) -> str:
        """Replace all marks, then make articles and the first letters of sentences right."""
        return _polished(self._raw(text, rng, values))

    def _raw(self, text: str, rng: Random, values: Mapping[str, str]) -> str:
        def filled(mark: re.Match[str]) -> str:
            if mark[2]:
                return values[mark[2]]
            return self._raw(rng.choice(self.rules[mark[1]]), rng, values)

        return _MARK.sub(filled, text)


def _polished(text: str) -> str:
    text = _ARTICLE.sub(lambda m: f"{m[1]}n " if m[2] in "aeiouAEIO" else f"{m[1]} ", text)
    return re.sub(r"(^|[.!?] |\n)([a-z])", lambda m: m[1] + m[2].upper(), text)


def rules_of(text: str) -> dict[str, tuple[str, ...]]:
    """Read rules: a line `name:` and the alternatives below it, each on a line, or words in a row after `name =`."""
    rules: dict[str, list[str]] = {}
    name = ""
    for line in filter(None, (raw.strip() for raw in text.splitlines())):
        if found := re.fullmatch(r"([a-z_]+) = (.+)", line):
            rules[found[1]] = [word.replace("_", " ") for word in found[2].split()]
        elif found := re.fullmatch(r"([a-z_]+):", line):
            name = found[1]
            rules[name] = []
        else:
            rules[name].append(line)
    return {key: tuple(values) for key, values in rules.items()}
