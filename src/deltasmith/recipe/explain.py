"""`explain`: what a preset or an operation does, from its records, its presets and a page of facts."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from deltasmith.codecs.catalogue import CODECS
from deltasmith.errors import RecipeError
from deltasmith.operation.protocols import Edit, Merge
from deltasmith.operation.record import Record
from deltasmith.recipe.catalogue import DIALECTS, EDITS, MERGES, Dialect, Kind, choice, dialects
from deltasmith.recipe.expansion import expand
from deltasmith.recipe.facts import FACTS
from deltasmith.recipe.operations import range_words, required_part, schedulable
from deltasmith.recipe.presets import PRESETS, Use
from deltasmith.recipe.problems import listed, quoted, suggestion
from deltasmith.recipe.yaml_file import to_yaml

__all__ = [
    "Explanation",
    "FieldLine",
    "MethodRow",
    "explain",
    "field_line",
    "field_text",
    "methods",
    "render",
    "summary_of",
]

Sameness = Literal["bytes", "tolerance"]

_TRANSCENDENTAL = frozenset(
    {"karcher", "nuslerp", "nuslerp_rows", "pcb", "pcb_pairwise", "pcb_signed", "slerp"}
)
"""Operations of reach element or row with sines, exponentials and the like, whose last bits differ."""

_EXACT = frozenset({"cabs", "cabs_filled"})
"""Operations of reach tensor that only compare and add."""

_SAMENESS: dict[Sameness, str] = {
    "bytes": "the same bytes whatever the threads, tiles, memory or resume, on machines of one CPU family",
    "tolerance": "equal up to rounding across machines: decompositions or transcendental functions take part",
}


@dataclass(frozen=True)
class FieldLine:
    """One field: what it holds, its range, its default as in YAML (None: required), its meaning."""

    name: str
    kind: str
    limits: str
    default: str | None
    schedule: bool
    per_label: bool
    meaning: str


@dataclass(frozen=True)
class Explanation:
    """All that `deltasmith explain NAME` prints."""

    name: str
    kind: Literal["preset", "edit", "merge"]
    dialect: Dialect
    summary: str
    formula: str
    fields: tuple[FieldLine, ...]
    expansion: str
    source: str
    avoid: str
    dialects: tuple[tuple[Dialect, str], ...]
    sameness: Sameness
    spaces: tuple[str, ...]
    statistics: str = ""
    """The kind of the file that is read beside every model; empty if none is."""


@dataclass(frozen=True)
class MethodRow:
    """One line of `deltasmith methods`."""

    name: str
    kind: Literal["preset", "edit", "merge", "codec"]
    summary: str
    dialects: tuple[Dialect, ...]
    sameness: Sameness


def explain(name: str, dialect: Dialect = "paper") -> Explanation:
    """Explain a preset, an edit or a merge in one dialect; a preset comes before a merge of the same name."""
    known = (*PRESETS, *EDITS, *MERGES)
    if name not in known:
        fix = suggestion(name, (*known, *CODECS)) or "see `deltasmith methods`"
        raise RecipeError(f"there is no preset, edit, merge or codec {quoted(name)}", fix=fix)
    offered = _offered(name)
    if dialect not in offered:
        raise RecipeError(f"{name} has no dialect {quoted(dialect)}", fix=f"it has {listed(offered, 'and')}")
    uses = _uses(name, dialect)
    parts = _loaded(uses, dialect)
    fact, last = FACTS[name], parts[-1][1]
    return Explanation(
        name=name,
        kind="preset" if name in PRESETS else _kind(name),
        dialect=dialect,
        summary=_what(name, parts, "preset" if name in PRESETS else _kind(name)),
        formula=fact.formula,
        fields=tuple(_fields(name, parts, _defaults(uses, dialect))),
        expansion=_expansion(name, dialect, last),
        source=fact.source,
        avoid=fact.avoid,
        dialects=tuple((d, _dialect_words(name, d)) for d in offered),
        sameness=_sameness(parts),
        spaces=last.spaces if issubclass(last, Merge) else ("delta",),
        statistics=_statistics(name, parts),
    )


def methods() -> tuple[MethodRow, ...]:
    """List every preset, then every edit and merge, in alphabetical order."""
    rows = [_row(name, "preset") for name in sorted(PRESETS)]
    rows += [_row(name, "edit") for name in sorted(EDITS)]
    rows += [_row(name, "merge") for name in sorted(MERGES)]
    return tuple(rows)


def _row(name: str, kind: Literal["preset", "edit", "merge"]) -> MethodRow:
    if kind == "preset":
        parts, offered = _loaded(_uses(name, "paper"), "paper"), _offered(name)
    else:
        parts, offered = _loaded([(kind, Use(name))], "paper"), dialects(kind, name)
    return MethodRow(name, kind, _what(name, parts, kind), offered, _sameness(parts))


def render(explanation: Explanation, width: int = 100) -> str:
    """Write an explanation as plain text, at most `width` columns where its parts allow."""
    e = explanation
    lines = [f"{e.name} ({e.kind}{'' if e.dialect == 'paper' else f', dialect {e.dialect}'})", ""]
    lines += [*textwrap.wrap(e.summary, width), "", f"Formula: {e.formula}", ""]
    if e.fields:
        lines += ["Fields:", *(line for field in e.fields for line in field_text(field, width)), ""]
    heading = "Stands for:" if e.kind == "preset" else "In a recipe:"
    lines += [heading, textwrap.indent(e.expansion.rstrip(), "    "), ""]
    for title, text in (("Source", e.source), ("When not to use it", e.avoid)):
        if text:
            lines += [*textwrap.wrap(f"{title}: {text}", width, subsequent_indent="  "), ""]
    if e.statistics:
        lines += ["Statistics: of each model, on its own data (needs the extra [analysis]):", ""]
        lines += [f"    {_saving(e.statistics)}", ""]
    lines += ["Dialects:"]
    for dialect, words in e.dialects:
        lines += textwrap.wrap(f"{dialect}: {words}", width, initial_indent="  ", subsequent_indent="    ")
    lines += ["", f"Space: {listed(e.spaces)}", f"Sameness: {_SAMENESS[e.sameness]}"]
    return "\n".join(lines) + "\n"


def field_text(field: FieldLine, width: int) -> list[str]:
    """Write one field as lines of at most `width` columns."""
    default = "required" if field.default is None else f"default {field.default}"
    notes = ["or a schedule"] * field.schedule + ["or per label"] * field.per_label
    kind = " ".join(part for part in (field.kind, field.limits) if part)
    head = f"  {field.name}: {', '.join([kind, *notes, default])}"
    return [head, *textwrap.wrap(field.meaning, width, initial_indent="      ", subsequent_indent="      ")]


def _saving(kind: str) -> str:
    """Return the command that writes a file of statistics."""
    return f"deltasmith loss ./math --from ./math --data FILE --save-{kind} {_file_of('./math', kind)}"


def _file_of(model: str, kind: str) -> str:
    return f"{model}.{kind}.safetensors"


Part = tuple[Kind, "type[Edit] | type[Merge]", str]
Used = tuple[Kind, Use]


def _kind(name: str) -> Kind:
    return "edit" if name in EDITS else "merge"


def _uses(name: str, dialect: Dialect) -> list[Used]:
    """Return the operations of a preset in one dialect, edits first; an operation is its own only one."""
    if name not in PRESETS:
        return [(_kind(name), Use(name))]
    shape = PRESETS[name].in_dialect(dialect)
    edits: list[Used] = [("edit", use) for use in shape.edits]
    return [*edits, ("merge", shape.merge)]


def _loaded(uses: Iterable[Used], dialect: Dialect) -> list[Part]:
    found: list[Part] = []
    for kind, use in uses:
        chosen = choice(kind, use.name, dialect)
        if chosen is None:
            raise KeyError(f"{use.name} has no dialect {dialect}")
        found.append((kind, chosen.load(), use.name))
    return found


def _offered(name: str) -> tuple[Dialect, ...]:
    """List the dialects that every operation of a preset (or the operation itself) knows."""
    return tuple(d for d in DIALECTS if all(choice(kind, use.name, d) for kind, use in _uses(name, d)))


def summary_of(record: type[Record]) -> str:
    """Return the first sentence (or paragraph) of a record's documentation."""
    first = inspect.cleandoc(record.__doc__ or "").split("\n\n")[0]
    return " ".join(first.split())


