"""Packing: the same bytes whatever the machine does, every kind of tensor, every kind of model."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time

import numpy as np
import pytest

from containers import EVERY, Parts, changed, packed, values, words
from deltasmith.api import merge
from deltasmith.engine.progress import Silent
from deltasmith.engine.workers import Stop
from deltasmith.errors import InterruptedRunError, RecipeError, RefusedError, ResourceError
from deltasmith.formats import array_file
from deltasmith.formats.opening import open_model
from deltasmith.formats.packed import open_packed
from deltasmith.formats.packed_model import PackedModel
from deltasmith.packing import pack
from deltasmith.packing.single import label_of
from models import (
    BF16,
    config,
    draw,
    family,
    neighbours,
    read_model,
    run,
    tree,
    tuned,
    write_adapter,
    write_fp8,
    write_model,
    write_recipe,
)

UP = "model.layers.0.mlp.up_proj.weight"
MIB = 1 << 20


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = family(tmp_path_factory.mktemp("pack") / "models", experts=2)
    packed(made.root, rules=EVERY)
    return made


def test_what_an_interrupted_run_with_other_settings_has_left_is_named(models, tmp_path):
    base, fine, out = models.root / "base", models.root / "m0", tmp_path / "out"
    (tmp_path / "out.partial-12345678").mkdir()
    result = run("pack", base, fine, out, "--codec", "bitdelta")
    assert result.code == 0
    said = "out.partial-12345678 is left from an interrupted run with other settings; remove it if it is not wanted"
    assert said in result.err
    assert said in pack(base, fine, out, codec="bitdelta", overwrite=True).warnings
    assert (tmp_path / "out.partial-12345678").is_dir()


# Sameness.


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Tensors of many blocks, of every codec."""
    root = tmp_path_factory.mktemp("large")
    random = np.random.default_rng(0)
    names = ["layers.0.a", "layers.0.b", "layers.1.a", "layers.1.b", "layers.1.c", "head"]
    base = {n: random.normal(size=(1100, 1000)).astype(np.float32) * 0.1 for n in names}
    base["layers.0.claq"] = base["head"][:200, :50].copy()
    write_model(root / "base", base)
    tune = {n: a + random.normal(size=a.shape).astype(np.float32) * 1e-3 for n, a in base.items()}
    tune["layers.1.c"] = np.where(
        random.random(tune["layers.1.c"].shape) < 0.9, base["layers.1.c"], tune["layers.1.c"]
    )
    write_model(root / "m0", tune)
    return root


RULES = (
    ("layers.0.claq", "claq:bits=2"),
    ("layers.0.b", "bitdelta:zero=zero,scale=row"),
    ("layers.1.a", "bitdelta_random"),
    ("layers.1.b", "magnitude_blocks"),
    ("layers.1.c", "sparse"),
)


def test_the_same_bytes_for_threads_and_memory(large, tmp_path):
    expected = tree(packed(large, out=tmp_path / "one", rules=RULES))
    for threads, memory in [(2, 300 * MIB), (16, 2048 * MIB), (3, 512 * MIB)]:
        out = tmp_path / f"{threads}"
        assert tree(packed(large, out=out, rules=RULES, threads=threads, memory=memory)) == expected


def test_the_seed_and_the_label_decide_what_is_random(models, tmp_path):
    rules = (("lm_head.*", "bitdelta_random"),)
    once = tree(packed(models.root, out=tmp_path / "a", rules=rules))
    assert tree(packed(models.root, out=tmp_path / "b", rules=rules)) == once
    other = words(packed(models.root, out=tmp_path / "c", rules=rules, seed=1), models.root / "base")
    renamed = words(packed(models.root, out=tmp_path / "d", rules=rules, label="x"), models.root / "base")
    first = words(tmp_path / "a", models.root / "base")
    for found in (other, renamed):
        assert {n for n in first if found[n] != first[n]} == {"lm_head.weight"}


def test_nothing_of_this_machine_is_in_it(models):
    for path in (models.root / "packed").iterdir():
        assert os.fsencode(models.root) not in path.read_bytes()
        assert b"/tmp" not in path.read_bytes()


# Interruptions.


