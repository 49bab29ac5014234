"""Multiples, sums and votes of packed deltas: what merging the same models gives, in packed form where that closes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from containers import packed, words
from deltasmith import api
from deltasmith.codecs.catalogue import codec_name, codec_text
from deltasmith.codecs.low_rank import stack_shape
from deltasmith.errors import DamagedInputError, RecipeError, RefusedError
from deltasmith.formats.opening import open_model
from deltasmith.formats.packed import PackedDelta, open_packed
from deltasmith.kernels.votes import weighted_sum
from deltasmith.packing import arithmetic, inspect, pack, unified, unpack
from models import draw, family, run, tuned, write_model

CODECS = {
    "bits": "bitdelta",
    "rows": "bitdelta:scale=row,zero=plus",
    "passes": "residual_bits:passes=3",
    "zeros": "bitdelta:zero=zero",
    "random": "bitdelta_random",
    "rank": "low_rank:rank=3",
    "half": "low_rank:rank=2,dtype=float16",
    "sparse": "sparse",
    "blocks": "magnitude_blocks:blocks=4",
    "claq": "claq:bits=2",
    "weights": "claq:bits=2,of=weight",
    "zero": "zero",
    "lossless": "lossless",
}
LINEAR = "model.layers.0.mlp.up_proj.weight"
WEIGHTS = (0.4, -0.7)
SIZES = {"hidden": 13, "inter": 21, "layers": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Four fine-tunes of one base; two of them packed by every codec."""
    made = family(tmp_path_factory.mktemp("arithmetic") / "models", experts=4, **SIZES)
    for key, codec in CODECS.items():
        for model in ("m0", "m1"):
            packed(made.root, model, f"{key}-{model}", codec=codec)
    return made.root


def delta_of(place: Path | str) -> PackedDelta:
    found = open_model(str(place)).packed
    assert found is not None
    return found


def decoded(delta: PackedDelta, name: str) -> np.ndarray:
    return delta.codec(name).decode(
        {part: delta.source(name).whole(part) for part in delta.source(name).specs}, delta.cell(name)
    )


def merged(base: Path, terms: list[tuple[float, Path | str]]) -> dict[str, bytes]:
    """Return what a merge of the same models writes."""
    listed = [{"model": str(p), "label": f"t{i}", "weight": w} for i, (w, p) in enumerate(terms)]
    found = api.compute({"base": str(base), "models": listed, "merge": "sum"}, threads=1)
    return {name: bytes(stored.data) for name, stored in found.tensors.items()}


def near(found: bytes, expected: bytes) -> bool:
    """Compare bfloat16 words: at most one unit apart, where sums were rounded in another order."""
    one, other = (np.frombuffer(data, np.int16).astype(np.int64) for data in (found, expected))
    return bool((np.abs(one - other) <= 1).all())


