"""A packed delta being written: resumed after any interruption, whole under its name or not there."""

from __future__ import annotations

import json

import numpy as np
import pytest

from containers import Parts
from deltasmith.codecs.catalogue import codec_from
from deltasmith.codecs.protocol import Coded, Ending, Stream
from deltasmith.errors import DamagedInputError, InterruptedRunError, RefusedError, ResourceError
from deltasmith.formats import packed_writer
from deltasmith.formats.packed import open_packed
from deltasmith.formats.packed_document import BaseRecord, Document, TensorRecord
from deltasmith.formats.packed_writer import PackedOutput
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES
from models import neighbours, tree

KEY = "0123456789abcdef"
NAMES = [f"layers.{i}.w" for i in range(6)]
SIZE = 100


def write_one(output, name, size=SIZE):
    """Write one tensor as a dense array, in two pieces, and an empty array behind it."""
    data = np.random.default_rng(int(name.split(".")[1])).integers(0, 255, size).astype(np.uint8)
    output.begin(name, [Stream("values", "uint8", (size,))])
    output.append(Coded({"values": data[:33]}))
    output.append(Coded({"values": data[33:].tobytes()}))
    output.end(
        Ending({"b": np.empty((0, 2), np.float32), "a": np.array([1], np.uint16)}, 1.5, 0.25), "ab" * 16
    )


def document(output):
    spec = DTYPES["uint8"]
    tensors = {
        n: TensorRecord(Spec(n, (SIZE,), spec), codec_from("dense"), w.arrays, None, None, w.xxh3_128)
        for n, w in output.finished.items()
    }
    return Document("test", BaseRecord("base", None, "0" * 32), {"m": tensors}, output.hashes(), {"m": {}})


def publish(output, files=()):
    return output.publish(
        document(output), {"config.json": b"{}", **dict(files)}, lambda entries: b"manifest"
    )


def whole(out, **options):
    """Write a container without disturbance."""
    with PackedOutput.open(out, KEY, NAMES, **options) as output:
        for name in NAMES:
            write_one(output, name)
        publish(output)


@pytest.fixture
def undisturbed(tmp_path):
    whole(tmp_path / "undisturbed" / "out")
    return tree(tmp_path / "undisturbed" / "out")


def interrupted(out, count, error=None):
    """Write `count` tensors and half of another, then fail."""
    error = error or InterruptedRunError("interrupted")
    with pytest.raises(type(error)):
        write_some(out, NAMES[:count], NAMES[count], error)


def write_some(out, names, half, error):
    with PackedOutput.open(out, KEY, NAMES) as output:
        for name in names:
            write_one(output, name)
        output.begin(half, [Stream("values", "uint8", (SIZE,))])
        output.append(Coded({"values": np.ones(40, np.uint8)}))
        raise error


def resumed(out, expected_finished):
    with PackedOutput.open(out, KEY, NAMES) as output:
        assert list(output.finished) == NAMES[:expected_finished]
        for name in NAMES[expected_finished:]:
            write_one(output, name)
        publish(output)


def test_a_container_that_opens(tmp_path, undisturbed):
    out = tmp_path / "undisturbed" / "out"
    assert sorted(undisturbed) == ["config.json", "delta.safetensors", "manifest.json"]
    assert neighbours(out) == []
    opened = open_packed(out)
    assert opened.delta().names == tuple(NAMES)
    record = opened.delta().tensors[NAMES[0]]
    assert record.arrays == {p: f"{NAMES[0]}::{p}" for p in ("a", "b", "values")}
    assert record.xxh3_128 == "ab" * 16
    parts = Parts.of(out)
    assert parts.metadata == {
        "format": "deltasmith-packed",
        "version": "1",
        "deltasmith": "test",
        "base": "0" * 32,
        "document_xxh3_128": parts.metadata["document_xxh3_128"],
    }


@pytest.mark.parametrize("count", [1, 3, 5])
def test_resumed_it_is_the_same(tmp_path, undisturbed, count):
    """To the byte, however the journal orders what it remembers."""
    out = tmp_path / "out"
    interrupted(out, count)
    assert not out.exists()
    assert neighbours(out) == [f"out.partial-{KEY[:8]}"]
    resumed(out, count)
    assert tree(out) == undisturbed
    assert neighbours(out) == []


def test_resumed_twice(tmp_path, undisturbed):
    out = tmp_path / "out"
    interrupted(out, 2)
    with pytest.raises(InterruptedRunError):
        write_some(out, NAMES[2:3], NAMES[3], InterruptedRunError("interrupted"))
    resumed(out, 3)
    assert tree(out) == undisturbed


def test_nothing_finished_leaves_nothing(tmp_path):
    interrupted(tmp_path / "out", 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RefusedError("no"), DamagedInputError("no")])
def test_what_would_fail_again_leaves_nothing(tmp_path, error):
    interrupted(tmp_path / "out", 3, error)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_what_resuming_needs(tmp_path, undisturbed):
    interrupted(tmp_path / "out", 3, ResourceError("the disk is full"))
    resumed(tmp_path / "out", 3)
    assert tree(tmp_path / "out") == undisturbed


def test_a_disk_that_is_still_full_costs_nothing_more(tmp_path, undisturbed, monkeypatch):
    out = tmp_path / "out"
    interrupted(out, 4)
    with monkeypatch.context() as patch:

        def full(self, name, content):
            raise OSError(28, "No space left on device")

        patch.setattr(packed_writer.Staging, "place", full)
        with pytest.raises(ResourceError, match="the disk is full"):
            PackedOutput.open(out, KEY, NAMES)
    resumed(out, 4)
    assert tree(out) == undisturbed


