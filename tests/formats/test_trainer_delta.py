"""Delta folders of RL trainers: built here by hand from the documented layout, and by our own writer."""

import doctest
import json
import zlib

import ml_dtypes
import numpy as np
import pytest
import xxhash
import zstandard
from safetensors.numpy import load_file, save_file

from deltasmith.errors import DamagedInputError, RefusedError
from deltasmith.formats import trainer_delta_writer as writer
from deltasmith.formats.trainer_delta import is_trainer_delta, open_trainer_delta
from deltasmith.formats.trainer_delta_writer import write_trainer_delta
from deltasmith.table.checkpoint import DictCheckpoint

OLD = bytes(range(40))
NEW = bytes([255 if i in (3, 17, 39) else i for i in range(40)])


def checkpoint(data, **more):
    return DictCheckpoint({"layer.weight": np.frombuffer(data, np.float16).reshape(4, 5), **more})


def by_hand(folder, encoding="xor", checksum="adler32", body=None, **changes):
    """Write what a trainer writes, from the layout alone."""
    folder.mkdir()
    old, new = np.frombuffer(OLD, np.uint8), np.frombuffer(NEW, np.uint8)
    if body is None:
        places = np.flatnonzero(old != new).astype("<u4")
        overwrite = places.size.to_bytes(4, "little") + places.tobytes() + new[old != new].tobytes()
        body = (old ^ new).tobytes() if encoding == "xor" else overwrite
    frame = np.frombuffer(zstandard.ZstdCompressor(level=1).compress(body), np.uint8)
    sums = {"adler32": f"{zlib.adler32(NEW):08x}", "xxh3-128": xxhash.xxh3_128_hexdigest(NEW)}
    shard = "model-00000-of-00001.safetensors"
    save_file({"layer.weight": frame}, folder / shard, metadata={"layer.weight": sums.get(checksum, "")})
    metadata = {
        "version": "000004",
        "base_version": "000003",
        "delta_encoding": encoding,
        "compression_format": "zstd",
        "checksum_format": checksum,
    }
    index = {"metadata": metadata | changes, "weight_map": {"layer.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_examples():
    assert doctest.testmod(writer).failed == 0


@pytest.mark.parametrize("encoding", ["xor", "overwrite"])
@pytest.mark.parametrize("checksum", ["adler32", "xxh3-128"])
def test_a_trainers_folder_opens_as_the_new_model(tmp_path, encoding, checksum):
    folder = by_hand(tmp_path / "weight_v000004", encoding, checksum)
    assert is_trainer_delta(folder)
    delta = open_trainer_delta(folder)
    assert (delta.version, delta.base_version, delta.encoding) == ("000004", "000003", encoding)
    same = np.arange(3, dtype=np.float32)
    model = delta.bind(checkpoint(OLD, same=same))
    assert bytes(model.raw("layer.weight", 0, 20)) == NEW
    assert bytes(model.raw("layer.weight", 8, 9)) == NEW[16:18]
    assert model.specs["layer.weight"].shape == (4, 5)
    out = np.empty(20, np.float32)
    model.read("layer.weight", 0, out)
    assert np.array_equal(out, np.frombuffer(NEW, np.float16).astype(np.float32), equal_nan=True)
    out = np.empty(2, np.float32)
    model.read("same", 1, out)
    assert out.tolist() == [1, 2]
    assert bytes(model.raw("same", 0, 3)) == same.tobytes()
    assert [s.name for s in model.sources] == ["model-00000-of-00001.safetensors"]


def test_versions_may_be_numbers(tmp_path):
    delta = open_trainer_delta(by_hand(tmp_path / "d", version=4, base_version=3))
    assert (delta.version, delta.base_version) == ("4", "3")


def test_other_folders_are_none(tmp_path):
    assert not is_trainer_delta(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"metadata": {"total_size": 3}, "weight_map": {}}'
    )
    assert not is_trainer_delta(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delta_encoding": "plus"}, "delta_encoding is 'plus'; known are xor, overwrite"),
        ({"compression_format": "lz4"}, "compression_format is 'lz4'; known are zstd"),
        ({"checksum_format": "blake3"}, "checksum_format is 'blake3'; known are adler32, xxh3-128"),
    ],
)
def test_unknown_kinds_are_refused_by_name(tmp_path, changes, message):
    with pytest.raises(DamagedInputError, match=message):
        open_trainer_delta(by_hand(tmp_path / "d", **changes))


def test_another_base_is_refused(tmp_path):
    delta = open_trainer_delta(by_hand(tmp_path / "d"))
    with pytest.raises(DamagedInputError, match="its checksum differs"):
        delta.bind(checkpoint(NEW)).raw("layer.weight", 0, 1)
    with pytest.raises(DamagedInputError, match="1 of its tensors are not in the base"):
        delta.bind(DictCheckpoint({"other": np.zeros(3, np.float32)}))


