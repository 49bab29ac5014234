"""Lining up the rows of the table with total accounting: every tensor of every input ends in the plan or in a note.

Names that do not line up are errors that list them all; nothing is skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from deltasmith.errors import RecipeError, RefusedError, printable
from deltasmith.operation.protocols import Edit, Merge, Reach, Space, block_of
from deltasmith.operation.schedule import resolve
from deltasmith.planning.plan import Column, Plan, Row, Site
from deltasmith.table.checkpoint import Checkpoint, Spec
from deltasmith.table.dtypes import DTYPES
from deltasmith.table.names import Depths, matches

__all__ = ["Wishes", "align", "copy_of"]

_Operation = TypeVar("_Operation", Edit, Merge)
_REACHES: tuple[Reach, ...] = ("element", "row", "tensor")
_SHOWN = 8
_HEAD = "lm_head.weight"
_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "embeddings.weight",
    "embed_in.weight",
    "embed.weight",
)


@dataclass(frozen=True)
class Wishes:
    """What the recipe asks for, beside the checkpoints themselves."""

    merge: Merge
    space: Space
    scale: object = 1.0
    where: str = "*"
    dtype: str = "base"
    seed: int = 0
    nonfinite: str = "refuse"
    tied: bool | None = None
    statistics: tuple[Checkpoint, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())


def align(base: Checkpoint | None, columns: Sequence[Column], wishes: Wishes) -> Plan:
    """Decide for every tensor what happens to it; refuse, all at once, what does not line up."""
    specs, home = (
        (base.specs, "base") if base is not None else (columns[0].checkpoint.specs, columns[0].label)
    )
    notes = list(wishes.notes)
    dropped = _tied_head(specs, columns, wishes, notes)
    specs = {name: spec for name, spec in specs.items() if name not in dropped}
    _refuse_misfits(specs, columns, wishes, home, dropped, notes)
    depths = Depths.of(specs)
    sites = _Sites()
    rows = tuple(_row(spec, columns, wishes, home, depths, sites) for spec in _sorted(specs))
    _refuse_idle_globs([row.name for row in rows if row.action == "merge"], columns, wishes)
    notes += _notes(rows)
    return Plan(
        base,
        tuple(columns),
        rows,
        wishes.space,
        wishes.seed,
        wishes.nonfinite,  # type: ignore[arg-type]
        wishes.statistics,
        tuple(notes),
        wishes.warnings,
    )


def copy_of(checkpoint: Checkpoint) -> Plan:
    """Return the plan that writes every tensor of a checkpoint as it is."""
    rows = tuple(Row(spec, "copy", "base", "converted") for spec in _sorted(checkpoint.specs))
    return Plan(checkpoint, (), rows, "weight")


def _sorted(specs: Mapping[str, Spec]) -> list[Spec]:
    return [specs[name] for name in sorted(specs)]


def _notes(rows: Sequence[Row]) -> list[str]:
    groups: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row.action != "merge":
            groups.setdefault((row.action, row.source, row.reason), []).append(row.name)
    return [f"{_listed(names)}: {reason}, from {source}" for (_, source, reason), names in groups.items()]


def _listed(names: Iterable[str]) -> str:
    names = [printable(n) for n in names]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _tied_head(
    specs: Mapping[str, Spec], columns: Sequence[Column], wishes: Wishes, notes: list[str]
) -> frozenset[str]:
    """Leave out an output head that the config ties to the embeddings, as transformers would write it."""
    if not wishes.tied or not any(name.endswith(_EMBEDDINGS) for name in specs):
        return frozenset()
    holders = [c.label for c in columns if _HEAD in c.checkpoint.specs and c.tied is not False]
    if _HEAD in specs:
        notes.append(f"{_HEAD}: not written, because the base ties it to its embeddings")
    elif holders:
        notes.append(f"{_HEAD} of {', '.join(holders)}: not used, because it is tied to the embeddings")
    return frozenset({_HEAD}) if _HEAD in specs or holders else frozenset()


def _refuse_misfits(
    specs: Mapping[str, Spec],
    columns: Sequence[Column],
    wishes: Wishes,
    home: str,
    dropped: frozenset[str],
    notes: list[str],
) -> None:
    problems: list[str] = []
    for column in columns:
        has = column.checkpoint.specs
        absent = [n for n in specs if n not in has and matches(wishes.where, n)]
        if absent and not column.sparse:
            problems.append(f"{column.label} lacks {len(absent)} tensors that {home} has: {_listed(absent)}")
        extra = [n for n in has if n not in specs and n not in dropped]
        wanted = [n for n in extra if matches(wishes.where, n)]
        if wanted:
            problems.append(f"{column.label} has {len(wanted)} tensors that {home} lacks: {_listed(wanted)}")
        if rest := [n for n in extra if not matches(wishes.where, n)]:
            notes.append(f"{_listed(rest)} of {column.label}: not taken, outside `where`")
        problems += _shape_problems(specs, column, wishes, home)
    if problems:
        head = "the models do not line up" if len(problems) > 1 else "a model does not line up"
        fix = "merge models of one family, or narrow `where` to the tensors they share"
        raise RefusedError(f"{head} with {home}: " + " | ".join(problems), fix=fix)


def _refuse_idle_globs(merged: Sequence[str], columns: Sequence[Column], wishes: Wishes) -> None:
    """Refuse a glob that matches nothing: it is misspelt more often than meant."""
    if not merged:
        raise RecipeError(
            f"no tensor is merged: where: {printable(repr(wishes.where))} matches none", fix="widen `where`"
        )
    for column in columns:
        for rule in column.edits:
            if not any(matches(rule.where, name) for name in merged):
                raise RecipeError(
                    f"an edit of {printable(column.label)} touches no tensor: where:"
                    f" {printable(repr(rule.where))} matches none",
                    fix="widen `where`, or leave the edit out",
                )


def _shape_problems(specs: Mapping[str, Spec], column: Column, wishes: Wishes, home: str) -> list[str]:
    problems = []
    for name, other in column.checkpoint.specs.items():
        spec = specs.get(name)
        if spec is None or not matches(wishes.where, name):
            continue
        if other.shape != spec.shape:
            text = (
                f"{printable(name)} is {list(spec.shape)} in {home} and {list(other.shape)} in {column.label}"
            )
            problems.append(text + _vocabulary_hint(spec, other))
        elif other.dtype.floating != spec.dtype.floating:
            problems.append(
                f"{printable(name)} is {spec.dtype} in {home} and {other.dtype} in {column.label}"
            )
    if len(problems) > _SHOWN:
        return [*problems[:_SHOWN], f"and {len(problems) - _SHOWN} more shapes of {column.label}"]
    return problems


def _vocabulary_hint(spec: Spec, other: Spec) -> str:
    vocabulary = spec.name.endswith((*_EMBEDDINGS, _HEAD)) and spec.shape[1:] == other.shape[1:]
    if not vocabulary:
        return ""
    return (
        " (the vocabularies differ: resize one model first, to the base's vocabulary, to the union of both, or by"
        " padding the smaller)"
    )


class _Sites(dict[tuple[int, int, Edit | Merge], Site]):
    """One site per operation: equal operations of different tensors are the same site."""

    def of(self, column: int, position: int, record: Edit | Merge) -> Site:
        key = (column, position, record)
        if key not in self:
            self[key] = Site(column, position, record)
        return self[key]


def _row(
    spec: Spec, columns: Sequence[Column], wishes: Wishes, home: str, depths: Depths, sites: _Sites
) -> Row:
    if not spec.dtype.floating:
        return Row(spec, "copy", home, "integer and boolean tensors are not merged")
    out = spec if wishes.dtype == "base" else Spec(spec.name, spec.shape, DTYPES[wishes.dtype])
    if not matches(wishes.where, spec.name):
        return Row(out, "copy" if out == spec else "cast", home, "outside `where`")
    depth = depths(spec.name)

    def number(value: object) -> float:
        return _number(value, spec.name, depth)

    edits = tuple(_edits(i, column, spec.name, depth, sites) for i, column in enumerate(columns))
    merge = sites.of(-1, 0, _resolved(wishes.merge, spec.name, depth))
    reach = max((site.record.reach for group in (*edits, (merge,)) for site in group), key=_REACHES.index)
    return Row(
        out,
        "merge",
        home,
        present=tuple(spec.name in column.checkpoint.specs for column in columns),
        edits=edits,
        merge=merge,
        weights=tuple(number(column.weight) for column in columns),
        scale=number(wishes.scale),
        reach=reach,
        block=block_of(reach, spec.name, spec.shape),
    )


def _edits(index: int, column: Column, name: str, depth: float, sites: _Sites) -> tuple[Site, ...]:
    rules = enumerate(column.edits)
    return tuple(
        sites.of(index, position, _resolved(rule.record, name, depth))
        for position, rule in rules
        if matches(rule.where, name)
    )


def _resolved(record: _Operation, name: str, depth: float) -> _Operation:
    try:
        return record.resolved(name, depth)
    except KeyError:
        raise _uncovered(name) from None
    except ValueError as cause:
        detail = str(cause).splitlines()[-2 if "For further" in str(cause) else -1].strip()
        raise RecipeError(
            f"{type(record).__name__} cannot be what its schedules make it for {printable(name)}: {detail}"
        ) from cause


def _number(value: object, name: str, depth: float) -> float:
    try:
        return resolve(value, name, depth)
    except KeyError:
        raise _uncovered(name) from None


def _uncovered(name: str) -> RecipeError:
    return RecipeError(
        f"a list of globs gives no value for {printable(name)}", fix='add a last line {where: "*", value: …}'
    )
