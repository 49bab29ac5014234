"""Buffers that a thread uses again and again: to touch fresh memory takes longer than to copy into old."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from deltasmith.codecs.protocol import Array

__all__ = ["Rooms"]

_KEPT_BYTES = 16 << 20


class Rooms:
    """Buffers by name, of each thread its own. Those of more than 16 MiB are not kept."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._local = threading.local()

    def take(self, which: str, size: int, kind: Any = np.float32) -> Array:
        """Return this thread's buffer of that name as `size` elements, undefined inside; its next use overwrites it.

        >>> Rooms().take("words", 3, "u2").shape
        (3,)
        """
        kept, nbytes = self._local.__dict__, size * np.dtype(kind).itemsize
        room = kept.get(which)
        if room is None or room.nbytes < nbytes:
            room = np.empty(nbytes, np.uint8)
            if nbytes <= _KEPT_BYTES:
                kept[which] = room
        found: Array = room[:nbytes].view(kind)
        return found
