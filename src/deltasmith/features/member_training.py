"""One dictionary from its beginning to its end, on one open model: begun, trained, saved now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from deltasmith.engine.workers import Stop
from deltasmith.errors import InterruptedRunError, RecipeError, RefusedError, printable
from deltasmith.features.checkpoints import Workplace
from deltasmith.features.corpora import Pieces
from deltasmith.features.dictionaries import storage
from deltasmith.features.dictionaries.dictionary import Dictionary, fresh, grown, scale_of
from deltasmith.features.dictionaries.settings import BatchTopK, JumpRelu, Kind, Optimiser, Relu, ReluL1, TopK
from deltasmith.features.dictionaries.trainer import StepReport, Trainer
from deltasmith.features.members import Planned
from deltasmith.features.models import Opened
from deltasmith.features.recorder import Recorder
from deltasmith.features.requests import Listener, Request, default_k
from deltasmith.features.stream import Stream

__all__ = ["SAMPLE_TOKENS", "Desk", "begun", "kind_of", "parted", "trained"]

SAMPLE_TOKENS = 16_384
"""Tokens of the training text that no step sees, at most: they tell the scale, the mean, and a threshold."""
_SHARE = 16
"""One piece in so many goes there, at most."""
_OFTEN = 20
"""Steps between two words to the listener."""


def parted(pieces: Pieces) -> tuple[Pieces, Pieces]:
    """Part the training text: what is trained on, and a sample spread evenly over it that is not.

    Of the different pieces of each domain every sixteenth is set aside with all its repetitions, or fewer where these
    have more than the domain's share of `SAMPLE_TOKENS` tokens. Where a text is too short to be parted, all of it
    serves for both.
    """
    _, firsts = np.unique(pieces.piece, return_index=True)  # of each piece, the first of its repetitions
    domains = np.unique(pieces.domain)
    chosen: list[npt.NDArray[np.int64]] = []
    for domain in domains:
        rows = np.sort(firsts[pieces.domain[firsts] == domain])
        every = max(_SHARE, -(-int(pieces.analysed[rows].sum()) * len(domains) // SAMPLE_TOKENS))
        chosen.append(rows[every // 2 :: every] if len(rows) > every // 2 else rows[-1:])
    sample = np.sort(np.concatenate(chosen))
    rest = np.flatnonzero(~np.isin(pieces.piece, pieces.piece[sample]))
    parts = np.unique(pieces.domain[rest])
    return pieces.taken(rest) if len(parts) == len(domains) else pieces, pieces.taken(sample)


@dataclass(frozen=True, eq=False)
class Desk:
    """An open model and the text it reads, ready for training dictionaries on it."""

    label: str
    opened: Opened
    recorder: Recorder
    text: Pieces
    aside: Pieces
    request: Request

    @cached_property
    def sample(self) -> Tensor:
        """Take the activations on the text that is not trained on: (tokens, width)."""
        return self.recorder.activations(self.aside)


def kind_of(request: Request, width: int, given: Kind | None = None) -> Kind:
    """Return what is trained: what the options say, else what the root's given dictionary is, else TopK.

    RecipeError where a given dictionary is of a kind that cannot be trained, and the options name no other.
    """
    asked = request.kind or ("topk" if request.k is not None else None)
    if asked is None and given is not None:
        if isinstance(given, Relu | JumpRelu):
            raise RecipeError(
                f"the root's dictionary is of kind {given.kind}, which cannot be trained further",
                fix="give --kind and --k, say --kind batch-topk --k 32; or --mode shared --floors none",
            )
        return given
    if asked == "relu-l1":
        return ReluL1(coefficient=float(request.l1 or 0))
    k = request.k if request.k is not None else default_k(width)
    return BatchTopK(k=k) if asked == "batch-topk" else TopK(k=k)


def begun(member: Planned, desk: Desk, start: Path | None, like: Dictionary | None) -> Dictionary:
    """Return the dictionary that a member's training begins with.

    `start` is the folder of the dictionary it begins as, or of the one that was given for it; `like` is the root's,
    whose scale and size all others have, and None for the root's own. A given dictionary that no scale is known of
    gets one: it changes no activation, only how fast training moves.
    """
    request, sample = desk.request, desk.sample
    width = int(sample.shape[1])
    _refuse_width(desk.label, width, like)
    if start is not None:
        parent = storage.load(start, request.device)
        _refuse_width(desk.label, width, parent)
        if not member.trained:
            return replace(parent, scale=scale_of(sample)) if like is None and parent.scale == 1 else parent
        spare = round(member.spare * (like or parent).latents)
        return grown(parent, spare, sample, member.seed, kind_of(request, width, (like or parent).kind))
    kind = kind_of(request, width, None if like is None else like.kind)
    latents = request.latents_of(width) if like is None else like.latents
    scale = scale_of(sample) if like is None else like.scale
    return fresh(kind, latents, sample, scale, member.seed).to(request.device)


def _refuse_width(label: str, width: int, other: Dictionary | None) -> None:
    if other is not None and other.width != width:
        raise RefusedError(
            f"the site has a width of {width} there, and the root's dictionary one of {other.width}",
            where=printable(label),
            fix="follow features among models of one shape",
        )


def trained(
    member: Planned,
    key: str,
    begin: Callable[[], Dictionary],
    desk: Desk,
    place: Workplace,
    say: Listener,
    stop: Stop,
) -> Dictionary:
    """Train a member to its end, from its checkpoint where there is one.

    InterruptedRunError, after a checkpoint, where asked to stop.
    """
    stream = Stream(
        desk.recorder, desk.text, batch=desk.request.batch, room_bytes=desk.request.memory, seed=member.seed
    )
    if not stream.kept:
        say(f"the activations do not fit in {desk.request.memory >> 20} MiB and are computed anew", 0, 0, "")
    trainer = Trainer(begin(), Optimiser(), member.steps)
    saved = place.saved(key)
    if saved is not None:
        trainer.restore(saved[1])
    at, last = trainer.done, time.monotonic()
    what = f"training {member.name}"
    say(what, at, member.steps, "")
    for batch in islice(stream.batches(at), member.steps - at):
        report = trainer.step(batch)
        at += 1
        if at % _OFTEN == 0 or at == member.steps:
            say(what, at, member.steps, _shown(report))
        if at < member.steps and (stop.asked or time.monotonic() - last >= desk.request.checkpoint_seconds):
            place.save(key, at, trainer.state())
            last = time.monotonic()
        if stop.asked:
            raise InterruptedRunError(
                f"interrupted while training {member.name}", fix="run the same command to go on"
            )
    return trainer.finished([desk.sample])


def _shown(report: StepReport) -> str:
    return f"FVU {report.fvu:.3f}, L0 {report.l0:.1f}, dead {report.dead:.1%}"
