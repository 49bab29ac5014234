"""Checkpoints in .npz files: a zip of .npy members, none of which may hold Python objects.

A stored member is read piece by piece where it lies. A deflated one, or one in Fortran order, has to be
unpacked whole: that is done once and kept while there is room.
"""

from __future__ import annotations

import ast
import os
import struct
import threading
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import numpy.typing as npt

from deltasmith.errors import DamagedInputError, printable
from deltasmith.formats.safetensors_header import check_name
from deltasmith.formats.safetensors_reader import Identity, refuse_changed
from deltasmith.formats.sniff import open_regular, what_it_is
from deltasmith.kernels.decode import decode
from deltasmith.table.checkpoint import Floats, SourceFile, Spec
from deltasmith.table.dtypes import DTYPES

__all__ = ["NpzFile"]

_MAX_UNPACKED = 1 << 30  # of one deflated member: it has to be unpacked as a whole
_KEPT_BYTES = 256 << 20
_MAX_HEADER = 1 << 13
_STORAGE = {
    d.storage[1:]: d
    for d in DTYPES.values()
    if d.name not in ("bool", "bfloat16", "float8_e4m3fn", "float8_e5m2")
}
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RuntimeError,
)


@dataclass(frozen=True, slots=True)
class _Member:
    """One array: spec, zip entry, length of the .npy header, and where its values lie if stored."""

    spec: Spec
    entry: zipfile.ZipInfo
    header: int
    fortran: bool
    position: int | None


