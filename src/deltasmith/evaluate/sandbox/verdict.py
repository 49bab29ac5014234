"""What running a program brings, and what it may use up. How it is run is not here: see `run.py`."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits", "Program", "Verdict"]


@dataclass(frozen=True, slots=True)
class Program:
    """Hold one program to judge: its source, the tests, and what runs between the two."""

    candidate: str
    tests: str
    setup: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Say whether every test was run to its end without an exception, why not, and what was printed.

    `reason` is one printable line: `passed`, `failed: AssertionError in line 2 of the tests`, `timed out`,
    `memory: …`, `killed: SIGSEGV`, `ended without a verdict`. `output` is standard output and error together, at
    most 64 KiB, printable apart from line ends and tabs; a program may print anything, so it proves nothing.
    """

    passed: bool
    reason: str
    output: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bound one program. What exceeds a bound fails; it never ends the evaluation.

    `seconds` of wall clock, from the program's first line to the verdict; a program that computes, but is
    kept from it by whatever else runs on the machine, gets what it missed, up to ten times as long in all.
    `cpu_seconds` of all its threads together, rounded up to whole seconds; `memory` in bytes of address
    space; `file_bytes` for each file and for everything it leaves in its folder; `processes` counts threads
    too (no tier but `unsafe` lets a program start another process).
    """

    seconds: float = 5.0
    cpu_seconds: float = 6.0
    memory: int = 512 << 20
    file_bytes: int = 8 << 20
    processes: int = 32
