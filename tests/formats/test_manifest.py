"""manifest.json: the agreed shape, the same bytes for the same run, nothing of this machine."""

import json
from pathlib import Path

import pytest

from deltasmith.formats.manifest import InputFile, InputRecord, Lineage, Manifest, TensorRecord, shown_source


def example(**changes):
    tensors = {
        "b": TensorRecord("float32", (), "model.safetensors", "0" * 32, "base"),
        "a\u2028": TensorRecord("bfloat16", (2, 3), "model.safetensors", "1" * 32),
    }
    fields = {
        "version": "0.1.0",
        "recipe": {
            "base": "/home/me/base",
            "models": [{"model": "org/math", "weight": 1.0}],
            "merge": {"sum": {}},
        },
        "seed": 7,
        "inputs": [
            InputRecord("base", "/home/me/base/", None, {"model.safetensors": InputFile(10, "ab" * 32)}),
            InputRecord("math", "org/math", "c0ffee", {}),
        ],
        "lineage": Lineage("base", ("math",), "sum"),
        "tensors": tensors,
        "warnings": ["look"],
    }
    return Manifest(**{**fields, **changes})


def test_the_agreed_shape():
    text = example().encode()
    assert json.loads(text) == {
        "format": 1,
        "deltasmith": "0.1.0",
        "recipe": {"base": "base", "models": [{"model": "org/math", "weight": 1.0}], "merge": {"sum": {}}},
        "seed": 7,
        "inputs": [
            {
                "label": "base",
                "source": "base",
                "revision": None,
                "files": {"model.safetensors": {"bytes": 10, "sha256": "ab" * 32}},
            },
            {"label": "math", "source": "org/math", "revision": "c0ffee", "files": {}},
        ],
        "lineage": {"base": "base", "parents": ["math"], "merge": "sum"},
        "tensors": {
            "a\u2028": {
                "dtype": "bfloat16",
                "shape": [2, 3],
                "shard": "model.safetensors",
                "xxh3_128": "1" * 32,
                "from": "merged",
            },
            "b": {
                "dtype": "float32",
                "shape": [],
                "shard": "model.safetensors",
                "xxh3_128": "0" * 32,
                "from": "base",
            },
        },
        "warnings": ["look"],
    }
    assert text.decode("ascii").endswith("}\n")
    assert json.loads(example(tensors={}).encode())["tensors"] == {}


def test_fault_63_the_order_of_mappings_does_not_change_a_byte():
    one = example()
    other = example(tensors=dict(reversed(one.tensors.items())), recipe=dict(reversed(one.recipe.items())))
    assert one.encode() == other.encode()
    keys = [line.split('"')[1] for line in one.encode().decode().splitlines() if line.startswith('  "')]
    assert keys == sorted(keys)
    assert len([line for line in one.encode().decode().splitlines() if "xxh3_128" in line]) == 2


def test_nothing_tells_where_the_files_lay():
    recipe = {
        "base": Path("/secret/base"),
        "models": ({"model": "~/secret/m"}, {"model": "C:\\secret\\m"}, {"model": "file:///secret/m"}),
        "preset": ["/secret/deep/x"],
    }
    text = example(recipe=recipe).encode()
    assert b"secret" not in text
    assert json.loads(text)["recipe"] == {
        "base": "base",
        "models": [{"model": "m"}, {"model": "m"}, {"model": "m"}],
        "preset": ["x"],
    }


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("org/model", "org/model"),
        ("gpt2", "gpt2"),
        ("./math", "math"),
        ("../models/math/", "math"),
        ("a/b/math", "math"),
        ("/x/math/", "math"),
        ("~/math", "math"),
        ("C:\\models\\math", "math"),
        ("/", "root"),
    ],
)
def test_sources(source, shown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shown_source(source) == shown
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert shown_source("org/model") == "model"  # a folder of that name: no hub id
    assert shown_source(".") == tmp_path.name


def test_numbers_that_json_lacks_are_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        example(recipe={"weight": float("nan")}).encode()
