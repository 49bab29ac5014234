"""The choice of a tier: only one that holds is taken, and without one nothing is run."""

from __future__ import annotations

import struct
import sys
import tempfile
from dataclasses import replace

import pytest
from sandboxes import ISOLATING, tier_called

from deltasmith.errors import RecipeError, RefusedError
from deltasmith.evaluate.sandbox import choose_tier, tiers
from deltasmith.evaluate.sandbox.filters import ARCHITECTURES, NUMBERS, seccomp_filter
from deltasmith.evaluate.sandbox.kernel import Kernel


def test_an_unknown_tier_is_named() -> None:
    with pytest.raises(
        RecipeError, match="no sandbox tier 'docker'; choose among: auto, bubblewrap, namespaces"
    ):
        choose_tier("docker")


def test_auto_takes_the_best_that_works() -> None:
    works = []
    for name in ISOLATING:
        try:
            works.append(choose_tier(name).name)
        except RefusedError:
            continue
    if not works:
        pytest.skip("no isolating tier works on this machine")
    assert choose_tier().name == works[0]
    assert choose_tier("auto").describe().startswith(works[0])


def test_auto_refuses_rather_than_run_without_isolation(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tiers._tier

    def broken(name: str) -> tiers.Tier:
        if name != "unsafe":
            raise OSError("not today")
        return real(name)

    monkeypatch.setattr(tiers, "_tier", broken)
    with pytest.raises(RefusedError) as refusal:
        choose_tier()
    assert "bubblewrap: not today; namespaces: not today; landlock: not today" in str(refusal.value)
    assert "--unsafe-exec-i-know" in str(refusal.value)
    assert "not a sandbox" in choose_tier("unsafe").describe()


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock is Linux's")
def test_landlock_works_wherever_the_kernel_has_it() -> None:
    """Elsewhere a tier that does not work is skipped; a fault of ours must not hide behind that."""
    try:
        version = Kernel().landlock_version()
    except OSError as why:
        pytest.skip(str(why))
    if not version:
        pytest.skip("this kernel has no Landlock")
    assert f"Landlock ABI {version}" in choose_tier("landlock").describe()


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_refused_clearly(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(tiers.sys, "platform", platform)
    with pytest.raises(RefusedError, match="landlock: it needs Linux"):
        choose_tier()


@pytest.mark.parametrize("name", ISOLATING)
def test_a_tier_that_leaks_is_not_taken(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    tier = tier_called(name)
    leaking = replace(tier, readable=(*tier.readable, tempfile.gettempdir()))
    monkeypatch.setattr(tiers, "_tier", lambda _: leaking)
    with pytest.raises(RefusedError, match="a file outside can be read"):
        choose_tier(name)


@pytest.mark.parametrize("name", ISOLATING)
def test_nothing_but_the_interpreter_and_libraries_is_readable(name: str) -> None:
    tier = tier_called(name)
    for path in ("/", "/usr", "/etc", "/home", "/root", "/tmp", "/proc"):
        assert path not in tier.readable


def judge(code: bytes, number: int, *arguments: int, machine: str, x32: bool = False) -> int:
    """Interpret a filter as the kernel does."""
    data = struct.pack(
        "<IIQ6Q", number, ARCHITECTURES[machine][1], 0, *arguments, *[0] * (6 - len(arguments))
    )
    register, at = 0, 0
    while True:
        operation, true, false, value = struct.unpack_from("<HBBI", code, 8 * at)
        at += 1
        if operation == 0x20:
            (register,) = struct.unpack_from("<I", data, value)
        elif operation == 0x54:
            register &= value
        elif operation == 0x06:
            return value
        else:
            jump = {0x15: register == value, 0x35: register >= value, 0x45: bool(register & value)}[operation]
            at += true if jump else false


ALLOW, EPERM, ENOTTY, ENOSYS, KILL = 0x7FFF0000, 0x50001, 0x50019, 0x50026, 0x80000000
THREAD, PROCESS = 0x3D0F00, 0x1200011  # what glibc passes to clone


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_filter_on_both_machines(machine: str) -> None:
    """aarch64 has no test machine here, so its filter is at least interpreted."""
    code = seccomp_filter(machine, pid=7)
    column = ARCHITECTURES[machine][0]

    def call(name: str | int, *arguments: int) -> int:
        number = name if isinstance(name, int) else NUMBERS[name][column]
        assert number is not None
        return judge(code, number, *arguments, machine=machine)

    for name in ("execve", "socket", "ptrace", "unshare", "mount", "bpf", "fchmodat", "setresuid"):
        assert call(name) == EPERM
    assert call("clone", THREAD) == ALLOW
    assert call("clone", PROCESS) == EPERM
    assert [call("kill", pid, 9) for pid in (7, 8, 0, 2**32 - 1)] == [ALLOW, EPERM, EPERM, EPERM]
    assert call("tgkill", 7, 8, 9) == ALLOW
    assert call("socketpair", 1, 0o2000001, 0) == ALLOW
    assert [call("socketpair", 1, 2), call("socketpair", 1, 5), call("socketpair", 16, 1)] == [EPERM] * 3
    assert [call("prlimit64", 0), call("prlimit64", 9)] == [ALLOW, EPERM]
    assert [call("ioctl", 1, 0x5401), call("ioctl", 1, 0x5412)] == [ALLOW, ENOTTY]
    assert [call("fcntl", 1, 3), call("fcntl", 1, 8)] == [ALLOW, EPERM]
    assert [call("prctl", 15), call("prctl", 1)] == [ALLOW, EPERM]
    assert [call(436), call(437), call(435), call(425), call(434), call(999)] == [ALLOW, ALLOW, *[ENOSYS] * 4]
    assert call(0x40000000 + 1) == KILL
    assert judge(code, 0, machine="aarch64" if machine == "x86_64" else "x86_64") == KILL
    read = 0 if machine == "x86_64" else 63
    assert call(read) == ALLOW


def test_no_number_is_listed_twice() -> None:
    for column in (0, 1):
        numbers = [n[column] for n in NUMBERS.values() if n[column] is not None]
        assert len(numbers) == len(set(numbers))
