"""Functions that build hostile and damaged files, and small honest ones, at paths that tests name."""

import json
import os
import socket
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np

CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "uint8": "U8",
    "int8": "I8",
    "bool": "BOOL",
}
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FP8 = np.dtype(ml_dtypes.float8_e4m3fn)


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def assemble(header, payload=b"", length=None):
    """Glue a header (text, bytes or an object) and a payload together; `length` may lie."""
    text = header if isinstance(header, (bytes, str)) else json.dumps(header)
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text) if length is None else length) + text + payload


def write_safetensors(path, arrays, metadata=None):
    """Write an honest file, tensors in the order given."""
    header, position = ({"__metadata__": metadata} if metadata is not None else {}), 0
    for name, array in arrays.items():
        header[name] = entry(CODES[array.dtype.name], array.shape, position, position + array.nbytes)
        position += array.nbytes
    text = json.dumps(header)
    text += " " * (-len(text) % 8)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(assemble(text, b"".join(np.ascontiguousarray(a).tobytes() for a in arrays.values())))
    return path


def small_arrays():
    """Return two tensors of 8 and 16 bytes, `a` and `b`."""
    return {
        "a": np.array([1, 2], np.float32),
        "b": np.arange(8, dtype=np.float32).reshape(4, 2).astype(BFLOAT16),
    }


def small_file(path):
    return write_safetensors(path, small_arrays())


def honest_header():
    return {"a": entry("F32", [2], 0, 8), "b": entry("BF16", [4, 2], 8, 24)}


BAD_LENGTHS = {
    "zero": 0,
    "one": 1,
    "2^63": 1 << 63,
    "2^64-1": (1 << 64) - 1,
    "beyond file": 4000,
    "100 MB + 1": 100_000_001,
}

# What a header may say wrongly: name -> (header, payload, a word the message must hold).
BAD_HEADERS = {
    "hole": ({"a": entry("F32", [2], 8, 16)}, b"\0" * 16, "belong to no tensor"),
    "hole between": (
        {"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)},
        b"\0" * 3,
        '"b" belong to no',
    ),
    "overlap": ({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 2, 6)}, b"\0" * 6, '"b" overlaps'),
    "same range": ({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 0, 4)}, b"\0" * 4, "overlaps"),
    "empty inside": ({"a": entry("U8", [4], 0, 4), "b": entry("U8", [0], 2, 2)}, b"\0" * 4, "overlaps"),
    "trailing byte": (honest_header(), b"\0" * 25, "1 bytes follow"),
    "zip appended": (honest_header(), b"\0" * 24 + b"PK\x03\x04....", "8 bytes follow"),
    "one byte short": (honest_header(), b"\0" * 23, "truncated: 24 bytes of tensors announced, 23 there"),
    "no payload": (honest_header(), b"", '"a"'),
    "negative dimension": ({"a": entry("F32", [-1], 0, 4)}, b"\0" * 4, "dimensions are whole numbers"),
    "float dimension": ({"a": entry("F32", [1.0], 0, 4)}, b"\0" * 4, "dimensions are whole numbers"),
    "true dimension": ({"a": entry("F32", [True], 0, 4)}, b"\0" * 4, "dimensions are whole numbers"),
    "string dimension": ({"a": entry("F32", ["1"], 0, 4)}, b"\0" * 4, "dimensions are whole numbers"),
    "huge and zero": ({"a": entry("F32", [2**60, 0], 0, 0)}, b"", "dimensions are whole numbers"),
    "product wraps to 4": (
        {"a": entry("U8", [2**32, 2**32, 1], 0, 0)},
        b"",
        "needs 18446744073709551616 bytes",
    ),
    "33 dimensions": ({"a": entry("U8", [1] * 33, 0, 1)}, b"\0", "at most 32 dimensions"),
    "shape is no list": ({"a": entry("U8", [1], 0, 1) | {"shape": 1}}, b"\0", "a shape that is no list"),
    "size disagrees": ({"a": entry("F32", [3], 0, 8)}, b"\0" * 8, "needs 12 bytes for float32 [3]"),
    "backwards": ({"a": entry("U8", [0], 8, 0)}, b"", "no byte range"),
    "negative offset": ({"a": entry("U8", [1], -1, 0)}, b"", "no byte range"),
    "float offset": ({"a": entry("U8", [1], 0, 1.0)}, b"\0", "no byte range"),
    "three offsets": ({"a": entry("U8", [1], 0, 1) | {"data_offsets": [0, 1, 2]}}, b"\0", "not two numbers"),
    "unknown type": ({"a": entry("F128", [1], 0, 16)}, b"\0" * 16, "'F128', which is not supported"),
    "F4": ({"a": entry("F4", [2], 0, 1)}, b"\0", "'F4', which is not supported"),
    "F6": ({"a": entry("F6_E2M3", [4], 0, 3)}, b"\0" * 3, "'F6_E2M3', which is not supported"),
    "F8_E8M0": ({"a": entry("F8_E8M0", [1], 0, 1)}, b"\0", "'F8_E8M0', which is not supported"),
    "type is a list": ({"a": entry(["F32"], [1], 0, 4)}, b"\0" * 4, "not supported"),
    "unknown key": ({"a": entry("U8", [1], 0, 1) | {"x": 1}}, b"\0", "exactly dtype, shape and data_offsets"),
    "missing key": ({"a": {"dtype": "U8", "shape": [1]}}, b"\0", "exactly dtype, shape and data_offsets"),
    "entry is a list": ({"a": [1]}, b"", "exactly dtype, shape and data_offsets"),
    "metadata not strings": ({"__metadata__": {"a": 1}}, b"", "from strings to strings"),
    "metadata list": ({"__metadata__": ["a"]}, b"", "from strings to strings"),
    "metadata surrogate": ('{"__metadata__": {"a": "\\ud800"}}', b"", "half a character"),
    "duplicate": (
        "{" + '"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},' * 2 + '"c":1}',
        b"\0",
        '"a" appears twice',
    ),
    "duplicate inside": (
        '{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}',
        b"\0",
        "appears twice",
    ),
    "leading space": (" {}", b"", "begins with b' '"),
    "not JSON": ('{"a": }', b"", "not JSON"),
    "second value": ("{} {}", b"", "not JSON"),
    "NUL padding": (b"{}\0\0", b"", "not JSON"),
    "NaN": ('{"a": NaN}', b"", "NaN is not JSON"),
    "not UTF-8": (b'{"\xff": 1}', b"", "not UTF-8"),
    "UTF-16": ("{}".encode("utf-16-le"), b"", "not JSON"),
    "deep": ('{"a":' + "[" * 100_000, b"", "nested too deeply"),
    "long number": ('{"a":' + "9" * 5000 + "}", b"", "not JSON"),
}

