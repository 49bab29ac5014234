"""Generates the benchmark's models: a 0.4 B-parameter family, one giant embedding, and 22,213 small tensors.

python benchmarks/family.py [WORK] writes what is not there yet. Seeds are fixed: the same numpy writes the
same bytes. A folder is written a million elements at a time, in a few tens of megabytes of memory.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from folder import Tensor, complete, llama_config, shards_of, write_folder

__all__ = ["EXPERTS", "generate_family", "generate_giant", "generate_many", "many_tensors"]

EXPERTS = ("math", "code", "chat")
SPREAD = 0.02  # standard deviation of the base's weights
DRIFT = 4e-4  # root mean square of an expert's deltas, before they are rounded to bfloat16
SEED = 20260701
CHUNK = 1 << 20

HIDDEN, INNER, LAYERS, HEADS, VOCAB = 1024, 2816, 24, 16, 32000
SHARD_BYTES = 256 << 20

GIANT_ROWS, GIANT_WIDTH = 1 << 19, 1 << 12  # 2^31 elements: one more than a signed 32-bit index can hold
GIANT_ISLAND, GIANT_GAP = 1 << 15, 1 << 23  # elements: 32 Ki values in every 8 Mi, zeros (holes) between


def generate_family(work: Path) -> None:
    """Write WORK/family/{base,math,code,chat}: a 24-layer Llama of 374 M parameters, in 3 shards each."""
    shards = shards_of(_llama_tensors(), SHARD_BYTES)
    config = llama_config(hidden=HIDDEN, inner=INNER, layers=LAYERS, heads=HEADS, vocab=VOCAB, tied=False)
    base = work / "family" / "base"
    for label in ("base", *EXPERTS):
        folder = work / "family" / label
        fill = _fill_base if label == "base" else partial(_fill_expert, base, label)
        _write_once(
            folder, shards, config, {"kind": "family", "label": label, "seed": SEED, "version": 1}, fill
        )


def generate_giant(work: Path) -> None:
    """Write WORK/giant/{base,math,code}: one embedding of 2^31 elements each, in sparse files of 4 GB."""
    shards = [[Tensor("model.embed_tokens.weight", (GIANT_ROWS, GIANT_WIDTH))]]
    config = llama_config(hidden=GIANT_WIDTH, inner=4, layers=0, heads=32, vocab=GIANT_ROWS, tied=True)
    for label in ("base", *EXPERTS[:2]):
        stamp = {"kind": "giant", "label": label, "seed": SEED, "version": 1}
        _write_once(work / "giant" / label, shards, config, stamp, partial(_fill_islands, label))


def generate_many(work: Path) -> None:
    """Write WORK/many/{base,math,code}: 22,213 tensors of a mixture of experts, sparse, in 10 shards each.

    Widths are an eighth of the model whose names these are. Planning reads headers only, so its time does not
    depend on them, and a plan that checks the free space passes on any disk.
    """
    tensors = sorted(many_tensors(), key=lambda tensor: tensor.name)
    shards = shards_of(tensors, sum(tensor.stored_bytes for tensor in tensors) // 10 + (1 << 20))
    config = llama_config(hidden=256, inner=64, layers=40, heads=4, vocab=31040, tied=False)
    for label in ("base", *EXPERTS[:2]):
        stamp = {"kind": "many", "label": label, "seed": SEED, "version": 1}
        _write_once(work / "many" / label, shards, config, stamp, _fill_nothing)


def many_tensors() -> Iterator[Tensor]:
    """Yield the 22,213 tensors: 40 layers of 180 experts, three layers in four with linear attention."""
    yield Tensor("lm_head.weight", (31040, 256))
    yield Tensor("model.language_model.embed_tokens.weight", (31040, 256))
    yield Tensor("model.language_model.norm.weight", (256,))
    projections: dict[str, tuple[int, ...]] = {
        "gate_proj": (64, 256),
        "up_proj": (64, 256),
        "down_proj": (256, 64),
    }
    for layer in range(40):
        stem = f"model.language_model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield Tensor(f"{stem}.{norm}.weight", (256,))
        yield Tensor(f"{stem}.mlp.gate.weight", (180, 256))
        yield Tensor(f"{stem}.mlp.shared_expert_gate.weight", (1, 256))
        for projection, shape in projections.items():
            yield Tensor(f"{stem}.mlp.shared_expert.{projection}.weight", shape)
            for expert in range(180):
                yield Tensor(f"{stem}.mlp.experts.{expert}.{projection}.weight", shape)
        for name, shape in _FULL_ATTENTION if layer % 4 == 3 else _LINEAR_ATTENTION:
            yield Tensor(f"{stem}.{name}", shape)


_FULL_ATTENTION: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("self_attn.q_proj.weight", (1024, 256)),
    ("self_attn.k_proj.weight", (64, 256)),
    ("self_attn.v_proj.weight", (64, 256)),
    ("self_attn.o_proj.weight", (256, 512)),
    ("self_attn.q_norm.weight", (32,)),
    ("self_attn.k_norm.weight", (32,)),
)
_LINEAR_ATTENTION: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("linear_attn.A_log", (32,)),
    ("linear_attn.dt_bias", (32,)),
    ("linear_attn.conv1d.weight", (1024, 1, 4)),
    ("linear_attn.in_proj_a.weight", (32, 256)),
    ("linear_attn.in_proj_b.weight", (32, 256)),
    ("linear_attn.in_proj_qkv.weight", (1024, 256)),
    ("linear_attn.in_proj_z.weight", (512, 256)),
    ("linear_attn.norm.weight", (16,)),
    ("linear_attn.out_proj.weight", (256, 512)),
)


def _llama_tensors() -> Iterator[Tensor]:
    yield Tensor("model.embed_tokens.weight", (VOCAB, HIDDEN))
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}"
        yield Tensor(f"{stem}.input_layernorm.weight", (HIDDEN,))
        for projection in "qkvo":
            yield Tensor(f"{stem}.self_attn.{projection}_proj.weight", (HIDDEN, HIDDEN))
        yield Tensor(f"{stem}.post_attention_layernorm.weight", (HIDDEN,))
        yield Tensor(f"{stem}.mlp.gate_proj.weight", (INNER, HIDDEN))
        yield Tensor(f"{stem}.mlp.up_proj.weight", (INNER, HIDDEN))
        yield Tensor(f"{stem}.mlp.down_proj.weight", (HIDDEN, INNER))
    yield Tensor("model.norm.weight", (HIDDEN,))
    yield Tensor("lm_head.weight", (VOCAB, HIDDEN))


def _write_once(
    folder: Path,
    shards: list[list[Tensor]],
    config: dict[str, Any],
    stamp: dict[str, Any],
    fill: Callable[[IO[bytes], Tensor], None],
) -> None:
    if complete(folder, stamp):
        return
    print(f"generating {folder.parent.name}/{folder.name}", flush=True)
    write_folder(folder, shards, config, stamp, fill)


def _stream(label: str, tensor: Tensor) -> np.random.Generator:
    """Return the random stream of one tensor of one model: independent of the order of generation."""
    return np.random.Generator(
        np.random.SFC64([SEED, zlib.crc32(label.encode()), zlib.crc32(tensor.name.encode())])
    )


def _chunks(tensor: Tensor) -> Iterator[int]:
    """Yield the sizes of the pieces in which one tensor is written."""
    for start in range(0, tensor.elements, CHUNK):
        yield min(CHUNK, tensor.elements - start)


def _drift(random: np.random.Generator, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Draw heavy-tailed deltas: products of two normals (kurtosis 9), with a root mean square of DRIFT."""
    deltas = random.standard_normal(count, dtype=np.float32)
    deltas *= random.standard_normal(count, dtype=np.float32)
    deltas *= np.float32(DRIFT)
    return deltas


