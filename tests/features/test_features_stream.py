"""Batches of activations: a function of seed and step, whatever is kept in memory."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from small_readers import pieces_of  # noqa: E402

from deltasmith.errors import RefusedError  # noqa: E402
from deltasmith.features import recorder as recorder_module  # noqa: E402
from deltasmith.features import stream as stream_module  # noqa: E402
from deltasmith.features.pieces import Pieces  # noqa: E402
from deltasmith.features.recorder import Recorder  # noqa: E402
from deltasmith.features.stream import Stream  # noqa: E402

WIDTH = 3
PIECES = pieces_of([12, 5, 9, 12, 2, 7, 12, 12, 3, 8, 12, 10], seed=4)  # 92 tokens
ROOMY, TIGHT = 1 << 20, 0


class Counting(Recorder):
    """A recorder without a network: a token's activations are its own place in the text, and how often it is read."""

    width = WIDTH  # type: ignore[assignment]

    def __init__(self) -> None:
        self.device = "cpu"
        self.read: list[int] = []
        self._kept: dict[Pieces, Any] = {}  # type: ignore[assignment]

    def activations(self, pieces: Pieces, rows: Any = None, batch: Any = None) -> Any:
        rows = range(len(pieces.lengths)) if rows is None else rows
        self.read += list(rows)
        places = [piece * 100 + at for piece in rows for at in range(1, pieces.lengths[piece])]
        return torch.tensor(places, dtype=torch.float32)[:, None].repeat(1, WIDTH)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "_GROUP", 24)  # groups of two pieces
    monkeypatch.setattr(stream_module, "_WINDOW", 40)  # three windows


def stream(
    room: int = ROOMY, seed: int = 0, batch: int = 8, pieces: Pieces = PIECES, recorder: Any = None
) -> Stream:
    return Stream(recorder or Counting(), pieces, batch=batch, room_bytes=room, seed=seed)


def first(some: Stream, count: int, start: int = 0) -> Any:
    return torch.stack(list(islice(some.batches(start), count)))


def test_where_it_begins_and_what_is_kept_change_nothing() -> None:
    every = first(stream(), 40)
    assert every.shape == (40, 8, WIDTH)
    for room in (ROOMY, TIGHT):
        for start in (0, 1, 9, 10, 11, 23):
            assert torch.equal(first(stream(room), 5, start), every[start : start + 5])
    assert (stream(ROOMY).kept, stream(TIGHT).kept) == (True, False)
    assert stream(4 * WIDTH * PIECES.tokens).kept
    assert not stream(4 * WIDTH * PIECES.tokens - 1).kept


def epochs(some: Stream, count: int) -> list[list[int]]:
    """The tokens of each epoch."""
    batches = some.batches()
    steps = [sum(map(some._steps_of, some._epoch(epoch))) for epoch in range(count)]
    return [torch.cat(list(islice(batches, number)))[:, 0].int().tolist() for number in steps]


@pytest.mark.parametrize("room", [ROOMY, TIGHT])
def test_an_epoch_has_every_token_once_but_for_what_fills_no_batch(room: int) -> None:
    for tokens in epochs(stream(room), 4):
        assert len(set(tokens)) == len(tokens)
        assert len(tokens) > PIECES.tokens - 3 * 8


def test_every_token_has_its_turn() -> None:
    places = {piece * 100 + at for piece, length in enumerate(PIECES.lengths) for at in range(1, length)}
    assert {token for tokens in epochs(stream(), 6) for token in tokens} == places


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    one, two = epochs(stream(), 2)
    assert one != two
    assert epochs(stream(seed=1), 1)[0] != one


def test_one_window_has_an_order_of_its_own_in_each_epoch() -> None:
    alone = PIECES.taken([0, 1])  # one group: nothing but the order within the window can differ
    one, two = (batch[:, 0].tolist() for batch in first(stream(batch=15, pieces=alone), 2))
    assert sorted(one) == sorted(two)
    assert one != two


def test_tokens_are_mixed_within_windows_of_several_groups() -> None:
    window = next(iter(stream()._epoch(0)))
    assert len(window.groups) == 2
    batches = first(stream(), window.tokens // 8)[:, :, 0]
    groups = (batches // 200).int()
    assert {int(group) for group in groups.flatten()} == set(window.groups)
    assert all(len(set(batch.tolist())) == 2 for batch in groups)
    assert any(batch.tolist() != sorted(batch.tolist()) for batch in batches)


def test_text_is_read_once_where_it_is_kept_and_shared_with_other_seeds() -> None:
    recorder = Counting()
    first(stream(recorder=recorder), 40)
    first(stream(recorder=recorder, seed=5), 40)
    assert sorted(recorder.read) == list(range(12))


def test_to_go_on_reads_one_window_where_nothing_is_kept() -> None:
    recorder = Counting()
    first(stream(TIGHT, recorder=recorder), 1, start=35)
    assert 0 < len(recorder.read) <= 4


def test_a_window_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "_WINDOW_BYTES", 4 * WIDTH * 20)
    assert len(list(stream()._epoch(0))) == 5
    assert len(list(stream(batch=46)._epoch(0))) == 2  # a batch fits all the same


@pytest.mark.parametrize("pieces", [PIECES, PIECES.taken([]), PIECES.taken([4])])
def test_fewer_tokens_than_a_batch(pieces: Pieces) -> None:
    message = rf"the text has {pieces.tokens} tokens to train on, fewer than a batch of 93; give more text"
    with pytest.raises(RefusedError, match=message):
        stream(batch=93, pieces=pieces)


def test_one_batch_that_is_everything() -> None:
    tokens = first(stream(batch=92), 2)[:, :, 0].numpy()
    assert np.array_equal(np.sort(tokens[0]), np.sort(tokens[1]))
    assert not np.array_equal(tokens[0], tokens[1])


def test_real_activations_are_the_same_bit_by_bit() -> None:
    pytest.importorskip("transformers")
    from small_readers import mistral

    from deltasmith.features.site import Site

    network = mistral()
    kept, computed = (
        Stream(
            Recorder(network, Site("model.layers.0.mlp.down_proj", "in")),
            PIECES,
            batch=8,
            room_bytes=room,
            seed=2,
        )
        for room in (ROOMY, TIGHT)
    )
    assert torch.equal(first(kept, 25), first(computed, 25))
    assert torch.equal(first(computed, 3, 17), first(kept, 20)[17:])
