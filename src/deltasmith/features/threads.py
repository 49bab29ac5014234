"""How many threads torch and numba compute with, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from deltasmith.api import available_threads

__all__ = ["computing_with"]


@contextmanager
def computing_with(threads: int | None) -> Iterator[int]:
    """Let torch and numba compute with so many threads, by default with every processor available, and yield that."""
    import numba
    import torch

    wanted = threads or available_threads()
    before, compiled = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(wanted)
    numba.set_num_threads(min(wanted, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    try:
        yield wanted
    finally:
        torch.set_num_threads(before)
        numba.set_num_threads(compiled)
