"""Fault 70: a packed delta that is damaged, hostile, too new or over another base is refused by name, in one line."""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import zstandard

from containers import DOCUMENT, EVERY, Parts, changed, packed, words
from deltasmith.errors import DamagedInputError, DeltasmithError
from deltasmith.formats.opening import open_model
from deltasmith.formats.packed_model import PackedModel
from models import BF16, check_refusal, draw, family, neighbours, run, tree, tuned, write_adapter, write_model

LAYER = "model.layers.0"
NORM = f"{LAYER}.input_layernorm.weight"
SEED = 70
MODEL = {
    "bitdelta": f"{LAYER}.self_attn.q_proj.weight",
    "bitdelta with zeros": f"{LAYER}.self_attn.k_proj.weight",
    "residual_bits": f"{LAYER}.self_attn.v_proj.weight",
    "low_rank": f"{LAYER}.self_attn.o_proj.weight",
    "claq": f"{LAYER}.mlp.gate_proj.weight",
    "sparse": f"{LAYER}.mlp.up_proj.weight",
    "magnitude_blocks": f"{LAYER}.mlp.down_proj.weight",
    "bitdelta_random": "lm_head.weight",
    "dense": "model.norm.weight",
    "lossless": "model.embed_tokens.weight",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = family(tmp_path_factory.mktemp("faults") / "models", experts=1)
    packed(made.root, rules=EVERY)
    return made


@pytest.fixture
def copy(models, tmp_path):
    """Return a container that a test may spoil; its base lies beside it."""
    shutil.copytree(models.root, tmp_path / "models")
    return tmp_path / "models" / "packed"


def assert_refused_to_unpack(place: Path, code: int, *words: str, **options: object) -> None:
    """Unpack what must be refused: one line, nothing under or beside OUT, the inputs as they were."""
    before = tree(place.parent)
    out = place.parent.parent / "place" / "out"
    out.parent.mkdir()
    extra = [text for key, value in options.items() for text in (f"--{key}", value)]
    check_refusal(run("unpack", place, out, "--quiet", *extra), code, *words)
    assert list(out.parent.iterdir()) == []
    out.parent.rmdir()
    assert tree(place.parent) == before


# The base.


def test_one_bit_of_the_base_differs(copy):
    weights = copy.parent / "base" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2 * 2 - 2] ^= 1
    weights.write_bytes(data)
    assert_refused_to_unpack(copy, 3, "not the base it was packed against", "'base'", "delta.safetensors")
    assert_refused_to_unpack(copy, 3, "not the base it was packed against", base=copy.parent / "base")


def test_a_base_of_other_shapes(copy):
    write_model(copy.parent / "other", draw(0, inter=20))
    assert_refused_to_unpack(copy, 3, "not the base it was packed against", base=copy.parent / "other")
    assert_refused_to_unpack(copy, 3, "not the base it was packed against", base=copy.parent / "m0")


def test_the_same_base_in_other_shards_is_no_other_base(copy, models):
    write_model(copy.parent / "other", models.base, shards=5)
    assert run("unpack", copy, copy.parent / "out", "--base", copy.parent / "other", "--quiet").code == 0
    assert words(copy.parent / "out") == words(models.root / "packed")


def test_no_base_an_adapter_a_packed_delta_nothing(copy, models):
    write_adapter(copy.parent / "adapter", models.base, 1)
    assert_refused_to_unpack(copy, 1, "an adapter cannot be the base", base=copy.parent / "adapter")
    assert_refused_to_unpack(copy, 3, "nothing lies at", base=copy.parent / "nowhere")
    assert_refused_to_unpack(copy, 3, "not the base it was packed against", base=copy)
    shutil.move(copy.parent / "base", copy.parent / "elsewhere")
    assert_refused_to_unpack(copy, 1, "needs its base 'base'", "--base")


# Truncation, bit by bit damage.


def outcome(read):
    """Return what was read, or our error, which must be one printable line; any other error is a bug."""
    try:
        found = read()
    except DeltasmithError as error:
        found = error
    assert isinstance(found, dict) or str(found).isprintable()
    return found