def _what(name: str, parts: list[Part], kind: str) -> str:
    if name == "emr" and kind == "preset":
        return f"{summary_of(parts[-1][1])} Without a task: the unified vector itself."
    sentences = [summary_of(record) for _, record, _ in parts]
    return sentences[0] if len(sentences) == 1 else " Then: ".join(sentences)


def _dialect_words(name: str, dialect: Dialect) -> str:
    """Say how a dialect differs: other records, other defaults, and a caution where there is one."""
    own, paper = _uses(name, dialect), _uses(name, "paper")
    if dialect == "paper":
        return ", then ".join(record.__name__ for _, record, _ in _loaded(own, dialect))
    pairs = zip(_loaded(own, dialect), _loaded(paper, "paper"), strict=True)
    words = [f"{new.__name__}: {summary_of(new)}" for (_, new, _), (_, old, _) in pairs if new is not old]
    usual = _defaults(paper, "paper")
    changed = {key: v for key, v in _defaults(own, dialect).items() if v != usual.get(key)}
    if changed:
        defaults = ", ".join(f"{key}: {_written(value)}" for key, value in changed.items())
        words.append(f"{defaults} by default.")
    if dialect == "mergekit" and FACTS[name].mergekit:
        words.append(FACTS[name].mergekit)
    return " ".join(words) or "the same"


