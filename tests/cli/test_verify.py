"""`deltasmith verify`: whole models pass, anything else is exit 6 with the reason."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from models import check_refusal, family, run, tree, write_model


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    models = family(tmp_path_factory.mktemp("verify") / "models")
    out = models.root.parent / "out"
    assert run("merge", models.recipe(preset="ties"), out, "--quiet", "--shard-size", "5K").code == 0
    return out


@pytest.fixture
def out(merged, tmp_path):
    """Copy the output, so that it can be damaged."""
    copy = tmp_path / "out"
    copy.mkdir()
    for path in merged.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def first_shard(out):
    return min(out.glob("*.safetensors"))


def test_a_merge_passes_and_is_not_touched(out):
    before = tree(out)
    result = run("verify", out)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("out: 21 tensors, ")
    assert result.out.endswith(" in 3 files; structure, hashes and values are right\n")
    told = run("verify", out, "--json", "--threads", "3").document
    assert (told["ok"], told["problems"], told["hashed"], told["tensors"]) == (True, [], True, 21)
    assert run("verify", out, "--quiet").out == ""
    assert tree(out) == before


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_one_flipped_bit(out, place):
    path = first_shard(out)
    data = bytearray(path.read_bytes())
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    data[{"first": begin, "middle": (begin + len(data)) // 2, "last": len(data) - 1}[place]] ^= 1
    path.write_bytes(data)
    check_refusal(run("verify", out), 6, "hash differs")


@pytest.mark.parametrize(
    "change", ["truncate", "extend", "remove", "rename a tensor", "extra shard", "empty"]
)
def test_damaged_weights(out, change):
    path = first_shard(out)
    data = path.read_bytes()
    if change == "truncate":
        path.write_bytes(data[:-1])
    elif change == "extend":
        path.write_bytes(data + b"\0")
    elif change == "remove":
        path.unlink()
    elif change == "rename a tensor":
        path.write_bytes(data.replace(b"lm_head.weight", b"lm_head.weighs"))
    elif change == "empty":
        path.write_bytes(b"")
    else:
        (out / "model-extra.safetensors").write_bytes(data)
    check_refusal(run("verify", out), 6, "out")


@pytest.mark.parametrize(
    "change", ["not JSON", "other format", "wrong shape", "tensor missing", "tensor extra"]
)
def test_damaged_manifests(out, change):
    path = out / "manifest.json"
    manifest = json.loads(path.read_text())
    if change == "other format":
        manifest["format"] = 2
    elif change == "wrong shape":
        manifest["tensors"]["model.norm.weight"]["shape"] = [17]
    elif change == "tensor missing":
        del manifest["tensors"]["model.norm.weight"]
    elif change == "tensor extra":
        manifest["tensors"]["x"] = manifest["tensors"]["model.norm.weight"]
    path.write_text("{" if change == "not JSON" else json.dumps(manifest))
    check_refusal(run("verify", out), 6, "manifest.json" if "shape" not in change else "model.norm.weight")


def test_an_index_that_disagrees(out):
    path = out / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = first_shard(out).name
    path.write_text(json.dumps(index))
    check_refusal(run("verify", out), 6, "model.norm.weight")


def test_leftovers_of_an_unfinished_run(out):
    (out / "journal.jsonl").write_text("{}")
    check_refusal(run("verify", out), 6, "journal.jsonl")


def test_models_of_others_are_checked_without_hashes(tmp_path):
    write_model(tmp_path / "m", {"a": np.ones((3, 3), np.float32)})
    result = run("verify", tmp_path / "m")
    assert result.code == 0
    assert "no hashes" in result.out
    write_model(tmp_path / "m", {"a": np.array([1, np.inf, np.nan], np.float32)})
    check_refusal(run("verify", tmp_path / "m"), 6, "a has 2 values that are not finite")


def test_no_folder(tmp_path):
    check_refusal(run("verify", tmp_path / "none"), 3, "none")
