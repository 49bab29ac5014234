"""A reader of packed deltas written from docs/format.md alone: a test compares what it reads with deltasmith's."""

import json
import math
import struct
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist

import numpy as np
import xxhash
import zstandard

KINDS = [("F64", "float64", "<u8"), ("F32", "float32", "<u4"), ("F16", "float16", "<u2"), ("BF16", "bfloat16", "<u2"),
         ("I64", "int64", "<u8"), ("I32", "int32", "<u4"), ("I16", "int16", "<u2"), ("I8", "int8", "u1"),
         ("U64", "uint64", "<u8"), ("U32", "uint32", "<u4"), ("U16", "uint16", "<u2"), ("U8", "uint8", "u1"),
         ("BOOL", "bool", "u1")]  # fmt: skip
NAMES, WORDS = {code: name for code, name, _ in KINDS}, {name: word for _, name, word in KINDS}
EXPONENT = {"float64": (52, 0x7FF), "float32": (23, 0xFF), "float16": (10, 0x1F), "bfloat16": (7, 0xFF)}
LARGEST = float(np.finfo(np.float32).max)


def file_arrays(path):
    """Return metadata and name → (code, shape, bytes) of a safetensors file."""
    data = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    metadata = header.pop("__metadata__", {})
    return metadata, {n: (e["dtype"], e["shape"], body[slice(*e["data_offsets"])]) for n, e in header.items()}


def hashed(data):
    chunks = [xxhash.xxh3_128_digest(data[at : at + 2**20]) for at in range(0, len(data), 2**20)]
    return xxhash.xxh3_128_hexdigest(b"".join(chunks))


def widened(words, dtype):
    """Return stored floats as float32."""
    return (
        (words.astype(np.uint32) << 16).view(np.float32)
        if dtype == "bfloat16"
        else words.view(dtype).astype(np.float32)
    )


def rounded(values, dtype):
    """Return float32 values as words of a type."""
    if dtype != "bfloat16":
        return values.astype(dtype).view(WORDS[dtype])
    u = values.view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def bits(row, n):
    return np.unpackbits(row, bitorder="little")[:n].astype(bool)


