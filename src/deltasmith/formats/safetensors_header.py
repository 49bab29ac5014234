"""The header of a safetensors file: parsed strictly, so that no two readers can disagree on it.

Stricter than the reference implementation: no duplicate keys, no unknown keys, `{` first, printable names.
Decided here: `"__metadata__": null` means no metadata; tensors of size zero may share an offset; trailing
JSON white space is padding.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from deltasmith.errors import DamagedInputError, printable
from deltasmith.formats.json_file import DuplicateKeyError, refuse_constant, unique_keys
from deltasmith.formats.sniff import what_it_is
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import BY_CODE

__all__ = ["MAX_HEADER", "Header", "check_name", "parse_header", "read_header"]

MAX_HEADER = 100_000_000
"""The format's own limit on the header, in bytes."""

_MAX_DIMENSION = 1 << 48
_MAX_RANK = 32  # numpy 1 stops here
_MAX_NAME = 1024
_ENTRY = frozenset({"dtype", "shape", "data_offsets"})
_FETCH = "fetch the file again"


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors header tells: specs in file order, where each tensor begins, and the metadata.

    `begins` counts bytes from the start of the file; `data_start` is where the payload begins.
    """

    specs: Mapping[str, Spec]
    begins: Mapping[str, int]
    metadata: Mapping[str, str]
    data_start: int
    nbytes: int


def read_header(descriptor: int, where: str) -> Header:
    """Read and check the header of an open file; `where` names the file in errors.

    Raises:
        DamagedInputError: as `parse_header`, or the file is of another kind, which is then named.
    """
    try:
        size = os.fstat(descriptor).st_size
        head = os.pread(descriptor, 512, 0)
        length = int.from_bytes(head[:8], "little")
        if not _plausible(head, length, size):
            _refuse_length(head, length, size, where)
        text = head[8 : 8 + length] if 8 + length <= len(head) else _pread_all(descriptor, length, 8)
    except OSError as cause:
        raise DamagedInputError(f"the file cannot be read ({cause.strerror})", where=where) from cause
    if len(text) < length:
        raise DamagedInputError(
            f"the header has {length} bytes but only {len(text)} are there", where=where, fix=_FETCH
        )
    return parse_header(text, size, where)


def parse_header(text: bytes, nbytes: int, where: str) -> Header:
    """Check a header (without its 8-byte length) against a file of `nbytes` bytes, and return what it tells.

    Raises:
        DamagedInputError: anything at all is wrong: JSON, names, types, dimensions, offsets, holes, overlaps,
        bytes
            missing at the end or left over. Nothing else is ever raised.
    """
    entries = _parse_json(text, where)
    metadata = _check_metadata(entries.pop("__metadata__", None), where)
    data_start = 8 + len(text)
    payload = nbytes - data_start
    located = []
    for name, entry in entries.items():
        check_name(name, where)
        spec, begin, end = _check_entry(name, entry, where)
        located.append((begin, end, spec))
    located.sort(key=lambda item: (item[0], item[1]))
    _check_ranges(located, payload, where)
    return Header(
        specs={spec.name: spec for _, _, spec in located},
        begins={spec.name: data_start + begin for begin, _, spec in located},
        metadata=metadata,
        data_start=data_start,
        nbytes=nbytes,
    )


def check_name(name: str, where: str) -> None:
    """Refuse a tensor name that is empty, too long, unprintable, or could be taken for a path outside."""
    if not name or not name.isprintable():
        problem = "a tensor has an empty name" if not name else f'the tensor name "{name}" is not printable'
    elif len(name) > _MAX_NAME or len(name.encode()) > _MAX_NAME:
        problem = f'the tensor name "{printable(name, 60)}" has more than {_MAX_NAME} bytes'
    elif ".." in name and ".." in name.replace("\\", "/").split("/"):
        problem = f'the tensor name "{name}" climbs out of a folder'
    elif name[0] in "/\\":
        problem = f'the tensor name "{name}" is an absolute path'
    else:
        return
    raise DamagedInputError(problem, where=where, fix="rename the tensor or use another file")


def _plausible(head: bytes, length: int, size: int) -> bool:
    """Tell whether length and first byte could be those of a safetensors file."""
    return size >= 10 and 2 <= length <= min(MAX_HEADER, size - 8) and head[8:9] == b"{"


def _refuse_length(head: bytes, length: int, size: int, where: str) -> NoReturn:
    """Say what the file is instead, if its head shows that, or else what is wrong with its length field."""
    # A truncated file's length field can look like some magic number, so what begins well is not sniffed.
    begins_well = 2 <= length <= MAX_HEADER and head[8:9] in (b"", b"{")
    if not begins_well and (kind := what_it_is(head)):
        raise DamagedInputError(f"this is {kind[0]} and not a safetensors file", where=where, fix=kind[1])
    if size < 10:
        problem = f"the file has {size} bytes, too few for a safetensors header"
    elif length < 2:
        problem = f"the header length field says {length}, and the shortest header has 2 bytes"
    elif head[8:9] != b"{" and length > size - 8:
        problem = "this is not a safetensors file"
    elif length > MAX_HEADER:
        problem = f"the header length field says {length}, more than the format's {MAX_HEADER}"
    elif length > size - 8:
        problem = f"the header should have {length} bytes, but the file is truncated to {size} bytes"
    else:
        problem = f"the header begins with {head[8:9]!r} instead of '{{'"
    raise DamagedInputError(problem, where=where, fix=_FETCH)


def _pread_all(descriptor: int, count: int, offset: int) -> bytes:
    """Read `count` bytes, or as many as the file has."""
    pieces = []
    while count and (piece := os.pread(descriptor, count, offset)):
        pieces.append(piece)
        count -= len(piece)
        offset += len(piece)
    return b"".join(pieces)


def _parse_json(text: bytes, where: str) -> dict[str, Any]:
    """Parse the header to a dict of entries."""
    problem = ""
    cause: Exception | None = None
    try:
        if text[:1] != b"{":
            problem = f"the header begins with {text[:1]!r} instead of '{{'"
        else:
            entries: dict[str, Any] = json.loads(
                text.decode("utf-8"), object_pairs_hook=unique_keys, parse_constant=refuse_constant
            )
            return entries
    except DuplicateKeyError as error:
        problem, cause = f'the name "{printable(error.key)}" appears twice in the header', error
    except UnicodeDecodeError as error:
        problem, cause = f"the header is not UTF-8 (byte {error.start})", error
    except json.JSONDecodeError as error:
        problem, cause = f"the header is not JSON ({error.msg} at character {error.pos})", error
    except RecursionError as error:
        problem, cause = "the header is nested too deeply", error
    except ValueError as error:  # numbers of thousands of digits, NaN
        problem, cause = f"the header is not JSON ({printable(str(error), 80)})", error
    raise DamagedInputError(problem, where=where, fix=_FETCH) from cause


def _check_metadata(metadata: Any, where: str) -> Mapping[str, str]:
    """Return the metadata, a map of strings; null and absence are the empty map."""
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise DamagedInputError("__metadata__ is not a map from strings to strings", where=where, fix=_FETCH)
    try:
        for key, value in metadata.items():
            key.encode(), value.encode()
    except UnicodeEncodeError as cause:
        raise DamagedInputError("__metadata__ holds half a character", where=where, fix=_FETCH) from cause
    return metadata


def _check_entry(name: str, entry: Any, where: str) -> tuple[Spec, int, int]:
    """Return the spec and the payload range of one entry, once all of it makes sense by itself."""
    if not isinstance(entry, dict) or entry.keys() != _ENTRY:
        _refuse_entry(name, "is not described by exactly dtype, shape and data_offsets", where)
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = BY_CODE.get(code) if isinstance(code, str) else None
    if dtype is None:
        problem = f"has the element type {printable(repr(code), 40)}, which is not supported"
        _refuse_entry(name, problem, where)
    if not isinstance(shape, list) or len(shape) > _MAX_RANK:
        _refuse_entry(name, f"has a shape that is no list of at most {_MAX_RANK} dimensions", where)
    if not isinstance(offsets, list) or len(offsets) != 2:
        _refuse_entry(name, "has data_offsets that are not two numbers", where)
    for dimension in shape:
        # `type is int` and not isinstance: true and false are ints to Python.
        if type(dimension) is not int or not 0 <= dimension < _MAX_DIMENSION:
            problem = (
                f"has the shape {printable(str(shape), 80)}: dimensions are whole numbers from 0 to 2^48"
            )
            _refuse_entry(name, problem, where)
    begin, end = offsets
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
        problem = f"has the data_offsets {printable(str(offsets), 80)}, which are no byte range"
        _refuse_entry(name, problem, where)
    spec = Spec(name, tuple(shape), dtype)
    if spec.nbytes != end - begin:
        needs = f"needs {spec.nbytes} bytes for {dtype} {shape} but its data_offsets span {end - begin}"
        _refuse_entry(name, needs, where)
    return spec, begin, end


def _refuse_entry(name: str, problem: str, where: str) -> NoReturn:
    """Raise the error of one tensor."""
    raise DamagedInputError(f'tensor "{printable(name)}" {problem}', where=where, fix=_FETCH)


def _check_ranges(located: list[tuple[int, int, Spec]], payload: int, where: str) -> None:
    """Refuse holes and overlaps between the sorted ranges, and any disagreement with the payload's size."""
    position = 0
    for begin, end, spec in located:
        if begin != position:
            name = printable(spec.name)
            problem = (
                f'{begin - position} bytes before tensor "{name}" belong to no tensor'
                if begin > position
                else f'tensor "{name}" overlaps the tensor before it by {position - begin} bytes'
            )
            raise DamagedInputError(problem, where=where, fix=_FETCH)
        position = end
    if payload < 0:
        raise DamagedInputError("the file ends within its header", where=where, fix=_FETCH)
    if payload < position:
        last = next(spec.name for _, end, spec in located if end > payload)
        raise DamagedInputError(
            f"the file is truncated: {position} bytes of tensors announced, {max(0, payload)} there; the "
            f'first incomplete tensor is "{printable(last)}"',
            where=where,
            fix=_FETCH,
        )
    if payload > position:
        raise DamagedInputError(
            f"{payload - position} bytes follow the last tensor ({position} bytes of tensors announced, "
            f"{payload} there); something was appended",
            where=where,
            fix=_FETCH,
        )
