"""Quantise: a delta as a codec would give it back, so that recipes can use what `pack` would store."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BeforeValidator, WithJsonSchema

from deltasmith.codecs.catalogue import codec_from, codec_name, codec_text
from deltasmith.codecs.protocol import Cell, Codec
from deltasmith.errors import RecipeError, RefusedError, printable
from deltasmith.operation.protocols import Edit, Found, Place, Reach
from deltasmith.table.checkpoint import Floats, Spec
from deltasmith.table.dtypes import DTYPES

__all__ = ["Quantise"]

_REFUSED = {"emr": "needs all models at once; merge: emr gives what it stores"}
_FLOAT32 = DTYPES["float32"]


def _text(value: Any) -> str:
    """Return the one way to write a codec; ValueError if it is none, or one that an edit cannot use."""
    if not isinstance(value, str | Mapping | Codec):
        raise ValueError("a codec is written as text, low_rank:rank=16, or as {name: {field: value}}")
    try:
        codec = codec_from(value)
    except RecipeError as error:
        raise ValueError(str(error)) from error
    name = codec_name(codec)
    if name in _REFUSED:
        raise ValueError(f"{name} {_REFUSED[name]}")
    if codec.domain == "stored":
        raise ValueError(f"{name} stores every element exactly; there is nothing to quantise")
    if codec.domain != "delta":
        raise ValueError(f"{codec_text(codec)} codes weights, and an edit changes deltas")
    return codec_text(codec)


@lru_cache(maxsize=64)
def _codec(text: str) -> Codec:
    return codec_from(text)


CodecText = Annotated[
    str,
    BeforeValidator(_text),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1}, {"type": "object"}]}),
]


class Quantise(Edit):
    """Replace the delta by what a codec gives back of it: encoded, and decoded again.

    `codec` is any that codes deltas, written as for `pack`: bitdelta, bitdelta_random, magnitude_blocks,
    residual_bits, low_rank, sparse, claq, zero. Codecs of stored words (lossless, dense), `claq` of weights, and emr,
    which needs all models, are refused when the recipe is read. A tensor that the codec cannot code (a vector for
    low_rank and claq) is left as it is, and so is an empty one; bitdelta codes vectors too: give a `where` to
    leave them out, as `pack` does by itself.

    Equals `pack` with this codec followed by `unpack`, to the bit, for the same label and seed, before the sum with
    the base is rounded. Nothing is stored smaller; the output is a whole model. Codecs that take statistics get none.

    Raises:
        RefusedError: the codec cannot take the values: infinities, or a range that its dtype does not have.

    Paper: A Unified View of Delta Parameter Editing, arXiv 2410.13841v1: BitDelta and its three generalisations as
    edits; each codec names its own paper.

    >>> import numpy as np
    >>> delta = np.array([[1.0, -2.0], [-4.0, 5.0]], np.float32)
    >>> Quantise(codec="bitdelta").apply(delta, Place("w", (2, 2)), Found()).tolist()
    [[3.0, -3.0], [-3.0, 3.0]]
    """

    reach: ClassVar[Reach] = "tensor"

    codec: CodecText
    """The codec: its name, name:field=value,field=value, or {name: {field: value}}."""

    def workspace(self, shape: tuple[int, ...], models: int) -> int:
        """Return the bytes that the codec takes beyond the tensor's values."""
        codec, cell = _codec(self.codec), _cell("", shape, 0)
        return 0 if _left_alone(codec, cell) else codec.workspace(cell)

    def apply(self, delta: Floats, place: Place, found: Found) -> Floats:
        """Encode and decode the tensor."""
        codec, cell = _codec(self.codec), _cell(place.name, place.shape, place.key)
        if _left_alone(codec, cell):
            return delta.copy()
        try:
            decoded: Floats = codec.decode(codec.encode(np.array(delta, np.float32), cell), cell)
        except ValueError as error:  # values that the codec has no numbers for
            what = f"the codec {codec_name(codec)} cannot take the delta: {error}"
            raise RefusedError(
                what, where=printable(place.name), fix="choose another codec or dtype"
            ) from error
        return decoded


def _cell(name: str, shape: tuple[int, ...], key: int) -> Cell:
    spec = Spec(name, shape, _FLOAT32)
    return Cell(spec, spec, key)


def _left_alone(codec: Codec, cell: Cell) -> bool:
    return cell.spec.size == 0 or bool(codec.refusal(cell))
