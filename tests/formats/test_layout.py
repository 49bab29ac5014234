"""The layout: every byte has one place, readers agree with it, and only names and sizes decide it."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from deltasmith.errors import RefusedError
from deltasmith.formats.layout import Layout, natural_key, plan_layout
from deltasmith.formats.safetensors_header import parse_header
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12).filter(
    lambda name: name != "__metadata__"  # reserved, and hypothesis tries strings that it sees in the source
)


def specs_strategy():
    shape = st.lists(st.integers(0, 5), max_size=4).map(tuple)
    spec = st.builds(Spec, NAMES, shape, st.sampled_from(list(DTYPES.values())))
    return st.lists(spec, max_size=12, unique_by=lambda s: s.name)


def spec(name, *shape, dtype="float32"):
    return Spec(name, shape, DTYPES[dtype])


def files(layout: Layout) -> dict[str, bytes]:
    """Fill every tensor's place with its own pattern; what is in no tensor's place stays 0xEE."""
    contents = {s.name: bytearray(s.header + b"\xee" * (s.nbytes - len(s.header))) for s in layout.shards}
    for i, (name, slot) in enumerate(layout.slots.items()):
        shard = contents[layout.shards[slot.shard].name]
        assert shard[slot.offset : slot.offset + slot.nbytes] == b"\xee" * slot.nbytes, f"{name} overlaps"
        shard[slot.offset : slot.offset + slot.nbytes] = bytes([i % 200]) * slot.nbytes
    return {name: bytes(data) for name, data in contents.items()}


@given(specs=specs_strategy(), shard_bytes=st.integers(1, 300))
def test_every_tensor_has_its_own_aligned_place_and_no_byte_is_left_over(specs, shard_bytes):
    specs = [s for s in specs if ".." not in s.name and s.name[0] not in "/\\"]
    layout = plan_layout(specs, shard_bytes)
    contents = files(layout)
    assert sum(len(data) for data in contents.values()) == layout.nbytes
    seen = {}
    for number, shard in enumerate(layout.shards):
        data = contents[shard.name]
        length = int.from_bytes(data[:8], "little")
        assert len(shard.header) == 8 + length
        assert len(shard.header) % 64 == 0
        assert b"\xee" not in data[8 + length :]
        header = parse_header(data[8 : 8 + length], len(data), shard.name)
        assert header.metadata == {"format": "pt"}
        assert set(header.specs) == set(shard.tensors)
        for name, found in header.specs.items():
            slot = layout.slots[name]
            assert (slot.shard, slot.offset, slot.nbytes) == (number, header.begins[name], found.nbytes)
            assert slot.offset % found.dtype.itemsize == 0
            seen[name] = found
        assert len(shard.tensors) == 1 or sum(header.specs[n].nbytes for n in shard.tensors) <= shard_bytes
    assert seen == {s.name: s for s in specs} == dict(layout.specs)


@given(specs=specs_strategy(), shard_bytes=st.integers(1, 300), seed=st.randoms(use_true_random=False))
def test_the_order_in_which_specs_come_does_not_matter(specs, shard_bytes, seed):
    shuffled = list(specs)
    seed.shuffle(shuffled)
    assert plan_layout(specs, shard_bytes) == plan_layout(iter(shuffled), shard_bytes)


def test_the_safetensors_package_reads_what_was_laid_out():
    specs = [spec("b.10.w", 3, 2, dtype="float16"), spec("b.2.w", 5, dtype="int8"), spec("ä", dtype="int64")]
    (data,) = files(plan_layout(specs, 1 << 20)).values()
    found = load(data)
    assert {n: (a.shape, a.dtype.name) for n, a in found.items()} == {
        "b.10.w": ((3, 2), "float16"),
        "b.2.w": ((5,), "int8"),
        "ä": ((), "int64"),
    }
    assert (np.concatenate([a.reshape(-1).view(np.uint8) for a in found.values()]) < 3).all()


def test_one_shard_by_hand():
    layout = plan_layout([spec("b", 2, dtype="bfloat16"), spec("a", 1), spec("c.10"), spec("c.9", 0)], 100)
    assert [s.name for s in layout.shards] == ["model.safetensors"]
    assert layout.index is None
    # Four-byte tensors first, natural order within them; the zero-size one takes no room.
    assert layout.shards[0].tensors == ("a", "c.9", "c.10", "b")
    text = (
        b'{"__metadata__":{"format":"pt"},"a":{"data_offsets":[0,4],"dtype":"F32","shape":[1]},'
        b'"b":{"data_offsets":[8,12],"dtype":"BF16","shape":[2]},"c.10":{"data_offsets":[4,8],"dtype":"F32",'
        b'"shape":[]},"c.9":{"data_offsets":[4,4],"dtype":"F32","shape":[0]}}'
    )
    padded = text + b" " * (-(8 + len(text)) % 64)
    assert layout.shards[0].header == len(padded).to_bytes(8, "little") + padded


def test_shards_and_index_by_hand():
    layers = [spec(f"layers.{i}.w", 4) for i in (10, 2, 1)]
    layout = plan_layout([*layers, spec("embed", 100), spec("z", 1, dtype="int8")], 32)
    assert [s.name for s in layout.shards] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert [s.tensors for s in layout.shards] == [
        ("embed",),  # larger than a shard: alone, in one piece
        ("layers.1.w", "layers.2.w"),
        ("layers.10.w", "z"),
    ]
    assert layout.index == (
        b'{\n  "metadata": {\n    "total_parameters": 113,\n    "total_size": 449\n  },\n  "weight_map": {\n'
        b'    "embed": "model-00001-of-00003.safetensors",\n'
        b'    "layers.1.w": "model-00002-of-00003.safetensors",\n'
        b'    "layers.10.w": "model-00003-of-00003.safetensors",\n'
        b'    "layers.2.w": "model-00002-of-00003.safetensors",\n'
        b'    "z": "model-00003-of-00003.safetensors"\n  }\n}\n'
    )


def test_natural_order_knows_numbers_of_any_length_and_tells_equal_ones_apart():
    names = ["w.10", "w.9", "w.09", "w.0", "w", "v.x", "w." + "9" * 5000, "w.1" + "0" * 5000]
    ordered = sorted(names, key=natural_key)
    assert ordered == ["v.x", "w", "w.0", "w.09", "w.9", "w.10", "w." + "9" * 5000, "w.1" + "0" * 5000]


def test_fault_49_a_tensor_of_more_than_2_31_elements_is_laid_out_exactly():
    layout = plan_layout([spec("huge", 3, 2**30 + 1), spec("small", 1)], 5 << 30)
    assert layout.slots["huge"].nbytes == 12 * (2**30 + 1)
    assert json.loads(layout.index)["metadata"]["total_size"] == 12 * (2**30 + 1) + 4


def test_fault_49_no_tensor_at_all_is_still_a_file():
    (data,) = files(plan_layout([], 10)).values()
    assert load(data) == {}


def test_two_tensors_of_one_name_are_refused():
    with pytest.raises(RefusedError) as caught:
        plan_layout([spec("a", 1), spec("b\x1b", 1), spec("b\x1b", 2)], 10)
    assert str(caught.value) == r"the output would hold two tensors of one name in b\x1b"
    with pytest.raises(RefusedError, match="__metadata__"):
        plan_layout([spec("__metadata__", 1)], 10)


def test_a_header_that_no_reader_accepts_is_refused(monkeypatch):
    monkeypatch.setattr("deltasmith.formats.layout.MAX_HEADER", 200)
    plan_layout([spec("a", 1)], 10)
    with pytest.raises(RefusedError, match="use smaller shards"):
        plan_layout([spec(f"tensor.{i}", 1) for i in range(9)], 1000)


def test_the_digest_tells_layouts_apart():
    specs = [spec("a", 4), spec("b", 4)]
    digests = {
        plan_layout(specs, 16).digest,
        plan_layout(specs, 64).digest,
        plan_layout([spec("a", 4), spec("b", 4, dtype="int32")], 64).digest,
        plan_layout([spec("a", 4), spec("c", 4)], 64).digest,
    }
    assert len(digests) == 4
    with pytest.raises(ValueError, match="at least 1"):
        plan_layout(specs, 0)
