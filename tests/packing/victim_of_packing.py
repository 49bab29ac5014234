"""Packing and unpacking in a process that is about to be killed; imported by the fork server."""

from __future__ import annotations

import os
import signal
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from containers import EVERY, packed
from deltasmith.cli.main import main
from deltasmith.formats import staging
from models import family, run

__all__ = ["command"]

COUNTED = ("pwrite", "write", "fsync", "rename", "replace", "unlink", "mkdir", "open", "ftruncate", "rmdir")


def command(arguments: list[str], number: int, report: str) -> None:
    """Run the command line; die before the `number`-th call that writes (never, if 0), else write their number."""
    count = [0]

    def wrap(function: Any) -> Any:
        def call(*given: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*given, **options)

        return call

    for name in COUNTED:
        setattr(os, name, wrap(getattr(os, name)))
    staging.exchange = wrap(staging.exchange)
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            main(arguments)
    finally:
        if report:
            Path(report).write_text(str(count[0]))


def _warm() -> None:
    """Load all that packing and unpacking need, once for every process that is forked from here."""
    with tempfile.TemporaryDirectory() as folder:
        family(Path(folder) / "models", experts=1)
        packed(Path(folder) / "models", rules=EVERY)
        run("unpack", Path(folder) / "models" / "packed", Path(folder) / "out", "--quiet", "--threads", "1")


_warm()
