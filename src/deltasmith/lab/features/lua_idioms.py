"""What makes Lua look like Lua: a function for each idiom, which writes it into a program with names of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltasmith.lab.features.lua_programs import Writer

__all__ = ["IDIOMS"]

_PATTERNS = (
    "(%w+)=(%w+)",
    "^%s*(.-)%s*$",
    "[^,]+",
    "(%d+)%.(%d+)",
    "%S+",
    "^#(%x%x)(%x%x)(%x%x)$",
    "([^\\n]*)\\n?",
    "%-%-.*",
    "[%w_]+",
)


def _class(w: Writer) -> None:
    name = w.names.type_name()
    fields = sorted({w.names.noun() for _ in range(w.rng.randrange(2, 5))})
    w.line(f"local {name} = {{}}")
    w.line(f"{name}.__index = {name}")
    w.line("")
    with w.block(f"function {name}.new({', '.join(fields)})", "end", *fields):
        w.line(f"local self = setmetatable({{}}, {name})")
        for field in fields:
            w.line(f"self.{field} = {field}{' or ' + w.number() if w.rng.random() < 0.4 else ''}")
        w.line("return self")
    for _ in range(w.rng.randrange(1, 4)):
        names = w.parameters()
        w.line("")
        with w.block(f"function {name}:{w.names.function()}({', '.join(names)})", "end", "self", *names):
            field = w.rng.choice(fields)
            w.line(f"self.{field} = {w.rng.choice((f'self.{field} + {w.number()}', w.value(1)))}")
            w.body(2, 1, 3)
            if w.rng.random() < 0.5:
                w.line(f"return self.{w.rng.choice(fields)}")


def _inheritance(w: Writer) -> None:
    child, parent = w.names.type_name() + "Base", w.names.type_name()
    w.line(f"local {parent} = {{}}")
    w.line(f"local {child} = setmetatable({{}}, {{ __index = {parent} }})")
    w.line(f"{child}.__index = {child}")
    with w.block(f"{child}.__tostring = function(self)", "end", "self"):
        w.line(f"return {w.names.text()} .. tostring(self.{w.names.noun()})")
    with w.block(f"function {child}:{w.names.function()}(...)", "end", "self"):
        w.line(f"{parent}.{w.names.function()}(self, ...)")
        w.body(1, 1, 3)


def _metamethods(w: Writer) -> None:
    name = w.names.type_name()
    w.line(f"local {name} = {{}}")
    for method, operator in w.rng.sample(
        (("add", "+"), ("sub", "-"), ("mul", "*"), ("eq", "=="), ("lt", "<")), 2
    ):
        field = w.names.noun()
        with w.block(f"{name}.__{method} = function(a, b)", "end", "a", "b"):
            if method in ("eq", "lt"):
                w.line(f"return a.{field} {operator} b.{field}")
            else:
                w.line(f"return {name}.new(a.{field} {operator} b.{field}, a.y {operator} b.y)")


def _protected(w: Writer) -> None:
    result, call = w.names.noun(), w.names.function()
    w.line(f"local ok, {result} = pcall({call}, {w.value(0)})")
    with w.block("if not ok then", "end", "ok", result):
        w.line(
            w.rng.choice(
                (f'print("error: " .. tostring({result}))', f"error({result}, 2)", "return nil, " + result)
            )
        )


def _raising(w: Writer) -> None:
    names = w.parameters() or [w.names.noun()]
    with w.block(f"local function {w.names.function()}({', '.join(names)})", "end", *names):
        first = names[0]
        kind = w.rng.choice(("string", "table", "number"))
        with w.block(f'if type({first}) ~= "{kind}" then', "end"):
            w.line(f"error({w.names.text()} .. type({first}){', 2' if w.rng.random() < 0.5 else ''})")
        w.line(f"assert({first}, {w.names.text()})")
        w.body(2, 1, 3)
        w.line(f"return {w.value(1)}")


def _handler(w: Writer) -> None:
    with w.block(
        "local status, err = xpcall(function()", f"end, {w.rng.choice(('debug.traceback', 'print'))})"
    ):
        w.body(2, 1, 3)
    with w.block("if not status then", "end", "err"):
        w.line(w.rng.choice(("io.stderr:write(err, '\\n')", "error(err)", f"print({w.names.text()}, err)")))


def _counter(w: Writer) -> None:
    name = w.names.noun()
    with w.block(f"local function {w.names.function()}({w.names.noun()})"):
        w.line(f"local {name} = {w.number()}")
        with w.block("return function(n)", "end", name, "n"):
            w.line(f"{name} = {name} {w.rng.choice('+-*')} (n or 1)")
            w.line(f"return {name}")


def _memo(w: Writer) -> None:
    store = w.rng.choice(("cache", "memo", "seen"))
    made = w.rng.choice(("{}", 'setmetatable({}, { __mode = "k" })'))
    w.line(f"local {store} = {made}")
    with w.block(f"local function {w.names.function()}(key)", "end", "key", store):
        with w.block(f"if {store}[key] == nil then"):
            w.line(f"{store}[key] = {w.value(1)}")
        w.line(f"return {store}[key]")


def _patterns(w: Writer) -> None:
    text = w.rng.choice(("s", "str", "text", "line"))
    with w.block(f"function {w.module}.{w.names.function()}({text})", "end", text):
        w.line("local out = {}")
        call = w.rng.choice(("gmatch", "match", "gsub"))
        pattern = w.rng.choice(_PATTERNS)
        if call == "gmatch":
            with w.block(f'for word in {text}:gmatch("{pattern}") do', "end", "word", "out"):
                w.line(w.rng.choice(("out[#out + 1] = word", "table.insert(out, word)")))
                w.body(1, 0, 1)
        elif call == "match":
            w.line(f'local key, value = string.match({text}, "{pattern}")')
            w.line("if key then out[key] = value end")
        else:
            change = w.rng.choice(("string.upper", '""', '" "'))
            w.line(f'{text} = {text}:gsub("{pattern}", {change})')
        between = w.rng.choice((",", " ", "-"))
        w.line(w.rng.choice(("return out", f'return table.concat(out, "{between}")')))


def _sorting(w: Writer) -> None:
    field = w.names.noun()
    with w.block(f"table.sort({w.known()}, function(a, b)", "end)", "a", "b"):
        with w.block(f"if a.{field} ~= b.{field} then", "end", "a", "b"):
            w.line(f"return a.{field} {w.rng.choice('<>')} b.{field}")
        w.line(f"return a.{w.names.noun()} < b.{w.names.noun()}")


def _coroutine(w: Writer) -> None:
    head = f"local {w.names.variable()} = coroutine.wrap(function({w.names.noun()})"
    with w.block(head, "end)"), w.block(f"for i = 1, {w.number()} do", "end", "i"):
        w.line(f"coroutine.yield({w.rng.choice(('i', 'i * 2', w.value(1)))})")
        w.body(1, 0, 2)


def _queue(w: Writer) -> None:
    with w.block(f"function {w.module}.push(list, value)", "end", "list", "value"):
        w.line("list.last = list.last + 1")
        w.line("list[list.last] = value")
    with w.block(f"function {w.module}.pop(list)", "end", "list"):
        w.line("local first = list.first")
        w.line(f"if first > list.last then error({w.names.text()}) end")
        w.line("local value = list[first]")
        w.line("list[first] = nil")
        w.line("list.first = first + 1")
        w.line("return value")


def _settings(w: Writer) -> None:
    with w.block(f"local {w.names.variable()} = {{", "}"):
        for _ in range(w.rng.randrange(2, 7)):
            kind = w.rng.random()
            if kind < 0.6:
                w.line(f"{w.names.noun()} = {w.value(1)},")
            elif kind < 0.8:
                w.line(f"[{w.names.text()}] = {w.value(0)},")
            else:
                w.line(f"{{ {w.names.noun()} = {w.number()}, {w.names.noun()} = {w.names.text()} }},")


def _files(w: Writer) -> None:
    with w.block(f"local function {w.names.function()}(path)", "end", "path"):
        way = w.rng.choice(("r", "w", "rb"))
        w.line(f'local f, err = io.open(path, "{way}")')
        w.line(w.rng.choice(("if not f then return nil, err end", "if not f then error(err) end")))
        with w.block("for line in f:lines() do", "end", "line", "f"):
            w.body(1, 1, 2)
        w.line("f:close()")


def _variadic(w: Writer) -> None:
    with w.block(f"function {w.module}.{w.names.function()}(fmt, ...)", "end", "fmt"):
        w.line(
            w.rng.choice(
                ("local args = { ... }", "local n = select('#', ...)", "local args = table.pack(...)")
            )
        )
        w.body(1, 0, 2)
        w.line(w.rng.choice(("return string.format(fmt, ...)", "print(string.format(fmt, ...))")))


def _comment_block(w: Writer) -> None:
    w.line("--[[")
    for _ in range(w.rng.randrange(1, 5)):
        w.line(f"  {w.names.comment()}")
    w.line(w.rng.choice(("]]", "--]]")))


def _game(w: Writer) -> None:
    library = w.rng.choice(("love", "game", "engine"))
    for event, names in w.rng.sample(
        (
            ("update", ("dt",)),
            ("draw", ()),
            ("load", ()),
            ("keypressed", ("key",)),
            ("mousepressed", ("x", "y")),
        ),
        2,
    ):
        with w.block(f"function {library}.{event}({', '.join(names)})", "end", *names):
            if event == "keypressed":
                pressed = w.rng.choice(("left", "right", "space", "escape"))
                with w.block(f'if key == "{pressed}" then'):
                    w.body(1, 1, 2)
            if event == "draw":
                w.line(f"{library}.graphics.print({w.names.text()}, {w.number()}, {w.number()})")
            w.body(2, 1, 3)


IDIOMS: tuple[Callable[[Writer], None], ...] = (
    _class,
    _inheritance,
    _metamethods,
    _protected,
    _raising,
    _handler,
    _counter,
    _memo,
    _patterns,
    _sorting,
    _coroutine,
    _queue,
    _settings,
    _files,
    _variadic,
    _comment_block,
    _game,
)
