"""Coding in parallel: blocks reach the sink in order, whatever finishes first."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest

from deltasmith.codecs.catalogue import codec_from
from deltasmith.codecs.protocol import Cell, Codec, Coded, Ending, Stream
from deltasmith.engine import coding
from deltasmith.engine.coding import CodingTask, code, workers_within
from deltasmith.engine.progress import Silent
from deltasmith.engine.workers import Stop
from deltasmith.errors import InterruptedRunError, RefusedError, ResourceError
from deltasmith.formats.hashing import hash_bytes
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES

GIB = 1 << 30


@dataclass
class Sink:
    """Writes down what it is told."""

    heard: list = field(default_factory=list)

    def begin(self, name, streams, suffix):
        self.heard.append(("begin", name + suffix, [s.name for s in streams]))

    def append(self, coded):
        self.heard.append(("append", {n: bytes(p) for n, p in coded.parts.items()}))

    def end(self, ending, xxh3_128=None):
        arrays = {n: a.tobytes() for n, a in ending.arrays.items()}
        self.heard.append(("end", arrays, ending.squared_norm, ending.squared_error, xxh3_128))


@dataclass
class Given:
    """Values in memory, handed out late and in no order."""

    array: np.ndarray
    words: np.ndarray | None = None
    delays: np.random.Generator | None = None

    def read(self, start, stop):
        if self.delays is not None:
            time.sleep(self.delays.random() * 0.003)
        return self.array[start:stop], None if self.words is None else self.words[start:stop]


def cell(name, size, dtype="float32"):
    spec = Spec(name, (size,) if isinstance(size, int) else size, DTYPES[dtype])
    return Cell(spec, spec, key=5)


def tasks(delays=None):
    random = np.random.default_rng(0)
    found = []
    for i, text in enumerate(["bitdelta", "lossless", "sparse", "dense", "claq:bits=2"]):
        codec = codec_from(text)
        stored = codec.domain == "stored"
        for shape in ((40, 30) if text.startswith("claq") else (1400, 800), (3, 1), (0, 4)):
            size = int(np.prod(shape))
            array = (random.standard_normal(size) * 1e-3).astype(np.float32)
            words = array.view(np.uint32) if stored else None
            given = Given(
                array.view(np.uint32) if stored else array, None if words is None else words ^ 5, delays
            )
            found.append(CodingTask(cell(f"{text}{i}{shape}", shape), codec, given))
    return found


def coded(work, threads=1, memory=GIB, stop=None, sink=None):
    sink = sink or Sink()
    code(work, sink, threads=threads, memory=memory, stop=stop or Stop(), progress=Silent())
    return sink.heard


@pytest.mark.parametrize("threads", [2, 5, 16])
def test_the_sink_hears_the_same_from_any_number_of_threads(monkeypatch, threads):
    monkeypatch.setattr(coding, "_SPAN", 1)  # one block a job
    expected = coded(tasks())
    assert coded(tasks(np.random.default_rng(threads)), threads) == expected
    assert sum(line[0] == "append" for line in expected) > 25


def test_it_is_what_the_codec_makes_of_the_whole(monkeypatch):
    monkeypatch.setattr(coding, "_SPAN", 1)
    for task in tasks():
        heard = coded([task], 3)
        arrays = {}
        for line in heard:
            if line[0] == "append":
                for name, data in line[1].items():
                    arrays[name] = arrays.get(name, b"") + data
        kind, shape = task.values.array, task.cell.spec.shape
        whole = task.codec.encode(kind.reshape(shape), task.cell, task.values.words)
        got = {n: arrays.get(n, b"") for n in heard[0][2]} | heard[-1][1]
        assert got == {n: a.tobytes() for n, a in whole.items()}
        digest = hash_bytes(kind.tobytes()) if task.codec.domain == "stored" else None
        assert heard[-1][4] == digest


def test_what_waits_for_its_turn_is_bounded(monkeypatch):
    """One slow block at the front: the others wait, and nobody runs ahead for ever."""
    monkeypatch.setattr(coding, "_SPAN", 1)
    monkeypatch.setattr(coding, "_AHEAD", 3 << 20)
    size, block = 40 << 18, 1 << 18
    started = []

    class Slow(Given):
        def read(self, start, stop):
            started.append(start)
            if start == 0:
                time.sleep(0.4)
                seen.append(len(started))
            return self.array[start:stop], self.words

    seen: list[int] = []
    values = np.zeros(size, np.uint32)
    heard = coded([CodingTask(cell("w", size), codec_from("dense"), Slow(values))], 4)
    assert len(heard) == 2 + size // block
    assert seen[0] <= 3 + 4  # 3 MiB wait as 3 blocks of 1 MiB, and 4 threads hold one each


def test_a_failure_while_others_wait_ends_all_of_them(monkeypatch):
    monkeypatch.setattr(coding, "_SPAN", 1)
    monkeypatch.setattr(coding, "_AHEAD", 1 << 20)

    class Broken(Given):
        def read(self, start, stop):
            if start == 0:
                time.sleep(0.2)
                raise RefusedError("values that will not do")
            return self.array[start:stop], self.words

    before = threading.active_count()
    work = [CodingTask(cell("w", 20 << 18), codec_from("dense"), Broken(np.zeros(20 << 18, np.uint32)))]
    with pytest.raises(RefusedError, match="will not do"):
        coded(work, 4)
    assert threading.active_count() == before


def test_a_sink_that_fails(monkeypatch):
    monkeypatch.setattr(coding, "_SPAN", 1)

    class Full(Sink):
        def append(self, coded):
            if len(self.heard) > 3:
                raise ResourceError("the disk is full")
            super().append(coded)

    with pytest.raises(ResourceError, match="the disk is full"):
        coded(tasks(), 4, sink=Full())


def test_a_stop_leaves_whole_jobs(monkeypatch):
    monkeypatch.setattr(coding, "_SPAN", 1)
    stop = Stop()

    class Asking(Sink):
        def end(self, ending, xxh3_128=None):
            super().end(ending, xxh3_128)
            if len([line for line in self.heard if line[0] == "end"]) == 2:
                stop.ask()

    expected = coded(tasks())
    sink = Asking()
    with pytest.raises(InterruptedRunError):
        coded(tasks(), 3, stop=stop, sink=sink)
    assert sink.heard == expected[: len(sink.heard)]
    assert len(sink.heard) < len(expected)


def test_values_that_a_codec_cannot_take_are_told_with_the_tensor():
    array = np.array([1.0, np.inf], np.float32)
    with pytest.raises(RefusedError, match=r"cannot take these values .* in w; choose another"):
        coded([CodingTask(cell("w", 2), codec_from("sparse"), Given(array))])


class Large(Codec):
    """Says that it needs a lot."""

    def workspace(self, cell):
        return 300 << 20

    def encoder(self, cell):
        return codec_from("dense").encoder(cell)


def test_workers_share_the_budget():
    """Exit 4 names the tensor and a budget; that budget does, and one MiB less does not."""
    work = [CodingTask(cell("small", 10), codec_from("dense"), Given(np.zeros(10, np.uint32)))]
    assert workers_within(work, 512 << 20, 8) == 8
    assert workers_within([], 0, 8) == 1
    work.append(CodingTask(cell("large", 10), Large(), Given(np.zeros(10, np.uint32))))
    with pytest.raises(ResourceError) as caught:
        workers_within(work, 512 << 20, 8)
    assert caught.value.exit_code == 4
    assert "in large; give --memory 557M or more" in str(caught.value)
    assert workers_within(work, 557 << 20, 8) == 1
    assert workers_within(work, 900 << 20, 8) == 2
    with pytest.raises(ResourceError):
        workers_within(work, 556 << 20, 8)


def test_an_encoder_may_come_from_elsewhere():
    """Several models' tensors are coded together by an encoder that no single cell has."""

    class Counting:
        block = 4
        streams = (Stream("bytes", "uint8"),)

        def encode(self, start, values, predicted=None):
            return Coded({"bytes": bytes([values.size])}, start)

        def finish(self, tallies):
            return Ending({"starts": np.array(tallies, np.uint8)})

    given = Given(np.zeros(10, np.float32))
    heard = coded([CodingTask(cell("w", 10), codec_from("bitdelta"), given, ".x", by=Counting())])
    assert heard[0] == ("begin", "w.x", ["bytes"])
    assert [line[1]["bytes"] for line in heard[1:-1]] == [b"\4", b"\4", b"\2"]
    assert heard[-1][1]["starts"] == bytes([0, 4, 8])
