"""The process in which a generated program and its tests run: it confines itself, runs them, and asks for the nonce.

Whatever this process says is the program's word, for they share an interpreter; `warden.py` judges it.
"""

from __future__ import annotations

import os
import sys

from deltasmith.evaluate.sandbox.kernel import Kernel

TYPE_CHECKING = False  # as mypy reads it; importing typing takes longer than starting the interpreter
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any, NoReturn

__all__ = ["work"]

# Frames to the warden: one of these, four bytes of length, the content. BEGUN brings a key, and all that follow it
# but FAILED begin with that key.
UNABLE, BEGUN, READY, FAILED, DONE, NONCE = b"X", b"S", b"R", b"F", b"D", b"N"
REASON_LENGTH = 400
FIRST_IDENTITY = 1 << 30  # user ids from here on are no one's
NOBODY = 65534
DESCRIPTORS = 64
# What a program could use to leave out tests unseen or to look around in this module; solutions need none of it.
# A hook cannot be removed, but it is not a boundary either: docs/sandbox.md.
REFUSED_EVENTS = frozenset(
    {
        "gc.get_objects",
        "gc.get_referents",
        "gc.get_referrers",
        "sys._current_exceptions",
        "sys._current_frames",
        "sys.addaudithook",
        "sys.monitoring.register_callback",
        "sys.setprofile",
        "sys.settrace",
    }
)

KEY_LENGTH = 16


def work(request: Mapping[str, Any], hear: int, say: int, output: int, known: frozenset[str]) -> NoReturn:
    """Run the candidate of `request`, then the tests that arrive on descriptor `hear`; never return.

    `say` leads to the warden, `output` is to become standard output and error; `known` are the modules that a
    fresh interpreter has loaded, which is all the candidate is to find.
    """
    hear, say = _rearrange(hear, say, output)
    complain = _complaints(say)
    try:
        facts = _confine(request)
    except BaseException as problem:
        _send(os.write, say, UNABLE, f"{type(problem).__name__}: {problem}".encode(errors="replace"))
        os._exit(1)
    for name in set(sys.modules) - known:
        del sys.modules[name]
    _go(_steps(request["candidate"], hear, say, facts), complain)
    os._exit(1)


def _rearrange(hear: int, say: int, output: int) -> tuple[int, int]:
    """Move the channel to descriptors nobody can guess, give the program its three, close all others."""
    os.setsid()
    first = 10 + os.urandom(1)[0] % 24
    second = first + 1 + os.urandom(1)[0] % 24
    empty = os.open("/dev/null", os.O_RDONLY)
    # By way of high numbers, so that no move lands on one that is still to be moved.
    moves = [(empty, 0), (output, 1), (output, 2), (hear, first), (say, second)]
    aside = [
        (os.dup2(source, 200 + i, inheritable=False), target) for i, (source, target) in enumerate(moves)
    ]
    os.closerange(0, 200)
    for source, target in aside:
        os.dup2(source, target, inheritable=target < 3)
    os.closerange(200, 200 + len(moves))
    return first, second


def _confine(request: Mapping[str, Any]) -> str:
    """Apply the tier's means to this process and return what they were, in words."""
    import resource

    def limit(what: int, value: int) -> None:
        hard = resource.getrlimit(what)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (value, value))

    identity = _change_identity(request["probe"], request["folder"])
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_CPU, request["cpu_seconds"])
    limit(resource.RLIMIT_FSIZE, request["file_bytes"])
    limit(resource.RLIMIT_NOFILE, DESCRIPTORS)
    if request["processes"] is not None:
        limit(resource.RLIMIT_NPROC, request["processes"])
    facts = [identity] if identity else []
    if request["tier"] != "unsafe":
        kernel = Kernel()
        kernel.drop_capabilities()
        kernel.die_with_parent()
        abi = kernel.restrict_files(request["readable"], request["devices"], request["folder"])
        if not abi and request["tier"] == "landlock":
            raise OSError("this kernel has no Landlock")
        kernel.filter_calls()
        facts = [f"Landlock ABI {abi}" if abi else "no Landlock", "seccomp", *facts]
    limit(resource.RLIMIT_AS, request["memory"])
    return ", ".join(facts)


def _change_identity(probe: str, folder: str) -> str:
    """As root, become a user that owns nothing, so that RLIMIT_NPROC binds and root's files are not ours.

    Where only root may read the interpreter (`probe` is one of its files), the effective user stays root, without
    its capabilities; the real one, by which processes are counted, changes all the same. Return words for it.
    """
    if os.getuid() != 0:
        return ""
    for user in (FIRST_IDENTITY + os.getpid(), NOBODY):
        try:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, 0)
        except OSError:  # a container that maps few ids, or no capability to change them
            continue
        try:
            os.close(os.open(probe, os.O_RDONLY))
            private = False
        except PermissionError:
            private = True
        os.setresuid(user, 0, 0)
        if private:
            return "real user of its own, effective user root without capabilities"
        try:
            os.chown(folder, user, -1)
        except PermissionError:  # bubblewrap leaves no such capability, and the folder is inside
            os.chmod(folder, 0o777)  # noqa: PTH101
        os.setresuid(user, user, user)
        return "user of its own"
    return "root without capabilities"


def _send(write: Callable[[int, bytes], int], say: int, kind: bytes, content: bytes) -> None:
    frame = kind + len(content).to_bytes(4, "little") + content
    while frame:
        frame = frame[write(say, frame) :]