def _defaults(uses: Iterable[Used], dialect: Dialect) -> dict[str, Any]:
    """Return the defaults that a dialect and a preset give the fields of their operations."""
    found: dict[str, Any] = {}
    for kind, use in uses:
        chosen = choice(kind, use.name, dialect)
        found.update({**(chosen.defaults if chosen else {}), **use.defaults})
    return found


def _sameness(parts: list[Part]) -> Sameness:
    for _, record, name in parts:
        if name in _TRANSCENDENTAL or (record.reach == "tensor" and name not in _EXACT):
            return "tolerance"
    return "bytes"


def _fields(name: str, parts: list[Part], defaults: dict[str, Any]) -> Iterable[FieldLine]:
    """Yield the fields of a preset (its own first) or of an operation."""
    preset = PRESETS.get(name)
    if preset is not None and preset.extra is not None:
        extra = preset.extra
        value = None if extra.default is None else f"{extra.default:g}"
        per_label = extra.default is None
        yield FieldLine(extra.name, "number", "", value, not per_label, per_label, extra.meaning)
    seen: set[str] = set()
    for kind, record, _ in parts:
        for key, info in record.model_fields.items():
            if key not in seen:
                seen.add(key)
                yield _line(key, info, defaults, per_label=preset is not None and kind == "edit")


def field_line(name: str, info: FieldInfo) -> FieldLine:
    """Describe a field that is neither scheduled nor given per label."""
    return replace(_line(name, info, {}, per_label=False), schedule=False)


def _line(name: str, info: FieldInfo, defaults: dict[str, Any], *, per_label: bool) -> FieldLine:
    value = defaults.get(name, info.get_default(call_default_factory=True))
    missing = name not in defaults and info.is_required()
    default = None if missing else "none" if value is None else _written(value)
    meaning = " ".join((info.description or "").split())
    return FieldLine(
        name, _kind_words(info), range_words(info), default, schedulable(info), per_label, meaning
    )


def _statistics(name: str, parts: list[Part]) -> str:
    """Return the kind of file that a method's edits or its merge read, empty if none."""
    of_edits = [record.statistics for _, record, _ in parts if issubclass(record, Edit)]
    return next(filter(None, of_edits), FACTS[name].statistics)


def _written(value: Any) -> str:
    text = to_yaml(list(value) if isinstance(value, tuple) else value)
    return text.removesuffix("...\n").strip()


def _kind_words(info: FieldInfo) -> str:
    """Say what a field holds."""
    annotation = required_part(info).annotation
    origin = get_origin(annotation)
    if origin is Literal:
        return listed([str(value) for value in get_args(annotation)])
    if origin is tuple:
        return "list of numbers" if float in _flat(annotation) else "list of texts"
    if origin is dict:
        return "mapping of labels to texts"
    words: dict[Any, str] = {
        float: "number",
        int: "whole number",
        str: "text",
        bool: "true or false",
        NoneType: "none",
    }
    return words.get(annotation, "number")


def _flat(annotation: Any) -> set[Any]:
    inner = get_args(annotation)
    return {annotation}.union(*(_flat(part) for part in inner)) if inner else {annotation}


def _expansion(name: str, dialect: Dialect, last: type[Edit] | type[Merge]) -> str:
    """Show the plain recipe of a preset, or how an operation is written."""
    fields = {**FACTS[name].example, **({} if dialect == "paper" else {"dialect": dialect})}
    if name not in PRESETS:
        written = {name: fields} if fields else name
        if not issubclass(last, Edit):
            return to_yaml({"merge": written})
        beside = {"statistics": _file_of("./math", last.statistics)} if last.statistics else {}
        return to_yaml({"edits": [written], **beside})
    models: list[dict[str, Any]] = [{"model": f"./{label}", "label": label} for label in ("math", "code")]
    if "statistics" in last.model_fields:
        for model in models:
            model["statistics"] = _file_of(model["model"], FACTS[name].statistics)
    recipe = {"base": "./base", "models": models[:1] if name == "expo" else models, "preset": name, **fields}
    if name == "fedavg":
        recipe["examples"] = {"math": 7000, "code": 3000}
    if issubclass(last, Merge) and "weight" in last.spaces:
        del recipe["base"]
    return to_yaml(expand(recipe))
