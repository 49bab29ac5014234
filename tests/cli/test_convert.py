"""`deltasmith convert`: the same bits in another container."""

from __future__ import annotations

import importlib.util
import json
import pickle
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from deltasmith.formats.output import Output
from models import (
    check_refusal,
    draw,
    family,
    hashes,
    read_model,
    run,
    stored,
    tree,
    write_adapter,
    write_model,
)

HAS_TORCH = importlib.util.find_spec("torch") is not None


@pytest.mark.parametrize("shards", [1, 3])
def test_folders(tmp_path, shards):
    write_model(tmp_path / "in", draw(0), shards=shards)
    before = tree(tmp_path / "in")
    result = run("convert", tmp_path / "in", tmp_path / "out", "--json")
    assert result.code == 0, result
    assert result.document["tensors"] == 21
    wanted = stored(draw(0), "bfloat16")
    got = read_model(tmp_path / "out")
    assert {n: a.tobytes() for n, a in got.items()} == {n: a.tobytes() for n, a in wanted.items()}
    assert tree(tmp_path / "in") == before
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()
    assert run("verify", tmp_path / "out").code == 0


def test_npz_files_of_every_type(tmp_path):
    kinds = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
    arrays = {kind: np.arange(6).reshape(2, 3).astype(kind) for kind in kinds} | {
        "scalar": np.float32(2.5),
        "empty": np.zeros((0, 3), np.float32),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    }
    for save in (np.savez, np.savez_compressed):
        path = tmp_path / f"{save.__name__}.npz"
        save(path, **arrays)
        out = tmp_path / save.__name__
        assert run("convert", path, out, "--quiet").code == 0
        for name, array in read_model(out).items():
            np.testing.assert_array_equal(array, arrays[name])
            assert array.dtype == np.asarray(arrays[name]).dtype


def test_shard_sizes(tmp_path):
    write_model(tmp_path / "in", draw(0))
    assert run("convert", tmp_path / "in", tmp_path / "out", "--shard-size", "3K", "--quiet").code == 0
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
    assert run("verify", tmp_path / "out").code == 0
    assert run("convert", tmp_path / "in", tmp_path / "one", "--quiet").code == 0
    assert hashes(tmp_path / "one") == hashes(tmp_path / "out")


def test_not_a_number_is_copied_like_any_other_bits(tmp_path):
    arrays = {"a": np.array([np.nan, np.inf, -0.0, 1e-45], np.float32)}
    write_model(tmp_path / "in", arrays, "float32")
    assert run("convert", tmp_path / "in", tmp_path / "out", "--quiet").code == 0
    assert read_model(tmp_path / "out")["a"].tobytes() == arrays["a"].tobytes()


def test_what_is_refused(tmp_path):
    models = family(tmp_path / "models", experts=1)
    write_adapter(models.root / "adapter", models.base, 1)
    out = tmp_path / "out"
    check_refusal(run("convert", models.root / "adapter", out), 1, "adapter")
    check_refusal(run("convert", models.root / "none", out), 3, "none")
    check_refusal(run("convert", models.root / "none.bin", out), 3, "none.bin")
    check_refusal(run("convert", models.root / "base", models.root / "base" / "x"), 1, "output")
    check_refusal(run("convert", models.root / "base", models.root / "base"), 1, "output")
    assert not out.exists()
    out.mkdir()
    (out / "x").write_text("mine")
    check_refusal(run("convert", models.root / "base", out), 1, "--overwrite")


class Evil:
    """Unpickling this would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_is_not_run(tmp_path):
    canary = tmp_path / "canary"
    (tmp_path / "model.bin").write_bytes(pickle.dumps({"a": Evil(canary)}))
    result = run("convert", tmp_path / "model.bin", tmp_path / "out")
    check_refusal(result, 3 if HAS_TORCH else 2, "model.bin")
    assert HAS_TORCH or 'pip install "deltasmith[torch]"' in result.err
    assert not canary.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
def test_torch_files(tmp_path):
    import torch

    tensors = {
        "a": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "b": torch.ones(3, dtype=torch.int64),
    }
    for name, document in (("plain.pt", tensors), ("nested.ckpt", {"state_dict": tensors, "epoch": 3})):
        torch.save(document, tmp_path / name)
        result = run("convert", tmp_path / name, tmp_path / f"out-{name}", "--quiet")
        assert result.code == 0, result
        got = read_model(tmp_path / f"out-{name}")
        np.testing.assert_array_equal(got["a"].astype(np.float32), np.arange(6).reshape(2, 3))
        np.testing.assert_array_equal(got["b"], 1)


def test_the_manifest_holds_sizes_and_hashes_of_the_input(tmp_path):
    write_model(tmp_path / "in", draw(0), shards=3)
    assert run("convert", tmp_path / "in", tmp_path / "out", "--quiet").code == 0
    (given,) = json.loads((tmp_path / "out" / "manifest.json").read_text())["inputs"]
    shards = sorted((tmp_path / "in").glob("*.safetensors"))
    wanted = {
        p.name: {"bytes": p.stat().st_size, "sha256": sha256(p.read_bytes()).hexdigest()} for p in shards
    }
    assert given["files"] == wanted


def test_an_interrupted_conversion_is_not_continued_with_another_source(tmp_path, monkeypatch):
    """The layouts are equal; only the values differ, so only their hashes can tell the sources apart."""
    stamps = []
    real = Output.open

    def spy(out, layout, plan_hash, **options):
        stamps.append((layout.digest, plan_hash))
        return real(out, layout, plan_hash, **options)

    monkeypatch.setattr(Output, "open", spy)
    for i in range(2):
        write_model(tmp_path / f"in{i}", draw(i))
        assert run("convert", tmp_path / f"in{i}", tmp_path / f"out{i}", "--quiet").code == 0
    (first_layout, first), (second_layout, second) = stamps
    assert first_layout == second_layout
    assert first[:8] != second[:8]
