"""From a packed tensor to what the runtime holds of it: a term where its storage has a product, else its values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xxhash

from deltasmith.codecs.catalogue import codec_name
from deltasmith.codecs.protocol import Array, Cell, Decoder, Source
from deltasmith.codecs.signs import Zeros
from deltasmith.errors import DamagedInputError, RefusedError, printable
from deltasmith.formats.hashing import CHUNK, ChunkHasher
from deltasmith.runtime.deltas import Delta
from deltasmith.runtime.lookup import words_of
from deltasmith.runtime.terms import LowRankTerm, MaskTerm, SignTerm, SparseTerm, Tensor, Term

__all__ = ["DecodedTerm", "Pool", "Stored", "term_of"]

Pool = dict[Any, Tensor]
"""Tensors that several deltas share, by content."""

_PIECE = 1 << 20


@dataclass(frozen=True)
class Stored:
    """One packed tensor, the parameter it belongs to, and whose delta it is of."""

    delta: Delta
    label: str
    name: str
    param: Tensor

    @property
    def cell(self) -> Cell:
        """Return the tensor as headers tell it."""
        return self.delta.cell(self.name)

    @property
    def source(self) -> Source:
        """Return its arrays."""
        return self.delta.source(self.name)

    @property
    def where(self) -> str:
        """Name tensor and delta, for messages."""
        return f"{printable(self.name, 120)} of the delta {printable(self.label, 60)!r}"

    def damaged(self, cause: Exception) -> DamagedInputError:
        """Describe a tensor that does not decode: where the base's values take part, they are the likelier cause."""
        what, fix = "it does not decode", "fetch or pack it again"
        if self.delta.codec(self.name).domain == "stored" and self.cell.base is not None:
            what = "the model is not the base that the delta was packed against, or the delta is damaged"
            fix = f"load the base it was packed with, or {fix}"
        return DamagedInputError(f"{what} ({printable(str(cause), 200)})", where=self.where, fix=fix)

    def deltas(self, start: int, stop: int) -> Tensor:
        """Decode elements [start, stop) of the delta, 1-D float32 on the CPU."""
        if self.delta.codec(self.name).domain == "delta":
            return torch.from_numpy(self._decoded(start, stop, np.dtype(np.float32)))
        return self.values(start, stop).to(torch.float32) - self._ground(start, stop).to(torch.float32)

    def values(self, start: int, stop: int) -> Tensor:
        """Decode elements [start, stop) of the fine-tuned tensor, 1-D on the CPU.

        The fine-tuned element type where words are stored; else the parameter's type, rounded to once.
        """
        domain, kind = self.delta.codec(self.name).domain, self.cell.spec.dtype
        if domain == "stored":
            words = self._decoded(start, stop, np.dtype(f"u{kind.itemsize}"), self._predicted(start, stop))
            return torch.from_numpy(words.view(np.uint8)).view(getattr(torch, kind.name))
        found = torch.from_numpy(self._decoded(start, stop, np.dtype(np.float32)))
        if domain == "delta":
            found += self._ground(start, stop).to(torch.float32)
        return found.to(self.param.dtype)

    def whole(self) -> Tensor:
        """Return the fine-tuned tensor: the parameter's type, device and shape.

        Raises RefusedError where the document holds the tensor's hash and the values have another: the model is not
        the base that was packed against, or was loaded in another element type.
        """
        spec = self.cell.spec
        out = torch.empty(spec.size, dtype=self.param.dtype)
        exact = self.delta.codec(self.name).domain == "stored"
        record = getattr(self.delta, "tensors", {}).get(self.name)
        recorded = getattr(record, "xxh3_128", None) if exact else None
        hasher = ChunkHasher(spec.nbytes) if recorded else None
        # Whole chunks of the hash, so that pieces can be fed to it as they come.
        step = max(1, CHUNK // spec.dtype.itemsize) if hasher else _PIECE
        for start in range(0, spec.size, step):
            piece = self.values(start, min(spec.size, start + step))
            if hasher:
                hasher.add(start * spec.dtype.itemsize, memoryview(piece.view(torch.uint8).numpy()))
            out[start : start + step] = piece
        if hasher and hasher.digest() != recorded:
            raise RefusedError(
                "the model does not have the base's values",
                where=self.where,
                fix="load the base it was packed with",
            )
        return out.reshape(tuple(spec.shape)).to(self.param.device)

    @cached_property
    def decoder(self) -> Decoder:
        """Begin to decode; ValueError if the arrays cannot be those of such a tensor."""
        return self.delta.codec(self.name).decoder(self.cell, self.source)

    def _decoded(self, start: int, stop: int, kind: Any, predicted: Array | None = None) -> Array:
        out = np.empty(stop - start, kind)
        try:
            self.decoder.read(start, out, predicted)
        except (ValueError, KeyError) as cause:
            raise self.damaged(cause) from cause
        return out

    def _ground(self, start: int, stop: int) -> Tensor:
        return self.param.detach().reshape(-1)[start:stop].cpu()

    def _predicted(self, start: int, stop: int) -> Array:
        """Return the base's words in the fine-tuned tensor's type; zeros where the base lacks the tensor."""
        kind = self.cell.spec.dtype
        if self.cell.base is None:
            return np.zeros(stop - start, f"u{kind.itemsize}")
        ground = self._ground(start, stop).to(getattr(torch, kind.name)).contiguous()
        words: Array = ground.view(torch.uint8).numpy().view(f"u{kind.itemsize}")
        return words


class DecodedTerm:
    """x Δᵀ for any other codec, decoded tile by tile at every use: slow, and no larger than the packed arrays."""

    def __init__(self, stored: Stored) -> None:
        """Take the packed tensor; its shape is (out, in)."""
        self.stored = stored

    @property
    def nbytes(self) -> int:
        """Count the packed arrays (which may lie on disk)."""
        return sum(spec.nbytes for spec in self.stored.source.specs.values())

    def to(self, device: Any) -> None:
        """Stay: tiles are decoded on the CPU and sent."""

    def product(self, x: Tensor) -> Tensor:
        """Return the product."""
        n_rows, n_columns = self.stored.cell.spec.shape
        wide, step = x.to(torch.float32), max(1, _PIECE // max(1, n_columns))
        parts = []
        for start in range(0, n_rows, step):
            stop = min(n_rows, start + step)
            tile = self.stored.deltas(start * n_columns, stop * n_columns).reshape(-1, n_columns)
            parts.append(wide @ tile.to(x.device).T)
        return torch.cat(parts, 1)

    def rows(self, ids: Tensor) -> Tensor:
        """Return rows of the delta."""
        width = self.stored.cell.spec.shape[1]
        found = [self.stored.deltas(i * width, (i + 1) * width) for i in ids.tolist()]
        return torch.stack(found).to(ids.device) if found else torch.zeros(0, width, device=ids.device)


def term_of(stored: Stored, pool: Pool, *, transposed: bool = False) -> Term | None:
    """Return the product that the storage of a matrix has, on the parameter's device; None if it has none.

    The matrix is (out, in), or (in, out) if `transposed` (a Conv1D of transformers). Unified vectors are kept once
    in `pool`.
    """
    build = _BUILDERS.get(codec_name(stored.delta.codec(stored.name)))
    if build is None or len(stored.cell.spec.shape) != 2:
        return None
    try:
        stored.decoder  # noqa: B018 - refuses arrays that cannot be those of such a tensor
        term = build(stored, pool, transposed)
    except (ValueError, KeyError) as cause:
        raise stored.damaged(cause) from cause
    if term is not None:
        term.to(stored.param.device)
    return term


def _array(stored: Stored, name: str, shape: tuple[int, ...] | None = None) -> Array:
    """Return an array in memory of our own; ValueError if it is missing or of another shape."""
    if name not in stored.source.specs:
        raise ValueError(f"there is no array {name}")
    found = np.array(stored.source.whole(name))
    if shape is not None and found.shape != shape:
        raise ValueError(f"{name} has the shape {list(found.shape)}, expected {list(shape)}")
    return found


def _tensor(array: Array) -> Tensor:
    """Return a numpy array as a torch tensor, bfloat16 included."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _words(packed: Array, shape: tuple[int, ...], transposed: bool) -> Array:
    rows, columns = shape
    if not transposed:
        return words_of(packed, rows, columns)
    if packed.size * 8 < rows * columns:
        raise ValueError(f"{packed.size} bytes of bits for {rows * columns} elements")
    bits = np.unpackbits(packed, count=rows * columns, bitorder="little").reshape(rows, columns)
    turned = np.packbits(np.ascontiguousarray(bits.T).reshape(-1), bitorder="little")
    return words_of(turned, columns, rows)


def _sign_term(
    words: list[Array], scales: list[Array], shape: tuple[int, ...], transposed: bool
) -> Term | None:
    """Make a term of planes of signs; None where scales belong to the inputs (rows of a transposed matrix)."""
    n_out, n_in = reversed(shape) if transposed else shape
    if transposed and any(scale.size > 1 for scale in scales):
        return None
    if any(scale.size not in (1, n_out) for scale in scales):
        raise ValueError("there is not one scale, nor one per row")
    wide = np.stack([np.broadcast_to(scale.reshape(-1), n_out) for scale in scales])
    return SignTerm(
        torch.from_numpy(np.stack(words).view(np.int32)), torch.from_numpy(wide.astype(np.float32)), n_in
    )


def _bitdelta(stored: Stored, pool: Pool, transposed: bool) -> Term | None:
    shape = stored.cell.spec.shape
    signs, scale = _words(_array(stored, "signs"), shape, transposed), _array(stored, "scale")
    zeros_spec = stored.source.specs.get("zeros")
    if zeros_spec is None or not zeros_spec.size:
        return _sign_term([signs], [scale], shape, transposed)
    # A zero is (+1 - 1) / 2: two planes of signs, equal but where the delta is zero.
    zeros = _words(_zero_bits(stored), shape, transposed)
    return _sign_term([signs, signs ^ zeros], [scale / 2, scale / 2], shape, transposed)


def _zero_bits(stored: Stored) -> Array:
    """Return one bit per element, 1 where the delta is zero."""
    size, zeros = stored.cell.spec.size, Zeros(stored.source, stored.cell.spec.size)
    found = []
    for start in range(0, size, _PIECE):
        piece = np.ones(min(_PIECE, size - start), np.float32)
        zeros.clear(start, piece)
        found.append(np.packbits(piece == 0, bitorder="little"))
    return np.concatenate(found)


def _residual_bits(stored: Stored, pool: Pool, transposed: bool) -> Term | None:
    shape = stored.cell.spec.shape
    scales = _array(stored, "scales")
    signs = _array(stored, "signs").reshape(len(scales), -1)
    words = [_words(plane, shape, transposed) for plane in signs]
    return _sign_term(words, list(scales), shape, transposed)


def _emr(stored: Stored, pool: Pool, transposed: bool) -> Term | None:
    shape = stored.cell.spec.shape
    unified = _array(stored, "unified", shape)
    key = (transposed, unified.dtype.name, unified.shape, xxhash.xxh3_128_hexdigest(unified.tobytes()))
    if key not in pool:
        tensor = _tensor(unified)
        pool[key] = (tensor.T.contiguous() if transposed else tensor).to(stored.param.device)
    words = _words(_array(stored, "mask"), shape, transposed)
    rescaler = float(_array(stored, "rescaler").reshape(-1)[0])
    return MaskTerm(torch.from_numpy(words.view(np.int32)), pool[key], rescaler)


def _low_rank(stored: Stored, pool: Pool, transposed: bool) -> Term | None:
    rows, columns = stored.cell.spec.shape
    left, right = _array(stored, "left"), _array(stored, "right")
    rank = left.shape[-1]
    if left.shape != (rows, rank) or right.shape != (rank, columns):
        raise ValueError("the factors do not fit the tensor")
    a, b = _tensor(left), _tensor(right)
    return LowRankTerm(b.T.contiguous(), a.T.contiguous()) if transposed else LowRankTerm(a, b)


def _sparse(stored: Stored, pool: Pool, transposed: bool) -> Term | None:
    """Collect the nonzeros row by row; None where the dense tensor would be smaller."""
    rows, columns = stored.cell.spec.shape
    most = stored.cell.spec.size * stored.param.element_size() // 8
    found_rows, found_columns, values, total = [], [], [], 0
    for start, tile in _row_tiles(stored):
        r, c = torch.nonzero(tile, as_tuple=True)
        total += len(r)
        if total > most or total >= 1 << 31:
            return None
        found_rows.append((r + start).to(torch.int32))
        found_columns.append(c.to(torch.int32))
        values.append(tile[r, c])
    row, column = (
        torch.cat(p) if p else torch.zeros(0, dtype=torch.int32) for p in (found_rows, found_columns)
    )
    value = torch.cat(values) if values else torch.zeros(0)
    if transposed:
        order = torch.argsort(column, stable=True)
        row, column, value, rows, columns = column[order], row[order], value[order], columns, rows
    counts = torch.bincount(row, minlength=rows)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).to(torch.int32)
    return SparseTerm(starts, column.contiguous(), value, (rows, columns))


def _row_tiles(stored: Stored) -> Iterator[tuple[int, Tensor]]:
    rows, columns = stored.cell.spec.shape
    step = max(1, _PIECE // max(1, columns))
    for start in range(0, rows if columns else 0, step):
        stop = min(rows, start + step)
        yield start, stored.deltas(start * columns, stop * columns).reshape(stop - start, columns)


_BUILDERS: dict[str, Callable[[Stored, Pool, bool], Term | None]] = {
    "bitdelta": _bitdelta,
    "residual_bits": _residual_bits,
    "emr": _emr,
    "low_rank": _low_rank,
    "sparse": _sparse,
}
