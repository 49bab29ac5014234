"""Worker threads over a stream of independent jobs: bounded, interruptible, first error wins."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

import numpy as np

from deltasmith.errors import InterruptedRunError

__all__ = ["Stop", "run_jobs"]

Job = TypeVar("Job")
State = TypeVar("State")


class Stop:
    """A request to stop: workers finish the job in hand and take no other."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def ask(self) -> None:
        """Ask the workers to stop."""
        self._event.set()

    @property
    def asked(self) -> bool:
        """Tell whether anyone has asked."""
        return self._event.is_set()


class _Stream(Generic[Job]):
    """An iterator that several threads may draw from."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs: Iterator[Job] = iter(jobs)
        self._lock = threading.Lock()

    def draw(self) -> Job | None:
        with self._lock:
            return next(self._jobs, None)


def run_jobs(
    jobs: Iterable[Job],
    work: Callable[[Job, State], None],
    states: Iterable[State],
    stop: Stop,
) -> None:
    """Do every job once, one thread per state; raise the first error, or InterruptedRunError if asked to stop.

    A single state works in the calling thread: one thread means one thread.
    """
    stream, failed = _Stream(jobs), threading.Event()
    failures: list[BaseException] = []

    def loop(state: State) -> None:
        try:
            # Overflow and infinity less infinity are refused by name, or kept on request: no warnings beside that.
            with np.errstate(over="ignore", invalid="ignore"):
                while not failed.is_set() and not stop.asked:
                    job = stream.draw()
                    if job is None:
                        return
                    work(job, state)
        except BaseException as error:  # handed to the caller below: a thread must not die in silence
            failures.append(error)
            failed.set()

    workers = list(states)
    if len(workers) == 1:
        loop(workers[0])
    else:
        threads = [threading.Thread(target=loop, args=(state,), daemon=True) for state in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    if stop.asked:
        raise InterruptedRunError("interrupted", fix="run the same command again to resume")
