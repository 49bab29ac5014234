"""Sizes and speed of the lossless codec beside XOR + zstd, on the bundled family and on a Student-t family.

python benchmarks/exact_codecs.py [--family FOLDER] [--elements N] prints two Markdown tables. Sizes are given in bits
per element. XOR + zstd codes the same tensors, once as the bytes lie and once as one plane per byte, at level 1 and
3, in blocks of the codec's size and over the whole tensor. Times are CPU seconds of one thread, medians of five.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import zstandard
from numpy.typing import NDArray

from deltasmith.codecs.lossless import BLOCK, Lossless
from deltasmith.codecs.protocol import Cell, Held
from deltasmith.codecs.sparse import Sparse
from deltasmith.formats.safetensors_reader import SafetensorsFile
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES
from machine import commit, describe, versions

Words = NDArray[np.uint16]
Pairs = Mapping[str, tuple[Words, Words]]
REPEATS = 5
SECONDS = 0.2  # a shorter call is repeated until it takes as long
FAMILY = Path(__file__).parent.parent / "src" / "deltasmith" / "family"


def student(elements: int) -> Pairs:
    """Base N(0, 0.02²), changes 4e-4 times Student-t with three degrees of freedom; both rounded to bfloat16."""
    random = np.random.default_rng(0)
    base = (random.standard_normal(elements) * 0.02).astype(ml_dtypes.bfloat16)
    model = (base.astype(np.float64) + 4e-4 * random.standard_t(3, elements)).astype(ml_dtypes.bfloat16)
    return {"w": (model.view(np.uint16), base.view(np.uint16))}


def sparse_steps(elements: int) -> Pairs:
    """The Student-t base with a random hundredth moved by one unit, as after a step of RL training."""
    (_, base) = student(elements)["w"]
    random = np.random.default_rng(1)
    step = np.where(random.random(elements) < 0.5, 1, -1) * (random.random(elements) < 0.01)
    return {"w": ((base.astype(np.int32) + step).astype(np.uint16), base)}


def family(folder: Path, member: str) -> Pairs:
    """Return the bfloat16 tensors of a fine-tune and of its base."""
    files = [_only(folder / part) for part in (member, "base")]
    names = [n for n, s in files[0].specs.items() if s.dtype.name == "bfloat16" and n in files[1].specs]
    model, base = (
        {n: np.frombuffer(f.raw(n, 0, f.specs[n].size), np.uint16).copy() for n in names} for f in files
    )
    return {n: (model[n], base[n]) for n in names}


def _only(folder: Path) -> SafetensorsFile:
    return SafetensorsFile(str(folder / "model.safetensors"))


def cell_of(words: Words) -> Cell:
    return Cell(Spec("w", (words.size,), DTYPES["bfloat16"]))


def lossless_size(pairs: Pairs) -> int:
    total = 0
    for model, base in pairs.values():
        arrays = Lossless().encode(model, cell_of(model), base)
        again = Lossless().decode(arrays, cell_of(model), base)
        if not np.array_equal(again, model):
            raise AssertionError("the codec is not exact")
        total += sum(a.nbytes for a in arrays.values())
    return total


def xor_frames(model: Words, base: Words, planes: int, block: int, level: int) -> list[bytes]:
    """Compress the XOR, block by block, as one plane of words or as two of bytes."""
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=False)
    changed = (model ^ base).view(np.uint8)
    size = 2 * (block or model.size)
    pieces = [changed[at : at + size] for at in range(0, changed.size, size)]
    return [compressor.compress(p[k::planes].tobytes()) for p in pieces for k in range(planes)]


def xor_size(pairs: Pairs, planes: int, block: int, level: int) -> int:
    return sum(len(f) for m, b in pairs.values() for f in xor_frames(m, b, planes, block, level))


def cpu(call: Callable[[], Any], elements: int) -> float:
    """Return CPU nanoseconds per element, the median of five."""
    call()
    found = []
    for _ in range(REPEATS):
        rounds, start = 0, time.process_time()
        while time.process_time() - start < SECONDS:
            call()
            rounds += 1
        found.append((time.process_time() - start) / rounds / elements * 1e9)
    return statistics.median(found)


def lossless_times(pairs: Pairs) -> tuple[float, float]:
    elements = sum(m.size for m, _ in pairs.values())
    packed = []
    for model, base in pairs.values():
        arrays = Lossless().encode(model, cell_of(model), base)
        packed.append((model, base, Lossless().decoder(cell_of(model), Held(arrays)), np.empty_like(model)))

    def pack() -> None:
        for model, base, _, _ in packed:
            encoder = Lossless().encoder(cell_of(model))
            for at in range(0, model.size, BLOCK):
                encoder.encode(at, model[at : at + BLOCK], base[at : at + BLOCK])

    def unpack() -> None:
        for _, base, decoder, out in packed:
            decoder.read(0, out, base)

    return cpu(pack, elements), cpu(unpack, elements)


def xor_times(pairs: Pairs, planes: int) -> tuple[float, float]:
    """Time XOR + zstd level 3 in blocks; unpacking puts the planes together and XORs again."""
    elements = sum(m.size for m, _ in pairs.values())
    frames = [xor_frames(m, b, planes, BLOCK, 3) for m, b in pairs.values()]

    def pack() -> None:
        for model, base in pairs.values():
            xor_frames(model, base, planes, BLOCK, 3)

    def unpack() -> None:
        decompressor = zstandard.ZstdDecompressor()
        for (_, base), some in zip(pairs.values(), frames, strict=True):
            out = np.empty(2 * base.size, np.uint8)
            for k, frame in enumerate(some):
                piece = out[2 * BLOCK * (k // planes) : 2 * BLOCK * (k // planes + 1)]
                piece[k % planes :: planes] = np.frombuffer(decompressor.decompress(frame), np.uint8)
            words = out.view(np.uint16)
            words ^= base

    return cpu(pack, elements), cpu(unpack, elements)


def sparse_row(elements: int, density: float) -> str:
    """Measure the sparse codec at one density: bits per element, and times."""
    random = np.random.default_rng(1)
    delta = (random.standard_normal(elements) * 4e-4).astype(np.float32)
    delta = np.where(random.random(elements) < density, delta, np.float32(0))
    codec, cell, out = Sparse(), cell_of(delta), np.empty_like(delta)
    arrays = codec.encode(delta, cell)
    encoder, decoder = codec.encoder(cell), codec.decoder(cell, Held(arrays))
    size = sum(a.nbytes for a in arrays.values()) * 8 / elements
    starts = range(0, elements, encoder.block)
    pack = cpu(lambda: [encoder.encode(at, delta[at : at + encoder.block]) for at in starts], elements)
    unpack = cpu(lambda: decoder.read(0, out), elements)
    return f"| sparse, density {density:g} | {size:.2f} | {pack:.2f} | {unpack:.2f} |"


def size_row(name: str, pairs: Pairs) -> str:
    elements = sum(m.size for m, _ in pairs.values())
    ours = lossless_size(pairs)
    others = [
        xor_size(pairs, planes, block, level) for planes in (1, 2) for block in (BLOCK, 0) for level in (1, 3)
    ]
    cells = [f"{o * 8 / elements:.2f} ({ours / o - 1:+.1%})" for o in others]
    return f"| {name} | {ours * 8 / elements:.2f} | {ours / (2 * elements):.1%} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", type=Path, default=FAMILY)
    parser.add_argument("--elements", type=int, default=1 << 24)
    asked = parser.parse_args()
    members = sorted(p.parent.relative_to(asked.family) for p in asked.family.glob("*/*/model.safetensors"))
    sets: dict[str, Pairs] = {str(m): family(asked.family, str(m)) for m in members}
    sets |= {"Student-t": student(asked.elements), "1 % moved": sparse_steps(asked.elements)}
    print(f"{describe()['processor']}, {versions()}, zstd {zstandard.ZSTD_VERSION}, commit {commit()}\n")
    heads = [
        f"XOR{' planes' if planes == 2 else ''}, {where}, level {level}"
        for planes in (1, 2)
        for where in ("blocks", "whole")
        for level in (1, 3)
    ]
    print(f"| bits per element | lossless | of 16 bits | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 3)}")
    for name, pairs in sets.items():
        print(size_row(name, pairs), flush=True)
    print("\n| CPU ns per element | pack | unpack |\n|---|---|---|")
    for name in ("Student-t", "1 % moved", *[str(m) for m in members[:1]]):
        for label, times in (
            ("lossless", lossless_times(sets[name])),
            ("XOR + zstd 3", xor_times(sets[name], 1)),
            ("XOR planes + zstd 3", xor_times(sets[name], 2)),
        ):
            print(f"| {name}: {label} | {times[0]:.2f} | {times[1]:.2f} |", flush=True)
    same = {"w": (sets["Student-t"]["w"][1],) * 2}
    print("| unchanged: lossless | {:.2f} | {:.2f} |".format(*lossless_times(same)))
    print("\n| | bits per element | pack ns | unpack ns |\n|---|---|---|---|")
    for density in (0.01, 0.1, 0.5, 1.0):
        print(sparse_row(asked.elements // 4, density), flush=True)


if __name__ == "__main__":
    main()
