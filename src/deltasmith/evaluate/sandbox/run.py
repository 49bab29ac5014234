"""Run generated programs with their tests in child processes. The isolation itself is applied in the child."""

from __future__ import annotations

import functools
import marshal
import math
import os
import secrets
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deltasmith.errors import ResourceError, printable
from deltasmith.evaluate.sandbox.tiers import Tier
from deltasmith.evaluate.sandbox.verdict import Limits, Program, Verdict

__all__ = ["Report", "launch", "run_many", "run_program"]

DEFAULT = Limits()
CHILD_MODULES = ("filters", "kernel", "worker", "warden")  # in the order in which they import each other
STRETCH = 10  # as in warden.py, which is not imported here: it is code of the child
GRACE = 15.0  # s beyond the wall-clock limit for the child to start and to clean up
SET_UP = "not set up: "  # as in warden.py
OUTPUT_LENGTH = 64 << 10  # characters, once unprintable ones are escaped; the child keeps as many bytes
WORK = "/work"  # the program's folder where the tier has a root of its own

# Reads the child's modules from standard input, for an isolated interpreter cannot find this package; the names
# in sys.modules beforehand are what the candidate will find there.
BOOTSTRAP = """
import sys, os
known = frozenset(sys.modules)
import marshal
def exactly(n):
    b = b""
    while len(b) < n:
        p = os.read(0, n - len(b))
        if not p: raise EOFError
        b += p
    return b
for name, code in marshal.loads(exactly({size})):
    module = sys.modules[name] = type(sys)(name)
    exec(code, module.__dict__)
module.main(known)
"""


@dataclass(frozen=True, slots=True)
class Report:
    """A verdict, and the means the child said it had."""

    verdict: Verdict
    facts: str


def run_program(candidate: str, tests: str, tier: Tier, limits: Limits = DEFAULT, setup: str = "") -> Verdict:
    """Run `candidate`, then `setup`, then `tests` in one namespace in a fresh, isolated interpreter.

    It passes if the tests run to their end without an exception, which the child proves by a nonce that it is
    given only afterwards; an exit code or anything printed counts for nothing. `__name__` is "solution", so a
    main block does not run; standard input is empty; the working folder is empty and removed afterwards.

    Raises ResourceError if the sandbox itself could not be set up: that is no verdict on the program.
    """
    return launch(candidate, tests, tier, limits, setup).verdict


def run_many(
    programs: Iterable[Program], tier: Tier, limits: Limits = DEFAULT, workers: int | None = None
) -> Iterator[Verdict]:
    """Run programs, at most `workers` at a time, and yield their verdicts in order.

    By default there are as many workers as processors this process may use: more would only wait for each other.
    """
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(max(1, workers or _processors()))
    try:
        yield from pool.map(lambda p: run_program(p.candidate, p.tests, tier, limits, p.setup), programs)
    finally:
        pool.shutdown(cancel_futures=True)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launch(candidate: str, tests: str, tier: Tier, limits: Limits = DEFAULT, setup: str = "") -> Report:
    """Do what `run_program` does, and return the child's means with the verdict."""
    nonce = secrets.token_bytes(16)
    own_root = tier.name in ("namespaces", "bubblewrap")
    folder = "" if tier.name == "bubblewrap" else tempfile.mkdtemp(prefix="deltasmith-run-")
    request = {
        "candidate": candidate,
        "tier": tier.name,
        "root": folder,
        "folder": WORK if own_root else folder,
        "probe": os.__file__,
        "readable": tier.readable,
        "links": tier.links,
        "devices": tier.devices,
        "seconds": float(limits.seconds),
        "cpu_seconds": max(1, math.ceil(limits.cpu_seconds)),
        "memory": limits.memory,
        "file_bytes": limits.file_bytes,
        "processes": _processes(tier, limits),
    }
    late = {"setup": setup, "tests": tests, "nonce": nonce}
    modules = _child_modules()
    content = modules + _frame(marshal.dumps(request)) + _frame(marshal.dumps(late))
    python = [tier.python, "-I", "-S", "-B", "-c", BOOTSTRAP.format(size=len(modules))]
    command = [*_wrapped(tier, limits), *python] if tier.bubblewrap else python
    try:
        return _judge(*_communicate(command, content, STRETCH * limits.seconds + GRACE), nonce, tier)
    finally:
        if folder:
            _remove(Path(folder))


def _communicate(command: list[str], content: bytes, patience: float) -> tuple[int, bytes, bytes]:
    """Run the child and return its exit code, report and complaints; whatever happens, it has ended then."""
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env={},
            start_new_session=True,
        )
    except OSError as cause:
        raise ResourceError(
            f"the sandbox cannot start {command[0]} ({cause.strerror})", fix="free memory or processes"
        ) from cause
    try:
        report, complaints = child.communicate(content, patience)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        report, complaints = child.communicate()
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        raise
    return child.returncode, report, complaints


