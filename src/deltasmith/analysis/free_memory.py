"""How much memory a machine or an accelerator has left, and a refusal before a model that will not fit is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from deltasmith.errors import ResourceError, printable

__all__ = ["free_on_device", "free_on_machine", "require_room"]

_UNBOUNDED = 1 << 60  # cgroups without a limit name one of about this size, or "max"


def require_room(needed: int, free: int | None, *, where: str, what: str, fix: str) -> None:
    """Raise ResourceError where `needed` bytes are more than are `free`; None means that nobody can tell."""
    if free is not None and needed > free:
        raise ResourceError(
            f"{what} needs {_human(needed)}, and {_human(free)} are free", where=printable(where), fix=fix
        )


def free_on_device(device: str) -> int | None:
    """Return the free bytes of a CUDA device; of the machine for `cpu`."""
    if device == "cpu":
        return free_on_machine()
    import torch

    free: int = torch.cuda.mem_get_info(device)[0]
    return free


def free_on_machine(root: Path = Path("/")) -> int | None:
    """Return the bytes a process may still take, or None where the system does not tell.

    The least of what Linux calls available and of what the control groups of this process have left, in which
    file caches that can be dropped count as free. `root` is where `proc` and `sys` lie.
    """
    found = [*_available(root), *_left_by_groups(root)]
    return min(found, default=None)


def _available(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) << 10


def _left_by_groups(root: Path) -> Iterator[int]:
    """Yield what each control group that this process belongs to has left, of both versions of the interface."""
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            top, limit, usage, cached = "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, cached = "sys/fs/cgroup/memory", "total_inactive_file"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        own = PurePosixPath(path.strip().lstrip("/"))
        for group in (own, *own.parents):
            folder = root / top / group
            bound, taken = _number(folder / limit), _number(folder / usage)
            if bound is not None and taken is not None and bound < _UNBOUNDED:
                yield max(0, bound - taken + _cached(folder / "memory.stat", cached))


def _cached(path: Path, key: str) -> int:
    for line in _lines(path):
        name, _, value = line.partition(" ")
        if name == key and value.strip().isdigit():
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    text = " ".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:  # another system, or another version of the interface
        return []


def _human(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{-(-count >> 20)} MiB"
