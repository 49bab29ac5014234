"""Programs that mean harm. Each passes its own tests if, and only if, what it attempts succeeds."""

from __future__ import annotations

from dataclasses import dataclass

from deltasmith.evaluate.sandbox import Program

__all__ = ["ATTACKS", "FORGERIES", "GREEDY", "Hostile", "programs"]


@dataclass(frozen=True)
class Hostile:
    """What it does, the tests that notice its success, and what its verdict is to say (any one of these)."""

    candidate: str
    tests: str
    says: tuple[str, ...]


def raising(statements: str, *says: str) -> Hostile:
    """Attempt something that is to end in an exception; the tests ask only that it did not."""
    return Hostile(statements, "assert True", says or ("PermissionError", "FileNotFoundError"))


SYSCALL = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"

# Against the machine: only for tiers that isolate. {braces} are filled in by `programs`.
ATTACKS = {
    "reads /etc/passwd": raising("open('/etc/passwd').read()"),
    "reads the home folder": raising("open({secret!r}).read()"),
    "lists the home folder": raising("import os; os.listdir({folder!r})"),
    "reads the parent's environment": raising("open('/proc/{parent}/environ', 'rb').read()"),
    "reads its supervisor's memory": raising("import os; open(f'/proc/{{os.getppid()}}/mem', 'rb').read(1)"),
    "lists processes": raising("import os; os.listdir('/proc')"),
    "writes outside": raising("open({folder!r} + '/written', 'w').write('x')"),
    "empties a file outside": raising("import os; os.truncate({secret!r}, 0)"),
    "removes a file outside": raising("import os; os.remove({secret!r})"),
    "renames a file outside": raising("import os; os.rename({secret!r}, 'mine')", "Error"),
    "links a file outside": raising("import os; os.link({secret!r}, 'mine'); open('mine').read()", "Error"),
    "reads through a symbolic link": raising(
        "import os; os.symlink({secret!r}, 'mine'); open('mine').read()"
    ),
    "changes a mode outside": raising("import os; os.chmod({secret!r}, 0o000)"),
    "changes times outside": raising("import os; os.utime({secret!r}, (0, 0))"),
    "makes a device": raising("import os, stat; os.mknod('null', stat.S_IFCHR | 0o666, os.makedev(1, 3))"),
    "spoils the standard library": raising("import os; open(os.__file__, 'a').write('x')", "Error"),
    "fork": raising("import os\nif not os.fork(): os._exit(0)"),
    "fork bomb": raising("import os\nwhile True: os.fork()"),
    "starts a program": raising("import subprocess; subprocess.run(['/bin/true'])"),
    "becomes a program": raising("import os; os.execv('/bin/true', ['/bin/true'])"),
    "orphan by setsid": raising("import os, time\nif not os.fork():\n    os.setsid()\n    time.sleep(60)"),
    "TCP socket": raising("import socket; socket.create_connection(('127.0.0.1', {port}), 1)"),
    "UDP socket": raising(
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))"
    ),
    "UNIX socket": raising("import socket; socket.socket(socket.AF_UNIX).connect({socket!r})"),
    "UNIX datagram by way of a pair": raising(
        "import socket\na, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\na.sendto(b'x', {socket!r})"
    ),
    "kills a bystander": raising(
        "import os; os.kill({bystander}, 9)", "PermissionError", "ProcessLookupError"
    ),
    "kills all": raising("import os; os.kill(-1, 9)", "PermissionError"),
    "kills its parent": raising("import os; os.kill(os.getppid(), 9)", "PermissionError"),
    "kills its process group's owner": raising("import os; os.killpg(os.getpgid(0), 9)", "PermissionError"),
    "has the kernel signal a bystander": raising(
        "import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, {bystander})", "PermissionError"
    ),
    "limits a bystander": raising(
        "import resource; resource.prlimit({bystander}, resource.RLIMIT_NOFILE, (0, 0))",
        "PermissionError",
        "ProcessLookupError",
    ),
    "renices a bystander": raising(
        "import os; os.setpriority(os.PRIO_PROCESS, {bystander}, 19)", "PermissionError", "ProcessLookupError"
    ),
    "ptrace": Hostile(
        SYSCALL + "r = libc.ptrace(16, {bystander}, 0, 0)", "assert r == 0", ("AssertionError",)
    ),
    "unshare": Hostile(SYSCALL + "r = libc.unshare(0x10000000)", "assert r == 0", ("AssertionError",)),
    "mount": Hostile(
        SYSCALL + "r = libc.mount(b'none', b'.', b'tmpfs', 0, None)", "assert r == 0", ("AssertionError",)
    ),
    "becomes root": Hostile(
        SYSCALL + "r = [libc.setuid(0), libc.setreuid(0, 0)]", "assert 0 in r", ("AssertionError",)
    ),
    "lifts its limits": raising(
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)", "ValueError"
    ),
    "calls by the x32 numbers": raising(
        SYSCALL + "libc.syscall(0x40000000 + 41, 1, 1, 0)", "killed", "SIGSYS", "failed"
    ),
    "outlives its supervisor": Hostile(
        SYSCALL + "r = libc.prctl(1, 0)", "assert r == 0", ("AssertionError",)
    ),
}