@pytest.mark.parametrize(
    ("encoding", "body", "message"),
    [
        ("xor", bytes(1 << 24), "more than 40 bytes"),
        ("xor", bytes(39), "39 bytes instead of 40"),
        ("overwrite", bytes(1 << 24), "more than 204 bytes"),
        ("overwrite", b"", "0 bytes are not 0 positions"),
        ("overwrite", b"\2\0\0\0" + bytes(5), "9 bytes are not 2 positions"),
        ("overwrite", b"\1\0\0\0" + b"\50\0\0\0" + b"x", "do not ascend"),
        ("overwrite", b"\2\0\0\0" + b"\1\0\0\0\1\0\0\0" + b"xy", "do not ascend"),
    ],
)
def test_frames_that_hold_something_else_are_refused(tmp_path, encoding, body, message):
    model = open_trainer_delta(by_hand(tmp_path / "d", encoding, body=body)).bind(checkpoint(OLD))
    with pytest.raises(DamagedInputError, match=message):
        model.raw("layer.weight", 0, 20)


def test_a_damaged_frame_is_refused(tmp_path):
    folder = by_hand(tmp_path / "d")
    path = folder / "model-00000-of-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    data[-8] ^= 255
    path.write_bytes(bytes(data))
    with pytest.raises(DamagedInputError, match="cannot be made of base and delta"):
        open_trainer_delta(folder).bind(checkpoint(OLD)).raw("layer.weight", 0, 1)


def test_shards_outside_the_folder_are_refused(tmp_path):
    folder = by_hand(tmp_path / "d")
    index = folder / "model.safetensors.index.json"
    for name in ("../x.safetensors", "/x.safetensors", "x.bin", 3):
        document = json.loads(index.read_text())
        document["weight_map"] = {"layer.weight": name}
        index.write_text(json.dumps(document))
        with pytest.raises(DamagedInputError, match="no file of the folder"):
            open_trainer_delta(folder)


@pytest.mark.parametrize("encoding", ["xor", "overwrite"])
def test_what_we_write_is_the_documented_layout(tmp_path, encoding):
    random = np.random.default_rng(1)
    arrays = {
        "a": random.standard_normal((30, 7)).astype(np.float32),
        "b": random.standard_normal(50).astype(ml_dtypes.bfloat16),
        "c": np.arange(9, dtype=np.int64),
    }
    tuned = {**arrays, "a": arrays["a"].copy(), "b": arrays["b"].copy()}
    tuned["a"][3, 2] += 1
    tuned["b"][7:9] = -tuned["b"][7:9]
    base, model = DictCheckpoint(arrays), DictCheckpoint(tuned)
    out = tmp_path / "weight_v000002"
    changed = write_trainer_delta(base, model, out, encoding=encoding, version=2, base_version=1)
    a, b = (np.ascontiguousarray(tuned[n]).view(np.uint8).reshape(-1) for n in "ab")
    old = [np.ascontiguousarray(arrays[n]).view(np.uint8).reshape(-1) for n in "ab"]
    assert changed == np.count_nonzero(a != old[0]) + np.count_nonzero(b != old[1])
    assert sorted(p.name for p in out.iterdir()) == [
        "model-00000-of-00001.safetensors",
        "model.safetensors.index.json",
    ]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index == {
        "metadata": {
            "version": "000002",
            "base_version": "000001",
            "delta_encoding": encoding,
            "compression_format": "zstd",
            "checksum_format": "xxh3-128",
        },
        "weight_map": dict.fromkeys("ab", "model-00000-of-00001.safetensors"),
    }
    stored = load_file(out / "model-00000-of-00001.safetensors")
    assert set(stored) == {"a", "b"}
    body = np.frombuffer(zstandard.ZstdDecompressor().decompress(stored["b"].tobytes()), np.uint8)
    if encoding == "xor":
        assert np.array_equal(body, b ^ old[1])
    else:
        places = np.flatnonzero(b != old[1])
        assert body[:4].view("<u4").tolist() == [places.size]
        assert body[4 : 4 + 4 * places.size].view("<u4").tolist() == places.tolist()
        assert body[4 + 4 * places.size :].tolist() == b[places].tolist()
    again = open_trainer_delta(out).bind(base)
    for name, array in tuned.items():
        assert bytes(again.raw(name, 0, array.size)) == array.tobytes()


def test_models_of_other_shapes_are_refused_and_nothing_is_left(tmp_path):
    base = DictCheckpoint({"w": np.zeros(4, np.float32)})
    for other in ({"w": np.zeros(5, np.float32)}, {"w": np.zeros(4, np.float16)}, {}):
        with pytest.raises(RefusedError, match="not the same kind of tensor"):
            write_trainer_delta(base, DictCheckpoint(other), tmp_path / "out")
    with pytest.raises(RefusedError, match="plus with xxh3-128 cannot be written"):
        write_trainer_delta(base, base, tmp_path / "out", encoding="plus")
    assert list(tmp_path.iterdir()) == []
    assert write_trainer_delta(base, base, tmp_path / "out") == 0
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert bytes(open_trainer_delta(tmp_path / "out").bind(base).raw("w", 0, 4)) == bytes(16)
