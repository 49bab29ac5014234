"""Real models as far as their headers go: every tensor of every architecture is in the plan, once."""

from __future__ import annotations

import gzip
import json
import math
import os
from functools import cache
from pathlib import Path

import pytest

from models import run, write_recipe

DATA = Path(__file__).parent.parent / "data" / "names"
CODES = {"bfloat16": "BF16", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32"}
SIZES = {"BF16": 2, "F32": 4, "F16": 2, "I64": 8, "I32": 4}


@cache
def load(name):
    return json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))


def write_sparse(path, tensors):
    """Write a header, and a payload of zeros that takes no disk: {name: (shape, code)}."""
    header, position = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, code) in tensors.items():
        end = position + math.prod(shape) * SIZES[code]
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, path.stat().st_size + position)


def write_pair(root, tensors, config, shards=None):
    """Write a base and a model of the same tensors; `shards` maps names to files."""
    for label in ("base", "m0"):
        folder = root / label
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        if shards is None:
            write_sparse(folder / "model.safetensors", tensors)
            continue
        for shard in sorted(set(shards.values())):
            write_sparse(folder / shard, {n: t for n, t in tensors.items() if shards[n] == shard})
        index = {"metadata": {}, "weight_map": shards}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    entries = [{"model": "./m0", "label": "m0"}]
    return write_recipe(root / "r.yaml", {"base": "./base", "models": entries, "preset": "ties"})


def planned(recipe):
    result = run("plan", recipe, "--json")
    assert result.code == 0, result.err
    return result.document


def check_complete(plan, tensors):
    names = [t["name"] for t in plan["tensors"]]
    assert len(names) == len(set(names))
    assert set(names) == set(tensors)
    for row in plan["tensors"]:
        shape, code = tensors[row["name"]]
        assert row["shape"] == list(shape)
        assert CODES[row["dtype"]] == code
        assert row["from"] == ("base" if code.startswith("I") else "merged")
    assert plan["bytes_written"] >= sum(math.prod(s) * SIZES[c] for s, c in tensors.values())


def test_all_architectures_are_here():
    assert len(load("transformers")) == 41
    assert sum(len(m["tensors"]) for m in load("transformers").values()) == 18430


@pytest.mark.parametrize("name", load("transformers"))
def test_every_tensor_of_a_transformer_is_planned(tmp_path, name):
    model = load("transformers")[name]
    tensors = {n: (shape, "BF16") for n, shape in model["tensors"].items()}
    recipe = write_pair(tmp_path, tensors, {"model_type": name, "architectures": [model["class"]]})
    check_complete(planned(recipe), tensors)


@pytest.mark.parametrize(
    "name", [n for n, m in load("transformers").items() if m["tied"] == ["lm_head.weight"]]
)
def test_tied_heads_are_left_out_and_said(tmp_path, name):
    tensors = {n: (shape[-1:], "BF16") for n, shape in load("transformers")[name]["tensors"].items()}
    tensors["lm_head.weight"] = next(t for n, t in tensors.items() if "embed" in n or "wte" in n)
    recipe = write_pair(tmp_path, tensors, {"model_type": name, "tie_word_embeddings": True})
    plan = planned(recipe)
    assert {t["name"] for t in plan["tensors"]} == set(tensors) - {"lm_head.weight"}
    assert any("lm_head.weight" in note for note in plan["notes"])


@pytest.mark.parametrize("name", load("diffusion"))
def test_every_tensor_of_a_diffusion_model_is_planned(tmp_path, name):
    tensors = {n: (shape, CODES[dtype]) for n, (shape, dtype) in load("diffusion")[name].items()}
    check_complete(planned(write_pair(tmp_path, tensors, {"model_type": "diffusion"})), tensors)


@pytest.mark.parametrize("name", load("indexes"))
def test_every_tensor_of_a_published_index_is_planned(tmp_path, name):
    index = load("indexes")[name]
    tensors = {n: ((4, 2) if n.endswith("weight") else (3,), "BF16") for n in index["tensors"]}
    shards = {n: index["shards"][i] for n, i in index["tensors"].items()}
    recipe = write_pair(tmp_path, tensors, {"model_type": name}, shards)
    check_complete(planned(recipe), tensors)


def test_the_largest_index_has_22213_tensors():
    assert max(len(i["tensors"]) for i in load("indexes").values()) == 22213


def test_the_text_of_a_plan_groups_layers_and_counts_all(tmp_path):
    tensors = {n: (shape, "BF16") for n, shape in load("transformers")["qwen3_5_moe"]["tensors"].items()}
    recipe = write_pair(tmp_path, tensors, {"model_type": "qwen3_5_moe"})
    text = run("plan", recipe).out
    assert f"{len(tensors)} tensors;" in text
    assert len(text.splitlines()) < len(tensors)