# Against time, memory and disk: for every tier.
GREEDY = {
    "endless loop": Hostile("while True: pass", "assert True", ("timed out",)),
    "endless loop in C": Hostile("import itertools\nany(itertools.repeat(0))", "assert True", ("timed out",)),
    "sleeps": Hostile("import time; time.sleep(600)", "assert True", ("timed out",)),
    "sleeps with every signal blocked": Hostile(
        "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\ntime.sleep(600)",
        "assert True",
        ("timed out",),
    ),
    "loops in the tests": Hostile("def f():\n    while True: pass", "assert f()", ("timed out",)),
    "catches everything for ever": Hostile(
        "while True:\n    try:\n        raise SystemExit\n    except BaseException:\n        continue",
        "assert True",
        ("timed out",),
    ),
    "memory bomb": Hostile(
        "x = []\nwhile True: x.append(bytes(1 << 24))", "assert True", ("memory", "timed out")
    ),
    "memory bomb at once": Hostile("x = bytearray(1 << 40)", "assert True", ("memory",)),
    "disk bomb in one file": Hostile(
        "with open('big', 'wb') as f:\n    while True: f.write(bytes(1 << 16)); f.flush()",
        "assert True",
        ("OSError", "killed", "timed out"),
    ),
    "disk bomb in many files": Hostile(
        "import itertools\nfor i in itertools.count():\n    open(f'big{{i}}', 'wb').write(bytes(1 << 16))",
        "assert True",
        ("OSError", "killed", "timed out"),
    ),
    "folder bomb": Hostile(
        "import os\nwhile True: os.mkdir('d'); os.chdir('d')",
        "assert True",
        ("OSError", "killed", "FileNotFound", "timed out"),
    ),
    "unreadable folders": Hostile(
        "import os; os.makedirs('a/b'); os.mkdir('a/c', 0)", "assert False", ("failed", "killed")
    ),
    "output flood": Hostile("while True: print('flood' * 1000)", "assert True", ("timed out",)),
    "output flood past Python": Hostile(
        "import os\nwhile True: os.write(2, b'\\x1b[2Jflood' * 1000)", "assert True", ("timed out",)
    ),
    "runaway recursion": Hostile("def f(n): return f(n + 1)\nf(0)", "assert True", ("RecursionError",)),
    "recursion without a limit": Hostile(
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n    def __eq__(s, o): return [s] == [A()]\nA() == A()",
        "assert True",
        ("killed", "memory", "RecursionError", "timed out"),
    ),
    "thread bomb": Hostile(
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()",
        "assert True",
        ("failed", "memory", "timed out"),
    ),
    "crash": Hostile("import ctypes; ctypes.string_at(0)", "assert True", ("killed: SIGSEGV",)),
    "half a surrogate": Hostile("x = '\udc80'", "assert True", ("failed: UnicodeEncodeError",)),
    "a null byte": Hostile("x = 1\0", "assert True", ("failed: ",)),
    "no Python": Hostile(
        "Sure! Here is the code:",
        "assert True",
        ("failed: SyntaxError: invalid syntax (<candidate>, line 1)",),
    ),
}

