"""The ways to isolate a generated program, and the choice of the best one that really works on this machine."""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from deltasmith.errors import RecipeError, RefusedError, ResourceError
from deltasmith.evaluate.sandbox.verdict import Limits

__all__ = ["TIERS", "Tier", "choose_tier"]

TIERS = ("bubblewrap", "namespaces", "landlock", "unsafe")
"""Best first. `auto` never takes the last one, which isolates nothing."""

# Where shared libraries are kept; the last two hold every package of their distributions.
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/nix/store", "/gnu/store")
DEVICES = ("/dev/null", "/dev/urandom")
MEANS = {
    "bubblewrap": "bubblewrap: own user, processes, network, IPC and root",
    "namespaces": "namespaces: own processes, network, IPC and root",
    "landlock": "landlock: files, sockets, signals and other programs refused",
    "unsafe": "unsafe: resource limits only; this is not a sandbox",
}


@dataclass(frozen=True, slots=True)
class Tier:
    """One way to run a program, ready for use on this machine."""

    name: str
    python: str
    readable: tuple[str, ...]
    links: tuple[tuple[str, str], ...] = ()
    devices: tuple[str, ...] = DEVICES
    bubblewrap: str = ""
    facts: str = ""

    def describe(self) -> str:
        """Return one line for reports: what isolates, and what the kernel offered on top."""
        means = MEANS[self.name]
        return f"{means} ({self.facts})" if self.facts else means


def choose_tier(wanted: str = "auto") -> Tier:
    """Choose the best tier that passes a test run on this machine, or the one named by `wanted`.

    The test run tries to read a file, open a socket, start a process and signal this one; a tier where any of it
    succeeds is not taken. It takes some tenths of a second; choose once and keep the tier.

    Raises RecipeError for a name that is none, RefusedError where no isolating tier works, or not the one asked for:
    nothing is then run at all.
    """
    if wanted not in ("auto", *TIERS):
        raise RecipeError(
            f"there is no sandbox tier {wanted!r}", fix=f"choose among: auto, {', '.join(TIERS)}"
        )
    failures = []
    for name in TIERS[:-1] if wanted == "auto" else (wanted,):
        try:
            return _proven(_tier(name))
        except (OSError, ResourceError) as cause:
            failures.append(f"{name}: {cause.what if isinstance(cause, ResourceError) else cause}")
    raise RefusedError(
        f"no sandbox for generated code works here ({'; '.join(failures)})",
        fix="install bubblewrap, allow user namespaces, or use a Linux ≥ 5.13 with Landlock; --unsafe-exec-i-know "
        "runs it without a sandbox",
    )


def _tier(name: str) -> Tier:
    """Collect what the tier needs from this machine. Raises OSError saying what is missing."""
    if not sys.executable:
        raise OSError("this Python does not know its own executable")
    if name == "unsafe":
        if not hasattr(os, "fork"):
            raise OSError("this system cannot fork")
    elif sys.platform != "linux":
        raise OSError("it needs Linux")
    paths = sysconfig.get_paths()
    own = (paths["stdlib"], paths["platstdlib"], str(Path(sys.base_prefix, "lib")))
    places = [Path(p) for p in (*LIBRARIES, *own, *_zipped()) if Path(p).exists()]
    links = tuple((str(p), str(p.readlink())) for p in places if p.is_symlink())
    readable = _outermost([p.resolve() for p in places])
    tier = Tier(name, str(Path(sys.executable).resolve()), readable, links)
    return replace(tier, bubblewrap=_bubblewrap()) if name == "bubblewrap" else tier


def _zipped() -> list[str]:
    return [p for p in sys.path if p.endswith(".zip") and p.startswith(sys.base_prefix)]


def _outermost(places: list[Path]) -> tuple[str, ...]:
    """Leave out what lies below another, and a root that would open everything."""
    kept = {p for p in places if len(p.parts) > 2 or str(p) in LIBRARIES}
    return tuple(sorted(str(p) for p in kept if not any(q in p.parents for q in kept)))


def _bubblewrap() -> str:
    import shutil

    found = shutil.which("bwrap")
    if found is None:
        raise OSError("bwrap is not installed")
    return found


SELF_TEST = """
import os, socket

def refused(action):
    try:
        action()
    except OSError:
        return True
    return False
"""


def _proven(tier: Tier) -> Tier:
    """Run the self-test under `tier` and return it with what it reports. Raises OSError where it does not hold."""
    from deltasmith.evaluate.sandbox.run import launch

    with tempfile.NamedTemporaryFile(prefix="deltasmith-self-test-") as secret:
        Path(secret.name).chmod(0o644)
        tests = [
            "assert sum(map(int, '12')) == 3",
            "with open('own', 'w') as own: assert own.write('x') == 1",
        ]
        if tier.name != "unsafe":
            tests += [
                f"assert refused(lambda: open({secret.name!r})), 'a file outside can be read'",
                f"assert refused(lambda: open({secret.name + '-'!r}, 'w')), 'a file outside can be written'",
                "assert refused(socket.socket), 'a socket can be opened'",
                "assert refused(os.fork), 'a process can be started'",
                f"assert refused(lambda: os.kill({os.getpid()}, 0)), 'a process outside can be signalled'",
            ]
        report = launch(SELF_TEST, "\n".join(tests), tier, Limits(seconds=20.0, cpu_seconds=20.0))
    if not report.verdict.passed:
        raise OSError(f"its test run {report.verdict.reason}")
    return replace(tier, facts=report.facts)