PAIRS = [
    *((key, key) for key in CODECS),
    *(("bits", key) for key in CODECS if key != "bits"),
    *(("rank", key) for key in ("half", "sparse", "zero", "claq", "lossless")),
    *(("sparse", key) for key in ("zero", "blocks", "weights", "lossless")),
    ("rows", "zero"),
    ("passes", "zeros"),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_a_sum_is_the_merge_of_the_same_models(models, tmp_path, one, other):
    places = [models / f"{one}-m0", models / f"{other}-m1"]
    terms = list(zip(WEIGHTS, places, strict=True))
    arithmetic.summed(terms, tmp_path / "sum", base=models / "base", threads=1)
    expected = merged(models / "base", terms)
    found = words(tmp_path / "sum", models / "base")
    total = delta_of(tmp_path / "sum")
    assert found.keys() == expected.keys()
    for name in found:
        if total.codec(name).domain == "stored" or codec_name(total.codec(name)) == "sparse":
            assert found[name] == expected[name]
            continue
        assert near(found[name], expected[name])
        parts = np.stack([decoded(delta_of(p), name) for p in places])
        size = np.abs(parts * np.float32(WEIGHTS).reshape(2, 1, 1)).sum(axis=0)
        assert (np.abs(decoded(total, name) - weighted_sum(parts, WEIGHTS)) <= 2.0**-21 * size.max()).all()


@pytest.mark.parametrize(
    ("one", "other", "codec"),
    [
        ("bits", "bits", "residual_bits"),
        ("bits", "passes", "residual_bits:passes=4"),
        ("passes", "passes", "residual_bits:passes=6"),
        ("rank", "rank", "low_rank:rank=6,dtype=float32"),
        ("rank", "half", "low_rank:rank=5,dtype=float32"),
        ("sparse", "sparse", "sparse:values=float32"),
        ("zero", "zero", "zero"),
        ("zero", "claq", "lossless"),
        ("zero", "blocks", "magnitude_blocks:blocks=4"),
        ("rows", "rows", "lossless"),
        ("rows", "zero", "bitdelta:zero=plus,scale=row"),
        ("zeros", "bits", "lossless"),
        ("bits", "rank", "lossless"),
        ("weights", "bits", "lossless"),
    ],
)
def test_what_closes_stays_packed(models, tmp_path, one, other, codec):
    terms = list(zip(WEIGHTS, (models / f"{one}-m0", models / f"{other}-m1"), strict=True))
    done = arithmetic.summed(terms, tmp_path / "sum", base=models / "base", threads=1)
    record = delta_of(tmp_path / "sum").tensors[LINEAR]
    assert codec_text(record.codec) == codec
    assert any("by values" in note and "the first lm_head.weight" in note for note in done.notes)
    if codec != "lossless":
        assert any("in packed form" in note for note in done.notes)
        total = decoded(delta_of(tmp_path / "sum"), LINEAR).astype(np.float64)
        assert record.squared_norm == pytest.approx(float((total**2).sum()), rel=1e-5)
        assert record.relative_error < 1e-6


@pytest.mark.parametrize("key", list(CODECS))
def test_powers_of_two_are_exact_and_others_round_once(models, tmp_path, key):
    place = models / f"{key}-m0"
    delta, records = delta_of(place), {}
    for factor in (-0.5, 0.3):
        arithmetic.scaled(place, factor, tmp_path / f"by{factor}", base=models / "base", threads=1)
        records[factor] = delta_of(tmp_path / f"by{factor}")
    if delta.codec(LINEAR).domain != "delta" or key == "claq":
        assert codec_name(records[0.3].codec(LINEAR)) == "lossless"
        assert words(tmp_path / "by0.3", models / "base") == merged(models / "base", [(0.3, place)])
        return
    before = decoded(delta, LINEAR)
    assert records[-0.5].codec(LINEAR) == delta.codec(LINEAR) or key == "half"
    assert np.array_equal(decoded(records[-0.5], LINEAR), np.float32(-0.5) * before)
    exact = 0.3 * before.astype(np.float64)
    assert np.allclose(decoded(records[0.3], LINEAR), exact, rtol=0, atol=2.0**-21 * np.abs(exact).max())
    told = records[0.3].tensors[LINEAR].squared_norm
    assert told == pytest.approx(float((exact**2).sum()), rel=1e-5)


def test_the_bits_of_a_sum_are_those_of_its_terms(models, tmp_path):
    terms = [(0.5, models / "passes-m0"), (2.0, models / "bits-m1")]
    arithmetic.summed(terms, tmp_path / "sum")
    one, two, total = (delta_of(p).source(LINEAR) for p in (terms[0][1], terms[1][1], tmp_path / "sum"))
    assert np.array_equal(total.whole("signs"), np.vstack([one.whole("signs"), two.whole("signs")]))
    exact = [*(0.5 * one.whole("scales")), *(2 * two.whole("scale"))]
    assert total.whole("scales").tolist() == np.float32(exact).tolist()
    (bits,) = (line for line in inspect(tmp_path / "sum").by("tensor") if line.name == LINEAR)
    assert bits.codec == "residual_bits:passes=4"


def test_low_rank_sums_are_cut_to_the_nearest_of_a_rank(tmp_path):
    """Also for stacks of experts, and for wide convolutions; the error told is that of the cut."""
    rng = np.random.default_rng(0)
    shapes = {LINEAR: (20, 30), "model.layers.0.experts.up.weight": (3, 12, 10), "conv.weight": (8, 3, 2, 2)}
    base = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    write_model(tmp_path / "base", base, "float32")
    for i in range(2):
        tune = {n: a + rng.normal(size=a.shape).astype(np.float32) for n, a in base.items()}
        write_model(tmp_path / f"m{i}", tune, "float32")
        pack(tmp_path / "base", tmp_path / f"m{i}", tmp_path / f"p{i}", codec="low_rank:rank=4", where="*")
    terms = [(0.3, tmp_path / "p0"), (1.0, tmp_path / "p1")]
    arithmetic.summed(terms, tmp_path / "whole")
    arithmetic.summed(terms, tmp_path / "cut", rank=5)
    whole, cut = delta_of(tmp_path / "whole"), delta_of(tmp_path / "cut")
    for name, shape in shapes.items():
        exact = decoded(whole, name).reshape(stack_shape(name, shape)).astype(np.float64)
        near = decoded(cut, name).reshape(exact.shape).astype(np.float64)
        least = sum((np.linalg.svd(m, compute_uv=False)[5:] ** 2).sum() for m in exact)
        error = ((near - exact) ** 2).sum()
        assert least <= error <= least * 1.001 + 1e-3 * (exact**2).sum()
        record = cut.tensors[name]
        assert record.squared_error == pytest.approx(error, rel=1e-4)
        assert record.squared_norm == pytest.approx((exact**2).sum(), rel=1e-5)
        assert codec_text(record.codec) == "low_rank:rank=5"
        assert cut.source(name).specs["left"].shape[-1] == 5
        assert codec_text(whole.codec(name)) == "low_rank:rank=8,dtype=float32"
    assert inspect(tmp_path / "whole").by("model")[0].relative_error < 1e-6
    arithmetic.summed(terms * 3, tmp_path / "many")
    full = delta_of(tmp_path / "many")
    assert full.source("conv.weight").specs["left"].shape == (8, 8), "no more columns than rows"
    assert np.allclose(decoded(full, LINEAR), 3 * decoded(whole, LINEAR), atol=1e-5)


def test_weights_of_nothing_add_nothing(models, tmp_path):
    """A weight of 0 and what a codec has thrown away leave the other term as it is, bit for bit."""
    terms = [(1.0, models / "bits-m0"), (0.0, models / "rank-m1"), (1.0, models / "zero-m1")]
    arithmetic.summed(terms, tmp_path / "sum")
    found, before = delta_of(tmp_path / "sum"), delta_of(models / "bits-m0")
    assert found.codec(LINEAR) == before.codec(LINEAR)
    assert np.array_equal(decoded(found, LINEAR), decoded(before, LINEAR))
    arithmetic.scaled(models / "bits-m0", 0.0, tmp_path / "none")
    assert words(tmp_path / "none", models / "base") == words(models / "base")
    assert codec_name(delta_of(tmp_path / "none").codec(LINEAR)) == "zero"


def test_unified_deltas(models, tmp_path):
    unified.pack_unified(models / "base", [models / "m0", models / "m1"], tmp_path / "emr")
    shutil.copytree(models / "base", tmp_path / "base")
    one, two = (f"{tmp_path / 'emr'}#{label}" for label in ("m0", "m1"))
    arithmetic.scaled(one, 0.25, tmp_path / "quarter")
    quarter = delta_of(tmp_path / "quarter")
    assert np.array_equal(decoded(quarter, LINEAR), decoded(delta_of(one), LINEAR) / 4)
    assert codec_name(quarter.codec(LINEAR)) == "emr"
    expected = float((decoded(quarter, LINEAR).astype(np.float64) ** 2).sum())
    assert quarter.tensors[LINEAR].squared_norm == pytest.approx(expected, rel=1e-12)
    terms = [(0.5, one), (0.5, open_packed(tmp_path / "emr").delta("m1"))]
    arithmetic.summed(terms, tmp_path / "both")
    expected = merged(tmp_path / "base", [(0.5, one), (0.5, two)])
    assert words(tmp_path / "both") == expected


def voted(deltas: list[np.ndarray]) -> np.ndarray:
    """Vote as the definition says."""
    count = sum(np.sign(d) for d in deltas)
    total = sum(d.astype(np.float64) for d in deltas)
    sign = np.where(np.where(count == 0, np.sign(total), count) > 0, 1, -1)
    return sign * np.float32(np.mean([np.abs(d).mean(dtype=np.float64) for d in deltas]))


@pytest.mark.parametrize(
    "keys",
    [
        ("bits", "bits"),
        ("bits", "bits", "bits"),
        ("bits", "bits", "bits", "bits"),
        ("bits", "rows", "opposite", "one"),
        ("bits", "passes", "opposite", "sparse"),
        ("rank", "zero", "bits"),
        ("bits", "nothing"),
    ],
)
def test_votes_are_those_of_the_signs(models, tmp_path, keys):
    special = {"one": "residual_bits:passes=1"}
    places = []
    for i, key in enumerate(keys):
        codec = special.get(key) or CODECS.get(key, "bitdelta")
        place = tmp_path / f"{i}-{key}"
        pack(models / "base", models / f"m{i}", place, codec=codec, threads=1)
        factor = {"opposite": -1.0, "nothing": 0.0}.get(key)
        if factor is not None:
            arithmetic.scaled(place, factor, tmp_path / f"{i}-by", base=models / "base")
            place = tmp_path / f"{i}-by"
        places.append(place)
    done = arithmetic.vote(places, tmp_path / "vote", base=models / "base", threads=1)
    found = delta_of(tmp_path / "vote")
    for name in found.names:
        if found.codec(name).domain == "stored":
            continue
        expected = voted([decoded(delta_of(p), name) for p in places])
        assert np.allclose(decoded(found, name), expected, rtol=1e-6, atol=0), name
    assert codec_text(found.codec(LINEAR)) == "bitdelta"
    record = found.tensors[LINEAR]
    assert record.squared_norm == pytest.approx(float((decoded(found, LINEAR) ** 2).sum()), rel=1e-5)
    assert done.notes[0].startswith("sign vote of packed deltas: 0-")
    mean = merged(models / "base", [(1 / len(places), place) for place in places])
    stored = [n for n in found.names if found.codec(n).domain == "stored"]
    assert "model.embed_tokens.weight" in stored
    assert all(words(tmp_path / "vote", models / "base")[n] == mean[n] for n in stored)


@pytest.mark.parametrize("key", ["bits", "rows", "sparse"])
def test_opposites_vote_minus(models, tmp_path, key):
    place = models / f"{key}-m0"
    arithmetic.scaled(place, -1.0, tmp_path / "opposite", base=models / "base")
    arithmetic.vote([place, tmp_path / "opposite"], tmp_path / "vote", base=models / "base")
    found, before = (decoded(delta_of(p), LINEAR) for p in (tmp_path / "vote", place))
    assert (found < 0).all()
    assert np.abs(found).mean() == pytest.approx(np.abs(before).mean(), rel=1e-5)


def test_what_did_not_change_has_no_vote(models, tmp_path):
    """A tensor like the base's has signs of magnitude 0: with two others these two decide alone."""
    same = tuned(draw(0, **SIZES), 7)
    same[LINEAR] = draw(0, **SIZES)[LINEAR]
    write_model(tmp_path / "same", same)
    pack(models / "base", tmp_path / "same", tmp_path / "packed")
    places = [tmp_path / "packed", models / "bits-m0", models / "bits-m1"]
    assert delta_of(places[0]).source(LINEAR).whole("scale").tolist() == [0.0]
    arithmetic.vote(places, tmp_path / "vote", base=models / "base")
    arithmetic.vote(places[1:], tmp_path / "two", base=models / "base")
    three, two = (decoded(delta_of(tmp_path / out), LINEAR) for out in ("vote", "two"))
    assert np.array_equal(three > 0, two > 0)
    assert np.abs(three[0, 0]) == pytest.approx(np.abs(two[0, 0]) * 2 / 3)


def test_element_types_are_those_of_the_merge(models, tmp_path):
    """Fine-tunes of float32 over a base of bfloat16: where some tensors go by the merge, all have its types."""
    for i in range(2):
        write_model(tmp_path / f"m{i}", tuned(draw(0, **SIZES), i), "float32")
        pack(models / "base", tmp_path / f"m{i}", tmp_path / f"p{i}")
        pack(models / "base", tmp_path / f"m{i}", tmp_path / f"d{i}", where="*", rest="sparse")
    terms = [(0.5, tmp_path / f"p{i}") for i in range(2)]
    arithmetic.summed(terms, tmp_path / "sum", base=models / "base")
    assert words(tmp_path / "sum", models / "base") == merged(models / "base", terms)
    arithmetic.summed([(0.5, tmp_path / f"d{i}") for i in range(2)], tmp_path / "all")
    assert {r.spec.dtype.name for r in delta_of(tmp_path / "all").tensors.values()} == {"float32"}


def test_rows_keep_their_scales_in_a_vote(models, tmp_path):
    places = [models / "rows-m0", models / "rows-m1", tmp_path / "third"]
    pack(models / "base", models / "m2", places[2], codec=CODECS["rows"])
    arithmetic.vote(places, tmp_path / "vote", base=models / "base")
    found = delta_of(tmp_path / "vote")
    assert codec_text(found.codec(LINEAR)) == "bitdelta:scale=row"
    parts = [decoded(delta_of(p), LINEAR) for p in places]
    scales = np.mean([np.abs(d)[:, 0] for d in parts], axis=0)
    expected = np.where(sum(np.sign(d) for d in parts) > 0, 1, -1) * scales[:, None]
    assert np.allclose(decoded(found, LINEAR), expected, rtol=1e-6)


def test_bytes_depend_on_neither_threads_nor_blocks(tmp_path):
    made = family(tmp_path, experts=3, vocab=17_000, layers=1, hidden=250, inter=16)
    rules = [("lm_head.*", "bitdelta"), ("*embed*", "sparse"), ("*norm*", "sparse")]
    places = [packed(made.root, m, f"p-{m}", rules=rules) for m in made.labels]
    terms = [(0.5, place) for place in places]
    for threads in (1, 3):
        arithmetic.summed(terms, tmp_path / f"sum{threads}", threads=threads, label="s")
        arithmetic.vote(places, tmp_path / f"vote{threads}", threads=threads, label="v")
    for kind in ("sum", "vote"):
        one, three = ((tmp_path / f"{kind}{n}" / "delta.safetensors").read_bytes() for n in (1, 3))
        assert one == three
    name = "lm_head.weight"  # of several blocks
    total, parts = delta_of(tmp_path / "sum1"), [decoded(delta_of(p), name) for p in places]
    assert np.allclose(decoded(total, name), sum(parts) / 2, atol=1e-8)
    assert np.array_equal(decoded(delta_of(tmp_path / "vote1"), name) > 0, voted(parts) > 0)


def test_no_base_is_needed_where_all_are_deltas(models, tmp_path):
    for model in ("m0", "m1"):
        pack(models / "base", models / model, tmp_path / model, where="*", rest="sparse")
    terms = [(0.5, tmp_path / "m0"), (0.5, tmp_path / "m1")]
    done = arithmetic.summed(terms, tmp_path / "sum", label="mean")
    assert not any("by values" in note for note in done.notes)
    opened = open_packed(tmp_path / "sum")
    assert opened.labels == ("mean",)
    assert opened.base == open_packed(tmp_path / "m0").base
    assert api.verify(tmp_path / "sum").ok
    assert (tmp_path / "sum" / "tokenizer.json").exists()
    assert json.loads((tmp_path / "sum" / "config.json").read_text())["model_type"] == "llama"
    unpack(tmp_path / "sum", tmp_path / "model", base=models / "base")
    assert words(tmp_path / "model") == words(tmp_path / "sum", models / "base")
    with pytest.raises(DamagedInputError, match="not the base"):
        arithmetic.summed(terms, tmp_path / "other", base=models / "m0")


def test_an_interrupted_sum_resumes(models, tmp_path, monkeypatch):
    terms = [(0.5, models / "bits-m0"), (0.5, models / "bits-m1")]
    arithmetic.summed(terms, tmp_path / "whole", label="s", threads=1)

    from deltasmith.packing import summing

    real, calls = summing.bits_product, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(summing, "bits_product", failing)
    with pytest.raises(KeyboardInterrupt):
        arithmetic.summed(terms, tmp_path / "sum", label="s", threads=1)
    monkeypatch.setattr(summing, "bits_product", real)
    assert not (tmp_path / "sum").exists()
    monkeypatch.setattr(summing, "bits_product", lambda *a: (calls.append(1), real(*a))[1])
    arithmetic.summed(terms, tmp_path / "sum", label="s", threads=1)
    assert len(calls) == 4 + 7 - 3, "three of the seven matrices were done"
    assert (tmp_path / "sum" / "delta.safetensors").read_bytes() == (
        tmp_path / "whole" / "delta.safetensors"
    ).read_bytes()


def test_refusals(models, tmp_path):
    place, out = models / "bits-m0", tmp_path / "out"
    made = family(tmp_path / "other", experts=1, **SIZES)
    write_model(made.root / "base", draw(5, **SIZES))
    stranger = packed(made.root)
    with pytest.raises(RefusedError, match="over another base"):
        arithmetic.summed([(1, place), (1, stranger)], out)
    with pytest.raises(RefusedError, match="over another base"):
        arithmetic.vote([place, stranger], out)
    for weight in (float("nan"), float("inf")):
        with pytest.raises(RecipeError, match="a weight of"):
            arithmetic.scaled(place, weight, out)
    with pytest.raises(RecipeError, match="a rank of 0"):
        arithmetic.summed([(1, place)], out, rank=0)
    with pytest.raises(RecipeError, match="no packed delta"):
        arithmetic.summed([], out)
    with pytest.raises(RecipeError, match="no packed delta"):
        arithmetic.vote([], out)
    with pytest.raises(RecipeError, match="labelled"):
        arithmetic.scaled(place, 2.0, out, label="a#b")
    pack(models / "base", models / "m0", tmp_path / "rank", codec="low_rank:rank=2", where="*", rest="sparse")
    with pytest.raises(RefusedError, match="a scale does not fit float32"):
        arithmetic.scaled(place, 1e300, out)
    with pytest.raises(RefusedError, match="factors do not fit"):
        arithmetic.scaled(tmp_path / "rank", 1e300, out)
    with pytest.raises(RefusedError, match="not a packed delta"):
        arithmetic.scaled(models / "m0", 2.0, out)
    assert not out.exists()
    arithmetic.scaled(place, 2.0, out)
    with pytest.raises(RefusedError):
        arithmetic.scaled(place, 2.0, out)
    arithmetic.scaled(place, 3.0, out, overwrite=True)
    assert "3 · bits-m0" in open_packed(out).document.notes[0]


def test_a_damaged_term_is_refused(models, tmp_path):
    shutil.copytree(models / "bits-m0", tmp_path / "bad")
    path = tmp_path / "bad" / "delta.safetensors"
    data = bytearray(path.read_bytes())
    spec = open_packed(tmp_path / "bad").file
    signs = spec.raw(f"{LINEAR}::signs", 0, 8)
    data[data.index(bytes(signs))] ^= 1
    path.write_bytes(data)
    for act in (
        lambda: arithmetic.summed(
            [(1, tmp_path / "bad"), (1, models / "bits-m1")], tmp_path / "out", base=models / "base"
        ),
        lambda: arithmetic.vote(
            [tmp_path / "bad", models / "bits-m1"], tmp_path / "out", base=models / "base"
        ),
        lambda: arithmetic.inner(tmp_path / "bad", models / "bits-m1", models / "base"),
    ):
        with pytest.raises(DamagedInputError, match=r"up_proj\.weight::signs is damaged"):
            act()
    assert not (tmp_path / "out").exists()


def test_models_with_other_tensors_go_by_the_merge(models, tmp_path):
    """A tensor that one of them lacks is left to the plan, and refused or merged as by a merge."""
    fewer = tuned(draw(0, **SIZES), 1)
    del fewer["lm_head.weight"]
    write_model(tmp_path / "fewer", fewer)
    pack(models / "base", tmp_path / "fewer", tmp_path / "packed")
    terms = [(0.5, models / "bits-m0"), (0.5, tmp_path / "packed")]
    with pytest.raises(RefusedError) as refusal:
        merged(models / "base", terms)
    with pytest.raises(RefusedError) as same:
        arithmetic.summed(terms, tmp_path / "sum", base=models / "base")
    assert same.value.what == refusal.value.what.replace("t1", "packed").replace("t0", "bits-m0")


def test_a_sum_merges_evaluates_and_is_inspected_like_any_packed_delta(models, tmp_path):
    arithmetic.summed(
        [(0.5, models / "bits-m0"), (0.5, models / "rank-m1")], tmp_path / "sum", base=models / "base"
    )
    shutil.copytree(models / "base", tmp_path / "base")
    assert run("inspect", tmp_path / "sum").code == 0
    assert merged(tmp_path / "base", [(1.0, tmp_path / "sum")])[LINEAR] == words(tmp_path / "sum")[LINEAR]
    again = arithmetic.summed([(2.0, tmp_path / "sum")], tmp_path / "again")
    assert again.tensors == len(words(models / "base"))
