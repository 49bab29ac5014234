"""One expert packed and unpacked in memory, tensor by tensor, as `pack` and `unpack` would on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from deltasmith.codecs.catalogue import codec_from
from deltasmith.codecs.protocol import Array, Cell, Codec
from deltasmith.operation.randomness import cell_key
from deltasmith.packing.choosing import is_linear
from deltasmith.table.checkpoint import Floats, Spec
from deltasmith.table.dtypes import DTYPES

__all__ = ["BITS", "Coded", "Tensors", "code", "linears"]

Tensors = Mapping[str, Floats]
Choose = Callable[[Cell], Codec]

BITS = 16
"""Bits an element of the models takes unpacked."""

_REST = "lossless"


@dataclass(frozen=True)
class Coded:
    """An unpacked expert: its tensors, the bytes of its arrays, and how far it lies from the expert.

    `ratio` is those bytes over the expert's own; `error` is ‖δ − δ̂‖ / ‖δ‖ over the tensors not coded exactly.
    """

    tensors: dict[str, Floats]
    nbytes: int
    ratio: float
    error: float


def linears(codec: Codec) -> Choose:
    """Give the matrices of layers this codec where it can take them, and everything else the exact one."""
    rest = codec_from(_REST)

    def choose(cell: Cell) -> Codec:
        fits = is_linear(cell.spec.name, cell.spec.shape) and not codec.refusal(cell)
        return codec if fits else rest

    return choose


def code(
    base: Tensors,
    expert: Tensors,
    choose: Choose,
    *,
    label: str,
    seed: int = 0,
    edited: Tensors | None = None,
) -> Coded:
    """Pack `expert` over `base` and unpack it again, rounded to bfloat16 as a written model is.

    `edited` replaces the delta of the tensors it names before they are packed, as an edit in a recipe would. Bytes
    are those of the arrays alone: the file's header and document would weigh as much as a tenth of them at this
    size, and nothing at another.
    """
    tensors, nbytes, size, norm, error = {}, 0, 0, 0.0, 0.0
    for name, value in expert.items():
        spec = Spec(name, tuple(value.shape), DTYPES["bfloat16"])
        cell = Cell(spec, spec, cell_key(seed, label, name))
        codec = choose(cell)
        delta = value - base[name]
        given = delta if edited is None or codec.domain != "delta" else edited.get(name, delta)
        arrays, tensors[name] = _through(codec, cell, base[name], value, given)
        nbytes += sum(array.nbytes for array in arrays.values())
        size += value.size
        if codec.domain != "stored":
            rest = (delta - (tensors[name] - base[name])).astype(np.float64)
            norm += float(np.square(delta, dtype=np.float64).sum())
            error += float(np.square(rest).sum())
    ratio = 8 * nbytes / (BITS * size)
    return Coded(tensors, nbytes, ratio, float(np.sqrt(error / norm)) if norm else 0.0)


def _through(
    codec: Codec, cell: Cell, base: Floats, value: Floats, delta: Floats
) -> tuple[Mapping[str, Array], Floats]:
    """Encode and decode one tensor; return the arrays and what comes out, rounded to bfloat16."""
    if codec.domain == "stored":
        words, ahead = _words(value), _words(base)
        arrays = codec.encode(words, cell, ahead)
        found: Floats = codec.decode(arrays, cell, ahead).view(ml_dtypes.bfloat16).astype(np.float32)
        return arrays, found
    arrays = codec.encode(delta if codec.domain == "delta" else value, cell)
    near = codec.decode(arrays, cell)
    near = base + near if codec.domain == "delta" else near
    return arrays, near.astype(ml_dtypes.bfloat16).astype(np.float32)


def _words(values: Floats) -> Array:
    return values.astype(ml_dtypes.bfloat16).view(np.uint16)
