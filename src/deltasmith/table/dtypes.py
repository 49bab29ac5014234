"""The element types a cell may have: their names here, in safetensors headers, and in numpy."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BY_CODE", "DTYPES", "DType"]


@dataclass(frozen=True, slots=True)
class DType:
    """One element type: how wide it is, what safetensors calls it, and how its bytes are held in numpy.

    `storage` is a numpy type of the same width whose values are the raw bits where numpy has no such type
    (bfloat16 is held as uint16, the fp8 kinds as uint8).
    """

    name: str
    code: str
    itemsize: int
    storage: str
    floating: bool
    largest: float = 0.0

    def __str__(self) -> str:
        return self.name


_ALL = (
    DType("float64", "F64", 8, "<f8", True, 1.7976931348623157e308),
    DType("float32", "F32", 4, "<f4", True, 3.4028234663852886e38),
    DType("float16", "F16", 2, "<f2", True, 65504.0),
    DType("bfloat16", "BF16", 2, "<u2", True, 3.3895313892515355e38),
    DType("float8_e4m3fn", "F8_E4M3", 1, "|u1", True, 448.0),
    DType("float8_e5m2", "F8_E5M2", 1, "|u1", True, 57344.0),
    DType("int64", "I64", 8, "<i8", False),
    DType("int32", "I32", 4, "<i4", False),
    DType("int16", "I16", 2, "<i2", False),
    DType("int8", "I8", 1, "|i1", False),
    DType("uint64", "U64", 8, "<u8", False),
    DType("uint32", "U32", 4, "<u4", False),
    DType("uint16", "U16", 2, "<u2", False),
    DType("uint8", "U8", 1, "|u1", False),
    DType("bool", "BOOL", 1, "|u1", False),
    DType("complex64", "C64", 8, "<c8", False),
)

DTYPES: dict[str, DType] = {d.name: d for d in _ALL}
BY_CODE: dict[str, DType] = {d.code: d for d in _ALL}
