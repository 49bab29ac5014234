"""Read text with a network: the activations at a site, and what the network makes of each token. Needs torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from deltasmith.engine.workers import Stop
from deltasmith.errors import InterruptedRunError, RefusedError
from deltasmith.evaluate.models.transformers_loading import memory_errors, quiet
from deltasmith.features.hooks import at_site
from deltasmith.features.pieces import FIRST, Pieces
from deltasmith.features.site import Site

__all__ = ["Losses", "Recorder", "group_of", "losses_of"]

_GROUP = 8192
"""Tokens that a network reads at once."""
_LOGITS = 1 << 28
"""Bytes of logits held at once, where one piece has not more: 256 MiB."""

Replace = Callable[[Tensor], Tensor]
Rows = Sequence[int] | npt.NDArray[np.integer]


class _Enough(Exception):
    """Carry the site's tensor out of the forward pass: no error, but nothing behind the site is wanted."""


@dataclass(frozen=True, eq=False)
class Losses:
    """What a network makes of the analysed tokens, each predicted from what stands before it in its piece.

    `nats` (tokens,) float32 is -log p of the token, `named` (tokens,) whether it is the likeliest one.
    """

    nats: npt.NDArray[np.float32]
    named: npt.NDArray[np.bool_]

    @property
    def mean(self) -> float:
        """Return the mean of the nats, summed in float64."""
        return float(self.nats.mean(dtype=np.float64))


