"""The process that watches one generated program: it starts the worker, feeds it, kills it, and reports.

Its verdict is the nonce that the worker sent back after the tests, for the parent to compare: nothing else counts.
"""

from __future__ import annotations

import os
import sys
import time

from deltasmith.evaluate.sandbox.kernel import Kernel
from deltasmith.evaluate.sandbox.worker import BEGUN, DONE, FAILED, KEY_LENGTH, NONCE, READY, UNABLE, work

TYPE_CHECKING = False  # as mypy reads it; importing typing takes longer than starting the interpreter
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["OUTPUT_BYTES", "SET_UP", "main", "read_frame"]

OUTPUT_BYTES = 64 << 10
TICK = 0.05  # s between looks at the folder and at a worker that closed its channel
IDLE, FULL = (
    0.05,
    0.9,
)  # parts of the time: below, a worker was not computing; above, it had what it was promised
STRETCH = (
    10  # times the wall-clock limit, at most, for a worker that others keep from computing; also in run.py
)
LARGEST_FRAME = 4096
MOST_FILES = 512
KILL, STOP = 9, 19 if sys.platform == "linux" else 17  # the signal module takes milliseconds to import
PATIENCE = 2.0  # s for descendants to end after SIGKILL; only `unsafe` has any
INTERFERED = "ended without a verdict: the program interfered with the channel"
SET_UP = "not set up: "  # begins the reason where the sandbox failed, not the program


def main(known: frozenset[str]) -> None:
    """Judge the one program that standard input brings, and write the report to standard output.

    Input: two frames of marshal, {candidate, tier, limits …} and {setup, tests, nonce}; the second is read only
    after the worker exists. Report: a line with the nonce's hex digits if the worker returned it, a line with the
    reason, a line with the means, then the program's output.
    """
    import marshal

    request = marshal.loads(read_frame(0))
    if request["tier"] == "namespaces":
        _move_away(request)
    elif request["tier"] != "bubblewrap":
        os.chdir(request["folder"])
        if sys.platform == "linux":
            Kernel().adopt_orphans()
    heard, say = os.pipe()
    hear, told = os.pipe()
    shown, output = os.pipe()
    pid = os.fork()
    if not pid:
        work(request, hear, say, output, known)
    for end in (hear, say, output):
        os.close(end)
    late = marshal.loads(read_frame(0))
    watch = Watch(
        request, late["nonce"], marshal.dumps((late["setup"], late["tests"])), pid, heard, told, shown
    )
    watch.run()
    watch.report()


def read_frame(source: int) -> bytes:
    """Read four bytes of length, then that many; raise EOFError where the input ends before."""
    return _exactly(source, int.from_bytes(_exactly(source, 4), "little"))


def _exactly(source: int, wanted: int) -> bytes:
    pieces = []
    while wanted:
        piece = os.read(source, min(wanted, 1 << 20))
        if not piece:
            raise EOFError("the request is not complete")
        pieces.append(piece)
        wanted -= len(piece)
    return b"".join(pieces)


def _move_away(request: Mapping[str, Any]) -> None:
    kernel = Kernel()
    kernel.enter_namespaces()
    place = (request["folder"], request["file_bytes"])
    kernel.change_root(request["root"], request["readable"], request["links"], request["devices"], place)


