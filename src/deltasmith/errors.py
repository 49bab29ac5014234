"""One tree of errors: each says what is wrong, where, and what to do, and carries an exit code."""

from __future__ import annotations

from typing import Any

__all__ = [
    "DamagedInputError",
    "DeltasmithError",
    "InterruptedRunError",
    "MissingExtraError",
    "RecipeError",
    "RefusedError",
    "ResourceError",
    "VerificationError",
    "printable",
]


def printable(text: str, limit: int = 200) -> str:
    """Return `text` with control and direction-changing characters escaped and the length bounded.

    Names come out of files that nobody vouches for; unescaped they could move the cursor or hide a message.
    """
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return safe if len(safe) <= limit else f"{safe[:limit]}… ({len(safe)} characters)"


class DeltasmithError(Exception):
    """The root of the tree; `str()` is the one line a user sees after `error: `."""

    exit_code = 70

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        """Hold the three parts of a message: what was found, where, and what to do about it."""
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what, where, fix)

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process hands its error over; Exception's own way would call __init__ with three bare words.
        return _again, (type(self), self.args, dict(vars(self)))

    def __str__(self) -> str:
        line = f"{self.what} in {self.where}" if self.where else self.what
        line = f"{line}; {self.fix}" if self.fix else line
        return printable(line, limit=4000)


def _again(kind: type[DeltasmithError], args: tuple[Any, ...], state: dict[str, Any]) -> DeltasmithError:
    error = kind.__new__(kind, *args)
    vars(error).update(state)
    return error


class RefusedError(DeltasmithError):
    """The inputs do not fit together, or the output may not be written there."""

    exit_code = 1


class RecipeError(DeltasmithError):
    """The recipe or the command line asks for something that does not exist or makes no sense."""

    exit_code = 2


class MissingExtraError(RecipeError):
    """The feature needs an optional dependency; the message holds the pip command."""


class DamagedInputError(DeltasmithError):
    """An input is damaged, unsafe, of an unsupported kind, or cannot be fetched."""

    exit_code = 3


class ResourceError(DeltasmithError):
    """Disk, memory budget or file limits do not suffice."""

    exit_code = 4


class InterruptedRunError(DeltasmithError):
    """The run was interrupted; the same command resumes it."""

    exit_code = 5


class VerificationError(DeltasmithError):
    """A finished model is not what its manifest says."""

    exit_code = 6
