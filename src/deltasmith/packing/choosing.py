"""Which codec a tensor gets: the first rule that names it and whose codec can take it, else the rest's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltasmith.codecs.catalogue import CodecLike, codec_from, codec_text
from deltasmith.codecs.lossless import Lossless
from deltasmith.codecs.protocol import Cell, Codec
from deltasmith.errors import RecipeError, printable
from deltasmith.table.names import layer_of, matches

__all__ = ["LINEARS", "Rule", "choose_all", "is_linear", "rules_of"]

LINEARS = "linears"
"""The word for the matrices of layers, which no glob can say."""


@dataclass(frozen=True)
class Rule:
    """Tensors that match `where` (a glob, or `linears`) get this codec."""

    where: str
    codec: Codec

    def names(self, cell: Cell) -> bool:
        """Tell whether the rule is meant for this tensor."""
        if self.where == LINEARS:
            return is_linear(cell.spec.name, cell.spec.shape)
        return matches(self.where, cell.spec.name)


def is_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Tell whether a tensor is a matrix of a numbered layer, or a stack of experts' matrices.

    >>> is_linear("model.layers.3.mlp.up_proj.weight", (64, 32)), is_linear("lm_head.weight", (64, 32))
    (True, False)
    """
    matrix = len(shape) == 2 or (len(shape) == 3 and "expert" in name)
    return matrix and layer_of(name) is not None


def rules_of(codec: CodecLike, where: str, rules: Sequence[tuple[str, CodecLike]]) -> tuple[Rule, ...]:
    """Put the special rules before the general one; RecipeError for a codec that does not exist."""
    listed = [*rules, (where, codec)]
    return tuple(Rule(glob, codec_from(c)) for glob, c in listed)


def choose_all(
    cells: Sequence[Cell], rules: Sequence[Rule], rest: Codec
) -> tuple[dict[str, Codec], list[str]]:
    """Return every tensor's codec, and notes on those whose codec cannot take them.

    These get `rest`, and where that cannot take them either, `lossless`.

    Raises:
        RecipeError: a rule that names no tensor at all.
    """
    chosen: dict[str, Codec] = {}
    notes: dict[tuple[Codec, str, Codec], list[str]] = {}
    used: set[int] = set()
    for cell in cells:
        number = next((i for i, rule in enumerate(rules) if rule.names(cell)), None)
        wanted = rest if number is None else rules[number].codec
        used |= set() if number is None else {number}
        problem = _refusal(wanted, cell)
        given = wanted if not problem else Lossless() if _refusal(rest, cell) else rest
        chosen[cell.spec.name] = given
        if problem:
            notes.setdefault((wanted, problem, given), []).append(cell.spec.name)
    for number, rule in enumerate(rules):
        if number not in used and rule.where != LINEARS:
            raise RecipeError(
                f"no tensor matches {printable(rule.where, 80)!r}",
                where="pack",
                fix="globs match whole names: *.mlp.*",
            )
    return chosen, [_note(*why, names) for why, names in notes.items()]


def _refusal(codec: Codec, cell: Cell) -> str:
    if codec.domain == "delta" and cell.base is None:
        return "the base has no tensor of that name and shape"
    return codec.refusal(cell)


def _note(wanted: Codec, problem: str, given: Codec, names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    instead = f"{codec_text(given)} instead of {codec_text(wanted)}"
    return f"{printable(names[0], 120)}{more}: {instead}, because {problem}"
