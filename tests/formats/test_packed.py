"""Packed deltas opened: checked against file and base, and read as the model they stand for."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from containers import EVERY, Parts, changed, packed, values, words
from deltasmith.errors import DamagedInputError, RefusedError
from deltasmith.formats import packed as module
from deltasmith.formats import packed_model
from deltasmith.formats.opening import find_base, open_model
from deltasmith.formats.packed import is_packed, open_packed
from deltasmith.formats.packed_model import PackedColumn, PackedModel, predict
from deltasmith.formats.rooms import Rooms
from deltasmith.table.checkpoint import DictCheckpoint, Spec
from deltasmith.table.dtypes import DTYPES
from models import family, tree, write_adapter, write_model

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = family(tmp_path_factory.mktemp("packed"), experts=2)
    packed(made.root, rules=EVERY)
    return made


@pytest.fixture
def copy(models, tmp_path):
    """Return a container that a test may spoil, with its base beside it."""
    shutil.copytree(models.root / "packed", tmp_path / "packed")
    shutil.copytree(models.root / "base", tmp_path / "base")
    return tmp_path / "packed"


def test_what_it_tells_without_its_base(models):
    opened = open_packed(models.root / "packed")
    assert opened.labels == ("m0",)
    assert (opened.base.name, opened.base.revision, len(opened.base.fingerprint)) == ("base", None, 32)
    delta = opened.delta()
    assert delta.names == opened.delta("m0").names == tuple(sorted(models.base))
    assert delta.where == str(models.root / "packed" / "delta.safetensors")
    spec = delta.cell(UP).spec
    assert (spec.shape, spec.dtype.name) == ((24, 16), "bfloat16")
    assert set(delta.source(UP).specs) == {"index", "stream"}
    assert open_packed(models.root / "packed" / "delta.safetensors").labels == ("m0",)


def test_it_opens_where_models_do(models):
    opened = open_model(str(models.root / "packed"))
    assert opened.packed is not None
    assert opened.adapter is None
    assert opened.name == "packed"
    assert opened.config["model_type"] == "llama"
    assert "tokenizer.json" in opened.others
    assert "delta.safetensors" not in opened.others
    assert {n: s.shape for n, s in opened.checkpoint.specs.items()} == {
        n: a.shape for n, a in models.base.items()
    }
    assert [s.name for s in opened.files] == ["delta.safetensors"]
    assert open_model(str(models.root / "packed" / "delta.safetensors")).packed is not None
    assert open_model(str(models.root / "packed#m0")).name == "packed#m0"
    opened.check_unchanged()


def test_all_ways_of_reading_agree(models):
    base = open_model(str(models.root / "base")).checkpoint
    whole = values(models.root / "packed", base)
    model = PackedModel.over(open_packed(models.root / "packed").delta(), base)
    column = PackedColumn(model)
    for name, spec in model.specs.items():
        ground = np.empty(spec.size, np.float32)
        base.read(name, 0, ground)
        for start, stop in [(0, spec.size), (3, 11), (spec.size - 1, spec.size), (5, 5)]:
            piece, cell = np.empty(stop - start, np.float32), np.empty(stop - start, np.float32)
            model.read(name, start, piece)
            column.read(name, start, cell)
            assert piece.tolist() == whole[name].reshape(-1)[start:stop].tolist()
            if model.holds_delta(name):
                assert (cell + ground[start:stop]).tolist() == piece.tolist()
            else:
                assert cell.tolist() == piece.tolist()
            width = spec.dtype.itemsize
            assert (
                bytes(model.raw(name, start, stop))
                == bytes(model.raw(name, 0, spec.size))[start * width : stop * width]
            )
        assert bytes(column.raw(name, 0, spec.size)) == bytes(model.raw(name, 0, spec.size))
    assert not model.holds_delta("nothing of that name")


def test_many_threads_read_at_once(models):
    base = open_model(str(models.root / "base")).checkpoint
    expected = words(models.root / "packed", models.root / "base")
    model = PackedModel.over(open_packed(models.root / "packed").delta(), base)
    jobs = [name for _ in range(20) for name in model.specs]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: bytes(model.raw(n, 0, model.specs[n].size)), jobs))
    assert found == [expected[name] for name in jobs]


def test_few_decoders_and_arrays_are_kept(models, monkeypatch):
    """What reading a whole model leaves in memory does not grow with the model."""
    monkeypatch.setattr(packed_model, "_KEPT_DECODERS", 3)
    monkeypatch.setattr(module, "_KEPT_BYTES", 100)
    base = open_model(str(models.root / "base")).checkpoint
    model = PackedModel.over(open_packed(models.root / "packed").delta(), base)
    expected = words(models.root / "packed", models.root / "base")
    for _ in range(2):
        for name, spec in model.specs.items():
            assert bytes(model.raw(name, 0, spec.size)) == expected[name]
            assert len(model._decoders) <= 3
            kept = model.delta._kept
            assert len(kept) == 1 or sum(a.nbytes for a in kept.values()) <= 100


def test_an_array_is_hashed_once(models, monkeypatch):
    base = open_model(str(models.root / "base")).checkpoint
    model = PackedModel.over(open_packed(models.root / "packed").delta(), base)
    for name, spec in model.specs.items():
        model.raw(name, 0, spec.size)
    monkeypatch.setattr(module, "combine_chunks", None)
    for name, spec in model.specs.items():
        model.raw(name, 0, spec.size)


def test_a_source_gives_nothing_it_has_not(models):
    source = open_packed(models.root / "packed").delta().source(UP)
    for wrong in ((0, 10**9), (-1, 3), (2, 1)):
        with pytest.raises(ValueError, match="of stream, which has"):
            source.read("stream", *wrong)
    for read in (lambda: source.read("scale", 0, 1), lambda: source.whole("scale")):
        with pytest.raises(ValueError, match="there is no array scale"):
            read()


# The base.


def test_the_base_beside_the_packed_folder_is_found(models, tmp_path, monkeypatch):
    expected = words(models.root / "packed", models.root / "base")
    assert words(models.root / "packed") == expected
    shutil.copytree(models.root / "packed", tmp_path / "deep" / "packed")
    with pytest.raises(RefusedError, match=r"needs its base 'base', which is not beside it.*in a recipe"):
        words(tmp_path / "deep" / "packed")
    shutil.copytree(models.root / "base", tmp_path / "base")  # one folder further up
    assert words(tmp_path / "deep" / "packed") == expected
    shutil.move(tmp_path / "base", tmp_path / "here" / "base")
    monkeypatch.chdir(tmp_path / "here")
    assert words(tmp_path / "deep" / "packed") == expected


def test_a_base_in_one_file_is_found(models, tmp_path):
    shutil.copy(models.root / "base" / "model.safetensors", tmp_path / "base.safetensors")
    shutil.copytree(models.root / "m0", tmp_path / "m0")
    from deltasmith.packing import pack

    pack(tmp_path / "base.safetensors", tmp_path / "m0", tmp_path / "out")
    assert open_packed(tmp_path / "out").base.name == "base.safetensors"
    expected = words(tmp_path / "out", tmp_path / "base.safetensors")
    assert words(tmp_path / "out") == expected


def test_a_base_of_another_name_from_the_hub_is_asked_for_by_id_and_commit(copy, monkeypatch):
    def change(parts):
        parts.document["base"] |= {"name": "someone/base", "revision": "0" * 40}

    asked = []
    monkeypatch.setattr("deltasmith.formats.hub._fetch", lambda *a: asked.append(a) or copy.parent / "base")
    delta = open_packed(changed(copy, change)).delta()
    assert find_base(delta).specs
    assert asked == [("someone/base", "0" * 40, False)]


def test_the_same_base_in_other_shards_is_the_same(models, tmp_path):
    write_model(tmp_path / "base", models.base, shards=4)
    shutil.copytree(models.root / "packed", tmp_path / "packed")
    assert words(tmp_path / "packed") == words(models.root / "packed")


def test_fault_70_another_base_is_refused(copy):
    weights = copy.parent / "base" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-7] ^= 1
    weights.write_bytes(data)
    with pytest.raises(
        DamagedInputError, match=r"not the base it was packed against.*expected .* of 'base'"
    ) as caught:
        words(copy)
    assert caught.value.exit_code == 3


def test_an_adapter_is_no_base(models, tmp_path):
    shutil.copytree(models.root / "packed", tmp_path / "packed")
    write_adapter(tmp_path / "base", models.base, 1)
    with pytest.raises(RefusedError, match="an adapter cannot be the base of a packed delta"):
        words(tmp_path / "packed")


def test_a_base_that_lacks_what_the_document_tells_of_it(copy):
    """Mended hashes and the right fingerprint: the tensors must be there all the same."""

    def change(parts):
        tensors = parts.document["deltas"]["m0"]["tensors"]
        tensors["model.layers.7.mlp.up_proj.weight"] = tensors.pop(UP)

    base = open_model(str(copy.parent / "base")).checkpoint
    with pytest.raises(
        DamagedInputError, match=r"layers\.7.* does not decode \(the base has no such tensor\)"
    ):
        PackedModel.over(open_packed(changed(copy, change)).delta(), base)


@pytest.mark.parametrize("shape", [[16, 24], [24, 15], [2**47, 2], [384]])
def test_shapes_that_the_base_does_not_have(copy, shape):
    base = open_model(str(copy.parent / "base")).checkpoint
    delta = open_packed(changed(copy, lambda p: p.tensor(UP).update(shape=shape))).delta()
    with pytest.raises(DamagedInputError, match="the base has no such tensor"):
        PackedModel.over(delta, base)


def test_predictions_are_the_base_in_the_models_type():
    base = DictCheckpoint({"w": np.array([1.0, -2.5, 3e38], np.float32), "i": np.array([7], np.int32)})
    rooms = Rooms()
    bf16, f16 = DTYPES["bfloat16"], DTYPES["float16"]
    assert predict(base, "w", Spec("w", (3,), bf16), 0, 2, rooms).tolist() == [0x3F80, 0xC020]
    assert predict(base, "w", Spec("w", (3,), DTYPES["float32"]), 1, 2, rooms).view(np.float32).tolist() == [
        -2.5
    ]
    assert predict(None, "w", Spec("w", (3,), f16), 0, 3, rooms).tolist() == [0, 0, 0]
    assert predict(base, "i", Spec("i", (1,), DTYPES["int32"]), 0, 1, rooms).tolist() == [7]
    with np.errstate(over="ignore"):
        assert (
            predict(base, "w", Spec("w", (3,), f16), 2, 3, rooms).size == 1
        )  # too large for it: some word all the same


# What is no packed delta, or more than one.


def test_other_files(models, tmp_path):
    assert not is_packed(models.root / "base")
    assert not is_packed(models.root / "base" / "model.safetensors")
    assert not is_packed(models.root / "base" / "config.json")
    with pytest.raises(DamagedInputError, match="not a packed delta"):
        open_packed(models.root / "base" / "model.safetensors")
    with pytest.raises(DamagedInputError):
        open_packed(models.root / "base")
    with pytest.raises(RefusedError, match="#m0 chooses a packed delta, and this is none"):
        open_model(str(models.root / "base#m0"))


def test_a_model_and_a_packed_delta_in_one_folder(copy):
    shutil.copy(copy.parent / "base" / "model.safetensors", copy)
    with pytest.raises(RefusedError, match="a model and a packed delta"):
        open_model(str(copy))


def test_a_damaged_file_does_not_pass_for_a_model(copy):
    """Opened by its own name, not its folder's: the arrays would make a model of odd tensors."""
    parts = Parts.of(copy)
    parts.metadata["format"] = "deltasmith-packee"
    parts.write(copy)
    with pytest.raises(DamagedInputError, match="not a packed delta"):
        open_model(str(copy / "delta.safetensors"))


