"""What a person sees while a run works: a bar on a terminal, plain lines elsewhere; and what Ctrl-C does."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import click

from deltasmith.engine.progress import Progress, Silent
from deltasmith.engine.workers import Stop

__all__ = ["interruptible", "item_progress", "progress", "told"]


class _Lines:
    """One line per phase, for logs."""

    def phase(self, name: str, total: int) -> None:
        click.echo(f"{name} …", err=True)

    def advance(self, nbytes: int) -> None:
        pass


class _Bar:
    """A rich progress bar with rate and time left; counts come from several threads."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            SpinnerColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as RichProgress

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self.rich = RichProgress(*columns, console=Console(stderr=True), transient=True)
        self.lock, self.done, self.shown = threading.Lock(), 0, 0.0
        self.task = self.rich.add_task("starting", total=None)

    def phase(self, name: str, total: int) -> None:
        self.done = 0
        self.rich.reset(self.task, description=name, total=total or None)

    def advance(self, nbytes: int) -> None:
        with self.lock:
            self.done += nbytes
            now = time.monotonic()
            due = now - self.shown > 0.1
            self.shown = now if due else self.shown
        if due:
            self.rich.update(self.task, completed=self.done)


class _ItemLines:
    """Plain lines for logs: when a task begins, at most every few seconds, and when it ends.

    A task's first report says what an earlier run has left of it.
    """

    def __init__(self, every: float = 5.0) -> None:
        self.every, self.name, self.total, self.done, self.said = every, "", 0, 0, 0.0
        self.begun = True

    def phase(self, name: str, total: int) -> None:
        self.name, self.total, self.done, self.said = name, total, 0, time.monotonic()
        self.begun = not total
        if not total:
            click.echo(f"{name} …", err=True)

    def advance(self, nbytes: int) -> None:
        self.done += nbytes
        if not self.begun:
            self.begun = True
            known = f", {nbytes} of them known" if nbytes else ""
            click.echo(f"{self.name}: {self.total} to do{known}", err=True)
        now = time.monotonic()
        if nbytes and (now - self.said > self.every or self.done == self.total):
            self.said = now
            click.echo(f"{self.name}: {self.done} / {self.total or '?'}", err=True)


class _ItemBar:
    """A bar with items done, their total, and the time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            SpinnerColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self.rich = RichProgress(*columns, console=Console(stderr=True), transient=True)
        self.task = self.rich.add_task("starting", total=None)

    def phase(self, name: str, total: int) -> None:
        self.rich.reset(self.task, description=name, total=total or None)

    def advance(self, nbytes: int) -> None:
        self.rich.advance(self.task, nbytes)


@contextmanager
def progress(silent: bool) -> Iterator[Progress]:
    """Yield a listener that suits where standard error goes."""
    if silent:
        yield Silent()
    elif sys.stderr.isatty():
        bar = _Bar()
        with bar.rich:
            yield bar
    else:
        yield _Lines()


@contextmanager
def item_progress(silent: bool) -> Iterator[Progress]:
    """Yield a listener like that of `progress` for work that is counted in items, not in bytes."""
    if silent:
        yield Silent()
    elif sys.stderr.isatty():
        bar = _ItemBar()
        with bar.rich:
            yield bar
    else:
        yield _ItemLines()


@contextmanager
def interruptible(in_hand: str = "tiles") -> Iterator[Stop]:
    """Yield a `Stop` that the first Ctrl-C, SIGTERM or SIGHUP asks; the second ends the process at once.

    `in_hand` names what is finished first.
    """
    stop = Stop()

    def ask(signum: int, frame: FrameType | None) -> None:
        if stop.asked:
            os._exit(5)
        stop.ask()
        click.echo(f"stopping after the {in_hand} in hand; again to stop at once", err=True)

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, ask) for number in wanted}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def told(silent: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a `say(what, done, of)` that shows how far the work has come: a bar on a terminal, lines elsewhere."""
    with item_progress(silent) as bar:
        phase, counted = "", 0

        def say(what: str, done: int, of: int) -> None:
            nonlocal phase, counted
            if what != phase:
                phase, counted = what, 0
                bar.phase(what, of)
                if of:
                    bar.advance(0)
            if done > counted:
                bar.advance(done - counted)
                counted = done

        yield say
