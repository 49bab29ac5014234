"""One block of words beside their predictions: sorted, split and compressed, and put together again.

A block without a difference has no bytes. Otherwise its first byte is its kind:

- 0: the words follow as they are.
- 1: a byte G (1-64) follows, then G groups of 8 bytes: first exponent (uint16), low bits k (uint8), joined (uint8,
  0 or 1), escapes (uint32); then a uint32 per frame (a group that is not joined begins one): its bytes. Then the
  frames; then for each group its k packed bit planes (`kernels.ulp.low_bits`) and its escapes as words.
- 2: the number of words that are not as predicted (uint32), the bytes of their gaps (uint32) and of the frame that
  holds them (uint32), that frame (`kernels.gaps`), then a block of kind 1 of those words alone.

All numbers are little-endian. Elements are sorted, stably, by the exponent field of their prediction; group g takes
those from its first exponent up to the next group's. The folded distance z of an element is its token, min(z >> k,
255), and its lowest k bits; where the token is 255, z >> k is the group's next escape. A frame holds the tokens of
its groups (or gaps): one zstd frame that declares its size, or the bytes themselves if it is as long as they.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from deltasmith.codecs.protocol import Array, Words
from deltasmith.codecs.scratch import scratch
from deltasmith.kernels.gaps import find, gap_bytes, pick, put, read_gaps, write_gaps
from deltasmith.kernels.groups import count_groups, gather, sort_and_plan
from deltasmith.kernels.ulp import (
    different,
    raise_low,
    split,
    to_distances,
    to_words,
)
from deltasmith.table.dtypes import DType

__all__ = ["WordBlocks"]

Bytes = npt.NDArray[np.uint8]

_GROUPS = 64
_RARE = 64  # an exponent begins a group if one element in so many has it,
_FEW = 512  # and if so many have it: a group costs eight bytes and a few calls
_CHANGED = 4  # if no more than one word in so many changed, coding these alone is tried as well
_GROUP = np.dtype([("first", "<u2"), ("low", "u1"), ("joined", "u1"), ("escapes", "<u4")])
# Where the exponent field of a floating type begins, and its mask.
_EXPONENT = {
    "float64": (52, 0x7FF),
    "float32": (23, 0xFF),
    "float16": (10, 0x1F),
    "bfloat16": (7, 0xFF),
    "float8_e4m3fn": (3, 0x0F),
    "float8_e5m2": (2, 0x1F),
}


@dataclass(frozen=True)
class WordBlocks:
    """Codes and decodes blocks of one element type: how wide it is, whether it floats, where its exponent is."""

    word: np.dtype[Any]
    floating: bool
    shift: Any
    mask: Any

    @classmethod
    def of(cls, dtype: DType) -> WordBlocks:
        """Return the coder for an element type."""
        word = np.dtype(f"<u{dtype.itemsize}")
        shift, mask = _EXPONENT.get(dtype.name, (0, 0))
        return cls(word, dtype.floating, word.type(shift), word.type(mask))

    def encode(self, words: Words, ahead: Words) -> bytes:
        """Return the bytes of a block: no more than its words and one; none if all are as predicted."""
        words, ahead = _own(words, self.word), _own(ahead, self.word)
        changed = different(words, ahead)
        if not changed:
            return b""
        data = self._grouped(words, ahead)
        if changed <= words.size // _CHANGED:
            data = min(data, self._few(words, ahead, changed), key=len)
        return data if len(data) <= words.nbytes else b"\0" + words.tobytes()

    def decode(self, data: Bytes, out: Words, ahead: Words) -> None:
        """Write the words of a block that has bytes into `out`; ValueError if it cannot be one of so many words."""
        if data.size > out.nbytes + 1:
            raise ValueError("it is longer than its elements")
        data, ahead = np.frombuffer(data.tobytes(), np.uint8), _own(ahead, self.word)
        try:
            if data[0] == 2:
                self._take_few(data, out, ahead)
            elif data[0] == 1:
                self._take_grouped(data, out, ahead)
            else:
                self._take_raw(data, out)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error

    def _few(self, words: Words, ahead: Words, changed: int) -> bytes:
        """Write a block of kind 2: where the few are that changed, and these."""
        places = np.empty(changed + 1, np.int32)
        find(words ^ ahead, places)
        places = places[:changed]
        some, other = np.empty(changed, words.dtype), np.empty(changed, words.dtype)
        pick(words, places, some)
        pick(ahead, places, other)
        gaps = np.empty(gap_bytes(places), np.uint8)
        write_gaps(places, gaps)
        frame = _frame(gaps, _compressor())
        head = np.array([changed, gaps.size, len(frame)], "<u4")
        return b"".join([b"\2", head.tobytes(), frame, self._grouped(some, other)])

    def _grouped(self, words: Words, ahead: Words) -> bytes:
        """Sort the distances, plan the groups, and write a block of kind 1."""
        n, word = words.size, self.word
        most = (word.itemsize * 8 - 8) * (n // 8 + _GROUPS)
        distances, values, upper, tokens, planes = scratch(
            (n, word), (n, word), (n, word), (n, np.uint8), (most, np.uint8)
        )
        to_distances(words, ahead, self.floating, distances)
        planned = np.empty((_GROUPS, 4), np.int64)
        least = max(n // _RARE, _FEW)
        count = sort_and_plan(distances, ahead, self.shift, self.mask, least, values, planned)
        planned, escaped = planned[:count], np.empty(count, np.int64)
        split(values, planned, tokens, planes, upper, escaped)
        groups = np.empty(count, _GROUP)
        groups["first"], groups["low"], groups["joined"] = planned[:, [0, 2, 3]].T
        groups["escapes"] = escaped
        frames = self._frames(tokens, groups, planned[:, 1])
        lengths = np.array([len(f) for f in frames], "<u4")
        head = bytes((1, count)) + groups.tobytes() + lengths.tobytes()
        return b"".join([head, *frames, *_bodies(planned, planes, escaped, upper)])

    def _frames(self, tokens: Bytes, groups: Array, sizes: Array) -> list[Any]:
        compressor = _compressor()
        return [_frame(tokens[start:stop], compressor) for start, stop in _spans(groups["joined"], sizes)]

    def _take_raw(self, data: Bytes, out: Array) -> None:
        """Decode a block of kind 0; ValueError for kinds that there are not."""
        if data[0] != 0:
            raise ValueError(f"it is of the unknown kind {data[0]}")
        if data.size != out.nbytes + 1:
            raise ValueError(f"it holds {data.size - 1} bytes instead of {out.nbytes}")
        out[:] = np.frombuffer(data[1:].tobytes(), self.word)

    def _take_few(self, data: Bytes, out: Array, ahead: Words) -> None:
        """Decode a block of kind 2."""
        take = _Take(data, 1)
        count, length, packed = take.array(3, np.dtype("<u4")).tolist()
        if count > out.size or length > out.size:
            raise ValueError(f"{count} changed words do not fit {out.size}")
        gaps = _opened(take.array(packed, np.dtype("u1")), length, zstandard.ZstdDecompressor())
        places = np.empty(count, np.int32)
        if not read_gaps(gaps, out.size, places):
            raise ValueError("its gaps are not those of its words")
        some, other = np.empty(count, self.word), np.empty(count, self.word)
        pick(ahead, places, other)
        if data[take.at : take.at + 1].tobytes() != b"\1":
            raise ValueError("the words that changed are not of kind 1")
        self._take_grouped(data[take.at :], some, other)
        words = ahead.copy()
        put(some, places, words)
        out[:] = words

    def _take_grouped(self, data: Bytes, out: Array, ahead: Words) -> None:
        n = out.size
        values, distances, tokens = scratch((n, self.word), (n, self.word), (n, np.uint8))
        counts = self._counts(ahead)
        take = _Take(data, 1)
        groups = take.array(int(take.array(1, np.dtype("u1"))[0]), _GROUP)
        sizes = self._sizes(groups, counts.sum(0))
        spans = _spans(groups["joined"], sizes)
        lengths = take.array(len(spans), np.dtype("<u4")).tolist()
        decompressor = zstandard.ZstdDecompressor()
        for (start, stop), length in zip(spans, lengths, strict=True):
            frame = take.array(length, np.dtype("u1"))
            tokens[start:stop] = _opened(frame, stop - start, decompressor)
        at = 0
        for size, low, escaped in zip(
            sizes.tolist(), groups["low"].tolist(), groups["escapes"].tolist(), strict=True
        ):
            planes = take.array(low * (-(-size // 8)), np.dtype("u1"))
            upper = take.array(escaped, self.word).copy()
            if not raise_low(tokens[at : at + size], planes, low, upper, values[at : at + size]):
                raise ValueError("there are more or fewer escapes than tokens that ask for one")
            at += size
        if take.at != data.size:
            raise ValueError(f"{data.size - take.at} bytes too many")
        gather(values, ahead, self.shift, self.mask, _cursors(counts), distances)
        if out.flags.aligned and out.flags.c_contiguous:
            to_words(distances, ahead, self.floating, out)
        else:
            to_words(distances, ahead, self.floating, values)
            out[:] = values

    def _sizes(self, groups: Array, totals: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Count the elements of each group; ValueError if the groups are none."""
        firsts = groups["first"].astype(np.int64)
        if not 1 <= firsts.size <= _GROUPS or firsts[0] != 0 or np.any(np.diff(firsts) < 1):
            raise ValueError("its groups are not in order")
        if firsts[-1] >= totals.size or np.any(groups["joined"] > 1) or groups["joined"][0] != 0:
            raise ValueError("its groups are impossible")
        if np.any(groups["low"] > self.word.itemsize * 8 - 8):
            raise ValueError("a group cuts off more bits than there are")
        return np.add.reduceat(totals, firsts)

    def _counts(self, predicted: Words) -> npt.NDArray[np.int64]:
        """Count the exponents of a block's predictions, in four runs."""
        counts = np.zeros((4, int(self.mask) + 1), np.int64)
        count_groups(predicted, self.shift, self.mask, counts)
        return counts