def without_zeros(delta, a):
    if "zero_pieces" in a:
        at = 0
        for piece in np.flatnonzero(a["zero_pieces"]):
            run = delta[piece * 65536 : (piece + 1) * 65536]
            run[bits(a["zeros"][at:], run.size)] = 0
            at += -(-run.size // 8)
    return delta


def bitdelta(a, f, name, shape, n):
    expert = len(shape) == 3 and "expert" in name
    width = 1 if n == 0 else n if len(shape) < 2 else shape[-1] if expert else n // shape[0]
    s = a["scale"][np.arange(n) // width] if f["scale"] == "row" else np.broadcast_to(a["scale"], n)
    return without_zeros(np.where(bits(a["signs"], n), s, -s), a)


def bitdelta_random(a, f, name, shape, n):
    p = (np.arange(4096) + 0.5) / 4096
    q = np.array([NormalDist().inv_cdf(x) for x in p]) if f["distribution"] == "normal" else 2 * p - 1
    t = np.maximum(1 + f["spread"] * q / np.sqrt(np.mean(q**2)), 0)
    table = np.clip(float(a["scale"][0]) * (t / t.mean()), -LARGEST, LARGEST).astype(np.float32)
    with np.errstate(over="ignore"):
        z = a["key"][0] + (np.arange(n, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    drawn = table[(z ^ z >> np.uint64(31)) >> np.uint64(52)]
    return without_zeros(np.where(bits(a["signs"], n), drawn, -drawn), a)


def magnitude_blocks(a, f, name, shape, n):
    level = sum(
        (bits(row, n).astype(int) << b for b, row in enumerate(a.get("planes", ()))), np.zeros(n, int)
    )
    return without_zeros(np.where(bits(a["signs"], n), a["magnitudes"][level], -a["magnitudes"][level]), a)


def residual_bits(a, f, name, shape, n):
    parts = [np.where(bits(row, n), s, -s) for row, s in zip(a["signs"], a["scales"], strict=True)]
    return sum(parts[1:], parts[0])


def emr(a, f, name, shape, n):
    return np.where(bits(a["mask"], n), a["unified"].reshape(-1) * a["rescaler"][0], np.float32(0))


def low_rank(a, f, name, shape, n):
    stack = len(shape) == 3 and "expert" in name
    left, right = (x if stack else x[None] for x in (a["left"], a["right"]))
    out = np.zeros((left.shape[0], left.shape[1], right.shape[2]), np.float32)
    for k in range(left.shape[2]):
        out += left[:, :, k, None] * right[:, None, k, :]
    return out.reshape(-1)


def passed(gaps):
    """Return the places that positions of kind 2 tell."""
    ends = np.cumsum(gaps.astype(int) + (gaps != 255))
    return ends[gaps != 255] - 1


def sparse(a, f, name, shape, n):
    out, at = np.zeros(n, np.float32), 0
    for block, length in enumerate(a["index"].tolist()):
        data, part = a["stream"][at : at + length].tobytes(), out[block * 65536 : (block + 1) * 65536]
        at += length
        if data:
            kind, _, s, m, p = struct.unpack("<BBhII", data[:12])
            stored = widened(np.frombuffer(data[12 + p :], WORDS[f["values"]]), f["values"])
            exact = np.ldexp(stored.astype(np.float64), -s)
            where = np.frombuffer(data[12 : 12 + p], np.uint8)
            masked = np.flatnonzero(np.unpackbits(where, bitorder="little"))
            places = {1: masked, 2: passed(where), 3: np.arange(part.size)}[kind]
            part[places] = np.clip(exact, -LARGEST, LARGEST).astype(np.float32)
            assert len(places) == m
    return out


def claq(a, f, name, shape, n):
    e, m, w = shape if len(shape) == 3 and "expert" in name else (1, shape[0], math.prod(shape[1:]))
    out, at = np.empty((e * m, w), np.float32), 0
    for i in range(e):
        loose, bit = np.unpackbits(a["codes"][i * m : (i + 1) * m], axis=1, bitorder="little").astype(int), 0
        for j, b in enumerate(a["bits"][i].tolist()):
            out[i * m : (i + 1) * m, j] = a["codebook"][at + loose[:, bit : bit + b] @ (1 << np.arange(b))]
            at, bit = at + (1 << b), bit + b
    if f["reserve"]:
        out[np.repeat(np.arange(e * m), a["kept_count"]), a["kept_index"].astype(int)] = a["kept_value"]
    return out.reshape(-1)


def opened(frame, size):
    if len(frame) == size:
        return np.frombuffer(frame, np.uint8)
    assert zstandard.frame_content_size(frame) == size
    return np.frombuffer(zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False), np.uint8)


def block(data, ahead, dtype):
    word, w = ahead.dtype.type, ahead.dtype.itemsize
    if not data or data[0] == 0:
        return np.frombuffer(data[1:], ahead.dtype) if data else ahead
    if data[0] == 2:
        c, length, packed = struct.unpack("<III", data[1:13])
        places, words = passed(opened(data[13 : 13 + packed], length)), ahead.copy()
        words[places] = block(data[13 + packed :], ahead[places], dtype)
        return words
    shift, mask = EXPONENT.get(dtype, (0, 0))
    exponents = ((ahead >> word(shift)) & word(mask)).astype(int)
    order = np.argsort(exponents, kind="stable")
    groups = [struct.unpack("<HBBI", data[2 + 8 * g : 10 + 8 * g]) for g in range(data[1])]
    firsts = [g[0] for g in groups] + [1 << 16]
    sizes = [int(((exponents >= lo) & (exponents < hi)).sum()) for lo, hi in pairwise(firsts)]
    begins = [g for g, (_, _, joined, _) in enumerate(groups) if not joined]
    at, tokens = 2 + 8 * len(groups) + 4 * len(begins), []
    for i, (g, end) in enumerate(zip(begins, [*begins[1:], len(groups)], strict=True)):
        (length,) = struct.unpack_from("<I", data, 2 + 8 * len(groups) + 4 * i)
        tokens.append(opened(data[at : at + length], sum(sizes[g:end])))
        at += length
    tokens, z, done = np.concatenate(tokens), np.empty(ahead.size, ahead.dtype), 0
    for size, (_, k, _, escaped) in zip(sizes, groups, strict=True):
        value, c = tokens[done : done + size].astype(ahead.dtype), -(-size // 8)
        planes = np.frombuffer(data, np.uint8, k * c, at).reshape(k, c)
        value[value == 255] = np.frombuffer(data, ahead.dtype, escaped, at + k * c)
        value <<= word(k)
        for j, plane in enumerate(planes):
            value |= ((plane >> np.arange(8, dtype=np.uint8)[:, None]) & 1).reshape(-1)[:size].astype(
                ahead.dtype
            ) << word(j)
        z[order[done : done + size]] = value
        at, done = at + k * c + escaped * w, done + size
    d, top = (z >> word(1)) ^ (word(0) - (z & word(1))), word(1 << (8 * w - 1))
    if not dtype.startswith(("float", "bfloat")):
        return ahead + d
    ordered = np.where(ahead & top, ~ahead, ahead | top) + d
    return np.where(ordered & top, ordered ^ top, ~ordered)


def lossless(a, dtype, ahead):
    ends, data = np.concatenate([[0], np.cumsum(a["index"], dtype=np.int64)]), a["stream"].tobytes()
    pieces = [
        block(data[lo:hi], ahead[i << 18 : (i + 1) << 18], dtype) for i, (lo, hi) in enumerate(pairwise(ends))
    ]
    return np.concatenate(pieces) if pieces else ahead


def read(path, base_path):
    """Return label → tensor → words of every model in a packed delta, all hashes checked."""
    metadata, arrays = file_arrays(path)
    text = arrays.pop("deltasmith.document")[2]
    assert (metadata["format"], metadata["version"], metadata["document_xxh3_128"]) == (
        "deltasmith-packed",
        "1",
        hashed(text),
    )
    document, base = json.loads(text), file_arrays(base_path)[1]
    assert {n: hashed(data) for n, (_, _, data) in arrays.items()} == document["hashes"]
    lines = [f"{n} {NAMES[c]} {list(s)} {hashed(d)}\n" for n, (c, s, d) in sorted(base.items())]
    assert xxhash.xxh3_128_hexdigest("".join(lines).encode()) == document["base"]["fingerprint"]
    return {
        label: {
            n: tensor(n, t, document["codecs"][t["codec"]], arrays, base) for n, t in delta["tensors"].items()
        }
        for label, delta in document["deltas"].items()
    }


def tensor(name, record, codec, arrays, base):
    (kind, fields), dtype, shape = next(iter(codec.items())), record["dtype"], record["shape"]
    n, a = math.prod(shape), {}
    for part, (code, size, data) in ((part, arrays[at]) for part, at in record["arrays"].items()):
        words = np.frombuffer(data, WORDS[NAMES[code]]).reshape(size)
        floats = NAMES[code].startswith(("float", "bfloat")) and kind != "dense"
        a[part] = widened(words, NAMES[code]) if floats else words
    if kind == "dense":
        words = a["values"].reshape(-1)
    elif kind == "lossless":
        words = lossless(
            a, dtype, predicted(name, n, dtype, base) if record["against_base"] else np.zeros(n, WORDS[dtype])
        )
    else:
        values = np.zeros(n, np.float32) if kind == "zero" else globals()[kind](a, fields, name, shape, n)
        if fields.get("of") != "weight":
            code, _, data = base[name]
            values = widened(np.frombuffer(data, WORDS[NAMES[code]]), NAMES[code]) + values
        words = rounded(values, dtype)
    assert record["xxh3_128"] in (None, hashed(words.tobytes()))
    return words


def predicted(name, n, dtype, base):
    code, _, data = base[name]
    words = np.frombuffer(data, WORDS[NAMES[code]])
    return words if NAMES[code] == dtype else rounded(widened(words, NAMES[code]), dtype)
