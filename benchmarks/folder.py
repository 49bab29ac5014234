"""Writes model folders as Hugging Face lays them out: shard by shard, headers first, never a whole model."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

__all__ = ["Tensor", "complete", "llama_config", "shards_of", "write_folder"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A name and a shape; every tensor of the benchmark is stored as bfloat16."""

    name: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def stored_bytes(self) -> int:
        return 2 * self.elements


def llama_config(
    *, hidden: int, inner: int, layers: int, heads: int, vocab: int, tied: bool
) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": hidden // heads,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "vocab_size": vocab,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "bfloat16",
    }


def shards_of(tensors: Iterable[Tensor], limit_bytes: int) -> list[list[Tensor]]:
    """Fill shards in the given order; a tensor larger than the limit gets a shard of its own."""
    shards: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.stored_bytes > limit_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.stored_bytes
    return shards


def complete(folder: Path, stamp: dict[str, Any]) -> bool:
    """Say whether the folder was written to its end by this very description."""
    mark = _mark(folder)
    return mark.is_file() and json.loads(mark.read_text()) == stamp


def write_folder(
    folder: Path,
    shards: list[list[Tensor]],
    config: dict[str, Any],
    stamp: dict[str, Any],
    fill: Callable[[IO[bytes], Tensor], None],
) -> None:
    """Write config, tokenizer, index and shards; `fill` writes one tensor's bytes at the file's position."""
    folder.mkdir(parents=True, exist_ok=True)
    _mark(folder).unlink(missing_ok=True)
    _dump(folder / "config.json", config)
    _dump(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    _write_tokenizer(folder, config["vocab_size"])
    placed = {}
    for file_name, shard in zip(_file_names(len(shards)), shards, strict=True):
        placed.update({tensor.name: file_name for tensor in shard})
        _write_shard(folder / file_name, shard, fill)
    if len(shards) > 1:
        total = sum(tensor.stored_bytes for shard in shards for tensor in shard)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
        _dump(folder / "model.safetensors.index.json", index)
    _dump(_mark(folder), stamp)


def _mark(folder: Path) -> Path:
    """Name the file beside the folder that is written last: without it, the folder is generated again."""
    return folder.with_name(f"{folder.name}.complete.json")


def _file_names(count: int) -> Iterator[str]:
    if count == 1:
        yield "model.safetensors"
        return
    for number in range(1, count + 1):
        yield f"model-{number:05d}-of-{count:05d}.safetensors"


def _write_shard(path: Path, shard: list[Tensor], fill: Callable[[IO[bytes], Tensor], None]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in shard:
        start, end = end, end + tensor.stored_bytes
        header[tensor.name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (
        -len(text) % 8
    )  # safetensors aligns the data to 8 bytes by padding the header with spaces
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in shard:
            fill(file, tensor)
        file.flush()
        os.ftruncate(file.fileno(), 8 + len(text) + end)


def _write_tokenizer(folder: Path, vocab: int) -> None:
    """Write the least tokenizer that loads: numbered tokens, no merges. Nothing is ever tokenised with it."""
    special = ["<unk>", "<s>", "</s>"]
    tokens = special + [f"t{number}" for number in range(len(special), vocab)]
    added = [
        {
            "id": number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for number, token in enumerate(special)
    ]
    model = {
        "type": "BPE",
        "unk_token": "<unk>",
        "vocab": {token: number for number, token in enumerate(tokens)},
        "merges": [],
    }
    _dump(folder / "tokenizer.json", {"version": "1.0", "added_tokens": added, "model": model})
    _dump(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
        },
    )


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")