def _cursors(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Return where the first element of each exponent and run goes in the sorted order."""
    flat = counts.T.reshape(-1)
    return np.ascontiguousarray((np.cumsum(flat) - flat).reshape(-1, 4).T).view(np.uint64)


def _own(words: Words, word: np.dtype[Any]) -> Words:
    """Return the words aligned, contiguous and writable: the one kind of array that kernels are compiled for."""
    return np.require(words.reshape(-1), word, ["C", "A", "W"])


def _compressor() -> zstandard.ZstdCompressor:
    """Return a compressor that looks for Huffman codes and long runs: sorted distances hardly ever repeat otherwise.

    It belongs to one block: a compressor may not be used from two threads, and to make one takes microseconds.
    """
    return zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(
            window_log=18,
            hash_log=6,
            chain_log=6,
            search_log=1,
            min_match=7,
            target_length=0,
            strategy=zstandard.STRATEGY_FAST,
            write_content_size=True,
            write_checksum=False,
        )
    )


def _frame(tokens: Bytes, compressor: zstandard.ZstdCompressor) -> Any:
    """Return a zstd frame, or the bytes themselves where that is no shorter."""
    frame = compressor.compress(tokens.data)
    return frame if len(frame) < tokens.size else tokens


def _bodies(planned: Array, planes: Bytes, escaped: Array, upper: Words) -> list[Any]:
    """Cut bit planes and escapes into those of each group, one group after the other."""
    parts, plane, high = [], 0, 0
    for (_, size, low, _), count in zip(planned.tolist(), escaped.tolist(), strict=True):
        nbytes = low * -(-size // 8)
        parts += [planes[plane : plane + nbytes], upper[high : high + count]]
        plane, high = plane + nbytes, high + count
    return parts


def _spans(joined: Array, sizes: Array) -> list[tuple[int, int]]:
    """Return where the tokens of each frame begin and end."""
    begins = np.flatnonzero(joined == 0)
    edges = np.concatenate([[0], np.cumsum(sizes)])
    ends = np.append(begins[1:], len(sizes))
    return [(int(edges[b]), int(edges[e])) for b, e in zip(begins, ends, strict=True)]


def _opened(frame: Bytes, size: int, decompressor: zstandard.ZstdDecompressor) -> Bytes:
    """Return the tokens of a frame, whose size is known before it is opened."""
    if frame.size == size:
        return frame
    declared = zstandard.frame_content_size(frame.data) if frame.size else -1
    if declared != size:
        raise ValueError(f"a frame declares {declared} bytes instead of {size}")
    raw = decompressor.decompress(frame.data, max_output_size=size, allow_extra_data=False)
    if len(raw) != size:
        raise ValueError(f"a frame holds {len(raw)} bytes instead of {size}")
    return np.frombuffer(raw, np.uint8)


@dataclass
class _Take:
    """Takes one array after the other off a block; never more than it has."""

    data: Bytes
    at: int

    def array(self, count: int, dtype: np.dtype[Any]) -> Array:
        start, self.at = self.at, self.at + count * dtype.itemsize
        if self.at > self.data.size:
            raise ValueError(f"it ends after {self.data.size} bytes")
        return np.frombuffer(self.data, dtype, count, start) if count else self.data[:0].view(dtype)
