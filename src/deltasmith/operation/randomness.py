"""The random keys of cells: which stream of bits belongs to a seed, a label and a tensor name."""

from __future__ import annotations

import xxhash

__all__ = ["cell_key"]


def cell_key(seed: int, label: str, name: str, stream: int = 0) -> int:
    """Hash (seed, label, tensor name) to the 64-bit key of one cell's random bits.

    xxh3_64 over the eight little-endian bytes of the seed, the label, a NUL, the name. An edit that is not the
    first of its column (`stream` = its position > 0) appends a NUL and the position, so that two drops in a row
    are independent.
    """
    tail = b"" if stream == 0 else b"\0" + str(stream).encode()
    return xxhash.xxh3_64_intdigest(
        (seed & (2**64 - 1)).to_bytes(8, "little") + label.encode() + b"\0" + name.encode() + tail
    )
