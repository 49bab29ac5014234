"""Packed deltas for tests: made, taken apart without deltasmith, changed, and put together as an attacker would."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from deltasmith.formats.opening import open_model
from deltasmith.formats.packed import open_packed
from deltasmith.formats.packed_model import PackedModel
from deltasmith.packing import pack

DOCUMENT = "deltasmith.document"
MIB = 1 << 20

EVERY = (
    ("*.self_attn.q_proj.*", "bitdelta"),
    ("*.self_attn.k_proj.*", "bitdelta:zero=zero,scale=row"),
    ("*.self_attn.v_proj.*", "residual_bits:passes=2"),
    ("*.self_attn.o_proj.*", "low_rank:rank=2"),
    ("*.mlp.gate_proj.*", "claq:bits=2.05,reserve=0.05,threshold=4"),
    ("*.mlp.up_proj.*", "sparse"),
    ("*.mlp.down_proj.*", "magnitude_blocks:blocks=4"),
    ("lm_head.*", "bitdelta_random"),
    ("model.norm.*", "dense"),
)
"""Rules under which a small Llama meets every codec that packs one model; the rest is lossless."""


def packed(root: Path, model: str = "m0", out: str = "packed", **options: Any) -> Path:
    """Pack a model of a family under `root` and return the folder."""
    pack(root / "base", root / model, root / out, **({"threads": 1} | options))
    return root / out


def digest(data: bytes) -> str:
    """Hash an array as containers do."""
    chunks = [xxhash.xxh3_128_digest(data[at : at + MIB]) for at in range(0, len(data), MIB)]
    return xxhash.xxh3_128_hexdigest(b"".join(chunks))


@dataclass
class Parts:
    """A container in pieces, to be changed at will; `arrays` maps names to (type code, shape, bytes)."""

    metadata: dict[str, str]
    arrays: dict[str, tuple[str, list[int], bytes]]
    document: Any
    text: bytes | None = None
    """The document's bytes, where JSON objects cannot say what it is to hold."""
    mend: set[str] = field(default_factory=lambda: {"arrays", "document"})

    @classmethod
    def of(cls, folder: Path) -> Parts:
        """Take a container apart."""
        data = (folder / "delta.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop("__metadata__")
        body = data[8 + length :]
        arrays = {n: (e["dtype"], e["shape"], body[slice(*e["data_offsets"])]) for n, e in header.items()}
        document = json.loads(arrays.pop(DOCUMENT)[2])
        return cls(metadata, arrays, document)

    def tensor(self, name: str, label: str | None = None) -> dict[str, Any]:
        """Return what the document says of a tensor."""
        deltas = self.document["deltas"]
        return deltas[label or next(iter(deltas))]["tensors"][name]

    def codec(self, name: str) -> dict[str, Any]:
        """Return the name and the fields of a tensor's codec."""
        return self.document["codecs"][self.tensor(name)["codec"]]

    def array(self, tensor: str, part: str) -> np.ndarray:
        """Return an array as bytes that can be changed in place, once `put` back."""
        return np.frombuffer(self.arrays[self.tensor(tensor)["arrays"][part]][2], np.uint8).copy()

    def put(self, tensor: str, part: str, data: bytes | np.ndarray, shape: list[int] | None = None) -> None:
        """Replace the bytes of an array."""
        name = self.tensor(tensor)["arrays"][part]
        code, before, _ = self.arrays[name]
        self.arrays[name] = (code, before if shape is None else shape, bytes(data))

    def write(self, folder: Path) -> None:
        """Put the container together, with hashes that are right again."""
        if "arrays" in self.mend:
            self.document["hashes"] = {n: digest(data) for n, (_, _, data) in self.arrays.items()}
        text = json.dumps(self.document).encode() if self.text is None else self.text
        metadata = dict(self.metadata)
        if "document" in self.mend:
            metadata["document_xxh3_128"] = digest(text)
        header: dict[str, Any] = {"__metadata__": metadata}
        body = b""
        for name, (code, shape, data) in (self.arrays | {DOCUMENT: ("U8", [len(text)], text)}).items():
            header[name] = {"dtype": code, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
            body += data
        head = json.dumps(header).encode()
        (folder / "delta.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + body)


def changed(folder: Path, change: Callable[[Parts], Any]) -> Path:
    """Change a container in place, hashes mended, and return it."""
    parts = Parts.of(folder)
    change(parts)
    parts.write(folder)
    return folder


def words(path: str | Path, base: str | Path | None = None) -> dict[str, bytes]:
    """Return the stored bytes of every tensor of a model, a packed one over `base` (unchecked)."""
    opened = open_model(str(path))
    checkpoint = opened.checkpoint
    if base is not None and opened.packed is not None:
        ground = open_model(str(base)).checkpoint
        assert ground is not None
        checkpoint = PackedModel(opened.packed, lambda: ground)
    assert checkpoint is not None
    return {n: bytes(checkpoint.raw(n, 0, s.size)) for n, s in checkpoint.specs.items()}


def values(path: str | Path, base: Any) -> Mapping[str, np.ndarray]:
    """Return the unrounded float32 values of every floating tensor of a packed model over `base`."""
    delta = open_packed(path).delta()
    model = PackedModel(delta, lambda: base)
    found = {}
    for name, spec in model.specs.items():
        if spec.dtype.floating:
            found[name] = np.empty(spec.size, np.float32)
            model.read(name, 0, found[name])
            found[name] = found[name].reshape(spec.shape)
    return found