class Interrupter(Silent):
    """Asks to stop once a phase has begun, or so many bytes are done."""

    def __init__(self, stop, *, phase="", after=None):
        self.stop, self.at, self.after, self.done = stop, phase, after, 0

    def phase(self, name, total):
        if name == self.at:
            self.stop.ask()

    def advance(self, nbytes):
        self.done += nbytes
        if self.after is not None and self.done > self.after:
            self.stop.ask()


@pytest.mark.parametrize("after", [3 * MIB, 9 * MIB])
@pytest.mark.parametrize("threads", [1, 3])
def test_interrupted_and_resumed(large, tmp_path, after, threads):
    expected = tree(packed(large, out=tmp_path / "whole", rules=RULES))
    stop = Stop()
    out = tmp_path / "out"
    with pytest.raises(InterruptedRunError) as caught:
        packed(
            large, out=out, rules=RULES, threads=threads, stop=stop, progress=Interrupter(stop, after=after)
        )
    assert caught.value.exit_code == 5
    assert not out.exists()
    assert len(neighbours(out)) == 1
    listener = Interrupter(Stop())
    assert tree(packed(large, out=out, rules=RULES, threads=threads, progress=listener)) == expected
    total = (6 * 1100 * 1000 + 200 * 50) * 2
    assert listener.done < min(total, total - after + 2 * 2_200_000)  # what was finished was not done again
    assert neighbours(out) == []


def test_interrupted_while_the_inputs_are_hashed(models, tmp_path):
    """The hashes of some inputs are missing then, and must not be published as unknown."""
    expected = tree(packed(models.root, out=tmp_path / "whole"))
    stop, out = Stop(), tmp_path / "out"
    with pytest.raises(InterruptedRunError):
        packed(models.root, out=out, stop=stop, progress=Interrupter(stop, phase="checking the inputs"))
    assert not out.exists()
    assert tree(packed(models.root, out=out)) == expected


def test_another_command_does_not_take_over_what_is_left(models, tmp_path):
    stop, out = Stop(), tmp_path / "out"
    with pytest.raises(InterruptedRunError):
        packed(models.root, out=out, stop=stop, progress=Interrupter(stop, after=1000))
    fresh = packed(models.root, out=tmp_path / "fresh", codec="sparse")
    assert tree(packed(models.root, out=out, codec="sparse")) == tree(fresh)


def test_a_full_disk(models, tmp_path, monkeypatch):
    expected = tree(packed(models.root, out=tmp_path / "whole"))
    out, real, calls = tmp_path / "out", array_file.write_all, []

    def full(fd, view, offset):
        calls.append(view.nbytes)
        if len(calls) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd, view, offset)

    with monkeypatch.context() as patch:
        patch.setattr(array_file, "write_all", full)
        with pytest.raises(ResourceError, match="the disk is full") as caught:
            packed(models.root, out=out)
    assert caught.value.exit_code == 4
    assert not out.exists()
    assert tree(packed(models.root, out=out)) == expected


@pytest.mark.parametrize("which", ["base", "m0"])
def test_an_input_that_changes_meanwhile(models, tmp_path, which):
    root = tmp_path / "models"
    shutil.copytree(models.root, root)

    class Meddler(Silent):
        def phase(self, name, total):
            if name == "checking the inputs":
                time.sleep(0.01)
                os.utime(root / which / "model.safetensors")

    result = None
    with pytest.raises(Exception, match="changed while it was") as caught:
        result = pack(root / "base", root / "m0", tmp_path / "out", progress=Meddler())
    assert result is None
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()
    assert neighbours(tmp_path / "out") == []


# Tensors of every kind.


