"""The fingerprint of a model's tensors: the same however they are sharded, another if a single bit differs.

xxh3_128 over one line per tensor in order of names, `NAME DTYPE SHAPE HASH` and a line feed, HASH being the
tensor's hash as in manifest.json. It tells models apart that were mistaken for each other; against a forger it is
no protection.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

from deltasmith.formats.fingerprint import HashCache, cache_path
from deltasmith.formats.hashing import CHUNK, ChunkHasher
from deltasmith.table.checkpoint import Checkpoint, Spec

__all__ = ["fingerprint"]

_KEY = "fingerprint-1"


def fingerprint(checkpoint: Checkpoint) -> str:
    """Hash every tensor of a checkpoint; remembered while its files do not change."""
    cache = HashCache(cache_path())
    states = _states(checkpoint)
    key = _key(states) if states else None
    if key is not None and (known := cache.recall(key)):
        return known
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    specs = [checkpoint.specs[name] for name in sorted(checkpoint.specs)]
    with ThreadPoolExecutor(threads) as pool:
        digests = list(pool.map(lambda spec: _tensor_hash(checkpoint, spec), specs))
    state = xxhash.xxh3_128()
    for spec, digest in zip(specs, digests, strict=True):
        state.update(f"{spec.name} {spec.dtype.name} {list(spec.shape)} {digest}\n".encode())
    found = str(state.hexdigest())
    if key is not None:
        cache.remember(key, found, states)
    return found


def _tensor_hash(checkpoint: Checkpoint, spec: Spec) -> str:
    hasher = ChunkHasher(spec.nbytes)
    step = CHUNK // spec.dtype.itemsize
    for start in range(0, spec.size, step):
        stop = min(spec.size, start + step)
        hasher.add(start * spec.dtype.itemsize, checkpoint.raw(spec.name, start, stop))
    return hasher.digest()


def _states(checkpoint: Checkpoint) -> list[os.stat_result]:
    """Look at all files; none if one is gone."""
    try:
        return [Path(source.path).stat() for source in checkpoint.sources]
    except OSError:
        return []


def _key(states: list[os.stat_result]) -> str:
    """Name the present state of all files."""
    text = repr(sorted((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in states))
    return f"{_KEY}:{xxhash.xxh3_128_hexdigest(text.encode())}"
