"""Factor space: sums, norms and cosines equal those of the matrices, and merged adapters equal the dense sum."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltasmith import api
from deltasmith.errors import RefusedError
from deltasmith.formats.adapter import open_adapter
from deltasmith.formats.opening import open_model
from deltasmith.packing.adapter_merge import Goal, adapters_of_recipe, merge_adapters
from deltasmith.packing.factors import Factors, concatenate, cosine, inner, norm, pairs_of, recompress
from models import draw, neighbours, write_adapter, write_model, write_recipe


def drawn(random, m, n, rank):
    return Factors(random.normal(size=(m, rank)), random.normal(size=(rank, n)))


def dense(f):
    return f.left @ f.right


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    m=st.integers(1, 12),
    n=st.integers(1, 12),
    ranks=st.lists(st.integers(0, 5), min_size=1, max_size=4),
)
def test_everything_equals_what_the_matrices_give(seed, m, n, ranks):
    random = np.random.default_rng(seed)
    parts = [(float(random.normal()), drawn(random, m, n, r)) for r in ranks]
    total = concatenate(parts)
    wanted = sum((w * dense(f) for w, f in parts), np.zeros((m, n)))
    scale = max(1.0, np.abs(wanted).max())
    assert total.rank == sum(ranks)
    assert np.allclose(dense(total), wanted, rtol=0, atol=1e-12 * scale)
    a, b = parts[0][1], total
    assert inner(a, b) == pytest.approx((dense(a) * dense(b)).sum(), rel=1e-9, abs=1e-9 * scale**2)
    assert norm(b) == pytest.approx(np.linalg.norm(dense(b)), rel=1e-6, abs=1e-6 * scale)
    both = np.linalg.norm(dense(a)) * np.linalg.norm(dense(b))
    if both > 1e-3:
        assert cosine(a, b) == pytest.approx((dense(a) * dense(b)).sum() / both, abs=1e-6)
    same, missed = recompress(total)
    assert same.rank <= min(m, n, max(1, total.rank))
    assert np.allclose(dense(same), wanted, rtol=0, atol=1e-10 * scale)
    assert missed <= 1e-20 * scale**2 * m * n


@pytest.mark.parametrize("ranks", [(3, 4), (9, 12)])
def test_fewer_columns_are_those_of_eckart_and_young(ranks):
    random = np.random.default_rng(4)
    total = concatenate([(1.0, drawn(random, 14, 11, r)) for r in ranks])
    u, s, vt = np.linalg.svd(dense(total), full_matrices=False)
    for rank in (1, 3, 6):
        near, missed = recompress(total, rank)
        assert near.rank == rank
        assert np.allclose(dense(near), (u[:, :rank] * s[:rank]) @ vt[:rank], atol=1e-10)
        assert missed == pytest.approx((s[rank:] ** 2).sum())
        assert np.allclose(np.linalg.norm(near.left, axis=0), np.linalg.norm(near.right, axis=1))
    for error in (0.7, 0.3, 0.05):
        near, missed = recompress(total, error=error)
        assert missed <= error**2 * (s**2).sum()
        assert (s[near.rank - 1 :] ** 2).sum() > error**2 * (s**2).sum()
    assert recompress(total, 2, 0.01)[0].rank == 2


def test_opposites_cancel():
    one = drawn(np.random.default_rng(1), 6, 5, 2)
    nothing = concatenate([(1.0, one), (-1.0, one)])
    assert nothing.rank == 4
    assert np.allclose(dense(recompress(nothing)[0]), 0, atol=1e-12)
    assert cosine(one, Factors(-one.left, one.right)) == pytest.approx(-1)
    assert cosine(one, concatenate([(0.0, one)])) == 0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("factors")
    base = draw(0)
    write_model(root / "base", base, "float32")
    deltas = [
        write_adapter(root / f"lora{i}", base, i, rank=r, alpha=a)
        for i, (r, a) in enumerate([(2, 4), (3, 3)])
    ]
    return root, base, deltas


def change(folder, base, name):
    column = open_adapter(folder).bind(base.specs)
    out = np.empty(base.specs[name].size, np.float32)
    column.read(name, 0, out)
    return out.reshape(base.specs[name].shape).astype(np.float64)


@pytest.mark.parametrize("named", [False, True])
def test_adapters_become_one_adapter(place, tmp_path, named):
    root, _arrays, deltas = place
    base = open_model(str(root / "base"))
    result = merge_adapters(
        [(root / "lora0", 0.5), (root / "lora1", -2.0)], tmp_path / "out", base=base if named else None
    )
    for name in deltas[0]:
        wanted = 0.5 * deltas[0][name] - 2.0 * deltas[1][name]
        assert np.abs(change(tmp_path / "out", base.checkpoint, name) - wanted).max() < 1e-7 * 10
        assert result.pairs[name].rank == 5
        assert result.pairs[name].squared_norm == pytest.approx((wanted**2).sum(), rel=1e-5)
    assert result.relative_error < 1e-6
    assert result.notes == ("2 adapters were merged by their factors, exactly but for rounding",)
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["r"] == settings["lora_alpha"] == 5
    assert settings["base_model_name_or_path"] == ("base" if named else "someone/base")
    short = {"q_proj", "v_proj"}
    assert (set(settings["target_modules"]) == short) is named
    assert api.verify(tmp_path / "out").ok


@pytest.mark.parametrize("goal", [Goal(rank=2), Goal(error=0.4), Goal(max_rank=3, dtype="bfloat16")])
def test_a_smaller_rank_tells_its_error(place, tmp_path, goal):
    root, _arrays, deltas = place
    base = open_model(str(root / "base"))
    result = merge_adapters([(root / "lora0", 1.0), (root / "lora1", 1.0)], tmp_path / "out", goal)
    for name, pair in result.pairs.items():
        wanted = deltas[0][name] + deltas[1][name]
        missed = np.linalg.norm(change(tmp_path / "out", base.checkpoint, name) - wanted)
        assert missed == pytest.approx(pair.squared_error**0.5, rel=1e-3)
        spectrum = np.linalg.svd(wanted, compute_uv=False)
        least = (spectrum[pair.rank :] ** 2).sum() ** 0.5
        assert missed == pytest.approx(least, rel=1e-3 if goal.dtype is None else 0.05)
        assert pair.rank == (
            goal.rank
            or goal.max_rank
            or int(np.argmax(np.cumsum(spectrum[::-1] ** 2)[::-1] <= 0.16 * (spectrum**2).sum()))
        )
    assert "8 of 8 tensors truncated" in result.notes[0] or "4 of 4" in result.notes[0]


def test_a_rank_beyond_the_matrix_is_not_needed(place, tmp_path):
    root, _arrays, deltas = place
    base = open_model(str(root / "base"))
    result = merge_adapters([(root / "lora1", 1.0)] * 7, tmp_path / "out")
    assert {p.rank for p in result.pairs.values()} == {3}  # copies of one adapter span what it spans
    name = next(iter(deltas[1]))
    assert np.allclose(change(tmp_path / "out", base.checkpoint, name), 7 * deltas[1][name], atol=1e-5)
    assert "exactly" in result.notes[0]


def test_pairs_tell_their_rank_and_read_their_factors(place):
    root, _arrays, deltas = place
    pairs = pairs_of(open_adapter(root / "lora1"))
    assert pairs.keys() == deltas[1].keys()
    for name, pair in pairs.items():
        assert (pair.kind, pair.rank, pair.dtype) == ("linear", 3, "float32")
        assert np.allclose(dense(pair.read()), deltas[1][name], atol=1e-7)


def test_what_cannot_be_merged_is_refused(place, tmp_path):
    root, arrays, _deltas = place
    with pytest.raises(RefusedError, match="no adapters were given"):
        merge_adapters([], tmp_path / "out")
    with pytest.raises(RefusedError, match="not an adapter"):
        merge_adapters([(root / "base", 1.0)], tmp_path / "out")
    write_adapter(tmp_path / "other", draw(0, hidden=32), 0)
    with pytest.raises(
        RefusedError, match=r"linear \[32, 32\] by one adapter, and as linear \[16, 16\] by another"
    ):
        merge_adapters([(root / "lora0", 1.0), (tmp_path / "other", 1.0)], tmp_path / "out")
    with pytest.raises(RefusedError, match="lies inside the input"):
        merge_adapters([(root / "lora0", 1.0)], root / "lora0" / "out")
    write_adapter(tmp_path / "wild", arrays, 0)
    raw = bytearray((tmp_path / "wild" / "adapter_model.safetensors").read_bytes())
    raw[-4:] = np.float32(np.inf).tobytes()
    (tmp_path / "wild" / "adapter_model.safetensors").write_bytes(raw)
    with pytest.raises(RefusedError, match="not finite"):
        merge_adapters([(tmp_path / "wild", 1.0)], tmp_path / "out")
    with pytest.raises(RefusedError, match="do not fit float16"):
        merge_adapters([(root / "lora0", 1e9)], tmp_path / "out", Goal(dtype="float16"))
    assert neighbours(tmp_path / "out") == []
    assert not (tmp_path / "out").exists()


def test_whole_tensors_have_no_factors(place, tmp_path):
    from safetensors.numpy import load_file, save_file

    root, arrays, _deltas = place
    write_adapter(tmp_path / "lora", arrays, 0)
    path = tmp_path / "lora" / "adapter_model.safetensors"
    save_file({**load_file(path), "base_model.model.lm_head.weight": arrays["lm_head.weight"]}, path)
    with pytest.raises(RefusedError, match=r"replaces 1 whole tensors, the first lm_head\.weight"):
        merge_adapters([(tmp_path / "lora", 1.0)], tmp_path / "out")
    recipe = write_recipe(
        root / "whole.yaml", {"base": "./base", "models": [{"model": str(tmp_path / "lora")}]}
    )
    assert adapters_of_recipe(recipe, open_model(str(root / "base"))) is None


def test_which_recipes_are_sums_of_adapters(place):
    root, _arrays, _deltas = place
    base = open_model(str(root / "base"))
    entries = [{"model": "./lora0", "weight": 0.5}, {"model": "./lora1"}]

    def asked(**fields):
        return adapters_of_recipe(
            write_recipe(root / "r.yaml", {"base": "./base", "models": entries} | fields), base
        )

    assert asked(scale=0.5) == [(str(root / "lora0"), 0.25), (str(root / "lora1"), 0.5)]
    assert asked(merge="mean") is None
    assert asked(where="*.layers.0.*") is None
    assert asked(scale={"layers": [0.5, 1.0]}) is None
    assert asked(models=[*entries, {"model": "./base"}]) is None
    assert asked(models=[{"model": "./lora0", "edits": [{"keep_largest": {"density": 0.5}}]}]) is None
    other = root / "other"
    write_model(other, draw(1), "float32")
    assert asked(base="./other") is None
