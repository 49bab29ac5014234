"""EMR containers: what opens from them, what they share, and what they keep apart."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import deltasmith
from deltasmith.errors import RecipeError, RefusedError
from deltasmith.formats.packed import open_packed
from deltasmith.packing.command import pack_models
from deltasmith.packing.unified import pack_unified
from deltasmith.packing.unpacking import unpack
from models import run

NAMES = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight")


def write(folder, arrays):
    folder.mkdir(parents=True)
    save_file(arrays, folder / "model.safetensors")
    return folder


@pytest.fixture
def family(tmp_path):
    """Write a base and three fine-tunes of it; the heads have other shapes, and one tensor has integers."""
    random = np.random.default_rng(0)
    base = {name: random.standard_normal((96, 40)).astype(np.float32) for name in NAMES}
    fixed = {"steps": np.arange(4)}
    write(tmp_path / "base", {**base, **fixed, "head": np.ones((2, 3), np.float32)})
    for rows, label in enumerate(("math", "code", "ins"), start=3):
        own = {n: v + 0.01 * random.standard_normal(v.shape).astype(np.float32) for n, v in base.items()}
        write(tmp_path / label, {**own, **fixed, "head": np.full((rows, 3), 2.0, np.float32)})
    return tmp_path


def models(family):
    return [family / label for label in ("math", "code", "ins")]


def values(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("rescaler", ["l1", "l1_tensor_mean", "l2"])
def test_each_task_comes_back_as_the_merge_would_write_it(family, rescaler):
    pack_unified(family / "base", models(family), family / "emr", codec=f"emr:rescaler={rescaler}")
    for label in ("math", "code", "ins"):
        unpack(f"{family / 'emr'}#{label}", family / f"un-{label}", base=family / "base")
        entries = [{"model": str(m), "label": m.name} for m in models(family)]
        recipe = {"base": str(family / "base"), "models": entries, "where": "model.*"}
        deltasmith.merge(
            {**recipe, "merge": {"emr": {"task": label, "rescaler": rescaler}}}, family / f"m-{label}"
        )
        ours, theirs = values(family / f"un-{label}"), values(family / f"m-{label}")
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in NAMES)
        assert ours["head"].tobytes() == values(family / label)["head"].tobytes()
        assert ours["steps"].tolist() == [0, 1, 2, 3]


def test_the_errors_told_are_the_errors_made(family):
    result = pack_unified(family / "base", models(family), family / "emr")
    base, wanted, made = values(family / "base"), 0.0, 0.0
    for label in ("math", "code", "ins"):
        unpack(f"{family / 'emr'}#{label}", family / f"un-{label}", base=family / "base")
        mine, theirs = values(family / label), values(family / f"un-{label}")
        for name in NAMES:
            wanted += float(np.sum((mine[name].astype(np.float64) - base[name]) ** 2))
            made += float(np.sum((mine[name].astype(np.float64) - theirs[name]) ** 2))
    assert result.relative_error == pytest.approx((made / wanted) ** 0.5, rel=1e-4)


def test_a_mask_costs_one_bit_and_the_vector_is_kept_once(family):
    pack_unified(family / "base", models(family), family / "emr")
    packed = open_packed(family / "emr")
    shared = {packed.delta(label).tensors[NAMES[0]].arrays["unified"] for label in packed.labels}
    assert len(shared) == 1
    specs, size = packed.file.specs, 96 * 40
    masks = [packed.delta(label).tensors[NAMES[0]].arrays["mask"] for label in packed.labels]
    assert len(set(masks)) == 3
    assert all(specs[mask].nbytes == size // 8 for mask in masks)


def test_labels_are_never_shared(family):
    """Folders x/a, y/a and a-0: the number that tells the first two apart must not make a second a-0."""
    for place in ("x/a", "y/a", "a-0"):
        write(family / place, values(family / "math"))
    pack_unified(family / "base", [family / p for p in ("x/a", "y/a", "a-0")], family / "emr")
    assert len(set(open_packed(family / "emr").labels)) == 3


def test_a_tensor_named_like_another_and_a_label_stays_apart(tmp_path):
    one = {"a.math": np.ones(8, np.float32), "a": np.arange(8, dtype=np.int64)}
    write(tmp_path / "base", one)
    for label in ("math", "code"):
        write(
            tmp_path / label, {"a.math": np.full(8, 2.0, np.float32), "a": np.arange(8) * (label == "math")}
        )
    pack_unified(tmp_path / "base", [tmp_path / "math", tmp_path / "code"], tmp_path / "emr")
    for label in ("math", "code"):
        unpack(f"{tmp_path / 'emr'}#{label}", tmp_path / f"un-{label}", base=tmp_path / "base")
        assert values(tmp_path / f"un-{label}")["a"].tolist() == values(tmp_path / label)["a"].tolist()


def test_the_same_bytes_for_any_number_of_threads(family):
    for threads in (1, 3):
        pack_unified(family / "base", models(family), family / f"emr{threads}", threads=threads)
    one, three = ((family / f"emr{t}" / "delta.safetensors").read_bytes() for t in (1, 3))
    assert one == three


def test_what_makes_no_sense_is_refused(family):
    with pytest.raises(RefusedError, match="two models or more"):
        pack_models(str(family / "base"), [str(family / "math")], str(family / "o"), codec="emr")
    with pytest.raises(RecipeError, match="--budget"):
        pack_models(
            str(family / "base"), list(map(str, models(family))), str(family / "o"), codec="emr", budget=0.2
        )
    with pytest.raises(RecipeError, match="--codec emr"):
        pack_models(str(family / "base"), list(map(str, models(family))), str(family / "o"), codec="bitdelta")
    pack_unified(family / "base", models(family), family / "emr")
    with pytest.raises(RefusedError, match="#LABEL"):
        unpack(family / "emr", family / "o", base=family / "base")
    assert not (family / "o").exists()


def codecs(folder, label):
    return {name: type(r.codec).__name__ for name, r in open_packed(folder).delta(label).tensors.items()}


def test_a_rule_comes_before_the_unified_vector(family):
    pack_unified(
        family / "base",
        models(family),
        family / "emr",
        where="model.*",
        rules=[("*.1.mlp.*", "bitdelta"), ("*.mlp.*", "sparse:values=float32"), ("head", "dense")],
    )
    for label in ("math", "code", "ins"):
        first, second, norm = NAMES
        assert codecs(family / "emr", label) == {
            first: "Sparse", second: "BitDelta", norm: "Emr", "head": "Dense", "steps": "Lossless",
        }  # fmt: skip
        unpack(f"{family / 'emr'}#{label}", family / f"un-{label}", base=family / "base")
        ours, theirs = values(family / f"un-{label}"), values(family / label)
        np.testing.assert_allclose(ours[first], theirs[first], rtol=0, atol=1e-6)
        assert ours["head"].tobytes() == theirs["head"].tobytes()


def test_without_where_the_command_line_unifies_every_floating_tensor(family):
    """Either spelling of the codec, and a --where that is given still counts."""
    both = [family / "base", *models(family)]
    for out, options in {
        "a": ("--codec", "emr"),
        "b": ("--codec", "{emr: {rescaler: l1}}"),
        "c": ("--codec", "emr", "--where", "linears"),
    }.items():
        result = run("pack", *both, family / out, "--quiet", *options)
        assert result.code == 0, result.err
    assert codecs(family / "a", "math") == {
        **dict.fromkeys(NAMES, "Emr"), "head": "Lossless", "steps": "Lossless",
    }  # fmt: skip
    assert codecs(family / "b", "math") == codecs(family / "a", "math")
    assert codecs(family / "c", "math")[NAMES[2]] == "Lossless"
    assert codecs(family / "c", "math")[NAMES[0]] == "Emr"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rules": [("no.such.*", "bitdelta")]}, r"no tensor matches 'no\.such\.\*'"),
        (
            {"rules": [("model.*", "sparse"), ("*.0.mlp.*", "bitdelta")]},
            r"no tensor matches '\*\.0\.mlp\.\*'",
        ),
        ({"where": "no.such.*"}, r"'no\.such\.\*' names no floating tensor"),
        ({"where": "steps"}, "'steps' names no floating tensor"),
        ({"where": "head"}, "'head' names no floating tensor"),
        ({"rules": [("model.*", "sparse")]}, "take back a --rule"),
        ({"codec": "bitdelta"}, "bitdelta codes one model"),
    ],
)
def test_a_rule_or_where_that_names_nothing_is_refused(family, options, words):
    with pytest.raises(RecipeError, match=words):
        pack_unified(family / "base", models(family), family / "emr", **options)
    assert not (family / "emr").exists()


def test_a_rule_that_an_earlier_one_hides_in_one_model_counts_in_another(family):
    """The second is for a tensor that only `more` has; in `math` the first takes all that it names."""
    own = values(family / "ins")
    write(family / "more", {**own, "model.extra": np.ones((4, 4), np.float32)})
    others = [family / "math", family / "more"]
    pack_unified(
        family / "base",
        others,
        family / "emr",
        rules=[("model.layers.0.*", "sparse"), ("model.*[0x]*", "dense")],
    )
    assert codecs(family / "emr", "more")["model.extra"] == "Dense"
    assert codecs(family / "emr", "math")[NAMES[0]] == codecs(family / "emr", "more")[NAMES[0]] == "Sparse"


def test_notes_are_kept_with_the_model_they_are_on(family):
    write(family / "more", {**values(family / "ins"), "extra": np.ones((4, 4), np.float32)})
    less = {name: array for name, array in values(family / "code").items() if name != "head"}
    write(family / "less", less)
    result = pack_unified(
        family / "base", [family / "math", family / "more", family / "less"], family / "emr",
        rules=[("head", "bitdelta")],
    )  # fmt: skip
    assert any(note.startswith("emr of 3 models") for note in result.notes)
    told = {note.partition(":")[0]: note for note in result.notes if "extra" in note}
    assert told.keys() == {"more"}
    assert any(note.startswith("less: ") and "head" in note for note in result.notes), result.notes
    changed = [note for note in result.notes if "lossless instead of bitdelta" in note]
    assert {note.partition(":")[0] for note in changed} == {"math", "more"}, result.notes
    assert tuple(open_packed(family / "emr").document.notes) == result.notes
