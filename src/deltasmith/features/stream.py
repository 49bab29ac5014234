"""Activations in batches without end, in an order that seed and step alone decide. Needs torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deltasmith.errors import RefusedError
from deltasmith.features.pieces import Pieces
from deltasmith.features.recorder import Recorder, group_of
from deltasmith.kernels.bits import uniform_bits
from deltasmith.operation.randomness import cell_key

__all__ = ["Stream"]

_WINDOW = 1 << 17
"""Tokens that are mixed with one another, at most."""
_WINDOW_BYTES = 1 << 28
"""Bytes of the activations of a window, at most, unless one group of pieces has more: 256 MiB."""

Order = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Window:
    """Groups of pieces whose tokens are mixed with one another, and what to key the mixing by."""

    epoch: int
    number: int
    groups: tuple[int, ...]
    tokens: int


class Stream:
    """Yield batches of activations (batch, width), as they come out of the model, epoch after epoch.

    An epoch puts the groups in which pieces are read into a new order and cuts that into windows of about equally
    many groups, at most 131,072 tokens and 256 MiB; the tokens of a window are permuted and yielded in batches, and
    the fewer than `batch` that are left over are passed over. Orders are keyed by seed, epoch and window. So a batch
    is a function of seed and step, whatever was read before, and a token comes at most once in an epoch.

    Where all activations fit in `room_bytes` they are computed once, for all streams of these pieces; else each
    window is computed when its turn comes, and `room_bytes` below a window makes no window smaller. Batches are the
    same, bit by bit, either way.

    Raises:
        RefusedError: an epoch has no full batch. What `Recorder.activations` raises.
    """

    def __init__(self, recorder: Recorder, pieces: Pieces, *, batch: int, room_bytes: int, seed: int) -> None:
        self.recorder, self.pieces, self.batch, self.seed = recorder, pieces, batch, seed
        self._size = group_of(pieces.context)
        count = len(pieces.lengths)
        firsts = np.arange(0, count, self._size)
        self._tokens = np.add.reduceat(pieces.analysed, firsts) if count else np.zeros(0, np.int64)
        self._starts = np.concatenate(([0], np.cumsum(self._tokens)))
        room = 4 * recorder.width
        self.kept = int(self._starts[-1]) * room <= room_bytes
        """Whether all activations are kept."""
        bound = max(batch, min(_WINDOW, _WINDOW_BYTES // room))
        self._windows = max(1, -(-int(self._starts[-1]) // bound))
        if not any(self._steps_of(window) for window in self._epoch(0)):
            raise RefusedError(
                f"the text has {int(self._starts[-1]):,} tokens to train on, fewer than a batch of {batch:,}",
                fix="give more text, or a smaller batch",
            )

    def batches(self, start_step: int = 0) -> Iterator[Tensor]:
        """Yield the batches of steps start_step, start_step + 1, and so on, without end."""
        skipped = start_step
        for window in self._from():
            steps = self._steps_of(window)
            if skipped >= steps:
                skipped -= steps
                continue
            source, order = self._mixed(window)
            for step in range(skipped, steps):
                yield source[order[step * self.batch : (step + 1) * self.batch]]
            del source
            skipped = 0

    def _steps_of(self, window: _Window) -> int:
        return window.tokens // self.batch

    def _from(self) -> Iterator[_Window]:
        epoch = 0
        while True:
            yield from self._epoch(epoch)
            epoch += 1

    def _epoch(self, epoch: int) -> Iterator[_Window]:
        """Yield the windows of an epoch; computes nothing."""
        order = self._order(f"epoch {epoch}", len(self._tokens))
        for number, groups in enumerate(np.array_split(order, min(self._windows, max(1, len(order))))):
            yield _Window(epoch, number, tuple(groups.tolist()), int(self._tokens[groups].sum()))

    def _mixed(self, window: _Window) -> tuple[Tensor, Tensor]:
        """Return activations, and which of them come in which order."""
        order = self._order(f"epoch {window.epoch} window {window.number}", window.tokens)
        if self.kept:
            source = self.recorder.kept_activations(self.pieces)
            spans = [np.arange(self._starts[g], self._starts[g + 1]) for g in window.groups]
            order = np.concatenate(spans)[order]
        else:
            source = torch.empty(window.tokens, self.recorder.width, device=self.recorder.device)
            at = 0
            for group in window.groups:
                first = group * self._size
                rows = np.arange(first, min(first + self._size, len(self.pieces.lengths)))
                found = self.recorder.activations(self.pieces, rows)
                source[at : at + len(found)] = found
                at += len(found)
        return source, torch.from_numpy(order).to(source.device)

    def _order(self, name: str, count: int) -> Order:
        """Return a permutation keyed by the seed and a name."""
        bits = uniform_bits(cell_key(self.seed, "stream", name), 0, count)
        return np.argsort(bits, kind="stable").astype(np.int64)