def _fill_base(file: IO[bytes], tensor: Tensor) -> None:
    random = _stream("base", tensor)
    for count in _chunks(tensor):
        values = random.standard_normal(count, dtype=np.float32)
        values *= np.float32(SPREAD)
        if len(tensor.shape) == 1:
            values += np.float32(0.25)  # norms are positive, yet small enough for bfloat16 to hold the deltas
        file.write(values.astype(ml_dtypes.bfloat16).tobytes())


def _fill_expert(base: Path, label: str, file: IO[bytes], tensor: Tensor) -> None:
    """Add deltas to the base's stored values, which lie at the same byte of the file of the same name."""
    random = _stream(label, tensor)
    with (base / Path(file.name).name).open("rb") as source:
        source.seek(file.tell())
        for count in _chunks(tensor):
            values = np.frombuffer(source.read(2 * count), dtype=ml_dtypes.bfloat16).astype(np.float32)
            values += _drift(random, count)
            file.write(values.astype(ml_dtypes.bfloat16).tobytes())


def _fill_islands(label: str, file: IO[bytes], tensor: Tensor) -> None:
    """Write a short run of values every GIANT_GAP elements and leave holes between, which read as zeros."""
    start = file.tell()
    for first in range(0, tensor.elements, GIANT_GAP):
        place = Tensor(f"{tensor.name}@{first}", (GIANT_ISLAND,))
        values = _stream("base", place).standard_normal(GIANT_ISLAND, dtype=np.float32) * np.float32(SPREAD)
        values = values.astype(ml_dtypes.bfloat16).astype(np.float32)
        if label != "base":
            values += _drift(_stream(label, place), GIANT_ISLAND)
        file.seek(start + 2 * first)
        file.write(values.astype(ml_dtypes.bfloat16).tobytes())
    file.seek(start + tensor.stored_bytes)


def _fill_nothing(file: IO[bytes], tensor: Tensor) -> None:
    """Leave a hole."""
    file.seek(tensor.stored_bytes, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", nargs="?", type=Path, default=Path(__file__).parent / "work")
    work = parser.parse_args().work
    generate_family(work)
    generate_giant(work)
    generate_many(work)


if __name__ == "__main__":
    main()
