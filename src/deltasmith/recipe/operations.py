"""One operation of a recipe: from `{name: {fields}}` to its record, with every complaint at the very value.

Pydantic checks the values; this page finds out where they stood and says what is wrong in plain words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from deltasmith.errors import printable
from deltasmith.operation.protocols import Edit, Merge
from deltasmith.operation.record import Record
from deltasmith.operation.schedule import Schedulable
from deltasmith.recipe.catalogue import DIALECTS, Dialect, Kind, choice, dialects, table
from deltasmith.recipe.problems import Problems, listed, nearest, quoted, suggestion
from deltasmith.recipe.tree import Keyed, Listing, Mark, Node, Scalar, describe, plain

__all__ = [
    "MISSING",
    "checked",
    "operation_node",
    "range_words",
    "read_operation",
    "required_part",
    "schedulable",
]

MISSING: Any = object()
"""What a check returns when it has reported a problem instead of a value."""


def read_operation(node: Node, kind: Kind, default: Dialect, problems: Problems) -> Edit | Merge | None:
    """Read `name` or `{name: {fields}}` and build its record; None when a problem has been reported."""
    found = operation_node(node, kind, problems)
    if found is None:
        return None
    name, mark, fields = found
    if name not in table(kind):
        other: Kind = "merge" if kind == "edit" else "edit"
        fix = suggestion(name, table(kind), f"{kind}s")
        if name in table(other):
            fix = f"it is {'an edit' if other == 'edit' else 'a merge'}"
        problems.add(mark, f"unknown {kind} {quoted(name)}", fix)
        return None
    said = fields.get("dialect")
    dialect: Dialect | None = default if said is None else _dialect(said, problems)
    if dialect is None:
        return None
    chosen = choice(kind, name, dialect)
    if chosen is None:
        known = listed(dialects(kind, name))
        at = mark if said is None else said.mark
        problems.add(
            at, f"{name} has no dialect {quoted(dialect)}", f"write `{{{name}: {{dialect: {known}}}}}`"
        )
        return None
    built: Edit | Merge | None = _build(
        chosen.load(), name, mark, fields.without("dialect"), chosen.defaults, problems
    )
    return built


def _dialect(node: Node, problems: Problems) -> Dialect | None:
    value = plain(node)
    for dialect in DIALECTS:
        if value == dialect:
            return dialect
    near = suggestion(str(value), DIALECTS)
    problems.add(node.mark, f"dialect must be {listed(DIALECTS)}, not {describe(node)}", near)
    return None


def operation_node(node: Node, kind: Kind, problems: Problems) -> tuple[str, Mark, Keyed] | None:
    """Split `name` or `{name: fields}` into name, its place, and its fields (perhaps none)."""
    if isinstance(node, Scalar) and isinstance(node.value, str):
        return node.value, node.mark, Keyed((), node.mark)
    if isinstance(node, Keyed) and len(node.entries) == 1:
        (entry,) = node.entries
        if isinstance(entry.value, Scalar) and entry.value.value is None:
            return entry.key, entry.mark, Keyed((), entry.mark)
        if isinstance(entry.value, Keyed):
            return entry.key, entry.mark, entry.value
        what = f"the fields of {quoted(entry.key)} must be a mapping, not {describe(entry.value)}"
        problems.add(entry.value.mark, what, f"write `{{{entry.key}: {{field: value}}}}`")
        return None
    if isinstance(node, Keyed) and node.entries:
        names = [entry.key for entry in node if entry.key in table(kind)]
        what = f"{'two operations' if len(names) > 1 else 'more than an operation'} in one {kind}"
        problems.add(node.mark, f"{what}: {', '.join(map(printable, node.keys))}", "give each its own entry")
        return None
    problems.add(node.mark, f"{'an edit' if kind == 'edit' else 'merge'} must be a name or {{name: fields}}")
    return None


def _build(
    record: type[Record],
    name: str,
    mark: Mark,
    fields: Keyed,
    defaults: Mapping[str, Any],
    problems: Problems,
) -> Any:
    known = record.model_fields
    values: dict[str, Any] = dict(defaults)
    before = problems.reports
    for entry in fields:
        key: str | None = entry.key
        if key not in known:
            fix = _opposite(entry.key, entry.value, known) or suggestion(entry.key, known, f"{name} takes")
            problems.add(entry.mark, f"unknown key {quoted(entry.key)}", fix or f"{name} has no fields")
            # What a misspelt key was probably meant to be is checked too, and not missed a second time.
            key = nearest(entry.key, known)
            if entry.key in _OPPOSITE:
                values[_OPPOSITE[entry.key]] = MISSING
            elif key is None or key in fields:
                continue
        if key in known:
            values[key] = checked(key, known[key], entry.value, problems)
    for key, info in known.items():
        if key not in values and info.is_required():
            words = range_words(info)
            problems.add(mark, f"{name} needs {quoted(key)}", f"a number {words}" if words else "")
    if problems.reports > before:
        return None
    try:
        return record(**values)
    except ValidationError as error:  # the fields are right one by one, but not together
        for line in error.errors():
            problems.add(mark, f"{name}: {_sentence(line['msg'])}")
        return None


_OPPOSITE = {"rate": "density", "density": "rate"}


def _opposite(key: str, value: Node, known: Mapping[str, Any]) -> str:
    """Help those who write the fraction kept where the fraction removed is asked for, or the reverse."""
    other = _OPPOSITE.get(key)
    if other is None or other not in known:
        return ""
    meaning = f"{other} is the fraction {'kept' if other == 'density' else 'removed'}"
    number = plain(value)
    if isinstance(number, (int, float)) and not isinstance(number, bool) and 0 <= number <= 1:
        return f"{meaning}: write {other}: {round(1 - number, 12):g}"
    return f"{meaning}, 1 - {key}"


def required_part(info: FieldInfo) -> FieldInfo:
    """Return a field that may be None as the same field if it may not."""
    inner = [part for part in get_args(info.annotation) if part is not NoneType]
    if get_origin(info.annotation) in (Union, UnionType) and len(inner) == 1:
        return FieldInfo.from_annotation(inner[0])
    return info


def schedulable(info: FieldInfo) -> bool:
    """Tell whether a field takes schedules."""
    return any(isinstance(meta, Schedulable) for meta in required_part(info).metadata)


def range_words(info: FieldInfo) -> str:
    """Say a field's range in words: "above 0 and at most 1"; empty where there is none."""
    words = {Gt: "above", Ge: "at least", Lt: "below", Le: "at most"}
    parts = []
    for meta in required_part(info).metadata:
        for kind, phrase in words.items():
            if isinstance(meta, kind):
                bound = getattr(meta, kind.__name__.lower())
                parts.append(
                    f"{phrase} {bound:g}" if isinstance(bound, (int, float)) else f"{phrase} {bound}"
                )
    return " and ".join(parts)