class NpzFile:
    """One .npz file as a checkpoint; tensor names are member names without `.npy` (chainer's `conv1/W`)."""

    def __init__(self, path: str | Path) -> None:
        """Read the directory of the zip and the header of every member, checking that sizes agree.

        Raises:
            DamagedInputError: no zip file, encrypted or oddly compressed members, Python objects, big-endian
            or
                unknown element types, names twice, sizes that disagree.
        """
        self.path = str(path)
        descriptor = open_regular(path)
        self._file = os.fdopen(descriptor, "rb")
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, npt.NDArray[np.uint8]] = OrderedDict()
        self.identity = Identity.of(os.fstat(descriptor))
        try:
            self._zip = _open_zip(self._file, self.path)
            self._members = _members(self._zip, descriptor, self.path)
        except BaseException:
            self._file.close()
            raise
        self.specs: Mapping[str, Spec] = {name: member.spec for name, member in self._members.items()}

    @property
    def sources(self) -> tuple[SourceFile, ...]:
        """List the one file."""
        return (SourceFile(Path(self.path).name, self.path, self.identity.nbytes),)

    def read(self, name: str, start: int, out: Floats) -> None:
        """Decode elements [start, start + out.size) of a floating tensor into float32 `out` (1-D)."""
        spec = self._members[name].spec
        if not spec.dtype.floating:
            raise ValueError(f"tensor {name} is {spec.dtype} and is never turned into float32")
        decode(spec.dtype.name, self._bytes(name, start, start + out.size), out)

    def raw(self, name: str, start: int, stop: int) -> bytes:
        """Return the little-endian bytes of elements [start, stop), row-major."""
        return self._bytes(name, start, stop).tobytes()

    def check_unchanged(self) -> None:
        """Refuse if the file is no longer the one that was opened.

        Raises:
            DamagedInputError: naming the file and what is different.
        """
        refuse_changed(self.path, self.identity)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __del__(self) -> None:
        if file := getattr(self, "_file", None):
            file.close()

    def _bytes(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Return the bytes of elements [start, stop) as uint8."""
        member = self._members[name]
        if not 0 <= start <= stop <= member.spec.size:
            raise ValueError(
                f"elements [{start}, {stop}) are outside tensor {name} of {member.spec.size} elements"
            )
        width = member.spec.dtype.itemsize
        if member.position is None:
            return self._unpacked(name)[start * width : stop * width]
        return self._pread(name, member.position + start * width, (stop - start) * width)

    def _pread(self, name: str, position: int, count: int) -> npt.NDArray[np.uint8]:
        """Read bytes of a stored member where they lie in the file."""
        out = np.empty(count, dtype=np.uint8)
        rest = out.data
        while rest.nbytes:
            try:
                got = os.preadv(self._file.fileno(), [rest], position)
            except OSError as cause:
                _refuse(f'array "{printable(name)}" cannot be read ({cause.strerror})', self.path, cause)
            if not got:
                _refuse(f'the file ended while array "{printable(name)}" was read', self.path)
            rest, position = rest[got:], position + got
        return out

    def _unpacked(self, name: str) -> npt.NDArray[np.uint8]:
        """Unpack a member as a whole, into row-major order; the last ones are kept."""
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
            values = self._unpack(self._members[name])
            self._kept[name] = values
            while len(self._kept) > 1 and sum(v.nbytes for v in self._kept.values()) > _KEPT_BYTES:
                self._kept.popitem(last=False)
            return values

    def _unpack(self, member: _Member) -> npt.NDArray[np.uint8]:
        """Unpack one member; zipfile compares its checksum."""
        wanted = member.header + member.spec.nbytes
        try:
            with self._zip.open(member.entry) as stream:
                data = stream.read(wanted)
        except _BROKEN as cause:
            _refuse(f'array "{printable(member.spec.name)}" does not unpack', self.path, cause)
        if len(data) != wanted:
            _refuse(f'array "{printable(member.spec.name)}" does not unpack to {wanted} bytes', self.path)
        values = np.frombuffer(data, dtype=np.uint8)[member.header :]
        if member.fortran:
            stored = values.copy().view(member.spec.dtype.storage)
            values = (
                np.ascontiguousarray(stored.reshape(member.spec.shape, order="F")).reshape(-1).view(np.uint8)
            )
        return values


def _refuse(problem: str, where: str, cause: BaseException | None = None) -> NoReturn:
    """Raise the error of this file's tree."""
    raise DamagedInputError(problem, where=where, fix="fetch or write the file again") from cause


def _open_zip(file: IO[bytes], where: str) -> zipfile.ZipFile:
    """Open the zip directory of a file that must also begin like a zip file."""
    head = file.read(512)
    if not head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        kind = what_it_is(head)
        _refuse(f"this is {kind[0]} and not an .npz file" if kind else "this is not an .npz file", where)
    try:
        return zipfile.ZipFile(file)
    except (*_BROKEN, UnicodeDecodeError) as cause:
        _refuse("the zip directory is damaged or cut off", where, cause)


def _members(archive: zipfile.ZipFile, descriptor: int, where: str) -> dict[str, _Member]:
    """Check every entry of the zip and return the arrays by name, in file order."""
    members: dict[str, _Member] = {}
    for entry in sorted(archive.infolist(), key=lambda e: e.header_offset):
        shown = printable(entry.filename, 80)
        if not entry.filename.endswith(".npy"):
            _refuse(f'the entry "{shown}" is no .npy array', where)
        name = entry.filename.removesuffix(".npy")
        check_name(name, where)
        if name in members:
            _refuse(f'the array "{shown}" appears twice', where)
        if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            _refuse(f'the array "{shown}" is encrypted or compressed in an unknown way', where)
        members[name] = _member(archive, entry, name, descriptor, where)
    return members


def _member(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str, descriptor: int, where: str
) -> _Member:
    """Read the .npy header of one entry, and compare sizes."""
    try:
        with archive.open(entry) as stream:
            head = stream.read(_MAX_HEADER)
        local = os.pread(descriptor, 30, entry.header_offset)
        skipped = sum(struct.unpack("<HH", local[26:30]))
    except (*_BROKEN, UnicodeDecodeError) as cause:
        _refuse(f'the array "{printable(name)}" cannot be read', where, cause)
    spec, header, fortran = _parse_npy(name, head, where)
    if header + spec.nbytes != entry.file_size:
        _refuse(
            f'the array "{printable(name)}" of shape {list(spec.shape)} and type {spec.dtype} needs '
            f"{header + spec.nbytes} bytes, the zip entry has {entry.file_size}",
            where,
        )
    fortran = fortran and len(spec.shape) > 1
    stored = entry.compress_type == zipfile.ZIP_STORED
    if stored and entry.compress_size != entry.file_size:
        _refuse(f'the stored array "{printable(name)}" has two different sizes', where)
    if (fortran or not stored) and spec.nbytes > _MAX_UNPACKED:
        _refuse(
            f'the array "{printable(name)}" has {spec.nbytes} bytes: too many to unpack at once '
            f"(store it uncompressed in C order, or as safetensors)",
            where,
        )
    position = None if fortran or not stored else entry.header_offset + 30 + skipped + header
    return _Member(spec, entry, header, fortran, position)


def _parse_npy(name: str, head: bytes, where: str) -> tuple[Spec, int, bool]:
    """Return the spec of an .npy array, where its values begin, and whether columns come first."""
    shown = printable(name)
    if head[:6] != b"\x93NUMPY" or len(head) < 12:
        _refuse(f'the entry "{shown}" is no .npy array', where)
    wide = head[6] >= 2
    begin = 12 if wide else 10
    length = int.from_bytes(head[8:begin], "little")
    text = head[begin : begin + length]
    if head[6] not in (1, 2, 3) or len(text) != length:
        _refuse(f'the .npy header of "{shown}" is cut off, too long, or of an unknown version', where)
    try:
        # literal_eval builds constants only; the length is bounded because deep nesting exhausts its stack.
        told: Any = ast.literal_eval(text.decode("utf-8" if head[6] == 3 else "latin-1").strip())
        descr, fortran, shape = told["descr"], told["fortran_order"], told["shape"]
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as cause:
        _refuse(f'the .npy header of "{shown}" is damaged', where, cause)
    if isinstance(descr, str) and "O" in descr:
        _refuse(f'the array "{shown}" holds Python objects (a pickle), which are never read', where)
    dtype = DTYPES["bool"] if descr == "|b1" else None
    if isinstance(descr, str) and descr[:1] in "<|":
        dtype = dtype or _STORAGE.get(descr[1:])
    if dtype is None:
        _refuse(
            f'the array "{shown}" has the element type {printable(repr(descr), 60)}, not supported', where
        )
    ints = isinstance(shape, tuple) and all(type(d) is int and 0 <= d < 1 << 48 for d in shape)
    if not ints or len(shape) > 32 or type(fortran) is not bool:
        _refuse(f'the .npy header of "{shown}" has an impossible shape', where)
    return Spec(name, shape, dtype), begin + length, fortran