WRONG = "assert answer() == 42"  # what a forgery pretends to pass

# Against the verdict: for every tier.
FORGERIES = {
    "wrong": Hostile("def answer(): return 41", WRONG, ("AssertionError in line 1 of the tests",)),
    "prints passed": Hostile("print('passed')\nanswer = int", WRONG, ("AssertionError",)),
    "prints a report": Hostile(
        "import os\nos.write(1, b'0' * 32 + b'\\npassed\\n\\n')\nanswer = int", WRONG, ("AssertionError",)
    ),
    "os._exit": Hostile("import os; os._exit(0)", WRONG, ("ended without a verdict (exit code 0)",)),
    "os._exit in the tests": Hostile(
        "import os\ndef answer(): print('passed', flush=True); os._exit(0)",
        WRONG,
        ("ended without a verdict",),
    ),
    "sys.exit": Hostile("import sys; sys.exit(0)", WRONG, ("SystemExit",)),
    "sys.exit in the tests": Hostile("import sys\ndef answer(): sys.exit(0)", WRONG, ("SystemExit",)),
    "an exit handler": Hostile(
        "import atexit, os\natexit.register(lambda: (print('passed', flush=True), os._exit(0)))\nanswer = int",
        WRONG,
        ("AssertionError",),
    ),
    "a thread that exits": Hostile(
        "import os, threading, time\nthreading.Thread(target=lambda: (time.sleep(.1), os._exit(0))).start()\n"
        "def answer(): time.sleep(.5)",
        WRONG,
        ("ended without a verdict",),
    ),
    "kills itself": Hostile("import os; os.kill(os.getpid(), 9)", WRONG, ("killed: SIGKILL", "NameError")),
    "aborts": Hostile("import os; os.abort()", WRONG, ("killed: ",)),
    "closes everything": Hostile(
        "import os; os.closerange(0, 256)\nanswer = int", WRONG, ("ended without a verdict",)
    ),
    "an exception that fights back": Hostile(
        "import os\nclass E(BaseException):\n    def __str__(self): os._exit(0)\ndef answer(): raise E",
        WRONG,
        ("ended",),
    ),
    "replaces built-in functions": Hostile(
        "import builtins\nbuiltins.abs = builtins.all = builtins.exec = builtins.compile = lambda *a, **k: 0\n"
        "builtins.AssertionError = builtins.len = None\ndef answer(): return 1",
        "assert abs(answer() - 42) < 1",
        ("AssertionError",),
    ),
    "replaces modules' functions": Hostile(
        "import os, marshal\nos.write = marshal.loads = os.read = lambda *a: b''\ndef answer(): return 1",
        WRONG,
        ("AssertionError",),
    ),
    "replaces the import system": Hostile(
        "import sys\nclass F:\n    @staticmethod\n    def find_spec(*a): raise SystemExit\nsys.meta_path.insert(0, F)\n"
        "sys.path[:] = []\ndef answer(): return 1",
        "import fractions\n" + WRONG,
        ("AssertionError in line 2",),
    ),
    "skips the assertion by tracing": Hostile(
        "import sys\ndef answer():\n    def jump(frame, *rest):\n        frame.f_lineno = 3\n        return jump\n"
        "    sys._getframe(1).f_trace = jump\n    sys.settrace(jump)\n    return 1",
        "x = answer()\nassert x == 42\nx = 2",
        ("RuntimeError",),
    ),
    "asks the collector": Hostile(
        "import gc\nfor o in gc.get_objects():\n    if getattr(o, '__name__', '') == 'conclude': o()",
        WRONG,
        ("RuntimeError",),
    ),
    "looks at the other frames": Hostile(
        "import sys; sys._current_frames()",
        WRONG,
        ("RuntimeError",),
    ),
    "finds the runner's main module": Hostile(
        "import __main__, sys\nassert vars(__main__) is globals()\n"
        "assert not [m for m in sys.modules if 'deltasmith' in m]\nanswer = int",
        WRONG,
        ("AssertionError in line 1 of the tests",),
    ),
}