BAD_NAMES = {
    "empty": "",
    "NUL": "a\0b",
    "escape": "\x1b[2Jgone",
    "newline": "a\nb",
    "climbing": "../../etc/passwd",
    "climbing inside": "a/../../b",
    "climbing backslash": "a\\..\\b",
    "absolute": "/etc/passwd",
    "right to left": "weight\u202egnp.exe",
    "surrogate": "\ud800",
    "10 kB": "x" * 10_000,
    "wide": "é" * 600,
}

LOOKALIKES = {
    "Git-LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n",
        "git lfs pull",
    ),
    "HTML": (b"\n<!DOCTYPE html><html><body>404</body></html>", "fetch it again"),
    "GGUF": (b"GGUF\x03\0\0\0" + b"\0" * 40, "safetensors"),
    "Python pickle": (b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x01u.", "deltasmith convert"),
    "zip archive": (b"PK\x03\x04\x14\0\0\0\0\0" + b"\0" * 40, "deltasmith convert"),
    "numpy array": (b"\x93NUMPY\x01\0v\0{'descr'", "savez"),
    "empty file": (b"", "fetch it again"),
    "zeros": (b"\0" * 600, "fetch it again"),
}


def special_files(folder):
    """Make a pipe, a socket and a directory, and name two devices; all as {what: path}."""
    folder = Path(folder)
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "directory.safetensors").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(folder)  # socket addresses are short
        try:
            listener.bind("socket.safetensors")
        finally:
            os.chdir(here)
    return {
        "named pipe": folder / "pipe.safetensors",
        "directory": folder / "directory.safetensors",
        "socket": folder / "socket.safetensors",
        "character device": Path("/dev/zero"),
    }


def many_empty(count):
    """Build a header of `count` tensors of size zero."""
    return {f"model.layers.{i}.weight": entry("F32", [0], 0, 0) for i in range(count)}


def write_model(folder, arrays, *, shards=1, config=None):
    """Write an honest HF folder of one or several shards and return it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "toy"} if config is None else config))
    if shards == 1:
        write_safetensors(folder / "model.safetensors", arrays, {"format": "pt"})
        return folder
    names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    weight_map = {tensor: names[i % shards] for i, tensor in enumerate(arrays)}
    for name in names:
        write_safetensors(folder / name, {t: a for t, a in arrays.items() if weight_map[t] == name})
    write_index(folder, weight_map, sum(a.nbytes for a in arrays.values()))
    return folder


def write_index(folder, weight_map, total=None):
    index = {"metadata": {} if total is None else {"total_size": total}, "weight_map": weight_map}
    (Path(folder) / "model.safetensors.index.json").write_text(json.dumps(index))


OUTSIDE_NAMES = (
    "../model-00001-of-00002.safetensors",
    "/etc/model.safetensors",
    "C:\\model.safetensors",
    "C:model.safetensors",
    "\\\\server\\share\\model.safetensors",
    "sub/../../model.safetensors",
    "sub/model.safetensors",
    "..",
    ".",
    "",
    "model.bin",
    "model\0.safetensors",
    "model\x1b.safetensors",
    ".safetensors",
    "~/model.safetensors",
)


def npy_bytes(descr="'<f4'", shape="(2,)", payload=b"\0" * 8, order="False", version=b"\x01\x00"):
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + payload


def write_zip(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return Path(path)


def write_adapter(folder, arrays, **config):
    """Write a PEFT folder; tensors get the usual prefix."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    named = {f"base_model.model.{name}": array for name, array in arrays.items()}
    write_safetensors(folder / "adapter_model.safetensors", named, {"format": "pt"})
    return folder
