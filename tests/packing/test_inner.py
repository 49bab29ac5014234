"""Inner products of packed deltas: those of the decoded values, in whatever form they are calculated."""

from __future__ import annotations

import shutil
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import pytest

from containers import EVERY, packed
from deltasmith.errors import DamagedInputError, RefusedError
from deltasmith.formats.opening import open_model
from deltasmith.formats.packed import open_packed
from deltasmith.formats.packed_model import PackedModel
from deltasmith.packing import arithmetic, pack, unified
from models import draw, family, tuned, write_model

CODECS = {
    "bits": "bitdelta",
    "rows": "bitdelta:scale=row,zero=plus",
    "passes": "residual_bits:passes=3",
    "zeros": "bitdelta:zero=zero",
    "rank": "low_rank:rank=3",
    "sparse": "sparse",
    "zero": "zero",
    "every": "bitdelta",
}
FORMS = {"bits": "bits", "rows": "bits", "passes": "bits", "rank": "factors"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two fine-tunes of one base, each packed by every codec; rows of 13 elements begin in the midst of bytes."""
    made = family(tmp_path_factory.mktemp("inner") / "models", experts=2, hidden=13, inter=21)
    for codec, text in CODECS.items():
        for model in ("m0", "m1"):
            rules = EVERY if codec == "every" else ()
            packed(made.root, model, f"{codec}-{model}", codec=text, rules=rules)
    return made.root


def deltas(path: Path) -> dict[str, np.ndarray]:
    """Decode every delta with what opens a packed model, and subtract the base."""
    delta = open_packed(path).delta()
    base = open_model(str(path.parent / "base")).checkpoint
    model = PackedModel.over(delta, base)
    found = {}
    for name, spec in model.specs.items():
        values = np.empty(spec.size, np.float32)
        if model.holds_delta(name):
            model.read_delta(name, 0, values)
        else:
            ground = np.empty(spec.size, np.float32)
            model.read(name, 0, values)
            base.read(name, 0, ground)
            values -= ground
        found[name] = values.astype(np.float64)
    return found


@pytest.mark.parametrize(("one", "other"), list(combinations_with_replacement(CODECS, 2)))
def test_products_are_those_of_the_decoded_deltas(models, one, other):
    a, b = models / f"{one}-m0", models / f"{other}-m1"
    x, y = deltas(a), deltas(b)
    found = arithmetic.products(a, b, threads=1)
    assert [line.name for line in found.lines] == sorted(x)
    for line in found.lines:
        u, v = x[line.name], y[line.name]
        size = np.abs(u) @ np.abs(v)
        assert abs(line.inner - u @ v) <= 1e-6 * size + 1e-30
        assert np.allclose(line.squares, (u @ u, v @ v), rtol=1e-6, atol=0)
    whole = found.model
    assert whole.inner == pytest.approx(sum(x[n] @ y[n] for n in x), rel=1e-4)
    assert arithmetic.inner(a, b) == whole.inner
    assert arithmetic.cosine(a, b) == whole.cosine
    linear = next(line for line in found.lines if line.name == "model.layers.0.mlp.up_proj.weight")
    if one in FORMS and other in FORMS:
        assert linear.how == (FORMS[one] if FORMS[one] == FORMS[other] else "values")


@pytest.mark.parametrize("codec", list(CODECS))
def test_a_delta_and_itself(models, codec):
    place = models / f"{codec}-m0"
    expected = np.sqrt(sum(v @ v for v in deltas(place).values()))
    assert arithmetic.norm(place) == pytest.approx(expected, rel=1e-6)
    assert arithmetic.cosine(place, place) == pytest.approx(1.0, abs=1e-15)
    opened = open_packed(place).delta()
    assert arithmetic.cosine(opened, str(place)) == arithmetic.cosine(place, place)


def test_exactly_what_the_counts_say(tmp_path):
    """Signs that differ in 3 of 8 places, with magnitudes 2 and 0.5: (8 - 6) · 2 · 0.5."""
    name = "model.layers.0.mlp.up_proj.weight"
    base = {name: np.zeros((2, 4), np.float32)}
    signs = np.float32([[1, -1, 1, -1], [1, 1, -1, -1]])
    other = signs * np.float32([[-1, 1, 1, -1], [1, 1, 1, -1]])
    write_model(tmp_path / "base", base, "float32")
    write_model(tmp_path / "m0", {name: 2 * signs}, "float32")
    write_model(tmp_path / "m1", {name: other / 2}, "float32")
    a, b = packed(tmp_path, "m0", "a"), packed(tmp_path, "m1", "b")
    (line,) = arithmetic.products(a, b).lines
    assert (line.inner, line.squares, line.how) == (2.0, (32.0, 2.0), "bits")
    assert line.cosine == pytest.approx(0.25, rel=1e-15)


def test_groups_add_up(models):
    found = arithmetic.products(models / "every-m0", models / "every-m1")
    for group in ("layer", "projection", "how", "model"):
        lines = found.by(group)
        assert sum(line.inner for line in lines) == pytest.approx(found.model.inner, rel=1e-12)
        assert sum(line.elements for line in lines) == found.model.elements
    assert {line.name for line in found.by("layer")} >= {"model.layers.0", "model.layers.1"}
    assert {line.how for line in found.by("how")} == {"bits", "factors", "values"}
    assert found.model.how == "mixed"
    assert found.as_json()["model"]["cosine"] == found.model.cosine


def test_threads_change_nothing_and_blocks_add_up(tmp_path):
    made = family(tmp_path, experts=2, vocab=20_000, layers=1)
    rules = [("lm_head.*", "bitdelta"), ("*embed*", "sparse")]
    a, b = (packed(made.root, m, f"p-{m}", rules=rules) for m in ("m0", "m1"))
    found = [arithmetic.products(a, b, threads=threads) for threads in (1, 3)]
    assert found[0] == found[1]
    x, y = deltas(a), deltas(b)
    for line in found[0].lines:
        assert line.squares == pytest.approx(
            (x[line.name] @ x[line.name], y[line.name] @ y[line.name]), rel=1e-6
        )


def test_the_base_is_wanted_only_where_values_are_kept(models, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    for model in ("m0", "m1"):
        pack(models / "base", models / model, alone / model, where="*", rest="sparse")
        shutil.copytree(models / f"bits-{model}", alone / f"mixed-{model}")
    assert -1 < arithmetic.cosine(alone / "m0", alone / "m1") < 1
    with pytest.raises(RefusedError, match="needs its base"):
        arithmetic.inner(alone / "mixed-m0", alone / "m1")
    found = arithmetic.inner(alone / "mixed-m0", alone / "mixed-m1", models / "base")
    assert found == arithmetic.inner(models / "bits-m0", models / "bits-m1")
    with pytest.raises(DamagedInputError, match="not the base"):
        arithmetic.inner(alone / "m0", alone / "m1", models / "m0")


def test_deltas_of_one_container(models):
    unified.pack_unified(models / "base", [models / "m0", models / "m1"], models / "emr")
    container = open_packed(models / "emr")
    found = arithmetic.cosine(f"{models / 'emr'}#m0", container.delta("m1"))
    # Both are masks of one vector: they agree wherever both keep it.
    assert 0 < found < 1
    assert arithmetic.products(container.delta("m0"), container.delta("m0")).model.cosine == 1.0


def test_refusals(models, tmp_path):
    made = family(tmp_path / "other", experts=1, hidden=13, inter=21)
    write_model(made.root / "base", draw(5, hidden=13, inter=21))
    stranger = packed(made.root)
    with pytest.raises(RefusedError, match=r"over another base, 'base' \(.*…\), than .*bits-m0"):
        arithmetic.cosine(models / "bits-m0", stranger)
    with pytest.raises(RefusedError, match="not a packed delta"):
        arithmetic.norm(models / "m0")
    unified.pack_unified(models / "base", [models / "m0", models / "m1"], tmp_path / "emr")
    with pytest.raises(RefusedError, match="holds 2 deltas"):
        arithmetic.norm(tmp_path / "emr")
    fewer = tuned(draw(0, hidden=13, inter=21), 3)
    del fewer["lm_head.weight"]
    write_model(models / "fewer", fewer)
    with pytest.raises(RefusedError, match="lacks it"):
        arithmetic.inner(packed(models, "fewer", "packed-fewer"), models / "bits-m0")


def test_integers_have_no_delta(tmp_path):
    made = family(tmp_path, experts=1)
    places = {"position_ids": np.arange(8, dtype=np.int64)}
    for model, arrays in (("base", made.base), ("m0", made.tunes[0])):
        write_model(tmp_path / model, dict(arrays) | places)
    found = arithmetic.products(packed(tmp_path), tmp_path / "packed")
    assert found.skipped == ("position_ids",)
    assert "position_ids" not in {line.name for line in found.lines}