def checked(name: str, info: FieldInfo, node: Node, problems: Problems) -> Any:
    """Return the value of one field, or MISSING after reporting every leaf that is wrong."""
    before = problems.reports
    required = required_part(info)
    if required is not info and plain(node) is None:
        return None
    info = required
    if schedulable(info):
        for leaf in _leaves(name, node, problems):
            _leaf(name, info, leaf, problems)
        return plain(node) if problems.reports == before else MISSING
    return _leaf(name, info, node, problems)


def _leaves(name: str, node: Node, problems: Problems) -> Iterator[Node]:
    """Yield the numbers of a schedule, reporting whatever is not shaped like one."""
    if isinstance(node, Scalar):
        yield node
    elif isinstance(node, Keyed):
        yield from _curve(name, node, problems)
    elif not node.items:
        problems.add(node.mark, f"{name}: the list is empty", "write {where: glob, value: number} entries")
    else:
        for item in node.items:
            yield from _glob_choice(name, item, problems)


def _curve(name: str, node: Keyed, problems: Problems) -> Iterator[Node]:
    for entry in node:
        if entry.key != "layers":
            fix = suggestion(entry.key, ["layers"]) or "a schedule is {layers: [numbers]}"
            problems.add(entry.mark, f"{name}: unknown key {quoted(entry.key)}", fix)
    layers = node.get("layers")
    if layers is None:
        if not node.entries:
            problems.add(node.mark, f"{name}: the schedule is empty", "write {layers: [numbers]}")
    elif isinstance(layers, Listing) and layers.items:
        yield from layers.items
    else:
        problems.add(layers.mark, f"{name}: layers must be a list of numbers, not {describe(layers)}")


