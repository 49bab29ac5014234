"""The fingerprint of a model's tensors: the same however they are sharded, another if a single bit differs.

xxh3_128 over one line per tensor in order of names, `NAME DTYPE SHAPE HASH` and a line feed, HASH being the
tensor's hash as in manifest.json. It tells models apart that were mistaken for each other; against a forger it is
no protection.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

from deltasmith.errors import InterruptedRunError
from deltasmith.formats.fingerprint import HashCache, cache_path
from deltasmith.formats.fp8 import Dequantised
from deltasmith.formats.hashing import CHUNK, ChunkHasher
from deltasmith.formats.hf_folder import ShardedCheckpoint
from deltasmith.formats.npz import NpzFile
from deltasmith.formats.safetensors_reader import SafetensorsFile
from deltasmith.table.checkpoint import Checkpoint, Spec

__all__ = ["fingerprint"]

_KEY = "fingerprint-1"
_PLAIN = (SafetensorsFile, ShardedCheckpoint, NpzFile, Dequantised)


def fingerprint(checkpoint: Checkpoint, stopped: Callable[[], bool] = lambda: False) -> str:
    """Hash every tensor of a checkpoint; remembered while its files do not change.

    Raises InterruptedRunError soon after `stopped` has become true.
    """
    cache = HashCache(cache_path())
    states = _states(checkpoint)
    key = _key(checkpoint, states) if states else None
    if key is not None and (known := cache.recall(key)):
        return known
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    specs = [checkpoint.specs[name] for name in sorted(checkpoint.specs)]
    with ThreadPoolExecutor(threads) as pool:
        digests = list(pool.map(lambda spec: _tensor_hash(checkpoint, spec, stopped), specs))
    state = xxhash.xxh3_128()
    for spec, digest in zip(specs, digests, strict=True):
        state.update(f"{spec.name} {spec.dtype.name} {list(spec.shape)} {digest}\n".encode())
    found = str(state.hexdigest())
    if key is not None:
        cache.remember(key, found, states)
    return found


def _tensor_hash(checkpoint: Checkpoint, spec: Spec, stopped: Callable[[], bool]) -> str:
    hasher = ChunkHasher(spec.nbytes)
    step = CHUNK // spec.dtype.itemsize
    for start in range(0, spec.size, step):
        if stopped():
            raise InterruptedRunError("interrupted", fix="run the same command again to resume")
        stop = min(spec.size, start + step)
        hasher.add(start * spec.dtype.itemsize, checkpoint.raw(spec.name, start, stop))
    return hasher.digest()


def _states(checkpoint: Checkpoint) -> list[os.stat_result]:
    """Look at all files; none if one is gone, or if the values are computed, which the files do not tell."""
    if not isinstance(checkpoint, _PLAIN):
        return []
    try:
        return [Path(source.path).stat() for source in checkpoint.sources]
    except OSError:
        return []


def _key(checkpoint: Checkpoint, states: list[os.stat_result]) -> str:
    """Name the present state of all files, and how they are read."""
    specs = sorted((spec.name, spec.dtype.name, spec.shape) for spec in checkpoint.specs.values())
    files = sorted((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in states)
    text = repr((type(checkpoint).__name__, specs, files))
    return f"{_KEY}:{xxhash.xxh3_128_hexdigest(text.encode())}"
