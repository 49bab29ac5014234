"""Lua programs by a grammar of our own: valid Lua 5.4 that means little, decided by a keyed source of chance.

Statements nest, variables are declared before they are used, and idioms that make Lua look like Lua come in between:
modules, metatables, closures, coroutines, error handling, string patterns. Nothing runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

from deltasmith.lab.features.lua_idioms import IDIOMS
from deltasmith.lab.features.lua_words import Names

__all__ = ["Writer", "programs"]

_COMPARED = ("==", "~=", "<", ">", "<=", ">=")
_BINARY = ("+", "-", "*", "/", "%", "//", "..", "+", "-")
_CALLS = (
    "math.floor({0})",
    "math.max({0}, {1})",
    "math.random(1, {0})",
    "string.format({text}, {0})",
    "tostring({0})",
    "tonumber({0})",
    "#{name}",
    "type({0})",
    "{name}[{0}]",
    "{name}.{field}",
    "{name}:{method}({0})",
    "string.sub({name}, {number}, -2)",
    "{name} or {0}",
    "{name} and {0} or {1}",
    "({0})",
    "next({name})",
    "os.time()",
    "table.concat({name}, {text})",
    "table.unpack({name})",
)


class Writer:
    """Write one program; `lines` is what stands so far."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.names = Names(rng)
        self.lines: list[str] = []
        self.module = rng.choice(("M", "_M", self.names.type_name()))
        self._scopes: list[list[str]] = [[]]
        self._tab = rng.choice(("  ", "    ", "\t"))
        self._depth = 0

    def text(self) -> str:
        """Write the whole program."""
        self._header()
        for _ in range(self.rng.randrange(3, 9)):
            self.rng.choices((self._idiom, self._function, self._plain), weights=(5, 4, 1))[0]()
            self.line("")
        self.line(f"return {self.module}")
        return "\n".join(self.lines) + "\n"

    def line(self, text: str) -> None:
        """Add a line at the depth of the block."""
        self.lines.append(self._tab * self._depth + text if text else "")

    @contextmanager
    def block(self, head: str, tail: str = "end", *variables: str) -> Iterator[None]:
        """Indent what is written inside, where the variables are known."""
        self.line(head)
        self._depth += 1
        self._scopes.append(list(variables))
        yield
        self._scopes.pop()
        self._depth -= 1
        self.line(tail)

    def fresh(self) -> str:
        """Invent a variable and remember that it is there."""
        name = self.names.variable()
        self._scopes[-1].append(name)
        return name

    def known(self) -> str:
        """Return a variable that has been declared, the nearest scopes more often."""
        full = [scope for scope in self._scopes if scope]
        if not full:
            return self.module
        return self.rng.choice(full[-1] if self.rng.random() < 0.6 else self.rng.choice(full))

    def number(self) -> str:
        """Return a literal number."""
        return self.rng.choice(
            (
                str(self.rng.randrange(0, 11)),
                str(self.rng.randrange(1, 1000)),
                f"{self.rng.random():.2f}",
                f"0x{self.rng.randrange(256):02X}",
            )
        )

    def value(self, depth: int = 2) -> str:
        """Return an expression."""
        kind = self.rng.random()
        if depth == 0 or kind < 0.3:
            return self.rng.choices(
                (self.known(), self.number(), self.names.text(), "nil", "true", "false", "{}"),
                weights=(10, 5, 4, 1, 1, 1, 1),
            )[0]
        if kind < 0.5:
            return f"{self.known()} {self.rng.choice(_BINARY)} {self.value(depth - 1)}"
        if kind < 0.62:
            return f"{self.names.function()}({self._listed(depth - 1)})"
        if kind < 0.7:
            return self._table(depth - 1)
        return self.rng.choice(_CALLS).format(
            self.value(0) if depth < 2 else self.value(depth - 1).replace("nil", "1"),
            self.value(0),
            text=self.names.text(),
            name=self.known(),
            field=self.names.noun(),
            method=self.names.function(),
            number=self.rng.randrange(1, 5),
        )

    def condition(self) -> str:
        """Return an expression that is true or false."""
        kind = self.rng.random()
        if kind < 0.45:
            return f"{self.known()} {self.rng.choice(_COMPARED)} {self.value(0)}"
        if kind < 0.6:
            return f"not {self.known()}"
        if kind < 0.75:
            kinds = ("string", "table", "number", "function")
            return f'type({self.known()}) == "{self.rng.choice(kinds)}"'
        if kind < 0.88:
            return f"{self.known()} and {self.known()} {self.rng.choice(_COMPARED)} {self.number()}"
        return f"#{self.known()} > {self.rng.randrange(0, 5)}"

    def body(self, depth: int = 2, least: int = 1, most: int = 4) -> None:
        """Write some statements."""
        for _ in range(self.rng.randrange(least, most + 1)):
            self.statement(depth)

    def statement(self, depth: int) -> None:
        """Write one statement; with depth left it may hold others."""
        simple: tuple[Callable[[], None], ...] = (
            self._local,
            self._assignment,
            self._call,
            self._comment,
            self._insert,
        )
        if depth == 0 or self.rng.random() < 0.6:
            self.rng.choices(simple, weights=(6, 4, 4, 1, 1))[0]()
        else:
            self.rng.choices((self._if, self._for, self._while, self._guard), weights=(5, 5, 1, 2))[0](
                depth - 1
            )

    def parameters(self) -> list[str]:
        """Invent the parameters of a function."""
        return list(dict.fromkeys(self.names.variable() for _ in range(self.rng.randrange(0, 4))))

    def _header(self) -> None:
        if self.rng.random() < 0.6:
            self.line(f"-- {self.names.comment()}")
        for _ in range(self.rng.randrange(0, 4)):
            name = self.fresh()
            self.line(f'local {name} = require("{self.names.module()}")')
        if self.rng.random() < 0.4:
            self.line("local insert, concat = table.insert, table.concat")
        for _ in range(self.rng.randrange(0, 4)):
            self.line(f"local {self.names.constant()} = {self.number()}")
        self.line(f"local {self.module} = {{}}")
        self.line("")

    def _idiom(self) -> None:
        self.rng.choice(IDIOMS)(self)

    def _plain(self) -> None:
        self.body(2, 2, 5)

    def _function(self) -> None:
        names = self.parameters()
        head = self.rng.choice(
            ("local function {0}", f"function {self.module}.{{0}}", f"function {self.module}:{{0}}")
        )
        if self.rng.random() < 0.3:
            self.line(f"-- {self.names.comment()}")
        with self.block(f"{head.format(self.names.function())}({', '.join(names)})", "end", *names):
            self.body(3, 2, 6)
            if self.rng.random() < 0.6:
                self.line(f"return {self._listed(1) or 'nil'}")

    def _listed(self, depth: int) -> str:
        return ", ".join(self.value(depth) for _ in range(self.rng.randrange(0, 4)))

    def _table(self, depth: int) -> str:
        if self.rng.random() < 0.5:
            return "{ " + ", ".join(self.value(depth) for _ in range(self.rng.randrange(1, 5))) + " }"
        fields = (f"{self.names.noun()} = {self.value(depth)}" for _ in range(self.rng.randrange(1, 4)))
        return "{ " + ", ".join(fields) + " }"

    def _local(self) -> None:
        value = self.value()
        self.line(f"local {self.fresh()} = {value}")

    def _assignment(self) -> None:
        target = self.known()
        if self.rng.random() < 0.4:
            target += self.rng.choice(
                (f".{self.names.noun()}", f"[{self.value(0)}]", "[#" + target + " + 1]")
            )
            target = target.replace("[nil]", "[1]")
        if self.rng.random() < 0.3:
            self.line(f"{target} = {target} {self.rng.choice('+-*')} {self.number()}")
        else:
            self.line(f"{target} = {self.value()}")

    def _call(self) -> None:
        callee = self.rng.choice(
            (self.names.function(), "print", f"{self.known()}:{self.names.function()}", "io.write", "assert")
        )
        self.line(f"{callee}({self.value(1)}{', ' + self.value(0) if self.rng.random() < 0.4 else ''})")

    def _comment(self) -> None:
        self.line(f"-- {self.names.comment()}")

    def _insert(self) -> None:
        self.line(f"table.insert({self.known()}, {self.value(1)})")

    def _if(self, depth: int) -> None:
        with self.block(f"if {self.condition()} then", "end"):
            self.body(depth, 1, 3)
            for word in ("elseif", "else"):
                if self.rng.random() < 0.3:
                    self._depth -= 1
                    self.line("else" if word == "else" else f"elseif {self.condition()} then")
                    self._depth += 1
                    self.body(depth, 1, 2)

    def _guard(self, depth: int) -> None:
        with self.block(f"if {self.condition()} then", "end"):
            self.line(
                self.rng.choice((f"return {self.value(depth)}", "return", "return nil, " + self.names.text()))
            )

    def _for(self, depth: int) -> None:
        known = self.known()
        kind = self.rng.random()
        if kind < 0.4:
            index = self.rng.choice(("i", "j", "n"))
            step = ", -1" if self.rng.random() < 0.15 else ""
            with self.block(
                f"for {index} = 1, {self.rng.choice(('#' + known, self.number()))}{step} do", "end", index
            ):
                self.body(depth, 1, 3)
            return
        pair = self.rng.choice(
            (("_", "v"), ("k", "v"), ("i", "item"), ("_", self.names.noun()), ("key", "value"))
        )
        walk = "ipairs" if pair[0] in "_i" else "pairs"
        with self.block(
            f"for {', '.join(pair)} in {walk}({known}) do", "end", *(n for n in pair if n != "_")
        ):
            self.body(depth, 1, 3)

    def _while(self, depth: int) -> None:
        if self.rng.random() < 0.6:
            with self.block(f"while {self.condition()} do", "end"):
                self.body(depth, 1, 3)
                if self.rng.random() < 0.3:
                    self.line("break")
        else:
            with self.block("repeat", f"until {self.condition()}"):
                self.body(depth, 1, 3)


def programs(rng: Random) -> Iterator[str]:
    """Yield programs of about thirty to a hundred and fifty lines, without end."""
    while True:
        yield Writer(rng).text()
