"""A merge in a process that is about to be killed; imported by the fork server, so that each one starts at once."""

from __future__ import annotations

import os
import signal
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from deltasmith.cli.main import main
from deltasmith.formats import staging
from models import family, run

__all__ = ["COUNTED", "merge"]

COUNTED = ("pwrite", "write", "fsync", "rename", "replace", "unlink", "mkdir", "open", "ftruncate", "rmdir")
"""Calls that leave a trace on the disk, or are about to."""


class _Fuse:
    """Counts calls, and kills the process before the one with the given number."""

    def __init__(self, number: int) -> None:
        self.number, self.count = number, 0

    def burn(self) -> None:
        self.count += 1
        if self.count == self.number:
            os.kill(os.getpid(), signal.SIGKILL)

    def wrap(self, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.burn()
            return function(*arguments, **options)

        return call


def merge(arguments: list[str], number: int, report: str) -> None:
    """Run the command line; die before the `number`-th traced call (never, if 0), else write down their number."""
    fuse = _Fuse(number)
    for name in COUNTED:
        setattr(os, name, fuse.wrap(getattr(os, name)))
    staging.exchange = fuse.wrap(staging.exchange)
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            main(arguments)
    finally:
        if report:
            Path(report).write_text(str(fuse.count))


def _warm() -> None:
    """Import all that a merge imports and load its kernels, once, for every process that is forked from here."""
    with tempfile.TemporaryDirectory() as folder:
        models = family(Path(folder) / "models")
        run("merge", models.recipe(preset="ties"), Path(folder) / "out", "--quiet", "--threads", "1")


_warm()