def lay_out(tmp_path, base, tune, **options):
    write_model(tmp_path / "base", {}, settings=options.pop("settings", None))
    write_model(tmp_path / "m0", {}, settings=options.pop("tuned_settings", None))
    from safetensors.numpy import save_file

    save_file(base, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    save_file(tune, tmp_path / "m0" / "model.safetensors", {"format": "pt"})
    return pack(tmp_path / "base", tmp_path / "m0", tmp_path / "packed", threads=1, **options)


def odd_tensors():
    random = np.random.default_rng(3)

    def normal(*shape):
        return random.normal(size=shape)

    nan = normal(9, 9).astype(np.float32)
    nan.view(np.uint32)[0, :3] = (0x7FC00123, 0x80000000, 0xFF800000)
    return {
        "layers.0.float64": normal(30, 20),
        "layers.0.float16": normal(8, 8).astype(np.float16),
        "layers.0.bf16": normal(8, 8).astype(BF16),
        "layers.0.int64": random.integers(-(2**60), 2**60, (7, 3)),
        "layers.0.bool": random.random((5, 5)) < 0.5,
        "layers.0.uint8": random.integers(0, 255, (5, 5)).astype(np.uint8),
        "scalar": np.asarray(0.75, np.float32),
        "layers.0.empty": np.zeros((0, 4), np.float32),
        "layers.0.one": normal(1, 1).astype(np.float32),
        "layers.0.nan": nan,
        "layers.0.conv": normal(4, 3, 2, 2).astype(np.float32),
    }


@pytest.mark.parametrize("codec", ["lossless", "dense"])
def test_exact_codecs_keep_every_word_of_every_type(tmp_path, codec):
    base = odd_tensors()
    tune = {n: (a.copy() if a.size else a) for n, a in base.items()}
    for name, array in tune.items():
        if array.size and array.dtype != bool and name != "layers.0.nan":
            tune[name] = np.asarray(array.astype(np.float64) + 1).astype(array.dtype)
    lay_out(tmp_path, base, tune, codec=codec, where="*")
    found = read_model(tmp_path / "m0")
    got = words(tmp_path / "packed")
    assert got == {n: a.tobytes() for n, a in found.items()}
    assert run("unpack", tmp_path / "packed", tmp_path / "out", "--quiet").code == 0
    assert {n: (a.shape, a.dtype, a.tobytes()) for n, a in read_model(tmp_path / "out").items()} == {
        n: (a.shape, a.dtype, a.tobytes()) for n, a in found.items()
    }
    records = open_packed(tmp_path / "packed").delta().tensors
    assert all(record.xxh3_128 for record in records.values())


@pytest.mark.parametrize("codec", ["bitdelta", "sparse:values=float32"])
def test_codecs_of_deltas_leave_what_they_cannot_take(tmp_path, codec):
    base = {n: a for n, a in odd_tensors().items() if n != "layers.0.nan"}
    tune = {n: a.copy() for n, a in base.items()}
    for name in (
        "layers.0.float64",
        "layers.0.float16",
        "layers.0.bf16",
        "layers.0.conv",
        "scalar",
        "layers.0.one",
    ):
        tune[name] = np.asarray(base[name].astype(np.float64) * 1.01).astype(base[name].dtype)
    result = lay_out(tmp_path, base, tune, codec=codec, where="*")
    delta = open_packed(tmp_path / "packed").delta()
    kinds = {n: type(delta.codec(n)).__name__ for n in delta.names}
    exact = {n for n, k in kinds.items() if k == "Lossless"}
    assert exact >= {"layers.0.int64", "layers.0.bool", "layers.0.uint8"}
    assert any("lossless instead of" in note and "its elements are" in note for note in result.notes)
    got, model = words(tmp_path / "packed"), read_model(tmp_path / "m0")
    for name in exact:
        assert got[name] == model[name].tobytes()
    for name, array in model.items():
        if name not in exact and array.size:
            decoded = np.frombuffer(got[name], array.dtype).astype(np.float64)
            norm = np.linalg.norm(array.astype(np.float64) - base[name].astype(np.float64))
            error = np.linalg.norm(decoded - array.reshape(-1).astype(np.float64))
            assert error <= 1.0001 * norm + 0.005 * np.linalg.norm(array.astype(np.float64))


def test_a_rest_that_cannot_take_a_tensor_is_lossless(tmp_path):
    base = {"layers.0.w": np.ones((4, 4), np.float32), "ids": np.arange(5), "new": np.ones(3, np.float32)}
    tune = {"layers.0.w": base["layers.0.w"] * 2, "ids": base["ids"] + 1, "new": np.ones(4, np.float32)}
    result = lay_out(tmp_path, base, tune, rest="bitdelta")
    assert words(tmp_path / "packed")["ids"] == tune["ids"].tobytes()
    assert words(tmp_path / "packed")["new"] == tune["new"].tobytes()
    assert any("ids: lossless instead of bitdelta" in note for note in result.notes)
    assert any("new: lossless instead of bitdelta" in note for note in result.notes)


def test_a_codec_that_takes_more_than_the_tensor_is_told(models, tmp_path):
    """Factors of full rank hold more numbers than the matrix; the lossless rest is not mentioned."""
    paths = models.root / "base", models.root / "m0"
    result = pack(*paths, tmp_path / "a", codec="low_rank:rank=16,dtype=float32", where="*.q_proj.*")
    (note,) = result.notes
    assert "q_proj.weight and 1 more: low_rank:" in note
    assert note.endswith("is larger than the tensor itself")
    assert open_packed(tmp_path / "a").document.notes == (note,)
    assert pack(*paths, tmp_path / "b", codec="low_rank:rank=2", where="*.q_proj.*").notes == ()


def test_an_extended_vocabulary_and_tensors_of_the_model_alone(models, tmp_path):
    """Kept to the bit, said in a note, and unpacked again."""
    tune = dict(models.tunes[0])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tune[name] = np.concatenate([tune[name], np.full((3, 16), 0.5, np.float32)])
    tune["model.layers.0.mlp.extra_proj.weight"] = np.ones((8, 8), np.float32)
    del tune["model.layers.1.self_attn.o_proj.weight"]
    shutil.copytree(models.root / "base", tmp_path / "base")
    write_model(tmp_path / "m0", tune, settings=config(vocab_size=43))
    result = pack(tmp_path / "base", tmp_path / "m0", tmp_path / "packed", where="*")
    got = words(tmp_path / "packed")
    model = words(tmp_path / "m0")
    assert got.keys() == model.keys()
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.extra_proj.weight"):
        assert got[name] == model[name]
        assert not open_packed(tmp_path / "packed").delta().tensors[name].against_base
    assert any("the base has no tensor of that name and shape" in note for note in result.notes)
    assert any(
        "1 tensors of the base are not in the model, the first model.layers.1.self_attn.o" in n
        for n in result.notes
    )
    lone, other = "model.layers.0.mlp.extra_proj.weight", "lm_head.weight"
    assert f"tensors that the base lacks, stored whole: 1, the first {lone}" in result.notes
    told = f"tensors of another shape or kind than the base's, stored whole: 2, the first {other}"
    assert told in result.notes
    assert run("unpack", tmp_path / "packed", tmp_path / "out", "--quiet").code == 0
    assert words(tmp_path / "out") == got
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 43
    assert list(result.notes) == list(open_packed(tmp_path / "packed").document.notes)


@pytest.mark.parametrize(
    ("kind", "other"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "bfloat16")]
)
@pytest.mark.parametrize("codec", ["lossless", "bitdelta"])
def test_base_and_model_of_different_types(tmp_path, kind, other, codec):
    base = draw(0, layers=1)
    write_model(tmp_path / "base", base, kind)
    write_model(tmp_path / "m0", tuned(base, 0), other)
    pack(tmp_path / "base", tmp_path / "m0", tmp_path / "packed", codec=codec, where="*")
    got, model = words(tmp_path / "packed"), words(tmp_path / "m0")
    assert {n: len(b) for n, b in got.items()} == {n: len(b) for n, b in model.items()}
    if codec == "lossless":
        assert got == model


