"""The fingerprint of a model's tensors."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
import xxhash

from containers import digest
from deltasmith.engine.evaluator import Evaluator
from deltasmith.errors import InterruptedRunError
from deltasmith.formats import base_fingerprint
from deltasmith.formats.base_fingerprint import fingerprint
from deltasmith.formats.opening import open_model
from deltasmith.recipe.build import build
from deltasmith.recipe.checks import from_dict
from deltasmith.table.checkpoint import DictCheckpoint
from models import draw, stored, tuned, write_fp8, write_model


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def print_of(path):
    return fingerprint(open_model(str(path)).checkpoint)


def test_its_definition():
    arrays = {"b": np.arange(300_000, dtype=np.float32), "a": np.zeros((2, 0), np.int8), "": np.float64(3)}
    lines = [f"{n} {a.dtype.name} {list(a.shape)} {digest(a.tobytes())}\n" for n, a in sorted(arrays.items())]
    arrays = {n: np.asarray(a) for n, a in arrays.items()}
    assert fingerprint(DictCheckpoint(arrays)) == xxhash.xxh3_128_hexdigest("".join(lines).encode())


def test_it_does_not_depend_on_shards_or_their_order(tmp_path):
    arrays = draw(0)
    write_model(tmp_path / "one", arrays)
    write_model(tmp_path / "three", dict(reversed(arrays.items())), shards=3)
    assert print_of(tmp_path / "one") == print_of(tmp_path / "three")
    assert print_of(tmp_path / "one" / "model.safetensors") == print_of(tmp_path / "one")
    values = stored(arrays, "bfloat16")
    assert print_of(tmp_path / "one") != fingerprint(
        DictCheckpoint({n: v.astype(np.float32) for n, v in values.items()})
    )


@pytest.mark.parametrize("change", ["a bit", "a name", "a shape", "a type", "one tensor less"])
def test_everything_counts(change):
    arrays = {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 3), np.int32)}
    other = {n: a.copy() for n, a in arrays.items()}
    if change == "a bit":
        other["a"].view(np.uint8)[17] ^= 4
    elif change == "a name":
        other["c"] = other.pop("b")
    elif change == "a shape":
        other["b"] = other["b"].reshape(3, 2)
    elif change == "a type":
        other["a"] = other["a"].view(np.int32)
    else:
        del other["b"]
    assert fingerprint(DictCheckpoint(other)) != fingerprint(DictCheckpoint(arrays))


def test_an_untouched_model_is_not_hashed_twice(tmp_path, monkeypatch):
    write_model(tmp_path / "m", draw(0))
    old = time.time() - 60
    os.utime(tmp_path / "m" / "model.safetensors", (old, old))
    real = time.time_ns
    monkeypatch.setattr("time.time_ns", lambda: real() + 10**10)
    cache = base_fingerprint.HashCache
    monkeypatch.setattr(base_fingerprint, "HashCache", lambda path: cache(path, time.time_ns))
    found = print_of(tmp_path / "m")
    with monkeypatch.context() as patch:
        patch.setattr(base_fingerprint, "_tensor_hash", None)
        assert print_of(tmp_path / "m") == found
    weights = tmp_path / "m" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert print_of(tmp_path / "m") != found


def test_values_that_are_computed_from_the_same_files_are_not_taken_for_them(tmp_path, monkeypatch):
    """A recipe reads the base's files too, and is another model."""
    write_model(tmp_path / "base", draw(0))
    write_model(tmp_path / "m0", tuned(draw(0), 0))
    known = {}
    cache = base_fingerprint.HashCache
    monkeypatch.setattr(cache, "remember", lambda self, key, digest, files: known.update({key: digest}))
    monkeypatch.setattr(cache, "recall", lambda self, key: known.get(key))
    prints = {print_of(tmp_path / "base")}
    assert known
    for scale in (0.5, 0.25):
        tree = {"base": str(tmp_path / "base"), "models": [{"model": str(tmp_path / "m0")}], "merge": "sum"}
        prints.add(fingerprint(Evaluator(build(from_dict(tree | {"scale": scale}, tmp_path)).plan)))
    assert len(prints) == 3


def test_scaled_fp8_counts_as_it_is_read(tmp_path):
    write_fp8(tmp_path / "scaled", draw(0))
    inner = tmp_path / "scaled" / "model.safetensors"
    before = print_of(tmp_path / "scaled")
    assert before == print_of(tmp_path / "scaled")
    data = bytearray(inner.read_bytes())
    data[-1] ^= 0x40
    inner.write_bytes(data)
    assert print_of(tmp_path / "scaled") != before


def test_it_stops_when_asked():
    with pytest.raises(InterruptedRunError):
        fingerprint(DictCheckpoint({"a": np.zeros(3, np.float32)}), lambda: True)