def _complaints(say: int) -> Callable[[BaseException], NoReturn]:
    """Return how to report a failure, which proves nothing and so may be seen by anyone."""
    write, leave, flush, send, describe = os.write, os._exit, sys.stdout.flush, _send, _describe

    def complain(problem: BaseException) -> NoReturn:
        try:
            send(write, say, FAILED, describe(problem))
            flush()
        finally:
            leave(1)

    return complain


def _go(steps: Iterator[None] | None, complain: Callable[[BaseException], NoReturn]) -> None:
    """Take all steps, and let no frame show them.

    From the first step on, which does nothing, only this frame's value stack refers to them; a walk along the
    frames does not find them there.
    """
    try:
        for _ in steps or ():
            steps = None
    except BaseException as problem:
        complain(problem)


def _steps(candidate: str, hear: int, say: int, facts: str) -> Iterator[None]:
    """Return the run as steps: candidate, then fetch the tests, run them, then fetch the nonce and show it.

    Nothing that the verdict needs is in this process before the code that must not see it has run. The key, known
    to `tell` alone, keeps the program from speaking for us. So the steps that know it run no code of the program
    and look no name up that it could have replaced; the others do not know it.
    """
    import _operator
    import _signal  # type: ignore[import-not-found]  # `signal` takes milliseconds to import
    import builtins
    import gc
    import marshal

    module = type(sys)("solution")
    names = module.__dict__
    code: list[Any] = []
    tell, ask = _channel(hear, say, facts)
    ready, done, shown, load = READY, DONE, NONCE, marshal.loads
    run, translate, flush = exec, compile, sys.stdout.flush
    ignore, ignored, enable = _signal.signal, _signal.SIG_IGN, gc.enable
    kept = dict(builtins.__dict__)
    lists: tuple[list[Any], ...] = (sys.path, sys.meta_path, sys.path_hooks)
    machinery = [(part, list(part)) for part in lists]

    def begin() -> None:
        sys.modules["solution"] = sys.modules["__main__"] = module
        sys.argv[:] = ["solution"]
        sys.addaudithook(_hook())
        code[:] = [translate(candidate, "<candidate>", "exec", 0, True, 0)]

    def execute() -> None:
        run(code.pop(0), names)

    def shield() -> None:
        """Undo what would call the program's code during a later step, or change what the tests mean."""
        flush()
        gc.disable()
        gc.callbacks.clear()
        for number in _signal.valid_signals():
            try:
                ignore(number, ignored)
            except (OSError, ValueError):  # SIGKILL and SIGSTOP
                continue
        builtins.__dict__.clear()
        builtins.__dict__.update(kept)
        for part, content in machinery:
            part[:] = content

    def fetch() -> None:
        tell(ready)
        code.extend(load(ask()))

    def prepare() -> None:
        enable()
        code[:] = [
            translate(code[i], name, "exec", 0, True, 0) for i, name in enumerate(("<setup>", "<tests>"))
        ]

    def conclude() -> None:
        tell(done)
        tell(shown, ask())
        ask()  # the warden ends this process here: no exit handler has run

    return map(
        _operator.call,
        [lambda: None, begin, execute, shield, fetch, prepare, execute, execute, shield, conclude],
    )


def _channel(hear: int, say: int, facts: str) -> tuple[Callable[..., None], Callable[[], bytes]]:
    """Agree on a key with the warden; return how to send a frame under it, and how to wait for one."""
    read, write, size, number = os.read, os.write, len, int.from_bytes
    key = os.urandom(KEY_LENGTH)
    _send(write, say, BEGUN, key + facts.encode())

    def tell(kind: bytes, content: bytes = b"") -> None:
        frame = kind + (size(key) + size(content)).to_bytes(4, "little") + key + content
        while frame:
            frame = frame[write(say, frame) :]

    def exactly(wanted: int) -> bytes:
        content = b""
        while size(content) < wanted:
            piece = read(hear, wanted - size(content))
            if not piece:
                raise EOFError
            content += piece
        return content

    def ask() -> bytes:
        return exactly(number(exactly(4), "little"))

    return tell, ask


def _hook() -> Callable[[str, tuple[Any, ...]], None]:
    refused = REFUSED_EVENTS

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in refused:
            raise RuntimeError(f"{event} is not available in the sandbox")

    return audit


def _describe(problem: BaseException) -> bytes:
    """Say what went wrong and where, in one line. The text of an exception is the program's code at work."""
    place, line, trace = "", 0, problem.__traceback__
    while trace is not None and not line:
        if trace.tb_frame.f_code.co_filename in ("<candidate>", "<setup>", "<tests>"):
            place, line = trace.tb_frame.f_code.co_filename[1:-1], trace.tb_lineno
        trace = trace.tb_next
    if type(problem) in (SyntaxError, IndentationError, TabError) and not line:
        return f"failed: {type(problem).__name__}: {problem}".encode(errors="replace")[:REASON_LENGTH]
    where = f" in line {line} of the {place}" if line else ""
    if isinstance(problem, MemoryError):
        return f"memory: MemoryError{where}".encode()
    if isinstance(problem, SystemExit):
        return f"failed: the program ended itself (SystemExit){where}".encode()
    try:
        text = str(problem)
    except BaseException:
        text = ""
    name = type(problem).__name__
    return (f"failed: {name}{where}" + (f": {text}" if text else "")).encode(errors="replace")[:REASON_LENGTH]
