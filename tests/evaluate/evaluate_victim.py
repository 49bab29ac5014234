"""An evaluation in a process that is about to be killed; imported by the fork server, so that each starts at once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from toys import Opened, opens, specs, toy_model

from deltasmith.evaluate.run import evaluate_model

__all__ = ["evaluate", "run"]


def run(folder: Path, out: Path) -> None:
    """Evaluate the toy model on all toy tasks."""
    with pytest.MonkeyPatch.context() as patch:
        opens(patch, lambda: Opened(toy_model()))
        evaluate_model("toy", specs(folder), out=str(out), batch=1)


def evaluate(folder: str, out: str, number: int, share: float, report: str) -> None:
    """Die within the `number`-th write, after `share` of its bytes (never, if 0); else write down their number."""
    count, real = 0, os.write

    def write(fd: int, data) -> int:
        nonlocal count
        count += 1
        if count == number:
            real(fd, bytes(data)[: int(share * len(data))])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(fd, data)

    os.write = write
    run(Path(folder), Path(out))
    os.write = real
    if report:
        Path(report).write_text(str(count))