def test_integers_where_the_base_has_floats(tmp_path):
    """Nothing to subtract: kept as the model has them."""
    base = {
        "layers.0.w": np.ones((4, 4), np.float32),
        "a": np.arange(3),
        "b": np.ones(3, np.float32),
        "c": np.arange(3),
    }
    tune = base | {"a": np.ones(3, np.float32), "b": np.arange(3), "c": np.arange(3).astype(np.int32)}
    lay_out(tmp_path, base, tune, where="*")
    assert words(tmp_path / "packed") | {"layers.0.w": b""} == {n: a.tobytes() for n, a in tune.items()} | {
        "layers.0.w": b""
    }
    tensors = open_packed(tmp_path / "packed").delta().tensors
    assert [tensors[n].against_base for n in "abc"] == [False, False, False]


def test_a_model_that_is_its_base(models, tmp_path):
    result = pack(models.root / "base", models.root / "base", tmp_path / "packed", where="*", label="same")
    assert result.relative_error == 0
    assert words(tmp_path / "packed", models.root / "base") == words(models.root / "base")


def test_a_tied_model(tmp_path):
    base = draw(0)
    del base["lm_head.weight"]
    settings = config(tie_word_embeddings=True)
    write_model(tmp_path / "base", base, settings=settings)
    write_model(tmp_path / "m0", tuned(base, 0), settings=settings)
    pack(tmp_path / "base", tmp_path / "m0", tmp_path / "packed", codec="lossless")
    recipe = {"models": [{"model": "./packed"}, {"model": "./base"}], "merge": "linear"}
    plain = {"models": [{"model": "./m0"}, {"model": "./base"}], "merge": "linear"}
    merge(write_recipe(tmp_path / "a.yaml", recipe), tmp_path / "a")
    merge(write_recipe(tmp_path / "b.yaml", plain), tmp_path / "b")
    assert words(tmp_path / "a") == words(tmp_path / "b")
    assert "lm_head.weight" not in words(tmp_path / "a")


