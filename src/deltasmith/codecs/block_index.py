"""Where the blocks of a stream begin, for codecs whose arrays are `stream` and `index`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deltasmith.codecs.protocol import Source

__all__ = ["block_ends"]


def block_ends(source: Source, size: int, block: int) -> npt.NDArray[np.int64]:
    """Return where each block of `stream` begins, and where the last ends: one number more than there are blocks.

    `index` holds their lengths as uint32, one per `block` elements of `size`. ValueError unless both arrays are
    there, the index has a length per block, and the lengths add up to the stream.
    """
    specs, blocks = source.specs, -(-size // block)
    if not {"index", "stream"} <= set(specs):
        raise ValueError("index or stream is missing")
    if specs["index"].dtype.name != "uint32" or specs["stream"].dtype.name != "uint8":
        raise ValueError("index or stream has another element type")
    if specs["index"].size != blocks:
        raise ValueError(f"the index holds {specs['index'].size} blocks instead of {blocks}")
    ends = np.zeros(blocks + 1, np.int64)
    np.cumsum(source.whole("index").reshape(-1), out=ends[1:])
    if specs["stream"].size != ends[-1]:
        raise ValueError(f"the stream holds {specs['stream'].size} bytes, not what its index says")
    return ends
