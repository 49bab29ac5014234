"""Looking into a packed delta: figures that add up to the file."""

from __future__ import annotations

import json
import math
import shutil
import struct

import numpy as np
import pytest

from containers import DOCUMENT, EVERY, Parts, changed, packed, words
from deltasmith.errors import DamagedInputError, RefusedError
from deltasmith.formats.opening import open_model
from deltasmith.formats.packed import open_packed
from deltasmith.formats.packed_model import PackedModel
from deltasmith.packing import inspect, pack
from models import family


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = family(tmp_path_factory.mktemp("inspect") / "models", experts=1)
    packed(made.root, rules=EVERY)
    return made


def test_the_figures_add_up_to_the_file(models):
    found = inspect(models.root / "packed")
    path = models.root / "packed" / "delta.safetensors"
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    document = open_packed(path).file.specs[DOCUMENT].nbytes
    assert found.nbytes == path.stat().st_size
    assert sum(line.nbytes for line in found.lines) + document + 8 + length == found.nbytes
    for group in ("tensor", "layer", "projection", "codec", "model"):
        lines = found.by(group)
        assert sum(line.tensors for line in lines) == len(models.base)
        assert sum(line.nbytes for line in lines) == sum(line.nbytes for line in found.lines)
        assert sum(line.elements for line in lines) == sum(a.size for a in models.base.values())
    assert len(found.by("model")) == 1
    assert {line.name for line in found.by("layer")} >= {"model.layers.0", "model.layers.1", "lm_head.weight"}
    assert {line.name.partition(":")[0] for line in found.by("codec")} == {
        "bitdelta", "residual_bits", "low_rank", "claq", "sparse", "magnitude_blocks", "bitdelta_random", "dense",
        "lossless",
    }  # fmt: skip


def test_the_errors_are_those_of_the_decoded_deltas(models):
    """Measured again, from the outside, in float64."""
    base = open_model(str(models.root / "base")).checkpoint
    tune = open_model(str(models.root / "m0")).checkpoint
    model = PackedModel.over(open_packed(models.root / "packed").delta(), base)
    for line in inspect(models.root / "packed").lines:
        near, ground, exact = (np.empty(line.elements, np.float32) for _ in range(3))
        base.read(line.name, 0, ground)
        tune.read(line.name, 0, exact)
        exact -= ground
        if model.holds_delta(line.name):
            model.read_delta(line.name, 0, near)
        else:
            model.read(line.name, 0, near)
            near -= ground
        error = np.linalg.norm(near.astype(np.float64) - exact) / np.linalg.norm(exact.astype(np.float64))
        assert math.isclose(line.relative_error, error, rel_tol=1e-4, abs_tol=1e-6), line


def test_as_json(models):
    found = inspect(models.root / "packed").as_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["label"] == "m0"
    assert found["labels"] == ["m0"]
    assert found["base"]["name"] == "base"
    assert set(found["tensor"][0]) == {
        "name",
        "codec",
        "tensors",
        "elements",
        "nbytes",
        "bits",
        "ratio",
        "relative_error",
    }
    line = next(line for line in found["tensor"] if line["codec"] == "bitdelta")
    assert line["bits"] == 8 * line["nbytes"] / line["elements"]
    assert line["ratio"] == line["bits"] / 16


def test_no_base_is_needed(models, tmp_path):
    shutil.copytree(models.root / "packed", tmp_path / "alone")
    assert inspect(tmp_path / "alone").lines == inspect(models.root / "packed").lines
    assert inspect(tmp_path / "alone" / "delta.safetensors").lines == inspect(models.root / "packed").lines


def test_labels(models, tmp_path):
    shutil.copytree(models.root / "packed", tmp_path / "both")
    changed(tmp_path / "both", lambda p: p.document["deltas"].update(other=p.document["deltas"]["m0"]))
    both, one = inspect(tmp_path / "both"), inspect(f"{tmp_path / 'both'}#other")
    assert both.label == "m0, other"
    assert len(both.lines) == 2 * len(one.lines)
    assert one.label == "other"
    with pytest.raises(RefusedError, match="no delta 'x'"):
        inspect(f"{tmp_path / 'both'}#x")


def test_what_is_none(models, tmp_path):
    for other in ("base", "base/config.json", "base/model.safetensors", "base#m0"):
        with pytest.raises(RefusedError, match="packed delta"):
            inspect(models.root / other if "#" not in other else str(models.root / other))
    with pytest.raises(DamagedInputError, match="nothing lies at"):
        inspect(tmp_path / "nothing")


def test_deltas_of_nothing_and_errors_of_nothing(models, tmp_path):
    pack(models.root / "base", models.root / "base", tmp_path / "same", label="same")
    assert all(line.relative_error == 0 for line in inspect(tmp_path / "same").lines)
    parts = Parts.of(tmp_path / "same")
    assert words(tmp_path / "same", models.root / "base") == words(models.root / "base")
    assert any(record["squared_norm"] == 0 for record in parts.document["deltas"]["same"]["tensors"].values())
