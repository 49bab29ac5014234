"""The floor: read every byte of the inputs, then write and sync a file of the output's size. No arithmetic.

python benchmarks/floor.py OUT INPUT...: what any merge must at least do. One thread, one reused buffer.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["main", "read_all", "write_synced"]

CHUNK = 4 << 20


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def read_all(path: Path, buffer: memoryview) -> int:
    """Read a file from start to end into the same buffer; return its size."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        position = 0
        while count := os.preadv(descriptor, [buffer], position):
            position += count
        return position
    finally:
        os.close(descriptor)


def write_synced(path: Path, size: int, buffer: memoryview) -> None:
    """Write `size` bytes of whatever the buffer holds, preallocated, and wait until the disk has them."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.posix_fallocate(descriptor, 0, size)
        position = 0
        while position < size:
            position += os.pwrite(descriptor, buffer[: size - position], position)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main(arguments: list[str]) -> None:
    output, *words = arguments
    given = [int(word.removeprefix("--bytes=")) for word in words if word.startswith("--bytes=")]
    folders = [Path(word) for word in words if not word.startswith("--bytes=")]
    buffer = memoryview(bytearray(CHUNK))
    sizes = [sum(read_all(path, buffer) for path in weight_files(folder)) for folder in folders]
    write_synced(Path(output), given[0] if given else sizes[0], buffer)


if __name__ == "__main__":
    main(sys.argv[1:])