def _glob_choice(name: str, node: Node, problems: Problems) -> Iterator[Node]:
    if not isinstance(node, Keyed):
        fix = "write {where: glob, value: number}, or {layers: [...]} for a curve over depth"
        problems.add(node.mark, f"{name}: {describe(node)} is not an entry of a list of globs", fix)
        return
    for entry in node:
        if entry.key not in ("where", "value"):
            fix = suggestion(entry.key, ["where", "value"], "an entry has")
            problems.add(entry.mark, f"{name}: unknown key {quoted(entry.key)}", fix)
    where, value = node.get("where"), node.get("value")
    if where is None or value is None:
        problems.add(node.mark, f"{name}: an entry needs both where and value")
    elif not isinstance(where, Scalar) or not isinstance(where.value, str) or not where.value:
        problems.add(where.mark, f"{name}: where must be a glob, not {describe(where)}")
    if isinstance(value, Keyed):
        yield from _curve(name, value, problems)
    elif isinstance(value, Listing):
        problems.add(value.mark, f"{name}: value must be a number or {{layers: [...]}}, not a list")
    elif value is not None:
        yield value


def _python(node: Node) -> Any:
    """Return the plain value with lists as tuples: records are frozen."""
    if isinstance(node, Listing):
        return tuple(_python(item) for item in node.items)
    return plain(node)


def _leaf(name: str, info: FieldInfo, node: Node, problems: Problems) -> Any:
    annotation: Any = info.annotation
    adapter: TypeAdapter[Any] = TypeAdapter(
        Annotated[annotation, *info.metadata] if info.metadata else annotation
    )
    try:
        return adapter.validate_python(_python(node), strict=True)
    except ValidationError as error:
        for line in error.errors():
            at = _inside(node, line["loc"])
            what, fix = _words(name, info, at, line)
            problems.add(at.mark, what, fix)
        return MISSING


def _inside(node: Node, loc: tuple[int | str, ...]) -> Node:
    """Follow pydantic's location into the tree as far as it leads."""
    for step in loc:
        if isinstance(node, Listing) and isinstance(step, int) and step < len(node.items):
            node = node.items[step]
        elif isinstance(node, Keyed) and isinstance(step, str) and (inner := node.get(step)):
            node = inner
    return node


def _words(name: str, info: FieldInfo, node: Node, line: Any) -> tuple[str, str]:
    """Translate one of pydantic's complaints: what is wrong, and a fix where one is known."""
    kind, got = line["type"], describe(node)
    limits = range_words(info)
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        if name == "density" and plain(node) == 0:
            return f"density must be {limits}, not {got}", "use weight: 0 to leave the model out"
        context = line.get("ctx", {})
        limits = limits or f"{_COMPARED[kind]} {next(iter(context.values()), '')}"
        return f"{name} must be {limits}, not {got}", ""
    if kind == "finite_number":
        return f"{name} must be a finite number, not {got}", ""
    if kind == "literal_error":
        known = _literals(info)
        near = suggestion(str(plain(node)), known)
        return f"{name} must be {listed(known)}, not {got}", near
    if kind in ("int_type", "int_from_float", "int_parsing"):
        return f"{name} must be a whole number{' ' + limits if limits else ''}, not {got}", ""
    if kind in ("float_type", "float_parsing", "number"):
        return f"{name} must be a number{' ' + limits if limits else ''}, not {got}", ""
    if kind == "string_type":
        return f"{name} must be text, not {got}", ""
    if kind in ("bool_type", "bool_parsing"):
        return f"{name} must be true or false, not {got}", ""
    return f"{name}: {_sentence(line['msg'])}", ""


_COMPARED = {
    "greater_than": "above",
    "greater_than_equal": "at least",
    "less_than": "below",
    "less_than_equal": "at most",
}


def _literals(info: FieldInfo) -> tuple[str, ...]:
    return tuple(str(value) for value in getattr(info.annotation, "__args__", ()))


def _sentence(message: str) -> str:
    text = printable(message.removeprefix("Value error, "), limit=300)
    return text[:1].lower() + text[1:]
