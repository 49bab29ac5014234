"""Runs one command as a child and says what it cost: wall time, CPU seconds, peak anonymous memory.

python benchmarks/measure.py COMMAND [ARGUMENT...] prints the cost of any command. Linux only (/proc, wait4).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["CommandFailedError", "Cost", "measure"]

INTERVAL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run of a command took.

    `cpu_seconds` is user plus system time of the child and of every descendant it waited for.
    `peak_anonymous_bytes` is the largest sum, over the process tree, of private and shared anonymous
    memory, sampled every 20 ms. Pages of mapped files are left out: the kernel may drop them at any time.
    """

    wall_seconds: float
    cpu_seconds: float
    peak_anonymous_bytes: int


class CommandFailedError(RuntimeError):
    """The command ended with a status other than 0; its last words are in the message."""


def measure(
    command: Sequence[str | Path], *, folder: Path, environment: Mapping[str, str] | None = None
) -> Cost:
    """Run the command in `folder`, with `environment` added to this process's own, and return its cost."""
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        child = subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        with _Watch(child.pid) as watch:
            _, status, usage = os.wait4(child.pid, 0)
            wall = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(
            status
        )  # reaped here, so that Popen does not wait for it again
        if child.returncode:
            output.seek(0)
            words = output.read().decode(errors="replace")[-3000:]
            raise CommandFailedError(f"{' '.join(map(str, command))}: status {child.returncode}\n{words}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, watch.peak)


class _Watch:
    """Samples the anonymous memory of a process tree, from a thread of ours, until the block is left."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(INTERVAL_SECONDS):
            self.peak = max(self.peak, sum(map(_anonymous_bytes, _tree(self._pid))))


def _tree(pid: int) -> list[int]:
    """List a process and its descendants; those that end while we look are left out."""
    found, unseen = [], [pid]
    while unseen:
        found.append(unseen.pop())
        for listing in Path(f"/proc/{found[-1]}/task").glob("*/children"):
            try:
                unseen.extend(map(int, listing.read_text().split()))
            except OSError:  # the thread has just ended
                continue
    return found


def _anonymous_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # the process has just ended
        return 0
    fields = dict(line.split(":", 1) for line in lines if line.startswith(("RssAnon", "RssShmem")))
    return sum(1024 * int(value.split()[0]) for value in fields.values())


def main(command: list[str]) -> None:
    print(json.dumps(asdict(measure(command, folder=Path.cwd()))))


if __name__ == "__main__":
    main(sys.argv[1:])