def test_shards_of_either_make_no_difference(models, tmp_path):
    expected = Parts.of(models.root / "packed")
    write_model(tmp_path / "base", models.base, shards=3)
    write_model(tmp_path / "m0", models.tunes[0], shards=5)
    found = Parts.of(packed(tmp_path, rules=EVERY))
    assert found.arrays == expected.arrays
    assert found.document == expected.document


# What else may stand for a model.


def test_a_recipe_as_model(models, tmp_path):
    recipe = models.recipe(preset="ties", density=0.4)
    merge(recipe, tmp_path / "merged")
    pack(models.root / "base", recipe, tmp_path / "packed", codec="lossless", where="*")
    assert open_packed(tmp_path / "packed").labels == ("recipe",)
    assert words(tmp_path / "packed", models.root / "base") == words(tmp_path / "merged")
    pack(models.root / "base", recipe, tmp_path / "sparse", codec="sparse:values=float32")
    base = open_model(str(models.root / "base")).checkpoint
    found, wanted = (
        values(tmp_path / "sparse", base)[UP],
        read_model(tmp_path / "merged")[UP].astype(np.float32),
    )
    assert (
        np.abs(found - wanted).max() < 2**-8 * np.abs(wanted).max()
    )  # the merge's rounding, which a recipe spares


def test_a_recipe_that_casts_and_copies(models, tmp_path):
    recipe = write_recipe(
        models.root / "cast.yaml",
        {
            "base": "./base",
            "models": [{"model": "./m0"}],
            "merge": "sum",
            "where": "*.mlp.*",
            "dtype": "float32",
        },
    )
    merge(recipe, tmp_path / "merged")
    pack(models.root / "base", recipe, tmp_path / "packed", codec="lossless", where="*")
    assert words(tmp_path / "packed", models.root / "base") == words(tmp_path / "merged")


def test_an_adapter_as_model(models, tmp_path):
    shutil.copytree(models.root / "base", tmp_path / "base")
    dense = write_adapter(tmp_path / "lora", models.base, 1)
    pack(tmp_path / "base", tmp_path / "lora", tmp_path / "packed", codec="low_rank:rank=2")
    delta = open_packed(tmp_path / "packed").delta()
    model = PackedModel.over(delta, open_model(str(tmp_path / "base")).checkpoint)
    for name, expected in dense.items():
        found = np.empty(expected.size, np.float32)
        model.read_delta(name, 0, found)
        assert np.linalg.norm(found - expected.reshape(-1)) < 0.01 * np.linalg.norm(expected)
    assert (tmp_path / "packed" / "tokenizer.json").exists()