def partial(out):
    return out.with_name(f"{out.name}.partial-{KEY[:8]}")


def test_torn_and_damaged_journal_lines_count_for_nothing(tmp_path, undisturbed):
    for spoil, kept in [
        (lambda lines: [*lines[:-1], lines[-1][:-20]], 3),
        (lambda lines: [*lines[:2], lines[2].replace(b'"values"', b'"valuez"'), *lines[3:]], 1),
        (lambda lines: [b"\n", *lines], 0),
        (lambda lines: [lines[0].replace(KEY.encode(), b"x" * len(KEY)), *lines[1:]], 0),
        (lambda lines: [], 0),
        (lambda lines: [*lines, b"\xff\xfe\n"], 4),
    ]:
        out = tmp_path / f"out{kept}{len(list(tmp_path.iterdir()))}"
        interrupted(out, 4)
        journal = partial(out) / "journal.jsonl"
        journal.write_bytes(b"".join(spoil(journal.read_bytes().splitlines(keepends=True))))
        resumed(out, kept)
        assert tree(out) == undisturbed


def test_arrays_that_never_reached_the_disk_are_written_again(tmp_path, undisturbed):
    """The journal may be ahead of the arrays when the power fails."""
    out = tmp_path / "out"
    interrupted(out, 4)
    path = partial(out) / "delta.safetensors"
    data = bytearray(path.read_bytes())
    offset = data.index(np.random.default_rng(2).integers(0, 255, SIZE).astype(np.uint8).tobytes()[:20])
    data[offset + 3] = 0 if data[offset + 3] else 1
    path.write_bytes(data)
    resumed(out, 2)
    assert tree(out) == undisturbed
    interrupted(tmp_path / "cut", 4)
    path = partial(tmp_path / "cut") / "delta.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    resumed(tmp_path / "cut", 3)
    assert tree(tmp_path / "cut") == undisturbed


def test_a_run_with_another_key_does_not_use_it(tmp_path):
    out = tmp_path / "out"
    interrupted(out, 4)
    with PackedOutput.open(out, "f" * 16, NAMES) as output:
        assert output.finished == {}
        write_one(output, NAMES[0])
        publish(output)
    assert partial(out).exists()  # it belongs to another command, which may still want it


def test_a_run_whose_key_begins_alike_does_not_use_it(tmp_path, undisturbed):
    out = tmp_path / "out"
    interrupted(out, 4)
    with PackedOutput.open(out, KEY[:8] + "another", NAMES) as output:
        assert output.finished == {}
        for name in NAMES:
            write_one(output, name)
        publish(output)
    assert tree(out) == undisturbed


def test_a_header_that_outgrows_its_room(tmp_path, monkeypatch, undisturbed):
    monkeypatch.setattr(packed_writer, "room_for", lambda names: 64)
    out = tmp_path / "out"
    whole(out)
    assert open_packed(out).delta().names == tuple(NAMES)
    first = tree(out)
    interrupted(tmp_path / "again", 4)
    resumed(tmp_path / "again", 4)
    assert tree(tmp_path / "again") == first


def test_a_publication_that_failed_is_taken_up_again(tmp_path, monkeypatch):
    monkeypatch.setattr(packed_writer, "room_for", lambda names: 4096 - 8)
    whole(tmp_path / "undisturbed" / "out")
    undisturbed = tree(tmp_path / "undisturbed" / "out")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        real = packed_writer.Staging.place

        def full(self, name, content):
            if name == "manifest.json":
                raise OSError(28, "No space left on device")
            real(self, name, content)

        patch.setattr(packed_writer.Staging, "place", full)
        with pytest.raises(ResourceError, match="the disk is full"):
            whole(out)
    assert not out.exists()
    resumed(out, len(NAMES))
    assert tree(out) == undisturbed


def test_one_writer_at_a_time(tmp_path):
    out = tmp_path / "out"
    with PackedOutput.open(out, KEY, NAMES) as output:
        for key in (KEY, "f" * 16):
            with pytest.raises(RefusedError, match=r"another process .* is writing this output"):
                PackedOutput.open(out, key, NAMES)
        for name in NAMES:
            write_one(output, name)
        publish(output)
    with pytest.raises(RefusedError, match="exists and is not empty"):
        PackedOutput.open(out, KEY, NAMES)
    whole(out, overwrite=True)
    assert neighbours(out) == []


def test_a_partial_folder_that_leads_elsewhere(tmp_path):
    out = tmp_path / "out"
    (tmp_path / "elsewhere").mkdir()
    partial(out).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RefusedError, match="is a link"):
        PackedOutput.open(out, KEY, NAMES)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_files_that_appear_under_out_meanwhile(tmp_path):
    out = tmp_path / "out"

    def disturbed():
        with PackedOutput.open(out, KEY, NAMES) as output:
            write_one(output, NAMES[0])
            out.mkdir()
            (out / "precious").write_text("x")
            publish(output)

    with pytest.raises(ResourceError, match="files have appeared"):
        disturbed()
    assert [p.name for p in out.iterdir()] == ["precious"]


def test_the_journal_is_readable(tmp_path):
    out = tmp_path / "out"
    interrupted(out, 2)
    lines = (partial(out) / "journal.jsonl").read_text().splitlines()
    first, second = (json.loads(line.partition(" ")[2]) for line in lines[:2])
    assert first == {"key": KEY, "room": first["room"]}
    assert second["tensor"] == NAMES[0]
    assert [e["name"] for e in second["entries"]] == [f"{NAMES[0]}::{p}" for p in ("values", "b", "a")]