# Speaks the protocol itself. It has everything the frames below it show, and tries every descriptor.
SPEAKER = """
import os, select, sys
def loot():
    frame, found, seen = sys._getframe(), [], set()
    while frame:
        found += [*frame.f_locals.values(), *frame.f_globals.values()]
        frame = frame.f_back
    for thing in found:
        if id(thing) in seen or len(seen) > 5000:
            continue
        seen.add(id(thing))
        try:
            if isinstance(thing, (list, tuple)):
                found += thing
            elif isinstance(thing, (map, type(iter([])))):
                found += thing.__reduce__()[1]
            found += [cell.cell_contents for cell in getattr(thing, '__closure__', None) or ()]
        except (TypeError, ValueError):
            pass
    return found
def forge(key, stages):
    for say in range(3, 64):
        for kind in stages:
            try:
                os.write(say, kind + len(key).to_bytes(4, 'little') + key)
            except OSError:
                break
    for hear in range(3, 64):
        try:
            while select.select([hear], [], [], .1)[0]:
                got = os.read(hear, 1 << 16)
                if len(got) == 20:
                    for say in range(3, 64):
                        try:
                            os.write(say, b'N' + (len(key) + 16).to_bytes(4, 'little') + key + got[4:])
                        except OSError:
                            pass
        except OSError:
            pass
"""
FORGERIES |= {
    "speaks for the runner": Hostile(
        SPEAKER + "def answer(): forge(bytes(16), [b'D'])", WRONG, ("interfered with the channel",)
    ),
    "speaks for the runner at once": Hostile(
        SPEAKER + "forge(bytes(16), [b'R', b'D'])\nanswer = int", WRONG, ("interfered with the channel",)
    ),
    "speaks with what the frames hold": Hostile(
        SPEAKER + "def answer():\n    keys = [x for x in loot() if isinstance(x, bytes) and len(x) == 16]\n"
        "    for key in keys: forge(key, [b'D'])\n    return keys",
        WRONG,
        ("AssertionError",),
    ),
    "calls the runner's functions": Hostile(
        SPEAKER + "def answer():\n    for thing in loot():\n"
        "        if getattr(thing, '__name__', '') in ('tell', 'ask', 'conclude', 'fetch'): thing(b'D')",
        WRONG,
        ("AssertionError",),
    ),
    "calls them from a signal handler": Hostile(
        SPEAKER + "import signal\ncaught = []\ndef handler(*_):\n"
        "    caught.extend(x for x in loot() if getattr(x, '__name__', '') in ('tell', 'ask'))\n"
        "    if len(caught) > 1: caught[0](b'R'); caught[1](); caught[0](b'D'); caught[0](b'N', caught[1]())\n"
        "signal.signal(signal.SIGALRM, handler)\nsignal.setitimer(signal.ITIMER_REAL, 2e-4, 2e-4)\n"
        "def answer(): return caught",
        WRONG,
        ("AssertionError",),
    ),
    "calls them from a collection": Hostile(
        SPEAKER + "import gc\ncaught = []\ngc.set_threshold(1)\n"
        "gc.callbacks.append(lambda *_: caught.extend(x for x in loot() if getattr(x, '__name__', '') == 'tell'))\n"
        "def answer(): return caught",
        WRONG,
        ("AssertionError",),
    ),
}


def programs(hostile: dict[str, Hostile], **places: object) -> list[Program]:
    """Return the programs with the places of this machine filled in."""
    filled = []
    for each in hostile.values():
        text = (
            each.candidate.format(**places)
            if places
            else each.candidate.replace("{{", "{").replace("}}", "}")
        )
        filled.append(Program(text, each.tests))
    return filled
