"""The start of a path in memory with its data laid out, ready to be joined with any end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deltasmith.analysis.classification import (
    ClassificationChunks,
    classification_loss,
    is_arrays,
    load_classifier,
    read_arrays,
    sampled_classification_loss,
)
from deltasmith.analysis.curvature import Sampled
from deltasmith.analysis.data import read_examples
from deltasmith.analysis.ends import End, Ends
from deltasmith.analysis.language import LanguageChunks, language_loss, sampled_loss
from deltasmith.analysis.networks import Loaded, Source, computed_in, differences, direction, load, sampled_in
from deltasmith.analysis.objective import Vector
from deltasmith.analysis.report import DataUsed
from deltasmith.analysis.requests import Request, Say
from deltasmith.analysis.torch_objective import LossOf, TorchObjective
from deltasmith.analysis.verdict import Margin, default_margin, given_margin
from deltasmith.engine.workers import Stop
from deltasmith.errors import InterruptedRunError, RefusedError
from deltasmith.evaluate.models.transformers_loading import memory_errors

__all__ = ["Ground", "Laid", "Line", "open_ground"]


@dataclass(frozen=True, eq=False)
class Laid:
    """Data on a device, in chunks, with the losses that are taken of them."""

    chunks: tuple[Any, ...]
    counts: tuple[float, ...]
    loss: LossOf
    sampled: Sampled
    used: DataUsed
    notes: tuple[str, ...]

    @torch.no_grad()
    def losses(self, network: nn.Module) -> Vector:
        """Return the mean loss of every chunk where a network stands, (chunks,)."""
        network.eval()
        return np.array([float(self.loss(network, chunk).double()) for chunk in self.chunks])

    def mean_loss(self, network: nn.Module) -> float:
        """Return a network's loss on all of the data."""
        counts: Vector = np.asarray(self.counts)
        return float(self.losses(network) @ counts / counts.sum())


@dataclass(frozen=True, eq=False)
class Line:
    """The loss along a straight line, the direction by parameters, and what is to be noted of its ends."""

    objective: TorchObjective
    direction: Mapping[str, Tensor]
    notes: tuple[str, ...]


@dataclass(eq=False)
class Ground:
    """Where paths start: the network, the data, and what counts as no change there."""

    request: Request
    start: End
    loaded: Loaded
    laid: Laid
    stop: Stop
    say: Say
    base_loss: float | None = None

    def margin(self, start_loss: float) -> Margin:
        """Return the user's margin, or the default for the loss where the path starts."""
        if self.request.margin is not None:
            return given_margin(self.request.margin)
        return default_margin(start_loss, self.base_loss)

    def load(self, source: Source, copies: int = 1) -> Loaded:
        """Load another network of the same kind; `copies` counts those of its size that will be needed at once."""
        return _load(self.request, source, self.stop, copies)

    def line_to(self, end: Source) -> Line:
        """Load an end and return the loss along the straight path there.

        The path moves the start's network in place; one line at a time. Raises what loading raises, and RefusedError
        where the networks do not line up or nothing moves.
        """
        self.say("loading the end of the path", 0, 0)
        last = self.load(end)
        notes = (*last.notes, *differences(self.loaded, last))
        with memory_errors(self.request.batch):
            steps = direction(self.loaded.network, last.network)
        laid = self.laid
        return Line(
            TorchObjective(self.loaded.network, steps, laid.chunks, laid.counts, laid.loss), steps, notes
        )


def open_ground(ends: Ends, request: Request, stop: Stop, say: Say) -> Ground:
    """Load the start of a path, read and lay out the data, and take the base's loss where the margin needs it.

    There are never more than two networks in memory.

    Raises:
        MissingExtraError, RecipeError, RefusedError, DamagedInputError, ResourceError: what loading raises; data that
        do not tokenise. InterruptedRunError: asked to stop.
    """
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    say("loading the start of the path", 0, 0)
    loaded = _load(request, ends.start.source, stop, copies=2)
    with memory_errors(request.batch):
        laid = _lay_out(request, loaded)
    ground = Ground(request, ends.start, loaded, laid, stop, say)
    if ends.base is not None and request.margin is None:
        say("taking the base's loss, for the margin", 0, 0)
        base = ground.load(ends.base.source)
        with memory_errors(request.batch):
            ground.base_loss = laid.mean_loss(base.network)
        if not np.isfinite(ground.base_loss):
            raise RefusedError(
                "the loss of the base is not finite on these data", fix="give --margin, or use other data"
            )
    if stop.asked:
        raise InterruptedRunError("the analysis was interrupted", fix="run the same command again")
    return ground


def _load(request: Request, source: Source, stop: Stop, copies: int) -> Loaded:
    loader = load_classifier if is_arrays(request.data) else load
    return loader(
        source,
        device=request.device,
        dtype=request.dtype,
        memory=request.memory,
        threads=request.threads,
        stop=stop,
        copies=copies,
    )


def _lay_out(request: Request, loaded: Loaded) -> Laid:
    laid = _arrays(request, loaded) if is_arrays(request.data) else _texts(request, loaded)
    how = request.dtype, request.device
    return replace(laid, loss=computed_in(*how, laid.loss), sampled=sampled_in(*how, laid.sampled))


def _texts(request: Request, loaded: Loaded) -> Laid:
    tokenizer = loaded.tokenizer
    assert tokenizer is not None, "load() reads a tokenizer"
    found = read_examples(
        request.data, tokenizer, length=request.length, limit=request.limit, context=loaded.context
    )
    laid = LanguageChunks.of(found.examples, request.batch, request.device, tokenizer.padding)
    used = DataUsed(
        found.name, found.sha256, found.documents, len(found.examples), found.tokens, len(laid.chunks)
    )
    return Laid(laid.chunks, laid.counts, language_loss, sampled_loss, used, found.notes)


def _arrays(request: Request, loaded: Loaded) -> Laid:
    found = read_arrays(request.data, limit=request.limit)
    laid = ClassificationChunks.of(found, loaded.network, request.batch, request.device)
    count = len(found.labels)
    used = DataUsed(found.name, found.sha256, count, count, count, len(laid.chunks), "example")
    return Laid(laid.chunks, laid.counts, classification_loss, sampled_classification_loss, used, found.notes)
