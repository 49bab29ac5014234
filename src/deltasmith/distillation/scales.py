"""Packed tensors that are linear in a few numbers: their signs and their scales, apart.

BitDelta stores α · S and ResidualBits Σ α_k · S_k, with one α a tensor or one a row. The signs are found by decoding
with scales of 1 and 0, so that nothing here knows how bits are laid out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from deltasmith.codecs.catalogue import codec_name
from deltasmith.codecs.protocol import Array, Arrays, Cell, Codec
from deltasmith.table.checkpoint import Floats

__all__ = ["SCALES", "Scaled", "scaled"]

SCALES: Mapping[str, str] = MappingProxyType({"bitdelta": "scale", "residual_bits": "scales"})
"""The codecs whose scales can be learnt, and the name of the array that holds them."""

Signs = npt.NDArray[np.int8]


@dataclass(frozen=True)
class Scaled:
    """One tensor as Σ scale[k] · signs[k].

    `signs` is (passes, rows, width) of -1, 0 and 1; `scale` (passes, 1) or (passes, rows). `array` names the stored
    scales, `stored` is their shape.
    """

    signs: Signs
    scale: Floats
    array: str
    stored: tuple[int, ...]

    def restored(self, scale: Floats) -> Floats:
        """Give learnt scales the shape in which they are stored."""
        return np.asarray(scale, np.float32).reshape(self.stored)


def scaled(codec: Codec, arrays: Arrays, cell: Cell) -> Scaled | None:
    """Take a packed tensor apart; None where its codec has no scales to learn, or it has no element.

    Memory: one byte per element and pass, and one float32 tensor while it is decoded.
    """
    name = SCALES.get(codec_name(codec))
    if name is None or not cell.spec.size:
        return None
    stored = np.asarray(arrays[name], np.float32)
    passes = _passes(codec, stored)
    scale = stored.reshape(passes, -1)
    rows = cell.spec.shape[0] if cell.spec.shape else 1
    rows = max(rows, scale.shape[1])  # stacked experts have a scale for every row of every expert
    signs = [_signs(codec, arrays, cell, name, _one(stored, passes, k)) for k in range(passes)]
    return Scaled(np.stack([s.reshape(rows, -1) for s in signs]), scale, name, stored.shape)


def _passes(codec: Codec, stored: Array) -> int:
    return int(stored.shape[0]) if SCALES[codec_name(codec)] == "scales" else 1


def _one(stored: Floats, passes: int, which: int) -> Floats:
    """Return scales that are 1 in one pass and 0 in all others."""
    chosen = np.zeros((passes, stored.size // passes), np.float32)
    chosen[which] = 1
    return chosen.reshape(stored.shape)


def _signs(codec: Codec, arrays: Arrays, cell: Cell, name: str, scale: Floats) -> Signs:
    signs: Signs = codec.decode({**arrays, name: scale}, cell).astype(np.int8)
    return signs
