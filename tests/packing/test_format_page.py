"""docs/format.md describes the container: a reader written from the page reads what deltasmith reads."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import numpy as np
import page_reader
import pytest

from containers import EVERY, digest, words
from deltasmith.codecs.catalogue import CODECS, codec_class
from deltasmith.kernels.bits import GOLDEN, MIX_1, MIX_2
from deltasmith.packing import pack
from deltasmith.packing.unified import pack_unified
from models import BF16, family, write_model

TESTS = Path(__file__).parent.parent
TEXTS = runpy.run_path(str(TESTS / "codecs" / "codecs_examples.py"))["TEXTS"]
PAGE = (TESTS.parent / "docs" / "format.md").read_text()


def read(packed, base):
    found = page_reader.read(packed / "delta.safetensors", base / "model.safetensors")
    return {label: {n: w.tobytes() for n, w in tensors.items()} for label, tensors in found.items()}


def test_the_reader_knows_the_page_alone():
    source = Path(page_reader.__file__).read_text()
    imported = {
        name.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in node.names
    }
    assert imported == {
        "json",
        "math",
        "struct",
        "statistics",
        "itertools",
        "pathlib",
        "numpy",
        "xxhash",
        "zstandard",
    }
    assert len([line for line in source.splitlines() if line.strip()]) <= 210


def test_the_page_names_every_codec_and_every_field():
    for name in CODECS:
        section = re.search(rf"^### `{name}` \((.*?)\)\n(.*?)(?=^##)", PAGE, re.MULTILINE | re.DOTALL)
        assert section, f"docs/format.md does not describe {name}"
        for field in codec_class(name).model_fields:
            assert f"`{field}`" in section[2], f"docs/format.md does not name {name}'s {field}"
    assert set(re.findall(r"^### `(\w+)` \(", PAGE, re.MULTILINE)) == set(CODECS)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A base and a fine-tune with zeros in the delta, tensors of many blocks, and some of odd shapes."""
    root = tmp_path_factory.mktemp("page")
    random = np.random.default_rng(7)
    shapes = {
        "layers.0.up.weight": (700, 400),
        "layers.0.experts.w": (3, 40, 30),
        "layers.0.conv": (20, 5, 3),
        "layers.1.w": (64, 130),
        "norm": (100,),
        "one": (1, 1),
        "empty": (0, 4),
    }
    base = {n: (random.normal(size=s) * 0.1).astype(np.float32) for n, s in shapes.items()}
    tune = {
        n: np.where(random.random(a.shape) < 0.3, a, a + random.normal(size=a.shape) * 3e-3)
        for n, a in base.items()
    }
    tune["layers.1.w"] = np.where(random.random((64, 130)) < 0.99, base["layers.1.w"], tune["layers.1.w"])
    write_model(root / "base", base)
    write_model(root / "bf16", {n: a.astype(np.float32) for n, a in tune.items()})
    write_model(root / "f32", {n: a.astype(np.float32) for n, a in tune.items()}, "float32")
    write_model(root / "f16", {n: a.astype(np.float32) for n, a in tune.items()}, "float16")
    return root


OTHERS = [
    (text, kind) for text in ("lossless", "bitdelta", "sparse:values=float32") for kind in ("f32", "f16")
]


@pytest.mark.parametrize(("text", "kind"), [*((text, "bf16") for text in TEXTS), *OTHERS])
def test_every_codec(pair, tmp_path, text, kind):
    pack(pair / "base", pair / kind, tmp_path / "packed", codec=text, where="*", threads=1)
    assert read(tmp_path / "packed", pair / "base") == {kind: words(tmp_path / "packed", pair / "base")}


def test_every_codec_in_one_container(tmp_path):
    family(tmp_path, experts=1)
    pack(tmp_path / "base", tmp_path / "m0", tmp_path / "packed", rules=EVERY)
    assert read(tmp_path / "packed", tmp_path / "base")["m0"] == words(tmp_path / "packed")


def test_several_deltas(tmp_path):
    family(tmp_path, experts=2)
    pack_unified(tmp_path / "base", [tmp_path / "m0", tmp_path / "m1"], tmp_path / "packed")
    found = read(tmp_path / "packed", tmp_path / "base")
    assert found == {label: words(f"{tmp_path / 'packed'}#{label}") for label in ("m0", "m1")}


def test_integers_wide_floats_and_tensors_of_the_model_alone(tmp_path):
    from safetensors.numpy import save_file

    random = np.random.default_rng(1)
    base = {
        "a": random.normal(size=(50, 40)),
        "b": random.integers(-(10**9), 10**9, 3000),
        "c": (random.random(999) < 0.5),
        "d": random.integers(0, 200, 999).astype(np.uint8),
        "e": random.normal(size=5000).astype(BF16),
    }
    tune = {
        "a": base["a"] * (1 + 1e-12 * random.integers(-300, 300, (50, 40))),
        "b": base["b"] + random.integers(-5, 6, 3000) ** 5,
        "c": base["c"] ^ (random.random(999) < 0.1),
        "d": base["d"] + 1,
        "e": random.normal(size=5000).astype(np.float32),
        "f": random.normal(size=300_000).astype(np.float16) * 1,
    }
    tune["f"][:1000] = 0
    for name, arrays in (("base", base), ("m0", tune)):
        write_model(tmp_path / name, {})
        save_file(arrays, tmp_path / name / "model.safetensors")
    tune["f"] = tune["f"][:2000]
    save_file(tune, tmp_path / "m0" / "model.safetensors")
    pack(tmp_path / "base", tmp_path / "m0", tmp_path / "packed", rest="lossless")
    found = read(tmp_path / "packed", tmp_path / "base")["m0"]
    assert found == {n: a.tobytes() for n, a in tune.items()}


def test_numbers_the_page_gives():
    assert digest(b"") in PAGE
    for constant in (GOLDEN, MIX_1, MIX_2):
        assert f"0x{int(constant):016X}" in PAGE
