"""Experts packed in memory, and what is measured."""

from __future__ import annotations

from collections import Counter

import ml_dtypes
import numpy as np
import pytest

from deltasmith.codecs.catalogue import CODECS, codec_from
from deltasmith.codecs.protocol import Cell
from deltasmith.lab import family_folder
from deltasmith.lab.bench import Bench
from deltasmith.lab.packed import curves
from deltasmith.lab.packed.coding import code, linears
from deltasmith.lab.packed.containers import packed_expert, read_back
from deltasmith.lab.packed.points import GROUPS, POINTS
from deltasmith.packing import pack
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES

MATRIX = "model.layers.0.mlp.up_proj.weight"


def tensors() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (16, 8), MATRIX: (24, 8), "model.norm.weight": (8,)}
    base = {name: _rounded(random.standard_normal(shape)) for name, shape in shapes.items()}
    return base, {name: _rounded(v + 0.05 * random.standard_normal(v.shape)) for name, v in base.items()}


def _rounded(values: np.ndarray) -> np.ndarray:
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def test_linears_take_the_codec_and_all_else_is_exact() -> None:
    base, expert = tensors()
    found = code(base, expert, linears(codec_from("bitdelta")), label="a")
    delta = expert[MATRIX] - base[MATRIX]
    near = np.where(delta > 0, 1, -1) * np.float32(np.abs(delta).mean())
    assert np.array_equal(found.tensors[MATRIX], _rounded(base[MATRIX] + near.astype(np.float32)))
    for name in expert:
        assert name == MATRIX or np.array_equal(found.tensors[name], expert[name])
    wanted = np.linalg.norm(expert[MATRIX] - found.tensors[MATRIX]) / np.linalg.norm(delta)
    assert found.error == pytest.approx(wanted, rel=1e-5)
    exact = code(base, expert, linears(codec_from("lossless")), label="a")
    assert all(np.array_equal(exact.tensors[name], expert[name]) for name in expert)
    assert exact.error == 0
    # 192 elements in a bit each and a scale, instead of exactly.
    cell = Cell(Spec(MATRIX, (24, 8), DTYPES["bfloat16"]), Spec(MATRIX, (24, 8), DTYPES["bfloat16"]))
    words, ahead = (v.astype(ml_dtypes.bfloat16).view(np.uint16) for v in (expert[MATRIX], base[MATRIX]))
    arrays = codec_from("lossless").encode(words, cell, ahead)
    assert exact.nbytes - found.nbytes == sum(a.nbytes for a in arrays.values()) - (192 // 8 + 4)
    assert found.ratio == pytest.approx(found.nbytes / (2 * sum(v.size for v in expert.values())))


def test_edited_deltas_and_weights() -> None:
    base, expert = tensors()
    none = {name: np.zeros_like(value) for name, value in base.items()}
    found = code(base, expert, linears(codec_from("sparse")), label="a", edited=none)
    assert np.array_equal(found.tensors[MATRIX], base[MATRIX])
    assert found.error == pytest.approx(1)
    weights = code(base, expert, linears(codec_from("claq:bits=4,of=weight")), label="a", edited=none)
    assert np.linalg.norm(weights.tensors[MATRIX] - expert[MATRIX]) < 0.2 * np.linalg.norm(expert[MATRIX])


def test_seeds_and_labels_draw_other_magnitudes() -> None:
    base, expert = tensors()
    choose = linears(codec_from("bitdelta_random"))
    draws = [
        code(base, expert, choose, label=label, seed=s).tensors[MATRIX]
        for label, s in [("a", 0), ("a", 1), ("b", 0)]
    ]
    again = code(base, expert, choose, label="a", seed=0).tensors[MATRIX]
    assert np.array_equal(draws[0], again)
    assert not np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_points_cover_the_codecs_once_each() -> None:
    codecs = {codec_from(point.codec) for point in POINTS}
    names = {point.codec.partition(":")[0] for point in POINTS}
    assert names == set(CODECS) - {
        "emr",
        "dense",
        "zero",
    }  # emr has a table of its own, the others nothing to show
    assert len(codecs) > 40
    counts = Counter((point.group, point.name) for point in POINTS)
    assert max(counts.values()) == 1
    assert {point.group for point in POINTS} | {"budget"} == set(GROUPS)


def test_memory_and_container_agree() -> None:
    bench = Bench(family_folder(), 0, "small", ("code",))
    base, expert = bench.tensors(bench.base), bench.tensors(bench.expert("code"))
    found = code(base, expert, linears(codec_from("claq:bits=2")), label="code")
    with packed_expert(bench, "code", pack, codec="claq:bits=2") as container:
        stored = read_back(bench, container.path)
    assert found.nbytes == stored.nbytes
    assert all(np.array_equal(found.tensors[name], stored.tensors[name]) for name in expert)


def test_rows_of_a_few_points() -> None:
    bench = Bench(family_folder(), 0, "small", ("code",), held_out={"test": 12, "validation": 4})
    chosen = [p for p in POINTS if (p.group, p.name) in {("dare", "density 0.1"), ("lossless", "exact")}]
    rows = list(curves.run(bench, chosen, budgets=(0.2,)))
    groups = [row.keys["group"] for row in rows]
    assert groups == ["base", "expert", "dare", "dare", "dare", "lossless", "budget"]
    assert [row.keys["mask_seed"] for row in rows] == [0, 0, 0, 1, 2, 0, 0]
    by_group = {str(row.keys["group"]): row for row in rows}
    assert np.array_equal(by_group["lossless"].right, by_group["expert"].right)
    assert by_group["expert"].accuracy > by_group["base"].accuracy
    assert 0 < float(str(by_group["budget"].keys["ratio"])) < 0.2
    assert {row.right.size for row in rows} == {12}
    assert len({row.keys["error"] for row in rows if row.keys["group"] == "dare"}) == 3
