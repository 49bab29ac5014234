"""The single values of a recipe outside its operations: words, numbers, globs, labels. No cross-checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from pydantic.fields import FieldInfo

from deltasmith.operation.record import Record
from deltasmith.operation.schedule import Number
from deltasmith.recipe.model import Weight
from deltasmith.recipe.operations import MISSING, checked
from deltasmith.recipe.problems import Problems, listed, suggestion
from deltasmith.recipe.tree import Keyed, Node, describe, plain

__all__ = ["glob", "label", "number", "seed", "text", "tokenizer", "word"]

_LONGEST_LABEL = 100


class _Numbers(Record):
    """The numbers a recipe has outside its operations, so that they follow the operations' rules."""

    number: Number


_NUMBER: FieldInfo = _Numbers.model_fields["number"]


def word(node: Node, what: str, known: tuple[str, ...], problems: Problems) -> Any:
    """Return a word out of a few; MISSING after a report."""
    value = plain(node)
    if isinstance(value, str) and value in known:
        return value
    near = suggestion(value, known) if isinstance(value, str) else ""
    problems.add(node.mark, f"{what} must be {listed(known)}, not {describe(node)}", near)
    return MISSING


def text(node: Node, what: str, problems: Problems) -> str:
    """Return a text that is not blank."""
    value = plain(node)
    if isinstance(value, str) and value.strip():
        return value
    fix = (
        f'write {what}: "{value}"' if isinstance(value, (int, float)) and not isinstance(value, bool) else ""
    )
    problems.add(node.mark, f"{what} must be text, not {describe(node)}", fix)
    return str(value)


def number(node: Node, what: str, problems: Problems) -> Weight:
    """Return a finite number or a schedule."""
    value = checked(what, _NUMBER, node, problems)
    return 1.0 if value is MISSING else cast(Weight, _Numbers(number=value).number)


def glob(node: Node, problems: Problems) -> str:
    """Return a glob over tensor names; regular expressions are recognised and refused."""
    value = text(node, "where", problems)
    if value.startswith(("re:", "regex:", "^")) or (len(value) > 1 and value[0] == value[-1] == "/"):
        what = f"regular expressions are not supported yet: {describe(node)}"
        problems.add(node.mark, what, 'where is a glob over whole tensor names, as in "*.mlp.*"')
    return value


def label(node: Node, problems: Problems) -> str:
    """Return a model's label; it names the model in options, messages and random keys."""
    value = text(node, "label", problems)
    if value == "base":
        problems.add(node.mark, 'the label "base" means the base', "choose another")
    elif not value.isprintable() or len(value) > _LONGEST_LABEL:
        problems.add(node.mark, f"the label {describe(node)} must be at most 100 printable characters")
    return value


def seed(node: Node, problems: Problems) -> int:
    """Return a whole number of 64 bits."""
    value = plain(node)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**64:
        return value
    problems.add(node.mark, f"seed must be a whole number from 0 to 2^64 - 1, not {describe(node)}")
    return 0


def tokenizer(node: Node, labels: Sequence[str], problems: Problems, *, has_base: bool) -> str:
    """Return whose tokenizer files go with the output: `base`, or the label of a model."""
    known = (["base"] if has_base else []) + list(labels)
    value = plain(node)
    if isinstance(value, str) and value in known:
        return value
    if isinstance(node, Keyed) or value in ("union", "pad"):
        what = "vocabulary remedies (union, pad) are not supported yet"
        problems.add(node.mark, what, "name the model whose tokenizer to take")
    elif value == "base":
        problems.add(node.mark, "tokenizer: base needs a base", "name a model by its label")
    else:
        what = f"tokenizer must be {'base or ' * has_base}the label of a model, not {describe(node)}"
        problems.add(node.mark, what, suggestion(str(value), known, "the labels are"))
    return "base"
