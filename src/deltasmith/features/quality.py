"""How well a dictionary stands for activations, and how well a model predicts each kind of text. Needs torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from deltasmith.errors import RefusedError
from deltasmith.features.codes import Codes, joined
from deltasmith.features.dictionaries.dictionary import Dictionary
from deltasmith.features.pieces import Pieces
from deltasmith.features.recorder import Recorder, group_of, losses_of
from deltasmith.features.study import Quality, Score

__all__ = ["measure", "scores"]


def measure(recorder: Recorder, dictionary: Dictionary, held_out: Pieces) -> tuple[Quality, Codes]:
    """Encode all held-out tokens, and measure what the dictionary leaves over and what that costs the model.

    FVU = sum |x - x'|^2 / sum |x - mean|^2 over all tokens, in float64. The losses are of every analysed token
    predicted from what stands before it in its piece, with activations, reconstructions or zeros at the site. The
    codes are in the order of `held_out.held_out()`.

    Raises:
        RefusedError: the site has another width, or numbers are not finite. What `Recorder` raises.
    """
    if recorder.width != dictionary.width:
        raise RefusedError(
            f"the site has a width of {recorder.width}, the dictionary one of {dictionary.width}",
            where=str(recorder.site),
            fix="use the dictionary at the site that it was made for",
        )
    sums = _Sums(dictionary)
    parts = []
    size = group_of(held_out.context)
    for first in range(0, len(held_out.lengths), size):
        rows = np.arange(first, min(first + size, len(held_out.lengths)))
        raw = recorder.activations(held_out, rows)
        codes = dictionary.encode(raw)
        sums.add(raw, dictionary.decode(codes))
        parts.append(codes)
    codes = joined(parts)
    plain, zeroed = recorder.plain_losses(held_out)
    spliced = recorder.losses(held_out, dictionary.reconstruct).mean
    quality = Quality(
        fvu=sums.fvu,
        l0=len(codes.latents) / codes.tokens,
        dead=float((codes.fires == 0).mean()),
        loss=plain.mean,
        loss_spliced=spliced,
        loss_zeroed=zeroed,
    )
    wrong = [name for name, value in vars(quality).items() if not np.isfinite(value)]
    if wrong:
        raise RefusedError(
            f"its {wrong[0]} is not finite on the held-out text",
            where=str(recorder.site),
            fix="check the model's weights, or compute in float32",
        )
    return quality, codes


class _Sums:
    """Sums over tokens in float64, around the dictionary's output bias: near the mean, so that little cancels."""

    def __init__(self, dictionary: Dictionary) -> None:
        self._centre = dictionary.output_bias.double()
        self._sum = torch.zeros_like(self._centre)
        self._squares = self._left = 0.0
        self._tokens = 0

    def add(self, raw: Tensor, reconstructed: Tensor) -> None:
        """Take in some tokens, (tokens, width) both."""
        wide = raw.double()
        self._left += float((wide - reconstructed.double()).square().sum())
        wide -= self._centre
        self._squares += float(wide.square().sum())
        self._sum += wide.sum(0)
        self._tokens += len(raw)

    @property
    def fvu(self) -> float:
        """Return the unexplained share; 1 of what does not vary and is not met, 0 of what is."""
        spread = self._squares - float(self._sum.square().sum()) / max(self._tokens, 1)
        return self._left / spread if spread > 0 else float(self._left > 0)


def scores(network: nn.Module, held_out: Pieces, domains: Sequence[str]) -> dict[str, Score]:
    """Score a model on each domain of the held-out text: mean nats of a token, and the share that it names.

    Every analysed token is predicted from what stands before it in its piece. A domain without held-out tokens has
    no score.
    """
    device = str(next(network.parameters()).device)
    found = losses_of(network, held_out, device)
    of = held_out.of_tokens(held_out.domain)
    scored = {}
    for number, name in enumerate(domains):
        mine = of == number
        if mine.any():
            loss = float(found.nats[mine].mean(dtype=np.float64))
            scored[name] = Score(loss, float(found.named[mine].mean()), int(mine.sum()))
    return scored
