"""The document of a packed delta: written, read, and refused for anything that is not as the format says."""

from __future__ import annotations

import json

import pytest

from deltasmith.codecs.catalogue import codec_from
from deltasmith.errors import DamagedInputError
from deltasmith.formats.packed_document import (
    BaseRecord,
    Document,
    TensorRecord,
    is_label,
    read_document,
)
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES

WHERE = "somewhere/delta.safetensors"
F32 = DTYPES["float32"]


def document(**changes):
    record = TensorRecord(
        Spec("w", (4, 3), F32), codec_from("bitdelta"), {"signs": "w::signs", "scale": "w::scale"}, 1.5, 0.25
    )
    exact = TensorRecord(
        Spec("b", (3,), F32),
        codec_from("lossless"),
        {"stream": "b::stream", "index": "b::index"},
        xxh3_128="ab" * 16,
    )
    hashes = {"w::signs": "0" * 32, "w::scale": "1" * 32, "b::stream": "2" * 32, "b::index": "3" * 32}
    values = {
        "deltasmith": "1.2.3",
        "base": BaseRecord("org/base", "abc", "f" * 32),
        "deltas": {"m": {"w": record, "b": exact}},
        "hashes": hashes,
        "sources": {"m": {"name": "m", "revision": None}},
        "notes": ("a note",),
    }
    return Document(**(values | changes))


def tree(**changes):
    return json.loads(document().encode()) | changes


def read(content) -> Document:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return read_document(data, WHERE)


def test_it_comes_back():
    assert read_document(document().encode(), WHERE) == document()


def test_the_order_in_which_arrays_and_tensors_became_known_does_not_show():
    """What a resumed run learns from its journal comes in another order."""
    known = document()
    turned = {
        n: TensorRecord(
            r.spec, r.codec, dict(reversed(r.arrays.items())), r.squared_norm, r.squared_error, r.xxh3_128
        )
        for n, r in reversed(known.deltas["m"].items())
    }
    hashes = dict(reversed(known.hashes.items()))
    assert document(deltas={"m": turned}, hashes=hashes).encode() == known.encode()


def test_one_entry_for_equal_codecs():
    records = {n: TensorRecord(Spec(n, (1,), F32), codec_from("bitdelta"), {}) for n in ("a", "b")}
    found = json.loads(document(deltas={"m": records}).encode())
    assert found["codecs"] == [{"bitdelta": {"zero": "minus", "magnitude": 1.0, "scale": "tensor"}}]


def test_the_relative_error():
    def of(norm, error):
        return TensorRecord(Spec("w", (1,), F32), codec_from("bitdelta"), {}, norm, error).relative_error

    assert of(4.0, 1.0) == 0.5
    assert (of(None, None), of(0.0, 0.0), of(1.0, 0.0)) == (0, 0, 0)
    assert of(0.0, 1.0) == float("inf")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "no proper format"),
        (b'{"format": 3}', "no proper format"),
        (b'{"format": "deltasmith-stats-1"}', "of another format"),
        (b'{"format": "deltasmith-packed", "version": NaN}', "NaN is not JSON"),
        (b'{"format": "deltasmith-packed", "format": "deltasmith-packed"}', "appears twice"),
        (b'{"format": "deltasmith-packed", "version": ' + b"9" * 5000 + b"}", "is not JSON"),
    ],
)
def test_no_document_at_all(data, words):
    with pytest.raises(DamagedInputError) as caught:
        read(data)
    assert words in str(caught.value)
    assert WHERE in str(caught.value)


@pytest.mark.parametrize("version", [2, 3, 10**9, 0, -1])
def test_another_version(version):
    with pytest.raises(DamagedInputError, match=f"version {version}"):
        read(tree(version=version, deltasmith="9.0"))
    if version > 1:
        with pytest.raises(DamagedInputError, match=r"written by deltasmith 9.0; this one reads version 1"):
            read(tree(version=version, deltasmith="9.0"))


@pytest.mark.parametrize("key", ["format", "version", "base", "codecs", "deltas", "hashes", "notes"])
def test_a_missing_or_misshapen_part(key):
    content = tree()
    del content[key]
    with pytest.raises(DamagedInputError):
        read(content)
    for value in (None, True, 1.5, [[]], {"x": 3}):
        with pytest.raises(DamagedInputError):
            read(tree(**{key: value}))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("w", {"dtype": "float12"}),
        ("w", {"dtype": 5}),
        ("w", {"shape": [-1, 3]}),
        ("w", {"shape": [1.0, 3]}),
        ("w", {"shape": [True, 3]}),
        ("w", {"shape": [2**48]}),
        ("w", {"shape": [1] * 33}),
        ("w", {"shape": "4"}),
        ("w", {"codec": 2}),
        ("w", {"codec": -1}),
        ("w", {"codec": True}),
        ("w", {"arrays": {"signs": 3}}),
        ("w", {"arrays": []}),
        ("w", {"squared_norm": -1}),
        ("w", {"squared_norm": "1"}),
        ("w", {"squared_error": 10**400}),
        ("w", {"squared_error": 1e400}),
        ("w", {"against_base": 1}),
        ("w", {"against_base": False}),  # a delta, and nothing to add it to
        ("w", {"dtype": "int32"}),  # bitdelta knows no integers
        ("w", {"dtype": "float8_e5m2"}),  # which nothing is rounded to
    ],
)
def test_an_impossible_tensor(name, changes):
    content = tree()
    content["deltas"]["m"]["tensors"][name] |= changes
    text = json.dumps(content).replace("Infinity", "1e400").encode()
    with pytest.raises(DamagedInputError) as caught:
        read(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["", "../../x", "/etc/passwd", "a\u202eb", "a\x00", "\ud800", "n" * 1025])
def test_names_that_no_tensor_may_have(name):
    """They would become the names of an unpacked model's tensors."""
    content = tree()
    tensors = content["deltas"]["m"]["tensors"]
    tensors[name] = tensors.pop("w")
    with pytest.raises(DamagedInputError):
        read(content)


@pytest.mark.parametrize("label", ["", "a#b", "\x1b[2J", "l" * 201])
def test_labels_that_no_delta_may_have(label):
    content = tree()
    content["deltas"][label] = content["deltas"].pop("m")
    with pytest.raises(DamagedInputError, match="no label"):
        read(content)
    assert not is_label(label)
    assert is_label("math-1 (é)")


@pytest.mark.parametrize(
    "codec",
    [
        {"bytedelta": {}},
        {"bitdelta": {"zero": "maybe"}},
        {"bitdelta": {"colour": 1}},
        {"bitdelta": {}, "dense": {}},
        {},
        {"bitdelta": [1]},
        "bitdelta",
        {"os:system": {}},
    ],
)
def test_codecs_that_do_not_exist(codec):
    with pytest.raises(DamagedInputError, match="a codec that is not known here") as caught:
        read(tree(codecs=[codec, {"lossless": {}}]))
    assert len(str(caught.value).splitlines()) == 1


def test_what_a_later_writer_adds_is_passed_over():
    """Within a version keys may be added; they change nothing for those who do not know them."""
    content = tree(later={"x": 1})
    content["deltas"]["m"]["tensors"]["w"]["later"] = 1
    content["base"]["later"] = 1
    assert read(content) == document()