def test_truncated_everywhere(copy, models):
    """At every kind of place: in the length, in the header, between arrays, in one, in the document."""
    path = copy / "delta.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    cuts = {0, 1, 7, 8, 9, 100, 8 + length - 1, 8 + length, 8 + length + 1, len(data) - 1, len(data) - 100}
    cuts |= set(np.random.default_rng(SEED).integers(0, len(data), 40).tolist())
    for cut in sorted(cuts):
        path.write_bytes(data[:cut])
        with pytest.raises(DamagedInputError):
            words(copy)
    path.write_bytes(data[: len(data) // 2])
    assert_refused_to_unpack(copy, 3, "delta.safetensors")
    path.write_bytes(data + b"PK")
    assert_refused_to_unpack(copy, 3, "delta.safetensors")


def test_flipped_bits(copy, models):
    """Hundreds of them, anywhere: every one is refused as damage or changes nothing, never a wrong model."""
    expected = words(models.root / "packed")
    path = copy / "delta.safetensors"
    good = path.read_bytes()
    (length,) = struct.unpack("<Q", good[:8])
    header = json.loads(good[8 : 8 + length])
    document = 8 + length + header[DOCUMENT]["data_offsets"][0]
    random = np.random.default_rng(SEED)
    places = [
        *range(8),
        *random.integers(8, 8 + length, 200).tolist(),
        *random.integers(8 + length, document, 150).tolist(),
        *random.integers(document, len(good), 50).tolist(),
    ]
    harmless = 0
    for place in places:
        data = bytearray(good)
        data[place] ^= 1 << int(random.integers(8))
        path.write_bytes(data)
        found = outcome(lambda: words(copy, copy.parent / "base"))
        if isinstance(found, dict):
            assert found == expected
            harmless += 1
            assert place < 8 + length, "a bit of an array or the document counts for nothing"
        else:
            assert found.exit_code == 3
            assert len(str(found)) < 1000
    assert harmless < 20


def test_a_flipped_bit_is_told_with_the_arrays_name(copy):
    path = copy / "delta.safetensors"
    parts = Parts.of(copy)
    name = parts.tensor(MODEL["bitdelta"])["arrays"]["signs"]
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    begin = json.loads(bytes(data[8 : 8 + length]))[name]["data_offsets"][0]
    data[8 + length + begin + 1] ^= 16
    path.write_bytes(data)
    assert_refused_to_unpack(copy, 3, name, "its hash differs", "delta.safetensors")
    check_refusal(run("verify", copy), 6, name)


# Streams and bombs, every hash mended by the attacker.


def spoil(copy, tensor, part, change):
    parts = Parts.of(copy)
    parts.put(tensor, part, change(parts.array(tensor, part).tobytes()))
    parts.write(copy)


def lossless_stream(words_of, frame, *, kind=1, groups=None, low=0):
    """Return index and stream of one block whose only frame is `frame`."""
    head = bytes([kind, 1]) + struct.pack("<HBBI", 0, low, 0, 0) if groups is None else groups
    stream = head + struct.pack("<I", len(frame)) + frame
    return struct.pack("<I", len(stream)), stream


def put_stream(copy, index, stream):
    parts = Parts.of(copy)
    name = MODEL["lossless"]
    parts.put(name, "index", index)
    parts.put(name, "stream", stream, [len(stream)])
    parts.write(copy)


def elements(copy):
    return int(np.prod(Parts.of(copy).tensor(MODEL["lossless"])["shape"]))


def test_a_truncated_stream(copy):
    n = elements(copy)
    frame = zstandard.ZstdCompressor().compress(bytes(n))
    put_stream(copy, *lossless_stream(n, frame))
    words(copy)  # so far all is well
    for cut in (1, len(frame) // 2, len(frame) - 1):
        put_stream(copy, *lossless_stream(n, frame[:cut]))
        assert_refused_to_unpack(copy, 3, MODEL["lossless"], "does not decode")


@pytest.mark.parametrize("declared", [True, False])
def test_a_decompression_bomb(copy, declared):
    """A frame of a few kilobytes that stands for a gigabyte: refused before it is opened."""
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=declared)
    stream = compressor.compressobj(size=1 << 30 if declared else -1)
    chunk = bytes(1 << 24)
    frame = b"".join(stream.compress(chunk) for _ in range(64)) + stream.flush()
    n = elements(copy)
    assert len(frame) < 10**6
    frame = (
        frame if len(frame) <= 2 * n else frame[: 2 * n - 50]
    )  # a block may not be longer than its elements
    put_stream(copy, *lossless_stream(n, frame))
    assert_refused_to_unpack(copy, 3, MODEL["lossless"], "does not decode", "declares")


def test_a_frame_that_lies_about_its_size(copy):
    n = elements(copy)
    frame = bytearray(zstandard.ZstdCompressor().compress(bytes(1 << 24)))
    lie = zstandard.ZstdCompressor().compress(bytes(n))
    head = zstandard.get_frame_parameters(bytes(lie))
    assert head.content_size == n
    # The head of a frame of n bytes, the blocks of one of 16 MiB.
    forged = lie[: zstandard.frame_header_size(lie)] + frame[zstandard.frame_header_size(bytes(frame)) :]
    put_stream(copy, *lossless_stream(n, forged))
    assert_refused_to_unpack(copy, 3, MODEL["lossless"], "does not decode")


def test_frames_behind_frames(copy):
    n = elements(copy)
    frame = zstandard.ZstdCompressor().compress(bytes(n))
    put_stream(copy, *lossless_stream(n, frame + frame))
    assert_refused_to_unpack(copy, 3, MODEL["lossless"], "does not decode")


@pytest.mark.parametrize("name", MODEL.values(), ids=MODEL)
def test_arrays_that_a_codec_does_not_expect(copy, name):
    """Renamed, retyped, cut, doubled or missing arrays, and scrambled ones: refused, or a model of finite size."""
    good = Parts.of(copy)
    for part, array in good.tensor(name)["arrays"].items():
        code, shape, data = good.arrays[array]
        if not data:
            continue
        changes = {
            "retyped": lambda p, a=array, s=shape, d=data: p.arrays.update({a: ("I8", [len(d)], d)}),
            "cut": lambda p, a=array, c=code, d=data: p.arrays.update({a: (c, [0], b"")}),
            "doubled": lambda p, a=array, c=code, d=data: p.arrays.update(
                {a: (c, [2 * len(d) // width(c)], d * 2)}
            ),
            "renamed": lambda p, a=array, q=part: p.tensor(name)["arrays"].update(
                {"extra": p.tensor(name)["arrays"].pop(q)}
            ),
            "missing": lambda p, a=array, q=part: (p.arrays.pop(a), p.tensor(name)["arrays"].pop(q)),
        }
        for change in changes.values():
            parts = Parts.of(copy)
            change(parts)
            parts.write(copy)
            with pytest.raises(DamagedInputError, match="does not decode"):
                words(copy, copy.parent / "base")
            good.write(copy)


def width(code):
    return {"U8": 1, "I8": 1, "U16": 2, "BF16": 2, "F16": 2, "F32": 4, "U32": 4, "U64": 8}[code]


# The document.


def test_a_newer_version(copy):
    parts = Parts.of(copy)
    parts.metadata |= {"version": "2", "deltasmith": "7.5"}
    parts.write(copy)
    assert_refused_to_unpack(
        copy, 3, "format version 2, written by deltasmith 7.5; this one reads version 1", "newer"
    )
    check_refusal(run("inspect", copy), 3, "format version 2")
    parts.metadata["version"] = "1"
    parts.document["version"] = 2
    parts.write(copy)
    assert_refused_to_unpack(copy, 3, "format version 2", "install a newer deltasmith")


@pytest.mark.parametrize("version", ["", "-1", "1.0", "0", "²", "9" * 5000, "99999999999999999999"])
def test_a_version_that_is_none(copy, version):
    changed(copy, lambda parts: parts.metadata.update(version=version))
    assert_refused_to_unpack(copy, 3, "version")


def test_no_document_or_one_of_another_kind(copy):
    parts = Parts.of(copy)
    for text in (b"", b"\0" * 50, b"[]", b"{}", b"[" * 10**6):
        parts.text = text
        parts.write(copy)
        assert_refused_to_unpack(copy, 3, "document", "delta.safetensors")


def test_a_document_whose_hash_is_not_the_headers(copy):
    parts = Parts.of(copy)
    parts.mend.discard("document")
    parts.document["notes"] = ["slander"]
    parts.write(copy)
    assert_refused_to_unpack(copy, 3, "document is damaged (its hash differs)")


def test_duplicated_keys(copy):
    """Two readers could read two models from one document."""
    parts = Parts.of(copy)
    text = json.dumps(parts.document)
    parts.text = text.replace('"version": 1,', '"version": 1, "version": 1,', 1).encode()
    parts.write(copy)
    assert_refused_to_unpack(copy, 3, "appears twice")


@pytest.mark.parametrize("shape", [[2**47], [2**47, 2**47], [2**40] * 32])
def test_absurd_shapes(copy, shape):
    """An unpacked model of petabytes: refused before a byte of it is allocated, whatever the codec."""
    good = Parts.of(copy)
    for name in MODEL.values():
        changed(copy, lambda parts, name=name: parts.tensor(name).update(shape=shape))
        with pytest.raises(DamagedInputError, match=re.escape(name)):
            PackedModel.over(open_model(str(copy)).packed, open_model(str(copy.parent / "base")).checkpoint)
        good.write(copy)
    for name in (MODEL["lossless"], MODEL["dense"]):
        parts = Parts.of(copy)
        parts.tensor(name).update(shape=shape, against_base=False)
        parts.write(copy)
        assert_refused_to_unpack(copy, 3, name, "does not decode")
        good.write(copy)


def test_a_rank_of_nothing_for_a_matrix_of_everything(copy):
    """Factors of rank 0 take no bytes and stand for any shape."""
    name = MODEL["low_rank"]
    parts = Parts.of(copy)
    arrays = parts.tensor(name)["arrays"]
    for array in arrays.values():
        code, _, _ = parts.arrays[array]
        parts.arrays[array] = (code, [0, 2**47], b"")
    parts.tensor(name)["shape"] = [2**47, 2**47]
    parts.write(copy)
    assert_refused_to_unpack(copy, 3, name)


def test_codecs_that_do_not_exist(copy):
    for codec in ({"zip": {}}, {"bitdelta": {"bits": 3}}, {"os:system": {}}):
        changed(copy, lambda parts, codec=codec: parts.document["codecs"].__setitem__(0, codec))
        assert_refused_to_unpack(copy, 3, "codec")


def test_arrays_that_the_file_does_not_hold(copy):
    changed(copy, lambda parts: parts.tensor(MODEL["sparse"])["arrays"].update(index="nowhere"))
    assert_refused_to_unpack(copy, 3, "disagree on 2 arrays")


def test_an_array_that_no_tensor_uses(copy):
    changed(copy, lambda parts: parts.arrays.update(stowaway=("U8", [3], b"abc")))
    assert_refused_to_unpack(copy, 3, "disagree on 1 arrays", "stowaway")


def test_a_tensor_that_should_be_exact_and_is_not(copy):
    """The one thing that only the values show: told after the last of them, and nothing is published."""
    changed(copy, lambda parts: parts.tensor(NORM).update(xxh3_128="0" * 32))
    assert_refused_to_unpack(copy, 6, f"{NORM} did not come back to the bit")


def test_a_recipe_that_reads_a_damaged_container(copy):
    spoil(copy, MODEL["lossless"], "stream", lambda data: b"\x07" + data[1:])
    recipe = copy.parent.parent / "r.yaml"
    recipe.write_text(
        json.dumps({"base": str(copy.parent / "base"), "models": [{"model": str(copy)}], "merge": "sum"})
    )
    result = run("merge", recipe, copy.parent.parent / "out", "--quiet")
    check_refusal(result, 3, MODEL["lossless"], "unknown kind 7")
    assert not (copy.parent.parent / "out").exists()
    assert neighbours(copy.parent.parent / "out") == []


# What `pack` refuses.


def assert_refused_to_pack(root: Path, code: int, *words: str, base="base", model="m0", options=()) -> None:
    before = tree(root)
    out = root.parent / "place" / "out"
    out.parent.mkdir()
    check_refusal(run("pack", root / base, root / model, out, "--quiet", *options), code, *words)
    assert list(out.parent.iterdir()) == []
    out.parent.rmdir()
    assert tree(root) == before


@pytest.fixture
def pair(tmp_path):
    base = draw(0, layers=1)
    write_model(tmp_path / "models" / "base", base)
    write_model(tmp_path / "models" / "m0", tuned(base, 0))
    return tmp_path / "models", base


def test_a_model_that_is_no_fine_tune(pair):
    root, base = pair
    write_model(root / "other", draw(3, layers=1, hidden=20))
    assert_refused_to_pack(root, 1, "other is no fine-tune of this base", model="other")
    write_model(root / "names", {f"encoder.{n}": a for n, a in base.items()})
    assert_refused_to_pack(root, 1, "names is no fine-tune of this base", "encoder.", model="names")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(pair, value):
    """Refused with the tensor's name by a codec of deltas, kept to the bit by lossless."""
    root, base = pair
    name = f"{LAYER}.mlp.up_proj.weight"
    tune = tuned(base, 0)
    tune[name].reshape(-1)[37] = value
    write_model(root / "m0", tune)
    assert_refused_to_pack(root, 1, name, "37", "m0")
    assert run("pack", root / "base", root / "m0", root / "out", "--codec", "lossless", "--quiet").code == 0
    assert words(root / "out") == words(root / "m0")


def test_fields_and_codecs_that_do_not_exist(pair):
    root, _ = pair
    assert_refused_to_pack(root, 2, "did you mean bitdelta?", options=("--codec", "bitdleta"))
    assert_refused_to_pack(root, 2, "bits", options=("--codec", "claq:bits=0"))
    assert_refused_to_pack(root, 2, "not field=value", options=("--codec", "claq:bits"))
    assert_refused_to_pack(
        root, 2, "no tensor matches '*.experts.*'", options=("--rule", "*.experts.*=dense")
    )
    assert_refused_to_pack(root, 2, "codec", options=("--rest", "nothing"))


def test_an_adapter_or_a_packed_delta_as_base(pair):
    root, base = pair
    write_adapter(root / "adapter", base, 0)
    packed(root)
    for other in ("adapter", "packed"):
        assert_refused_to_pack(root, 1, "cannot be the base of another", base=other)
    assert_refused_to_pack(root, 3, "nothing lies at", base="nowhere")


def test_out_exists_or_is_an_input(pair):
    root, _ = pair
    packed(root)
    before = tree(root)
    check_refusal(
        run("pack", root / "base", root / "m0", root / "packed", "--quiet"), 1, "exists and is not empty"
    )
    for out in ("base", "m0"):
        result = run("pack", root / "base", root / "m0", root / out, "--quiet", "--overwrite")
        check_refusal(result, 1, "the output is the input")
    result = run("pack", root / "base", root / "m0", root / "m0" / "inner", "--quiet")
    check_refusal(result, 1, "lies inside the input")
    for out, extra in (
        ("base", ()),
        ("packed", ()),
        ("base/x", ()),
        ("packed/x", ()),
        ("base", ("--base", root / "base")),
    ):
        result = run("unpack", root / "packed", root / out, "--quiet", "--overwrite", *extra)
        check_refusal(result, 1, "the output")
        result = run("unpack", f"{root / 'packed'}#m0", root / out, "--quiet", "--overwrite", *extra)
        check_refusal(result, 1, "the output")
    assert tree(root) == before


def test_a_whole_tensor_that_does_not_fit_the_memory(tmp_path):
    """Exit 4, and the budget it names is enough."""
    base = {"layers.0.w": np.zeros((1200, 1500), BF16)}
    tune = {"layers.0.w": np.random.default_rng(0).normal(size=(1200, 1500)).astype(BF16)}
    for name, arrays in (("base", base), ("m0", tune)):
        write_model(tmp_path / "models" / name, arrays)
    options = ("--codec", "low_rank:rank=1", "--memory", "270M")
    assert_refused_to_pack(
        tmp_path / "models", 4, "layers.0.w", "beyond the budget of 270 MiB", "--memory", options=options
    )
    result = run(
        "pack",
        tmp_path / "models" / "base",
        tmp_path / "models" / "m0",
        tmp_path / "out",
        *options,
        "--quiet",
    )
    enough = result.err.split("give --memory ")[1].split()[0]
    again = ("--codec", "low_rank:rank=1", "--memory", enough, "--quiet")
    assert (
        run("pack", tmp_path / "models" / "base", tmp_path / "models" / "m0", tmp_path / "out", *again).code
        == 0
    )


def test_a_name_that_leaves_no_room_for_its_arrays(tmp_path):
    long = "layers.0." + "w" * 1012
    for name in ("base", "m0"):
        write_model(tmp_path / "models" / name, {long: np.ones((8, 8), BF16)})
    assert_refused_to_pack(tmp_path / "models", 1, "too long")


def test_every_refusal_is_an_error_of_ours(copy, models):
    """Random documents of the right shape: whatever they say, the answer is one of our errors, not a crash."""
    random = np.random.default_rng(SEED)
    odd = [None, True, -1, 0, 2**48, 10**30, 1.5, "", "x", "float32", "int64", "float8_e4m3fn", "bitdelta"]
    odd += [[], {}, [0], [1], {"a": 1}]
    for _ in range(300):
        parts = Parts.of(copy)
        at = parts.document
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            key = keys[random.integers(len(keys))]
            if isinstance(at[key], (dict, list)) and at[key] and random.random() < 0.85:
                at = at[key]
                continue
            at[key] = odd[random.integers(len(odd))]
            break
        parts.mend = {"document"}
        parts.write(copy)
        found = outcome(lambda: words(copy))
        assert isinstance(found, dict) or found.exit_code in (1, 3)