def test_a_packed_delta_as_model(models, tmp_path):
    """Packed again by another codec; against the base, as ever."""
    pack(models.root / "base", models.root / "packed", tmp_path / "again", codec="lossless", where="*")
    assert words(tmp_path / "again", models.root / "base") == words(models.root / "packed")
    assert open_packed(tmp_path / "again").labels == ("packed",)


def test_scaled_fp8_as_model_and_as_base(models, tmp_path):
    write_fp8(tmp_path / "base", models.base)
    write_model(tmp_path / "m0", models.tunes[0])
    pack(tmp_path / "base", tmp_path / "m0", tmp_path / "packed", codec="lossless", where="*")
    assert words(tmp_path / "packed") == words(tmp_path / "m0")
    shutil.copytree(models.root / "base", tmp_path / "plain")
    pack(tmp_path / "plain", tmp_path / "base", tmp_path / "other", codec="lossless", where="*")
    assert words(tmp_path / "other") == words(tmp_path / "base")


def test_npz_files(models, tmp_path):
    np.savez(tmp_path / "base.npz", **models.base)
    np.savez(tmp_path / "m0.npz", **models.tunes[0])
    result = pack(
        tmp_path / "base.npz", tmp_path / "m0.npz", tmp_path / "packed", codec="lossless", where="*"
    )
    assert open_packed(tmp_path / "packed").labels == ("m0",)
    assert words(tmp_path / "packed") == words(tmp_path / "m0.npz")
    assert any("no tokenizer files" in warning for warning in result.warnings)


# Labels and what is told.


def test_labels_from_names(tmp_path, monkeypatch):
    for given, label in {
        "models/Llama-3.1-8B": "Llama-3.1-8B",
        "models/WizardMath-13B-V1.0/": "WizardMath-13B-V1.0",
        "someone/math@main": "math",
        "mix.yaml": "mix",
        "x/y.safetensors": "y",
        "packed#code": "code",
        "a\nb": "model",
    }.items():
        assert label_of(given) == label
    monkeypatch.chdir(tmp_path)
    assert label_of(".") == tmp_path.name


@pytest.mark.parametrize("label", ["", "a#b", "\x1b"])
def test_labels_that_cannot_be_given(models, tmp_path, label):
    with pytest.raises(RecipeError, match="no delta can be labelled"):
        pack(models.root / "base", models.root / "m0", tmp_path / "out", label=label)


def test_the_manifest(models):
    manifest = json.loads((models.root / "packed" / "manifest.json").read_text())
    assert manifest["lineage"] == {"base": "base", "merge": "pack", "parents": ["m0"]}
    assert [i["label"] for i in manifest["inputs"]] == ["base", "m0"]
    assert all(f["sha256"] for i in manifest["inputs"] for f in i["files"].values())
    parts = Parts.of(models.root / "packed")
    hashes = {n: t["xxh3_128"] for n, t in manifest["tensors"].items() if n != "deltasmith.document"}
    assert hashes == parts.document["hashes"]
    assert run("verify", models.root / "packed").code == 0


def test_what_pack_returns(models, tmp_path):
    result = pack(models.root / "base", models.root / "m0", tmp_path / "out")
    size = (tmp_path / "out" / "delta.safetensors").stat().st_size
    assert result.nbytes == size
    assert result.elements == sum(a.size for a in models.base.values())
    assert result.ratio == size / (2 * result.elements)
    assert 0.55 < result.relative_error < 0.65
    assert result.as_json()["ratio"] == result.ratio


def test_a_model_with_little_in_common_is_still_packed_if_half_of_it_is(tmp_path):
    base = {"layers.0.w": np.ones((10, 10), np.float32)}
    lay_out(tmp_path, base, base | {"new": np.ones((10, 10), np.float32)})
    shutil.rmtree(tmp_path / "packed")
    with pytest.raises(RefusedError, match="no fine-tune"):
        lay_out(tmp_path, base, base | {"new": np.ones((10, 11), np.float32)})


def test_changing_nothing_changes_nothing(models, tmp_path):
    """The helper that other tests spoil containers with makes the same model of the same pieces."""
    shutil.copytree(models.root / "packed", tmp_path / "packed")
    changed(tmp_path / "packed", lambda parts: None)
    assert words(tmp_path / "packed", models.root / "base") == words(models.root / "packed")