def _judge(code: int, report: bytes, complaints: bytes, nonce: bytes, tier: Tier) -> Report:
    """Turn the child's report into a verdict: passed if, and only if, the nonce came back."""
    if report.count(b"\n") < 3:
        # Killed: the program's doing, or the kernel's for want of memory. Otherwise the child found a fault itself.
        if code < 0 or code > 128:
            return Report(Verdict(False, "killed: with its supervisor"), "")
        last = complaints.decode(errors="replace").strip().rpartition("\n")[2]
        raise _not_set_up(last or f"exit code {code}", tier)
    echo, reason_bytes, facts, output = report.split(b"\n", 3)
    reason = printable(reason_bytes.decode(errors="replace"), limit=400)
    if reason.startswith(SET_UP):
        raise _not_set_up(reason.removeprefix(SET_UP), tier)
    passed = secrets.compare_digest(echo, nonce.hex().encode())
    shown = "\n".join(printable(line, limit=12 * len(line)) for line in _lines(output))[:OUTPUT_LENGTH]
    verdict = Verdict(passed, reason if passed or reason != "passed" else "ended without a verdict", shown)
    return Report(verdict, facts.decode(errors="replace"))


def _lines(output: bytes) -> list[str]:
    return output.decode(errors="replace").expandtabs().splitlines()


def _not_set_up(why: str, tier: Tier) -> ResourceError:
    return ResourceError(
        f"the sandbox could not be set up: {why}",
        where=f"tier {tier.name}",
        fix="run `deltasmith doctor` to see which tier works here",
    )


def _processes(tier: Tier, limits: Limits) -> int | None:
    """Return the limit on the user's processes and threads that the child is to set, if any.

    It counts everything of the user, except where the child has a user or a user namespace of its own.
    """
    if not hasattr(os, "getuid") or os.getuid() == 0 or tier.name in ("namespaces", "bubblewrap"):
        return limits.processes
    if tier.name == "landlock":  # it can start no processes, and a limit here would take its threads
        return None
    return _tasks_of_user() + limits.processes


def _tasks_of_user() -> int:
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid == os.getuid():
                count += sum(1 for _ in (process / "task").iterdir())
        except OSError:  # it has ended
            continue
    return count


def _wrapped(tier: Tier, limits: Limits) -> list[str]:
    """Return the bubblewrap command up to the program it is to start."""
    command = [tier.bubblewrap, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    if os.getuid() == 0:
        # No user namespace: the worker becomes a user that has nothing. That takes two capabilities, and a third
        # to kill what is another user's.
        command += ["--cap-drop", "ALL"]
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_KILL"):
            command += ["--cap-add", capability]
    else:
        command += ["--unshare-user", "--cap-drop", "ALL"]
    command += ["--die-with-parent", "--new-session", "--clearenv"]
    shown = [Path(p) for p in (*tier.readable, *tier.devices, tier.python)]
    for parent in sorted(
        {q for p in shown for q in p.parents[:-1]}
    ):  # by itself it makes them for root's eyes only
        command += ["--perms", "0755", "--dir", str(parent)]
    for path in (*tier.readable, tier.python):
        command += ["--ro-bind", path, path]
    for path, target in tier.links:
        command += ["--symlink", target, path]
    for path in tier.devices:
        command += ["--dev-bind", path, path]
    return [
        *command,
        "--size",
        str(limits.file_bytes),
        "--tmpfs",
        WORK,
        "--remount-ro",
        "/",
        "--chdir",
        WORK,
        "--",
    ]


def _frame(content: bytes) -> bytes:
    return len(content).to_bytes(4, "little") + content


@functools.cache
def _child_modules() -> bytes:
    """Compile the child's part of this package, for the interpreter that runs this is the one that will load it."""
    modules = []
    for name in CHILD_MODULES:
        path = Path(__file__).with_name(f"{name}.py")
        code = compile(path.read_text(encoding="utf-8"), f"<{name}>", "exec", dont_inherit=True, optimize=2)
        modules.append((f"{__package__}.{name}", code))
    return marshal.dumps(modules)


def _remove(folder: Path) -> None:
    """Remove a folder that a program may have filled with deep or unreadable folders, without following links."""
    waiting, count, prefix = [folder], 0, secrets.token_hex(8)
    while waiting:
        for entry in waiting.pop().iterdir():
            if entry.is_dir() and not entry.is_symlink():
                entry.chmod(0o700)
                if entry.parent == folder:
                    moved = entry
                else:
                    moved = folder / f"{prefix}.{count}"
                    entry.rename(moved)
                count += 1
                waiting.append(moved)
            else:
                entry.unlink()
    for emptied in folder.iterdir():
        emptied.rmdir()
    folder.rmdir()