def group_of(context: int) -> int:
    """Return how many pieces a network reads at once: about 8,192 tokens."""
    return max(1, _GROUP // context)


class Recorder:
    """Read pieces with one network, and take what flows through one site at the analysed positions.

    Pieces are read in groups of consecutive ones, filled up on the right to the longest with the filling masked. A
    group's composition reaches the last bits of a result, so it never depends on how much memory there is.

    Raises:
        RecipeError: the network has no such module. All methods: RefusedError where the site yields no
        (pieces, positions, width) floating-point tensor, or more than one in a pass; ResourceError where memory does
        not suffice; InterruptedRunError where `stop` asks.
    """

    def __init__(
        self, network: nn.Module, site: Site, device: str = "cpu", *, stop: Stop | None = None
    ) -> None:
        with at_site(network, site, lambda _: None):
            pass  # says early that there is no such module
        self.network, self.site, self.device = network, site, device
        self._stop = stop
        self._kept: WeakKeyDictionary[Pieces, Tensor] = WeakKeyDictionary()
        self._plain: WeakKeyDictionary[Pieces, tuple[Losses, float]] = WeakKeyDictionary()

    @cached_property
    def width(self) -> int:
        """Return the width of the site, found by reading two tokens through the whole network."""
        found: list[Tensor] = []
        ids = np.zeros((1, 2), np.int32)
        with at_site(self.network, self.site, lambda tensor: found.append(tensor)):
            self._forward(ids, np.array([2]))
        if len(found) != 1:
            times = f"{len(found)} times" if found else "not"
            raise RefusedError(
                f"the module is {times} computed in a pass", where=str(self.site), fix="choose another module"
            )
        self._check(found[0], ids)
        return int(found[0].shape[2])

    def activations(self, pieces: Pieces, rows: Rows | None = None, batch: int | None = None) -> Tensor:
        """Return the site's activations at the analysed positions of some pieces, piece after piece.

        (tokens, width) float32 on the recorder's device. Nothing behind the site is computed. All rows by default;
        `batch` pieces are read at once (about 8,192 tokens by default).
        """
        some = pieces if rows is None else pieces.taken(rows)
        if not len(some.lengths):
            return torch.empty(0, self.width, device=self.device)
        width, out, at = self.width, None, 0
        for first, group in _groups(some, batch or group_of(pieces.context)):
            self._check_stop()
            found = self._taken(group)
            if first == 0 and len(group.lengths) == len(some.lengths):
                return found
            if out is None:  # one allocation: joining parts would hold everything twice
                out = torch.empty(some.tokens, width, device=self.device)
            out[at : at + len(found)] = found
            at += len(found)
        assert out is not None
        return out

    def kept_activations(self, pieces: Pieces) -> Tensor:
        """Return `activations` of all pieces, computed once for as long as these pieces exist."""
        if pieces not in self._kept:
            self._kept[pieces] = self.activations(pieces)
        return self._kept[pieces]

    def losses(self, pieces: Pieces, replace: Replace | None = None) -> Losses:
        """Predict every analysed token from what stands before it in its piece, through the whole network.

        `replace` is given the site's activations at analysed positions, (tokens, width) float32, and returns what
        flows on in their place; the first position of a piece stays as it is.
        """
        if replace is None:
            return losses_of(self.network, pieces, self.device, check=self._check_stop)
        replaced: list[int] = []

        def watched(ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.integer]) -> Any:
            inside = self._inside(ids, lengths)

            def visit(tensor: Tensor) -> Tensor:
                self._check(tensor, ids)
                new = replace(tensor[inside].float())
                replaced.append(1)
                changed = tensor.clone()
                changed[inside] = new.to(tensor.device, tensor.dtype)
                return changed

            return at_site(self.network, self.site, visit)

        _ = self.width  # refuses a site that is computed more than once in a pass, or never
        return losses_of(self.network, pieces, self.device, check=self._check_stop, around=watched)

    def plain_losses(self, pieces: Pieces) -> tuple[Losses, float]:
        """Return the network's own losses, and the mean loss with zeros at the site; computed once for these pieces."""
        if pieces not in self._plain:
            zeroed = self.losses(pieces, torch.zeros_like).mean
            self._plain[pieces] = (self.losses(pieces), zeroed)
        return self._plain[pieces]

    def _taken(self, group: Pieces) -> Tensor:
        ids, lengths = _trimmed(group)

        def visit(tensor: Tensor) -> None:
            raise _Enough(tensor)

        with at_site(self.network, self.site, visit):
            try:
                self._forward(ids, lengths)
            except _Enough as found:
                tensor: Tensor = found.args[0]
                self._check(tensor, ids)
                return tensor[self._inside(ids, lengths)].float()
        raise RefusedError(
            "the module is not computed in a pass", where=str(self.site), fix="choose another module"
        )

    def _forward(self, ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.integer]) -> Any:
        return _forward(self.network, ids, lengths, self.device)

    def _inside(self, ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(_analysed(ids, lengths)).to(self.device)

    def _check(self, tensor: Tensor, ids: npt.NDArray[np.int32]) -> None:
        if tensor.ndim != 3 or tuple(tensor.shape[:2]) != ids.shape:
            raise RefusedError(
                f"a tensor of shape {list(tensor.shape)} flows there, not one of (texts, positions, width), "
                f"here [{ids.shape[0]}, {ids.shape[1]}, …]",
                where=str(self.site),
                fix="choose a module that every position flows through, such as an MLP or one of its projections",
            )

    def _check_stop(self) -> None:
        if self._stop is not None and self._stop.asked:
            raise InterruptedRunError("interrupted while reading text", fix="run the same command again")


def losses_of(
    network: nn.Module,
    pieces: Pieces,
    device: str = "cpu",
    *,
    check: Callable[[], None] = lambda: None,
    around: Callable[[npt.NDArray[np.int32], npt.NDArray[np.integer]], Any] | None = None,
) -> Losses:
    """Predict every analysed token from what stands before it in its piece.

    As many pieces are read at once as have 256 MiB of logits, at least one. `check` is called before each group, and
    `around` may give a context to read it in.
    """
    size = group_of(pieces.context)
    per_piece = pieces.context * _vocabulary(network) * 4
    nats, named = [np.empty(0, np.float32)], [np.empty(0, np.bool_)]
    for _, group in _groups(pieces, max(1, min(size, _LOGITS // per_piece))):
        check()
        ids, lengths = _trimmed(group)
        if around is None:
            logits = _forward(network, ids, lengths, device).logits
        else:
            with around(ids, lengths):
                logits = _forward(network, ids, lengths, device).logits
        for row, length in enumerate(
            lengths.tolist()
        ):  # a piece at a time: float32 copies of all would be large
            target = torch.from_numpy(ids[row, FIRST:length].astype(np.int64)).to(logits.device)
            predicted = logits[row, FIRST - 1 : length - 1].float()
            nats.append(cross_entropy(predicted, target, reduction="none").cpu().numpy())
            named.append((predicted.argmax(-1) == target).cpu().numpy())
        del logits
    return Losses(np.concatenate(nats), np.concatenate(named))


def _vocabulary(network: Any) -> int:
    head = network.get_output_embeddings()
    return int(head.weight.shape[0] if head is not None else network.get_input_embeddings().weight.shape[0])


def _forward(
    network: nn.Module, ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.integer], device: str
) -> Any:
    tokens = torch.from_numpy(ids.astype(np.int64)).to(device)
    masked = {}
    if int(lengths.min()) < ids.shape[1]:  # without a mask where none is needed: attention is faster then
        mask = np.arange(ids.shape[1])[None, :] < lengths[:, None]
        masked = {"attention_mask": torch.from_numpy(mask.astype(np.int64)).to(device)}
    with torch.no_grad(), memory_errors(1), quiet():
        return network(input_ids=tokens, use_cache=False, **masked)


def _trimmed(group: Pieces) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return ids without columns that are filling in every row, and lengths."""
    return group.ids[:, : int(group.lengths.max())], group.lengths


def _analysed(ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    columns = np.arange(ids.shape[1])[None, :]
    return (columns >= FIRST) & (columns < lengths[:, None])


def _groups(pieces: Pieces, size: int) -> Iterator[tuple[int, Pieces]]:
    for first in range(0, len(pieces.lengths), size):
        yield first, pieces.taken(np.arange(first, min(first + size, len(pieces.lengths))))