class Watch:
    """One worker: what it said, what it printed, and how it ended."""

    def __init__(
        self,
        request: Mapping[str, Any],
        nonce: bytes,
        tests: bytes,
        pid: int,
        heard: int,
        told: int,
        shown: int,
    ) -> None:
        """Begin to watch process `pid`, whose frames arrive on `heard` and whose output on `shown`."""
        self.request, self.nonce, self.tests, self.pid = request, nonce, tests, pid
        self.heard, self.told, self.shown = heard, told, shown
        self.echo, self.reason, self.facts = b"", "", ""
        self.stage = b""  # the kind of the last frame
        self._frames = self._pending = self._key = b""
        self._output: list[bytes] = []
        self._room = OUTPUT_BYTES
        self._status: int | None = None
        self._cpu = 0.0
        for end in (heard, told, shown):
            os.set_blocking(end, False)

    def run(self) -> None:
        """Watch until there is a verdict; then end the worker and all it started."""
        import select

        poller = select.poll()
        poller.register(self.heard, select.POLLIN)
        poller.register(self.shown, select.POLLIN)
        poller.register(1, 0)  # POLLERR: nobody waits for the report any more
        handlers = {self.heard: self._hear, self.shown: self._look, self.told: self._send}
        began = looked = time.monotonic()
        deadline = began + self.request["seconds"]
        while not self.reason:
            now = time.monotonic()
            if now >= deadline:
                deadline = now + self._starved(now - began)
                if deadline == now:
                    self.reason = "timed out"
                    break
            if self._pending:
                poller.register(self.told, select.POLLOUT)
            for end, _ in poller.poll(max(1, min(deadline - now, TICK) * 1000)):
                if end == 1:
                    self.reason = "abandoned"
                elif not self.reason and not handlers[end]():
                    poller.unregister(end)
            if now - looked >= TICK:
                looked = now
                self._check_folder()
            self._check_end(os.WNOHANG)
        self._end()

    def _starved(self, passed: float) -> float:
        """Return how many seconds more the worker gets after `passed`: those that others took from it, if any.

        A verdict is not to depend on what else the machine does. A worker that hardly computed was waiting for
        something of its own.
        """
        had = _processor_time(self.pid)
        allowed = float(self.request["seconds"])
        if had < IDLE * passed or had >= FULL * allowed:
            return 0.0
        return max(0.0, min(allowed - had, STRETCH * allowed - passed))

    def report(self) -> None:
        """Write the report."""
        reason = self.reason.replace("\n", " ").replace("\r", " ").encode(errors="replace")
        lines = b"\n".join((self.echo.hex().encode(), reason, self.facts.encode(errors="replace"), b""))
        content = lines + b"".join(self._output)
        while content:
            content = content[os.write(1, content) :]

    def _hear(self) -> bool:
        """Take in what the worker says; return False at the end of it."""
        piece = self._read(self.heard)
        self._frames += piece or b""
        while len(self._frames) >= 5 and not self.reason:
            length = int.from_bytes(self._frames[1:5], "little")
            if length > LARGEST_FRAME:
                self.reason = INTERFERED
            if len(self._frames) < 5 + length:
                break
            kind, content = self._frames[:1], self._frames[5 : 5 + length]
            self._frames = self._frames[5 + length :]
            self._take(kind, content)
        return piece != b""

    def _take(self, kind: bytes, content: bytes) -> None:
        """Go on to the next stage, in the only order there is."""
        if (self.stage, kind) == (b"", BEGUN):
            self._key, self.facts = content[:KEY_LENGTH], content[KEY_LENGTH:].decode(errors="replace")
        elif (self.stage, kind) == (b"", UNABLE):
            self.reason = SET_UP + content.decode(errors="replace")
        elif kind == FAILED and self.stage in (BEGUN, READY):
            self.reason = content.decode(errors="replace")
            if not self.reason.startswith(("failed: ", "memory: ")):
                self.reason = f"failed: {self.reason}"
        elif content[:KEY_LENGTH] != self._key:
            self.reason = INTERFERED
        elif (self.stage, kind) == (BEGUN, READY):
            self._pending += len(self.tests).to_bytes(4, "little") + self.tests
        elif (self.stage, kind) == (READY, DONE):
            self._pending += len(self.nonce).to_bytes(4, "little") + self.nonce
        elif (self.stage, kind) == (DONE, NONCE) and content[KEY_LENGTH:] == self.nonce:
            self.echo, self.reason = self.nonce, "passed"
        else:
            self.reason = INTERFERED
        self.stage = kind

    def _look(self) -> bool:
        """Take in what the worker prints, keep its beginning, and return False at the end of it."""
        piece = self._read(self.shown)
        if piece:
            self._output.append(piece[: self._room])
            self._room -= len(self._output[-1])
        return piece != b""

    def _read(self, source: int) -> bytes | None:
        try:
            return os.read(source, 1 << 16)
        except BlockingIOError:
            return None

    def _send(self) -> bool:
        try:
            self._pending = self._pending[os.write(self.told, self._pending) :]
        except BrokenPipeError:
            self._pending = b""
        except BlockingIOError:
            pass
        return bool(self._pending)

    def _check_end(self, options: int) -> None:
        """See whether the worker has ended, and name the reason if nothing else has."""
        if self._status is not None:
            return
        pid, status, usage = os.wait4(self.pid, options)
        if not pid:
            return
        self._status, self._cpu = status, usage.ru_utime + usage.ru_stime
        while not self.reason and self._hear() and self._frames:
            pass
        if self.reason:
            return
        if not self.stage:
            self.reason = SET_UP + "the worker ended before it began"
        elif os.WIFSIGNALED(status):
            import signal

            number = os.WTERMSIG(status)
            spent = self._cpu >= self.request["cpu_seconds"] - 0.1
            names = {s.value: s.name for s in signal.Signals}
            self.reason = (
                "timed out: processor time" if spent else f"killed: {names.get(number, f'signal {number}')}"
            )
        else:
            self.reason = f"ended without a verdict (exit code {os.WEXITSTATUS(status)})"

    def _check_folder(self) -> None:
        """Bound what all files take together, where the folder does not: with bubblewrap only their number."""
        if self.request["tier"] == "namespaces" or self.reason:
            return
        total, count, folders = 0, 0, [self.request["folder"]]
        if self.request["tier"] == "bubblewrap":
            state = os.statvfs(folders.pop())
            count = state.f_files - state.f_ffree
        try:
            while folders and count <= MOST_FILES:
                with os.scandir(folders.pop()) as entries:
                    for entry in entries:
                        count += 1
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.path)
        except FileNotFoundError:  # removed meanwhile
            return
        except OSError:  # a folder that cannot be read, a path too long: made to escape this
            count = MOST_FILES + 1
        if total > self.request["file_bytes"] or count > MOST_FILES:
            self.reason = "killed: its files took more than the limit"

    def _end(self) -> None:
        """Kill and reap everything below this process; then read what was still printed."""
        if self._status is None:
            os.kill(self.pid, KILL)
            self._check_end(0)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            for orphan in _descendants() if self.request["tier"] == "unsafe" else ():
                _kill(orphan)
            try:
                if not os.waitpid(-1, os.WNOHANG)[0]:
                    time.sleep(0.005)
            except ChildProcessError:
                break
        while self._look() and self._room and self._read_ready():
            pass

    def _read_ready(self) -> bool:
        import select

        return bool(select.select([self.shown], [], [], 0)[0])


def _processor_time(pid: int) -> float:
    """Return the seconds of processor time a process has had, infinity where the system does not tell."""
    if sys.platform != "linux":
        return float("inf")
    try:
        return time.clock_gettime(~pid << 3 | 2)  # CPUCLOCK_SCHED of the process: linux/posix-timers.h
    except OSError:
        return float("inf")


def _descendants() -> list[int]:
    """List this process's descendants, stopping each so that it cannot start more while the list grows."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc") if sys.platform == "linux" else ():  # noqa: PTH208
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as stat:  # noqa: PTH123
                    parents[int(name)] = int(stat.read().rpartition(b")")[2].split()[1])
            except OSError:
                continue
    found, last = {os.getpid()}, 0
    while len(found) != last:
        last = len(found)
        found |= {child for child, parent in parents.items() if parent in found}
    for child in found - {os.getpid()}:
        _kill(child, STOP)
    return sorted(found - {os.getpid()})


def _kill(pid: int, number: int = KILL) -> None:
    try:
        os.kill(pid, number)
    except (
        ProcessLookupError,
        PermissionError,
    ):  # it has ended, or become another user's by a setuid program
        return
