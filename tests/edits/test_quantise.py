"""Quantise: a codec as an edit. The codec's own numbers, the texts that recipes use, and what `pack` would give."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from contracts import SHAPES, drawn_table, key_of
from deltasmith.codecs.catalogue import CODECS, codec_from, codec_text
from deltasmith.codecs.protocol import Cell
from deltasmith.edits.quantise import Quantise
from deltasmith.errors import RefusedError
from deltasmith.operation.protocols import Found, Place
from deltasmith.operation.reference import edit_table
from deltasmith.recipe.checks import from_dict, loads
from deltasmith.recipe.model import operation_text, to_mapping
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES
from models import family, read_model, run

DELTAS = [
    "bitdelta",
    "bitdelta:zero=zero,scale=row,magnitude=1.5",
    "bitdelta_random:distribution=uniform,spread=1.5,zero=zero",
    "magnitude_blocks:blocks=5,scheme=equal_width,zero=plus",
    "residual_bits:passes=3",
    "low_rank:error=0.1,max_rank=3,dtype=float32",
    "low_rank:energy=0.5,dtype=float16",
    "sparse",
    "sparse:values=float32",
    "claq:bits=2.05,reserve=0.05,threshold=4",
    "zero",
]


@pytest.mark.parametrize("text", DELTAS)
def test_equals_the_codec_encoding_and_decoding(text):
    codec, table = codec_from(text), drawn_table(1)
    got = edit_table(Quantise(codec=text), table, key=key_of)
    changed = 0
    for name, delta in table.items():
        spec = Spec(name, delta.shape, DTYPES["float32"])
        cell = Cell(spec, spec, key_of(name))
        wanted = delta
        if delta.size and not codec.refusal(cell):
            wanted = codec.decode(codec.encode(delta, cell), cell)
            changed += not np.array_equal(wanted, delta)
        np.testing.assert_array_equal(got[name], wanted, err_msg=name)
    assert changed or text == "sparse:values=float32"


def test_by_hand():
    table = {"w": np.array([[1.0, -2.0], [-4.0, 5.0]], np.float32)}
    assert edit_table(Quantise(codec="bitdelta"), table)["w"].tolist() == [[3.0, -3.0], [-3.0, 3.0]]
    rows = edit_table(Quantise(codec="bitdelta:scale=row,magnitude=2"), table)["w"]
    assert rows.tolist() == [[3.0, -3.0], [-9.0, 9.0]]


def test_the_draws_of_a_codec_come_from_the_key_of_the_cell():
    delta, edit = np.ones((8, 8), np.float32), Quantise(codec="bitdelta_random")
    one, same, other = (edit.apply(delta, Place("w", (8, 8), key=key), Found()) for key in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_what_the_codec_cannot_code_is_left_as_it_is():
    table = drawn_table(2)
    got = edit_table(Quantise(codec="low_rank:rank=1"), table)
    for name, delta in table.items():
        assert np.array_equal(got[name], delta) == (delta.ndim < 2 or not delta.size), name


@pytest.mark.parametrize("text", DELTAS)
def test_the_workspace_is_the_codec_s(text):
    edit, codec = Quantise(codec=text), codec_from(text)
    for shape in SHAPES.values():
        spec = Spec("", shape, DTYPES["float32"])
        alone = not spec.size or codec.refusal(Cell(spec))
        assert edit.workspace(shape, 3) == (0 if alone else codec.workspace(Cell(spec, spec)))


@pytest.mark.parametrize("text", DELTAS)
def test_a_codec_survives_being_written(text):
    edit = Quantise(codec=text)
    assert codec_from(edit.codec) == codec_from(text)
    assert Quantise(codec=edit.codec) == edit
    recipe = from_dict({"base": "b", "models": [{"model": "m", "edits": [{"quantise": {"codec": text}}]}]})
    assert recipe.models[0].edits[0].record == edit
    assert from_dict(to_mapping(recipe)) == recipe


def test_every_spelling_of_a_codec_is_one_record():
    texts = ["bitdelta:scale=row", "{bitdelta: {scale: row}}", "bitdelta:scale=row,magnitude=1"]
    records = {Quantise(codec=text) for text in texts}
    records |= {
        Quantise(codec={"bitdelta": {"scale": "row"}}),
        Quantise(codec=codec_from("bitdelta:scale=row")),
    }
    assert records == {Quantise(codec="bitdelta:scale=row")}
    in_yaml = "base: b\nmodels: [{model: m, edits: [{quantise: {codec: %s}}]}]"
    for text in ("bitdelta:scale=row", "{bitdelta: {scale: row}}", '"{bitdelta: {scale: row}}"'):
        assert loads(in_yaml % text).models[0].edits[0].record in records
    assert operation_text(Quantise(codec="bitdelta")) == "quantise(codec=bitdelta)"


@pytest.mark.parametrize("name", sorted(CODECS))
def test_every_codec_of_deltas_is_taken_and_no_other(name):
    text = name + ":rank=4" * (name == "low_rank")
    if name in ("lossless", "dense", "emr"):
        with pytest.raises(ValidationError, match=r"stores every element exactly|needs all models at once"):
            Quantise(codec=text)
    else:
        assert Quantise(codec=text).codec == codec_text(codec_from(text))


@pytest.mark.parametrize(
    "codec",
    ["", "bitdelt", "bitdelta:zero=none", "low_rank", "claq:bits=[", "claq:of=weight", 3, None, [], {"a": 1}],
)
def test_what_is_no_codec_is_refused(codec):
    with pytest.raises(ValidationError):
        Quantise(codec=codec)


def test_values_that_a_codec_has_no_numbers_for_are_refused():
    delta = np.array([[1.0, np.inf], [0.0, 1.0]], np.float32)
    with pytest.raises(
        RefusedError, match=r"the codec sparse cannot take the delta: .* in w; choose another codec"
    ):
        Quantise(codec="sparse").apply(delta, Place("w", (2, 2)), Found())


@pytest.mark.parametrize("codec", ["bitdelta", "bitdelta_random", "claq:bits=2", "low_rank:rank=3"])
def test_equals_pack_and_unpack(tmp_path, codec):
    """In a recipe, edited; on disk, packed and unpacked: the same label and seed, the same bytes."""
    models = family(tmp_path / "models", experts=1, dtype="float32")
    base = models.root / "base"
    packed = run(
        "pack", base, models.root / "m0", tmp_path / "packed", "--codec", codec, "--where", "*proj.weight"
    )
    assert packed.code == 0, packed.err
    assert run("unpack", tmp_path / "packed", tmp_path / "unpacked", "--base", base).code == 0
    edits = [{"quantise": {"codec": codec}, "where": "*proj.weight"}]
    recipe = models.recipe(models=[{"model": "./m0", "label": "m0", "edits": edits}])
    assert run("merge", recipe, tmp_path / "merged", "--quiet").code == 0
    unpacked, merged, plain = (
        read_model(folder) for folder in (tmp_path / "unpacked", tmp_path / "merged", models.root / "m0")
    )
    for name, values in unpacked.items():
        if name.endswith("proj.weight"):
            np.testing.assert_array_equal(merged[name], values, err_msg=name)
            assert not np.array_equal(values, plain[name])