def test_labels_choose(models, copy):
    def twice(parts):
        parts.document["deltas"]["other"] = parts.document["deltas"]["m0"]

    changed(copy, twice)
    expected = words(models.root / "packed")
    assert words(f"{copy}#other") == words(f"{copy}#m0") == expected
    with pytest.raises(RefusedError, match=r"holds 2 deltas in .*; add #LABEL: m0, other"):
        open_model(str(copy))
    with pytest.raises(RefusedError, match=r"no delta 'third' in the container in .*; it has m0, other"):
        open_model(f"{copy}#third")
    shutil.move(copy, copy.parent / "a#b")
    assert words(f"{copy.parent / 'a#b'}#other") == expected
    assert open_packed(copy.parent / "a#b").delta("other").where.endswith("delta.safetensors#other")


def test_a_folder_whose_name_looks_like_a_label(models, tmp_path):
    shutil.copytree(models.root / "packed", tmp_path / "p#m0")
    assert open_model(str(tmp_path / "p#m0")).name == "p#m0"


def test_a_link_that_leads_out_of_the_folder(copy, tmp_path):
    shutil.move(copy / "delta.safetensors", tmp_path / "elsewhere.safetensors")
    (copy / "delta.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(DamagedInputError, match="outside the folder"):
        open_model(str(copy))


def test_values_that_do_not_fit_the_models_type(models, tmp_path):
    """Base plus delta is rounded once, and refused where it overflows."""
    base = {n: np.full_like(a, 65000.0) for n, a in models.base.items()}
    tune = {n: a + np.where(np.arange(a.size).reshape(a.shape) % 2, 500.0, -30000.0) for n, a in base.items()}
    write_model(tmp_path / "base", base, "float16")
    write_model(tmp_path / "m0", {n: a.astype(np.float32) for n, a in tune.items()}, "float16")
    packed(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(
        RefusedError, match=r"values of model\.layers\.0\.mlp\.\w+_proj\.weight do not fit float16"
    ):
        words(tmp_path / "packed")
    assert tree(tmp_path) == before


def test_a_base_is_looked_for_once(models):
    calls = []
    base = open_model(str(models.root / "base")).checkpoint
    model = PackedModel(open_packed(models.root / "packed").delta(), lambda: calls.append(1) or base)
    assert [s.name for s in model.sources] == ["delta.safetensors"]
    for name, spec in model.specs.items():
        model.raw(name, 0, spec.size)
    assert calls == [1]
    assert [s.name for s in model.sources] == ["delta.safetensors", "model.safetensors"]
