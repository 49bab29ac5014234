"""What a run reports while it works: a phase, and bytes done within it."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """A listener; `advance` is called from worker threads."""

    def phase(self, name: str, total: int) -> None:
        """Begin a phase of `total` bytes of output-sized work (0: unknown)."""

    def advance(self, nbytes: int) -> None:
        """Report bytes done."""


class Silent:
    """A listener that says nothing."""

    def phase(self, name: str, total: int) -> None:
        """Ignore the phase."""

    def advance(self, nbytes: int) -> None:
        """Ignore the bytes."""
