"""What is shown of a feature: the passages where it fires in any model, and how it fires on them in each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from deltasmith.features.codes import Codes
from deltasmith.features.matching.correlation import checked, columns_of
from deltasmith.features.page.tracing import Trace
from deltasmith.features.study import HeldOut, Study

__all__ = ["GROUPS", "Activity", "Text", "Window", "activities", "correlation", "windows"]

GROUPS = ("strongest", "upper quarter", "middle", "lower quarter")
"""Where a sentence stands among all tokens that a feature fires on, by strength relative to each model's maximum."""
_QUANTILES = (0.25, 0.5, 0.75)  # of the tokens in falling order of strength
_TOP, _EACH = 5, 2
_BEFORE, _AFTER = 18, 8
_BINS = 16
_LOOKED_AT = 300
"""Tokens tried for one group, so that a feature that fires in a thousand copies of one licence costs no time."""

Places = npt.NDArray[np.int32]
Strengths = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Activity:
    """Where one latent fires: `tokens` ascending, and how strongly."""

    feature: int
    tokens: Places
    values: Strengths

    @property
    def maximum(self) -> float:
        """Return the strongest activation; 0 if there is none."""
        return float(self.values.max()) if len(self.values) else 0.0

    @property
    def histogram(self) -> list[int]:
        """Count activations in equal steps from 0 to the maximum."""
        counts, _ = np.histogram(self.values, bins=_BINS, range=(0.0, self.maximum or 1.0))
        return [int(count) for count in counts]

    def within(self, start: int, stop: int) -> tuple[Places, Strengths]:
        """Return what fires on the tokens from `start` to `stop`, counted from `start`."""
        first, last = np.searchsorted(self.tokens, (start, stop))
        return self.tokens[first:last] - start, self.values[first:last]


@dataclass(frozen=True)
class Window:
    """Tokens `start` to `stop` of the held-out text around the token `peak`; `group` is a place in GROUPS."""

    start: int
    stop: int
    peak: int
    group: int


@dataclass(frozen=True, eq=False)
class Text:
    """The held-out tokens and where each piece of them, read at once by the model, begins and ends."""

    held_out: HeldOut

    @cached_property
    def _bounds(self) -> npt.NDArray[np.int64]:
        turns = np.flatnonzero(np.diff(self.held_out.sequence)) + 1
        return np.concatenate(([0], turns, [len(self.held_out.ids)]))

    def around(self, token: int, group: int) -> Window:
        """Return the surroundings of a token within its piece of text."""
        at = int(np.searchsorted(self._bounds, token, side="right"))
        first, last = self._bounds[at - 1], self._bounds[at]
        return Window(int(max(first, token - _BEFORE)), int(min(last, token + _AFTER + 1)), token, group)


def activities(study: Study, wanted: Mapping[str, Sequence[int]]) -> dict[tuple[str, int], Activity]:
    """Read where the wanted latents of each model fire, one model's codes at a time."""
    found: dict[tuple[str, int], Activity] = {}
    for label, features in wanted.items():
        columns = columns_of(_checked(study, label))
        for feature in features:
            first, last = columns.bounds[feature], columns.bounds[feature + 1]
            span = slice(first, last)
            found[label, feature] = Activity(
                feature, columns.tokens[span].copy(), columns.values[span].copy()
            )
    return found


def _checked(study: Study, label: str) -> Codes:
    """The compiled loops look up what the file says; so it is looked at first."""
    return checked(study.codes(label))


def windows(trace: Trace, found: Mapping[tuple[str, int], Activity], text: Text) -> tuple[Window, ...]:
    """Choose passages by the union of the linked models: the strongest tokens, then some around each quartile.

    A token's strength is the greatest, over the models, of its activation relative to that model's maximum; so the
    strongest token of every model is among the first. Windows do not overlap, and no text is shown twice.
    """
    linked = [found[label, at] for label, at in trace.features.items() if label in trace.linked]
    tokens, strengths = _union(linked)
    order = tokens[np.argsort(-strengths, kind="stable")]
    picked: list[Window] = []
    seen: set[bytes] = set()
    _pick(order, 0, max(_TOP, len(linked)), text, picked, seen)
    for group, quantile in enumerate(_QUANTILES, start=1):
        _pick(order[int(quantile * len(order)) :], group, _EACH, text, picked, seen)
    return tuple(picked)


def _union(parts: Sequence[Activity]) -> tuple[Places, Strengths]:
    tokens, places = np.unique(np.concatenate([part.tokens for part in parts]), return_inverse=True)
    strengths = np.zeros(len(tokens), np.float32)
    relative = np.concatenate([part.values / (part.maximum or 1.0) for part in parts])
    np.maximum.at(strengths, places, relative)
    return tokens, strengths


def _pick(order: Places, group: int, count: int, text: Text, picked: list[Window], seen: set[bytes]) -> None:
    """Add up to `count` windows around the first tokens of `order` that no window holds yet."""
    wanted = len(picked) + count
    for token in order[:_LOOKED_AT]:
        if len(picked) == wanted:
            return
        window = text.around(int(token), group)
        ids = text.held_out.ids[max(window.start, window.peak - 6) : window.peak + 3].tobytes()
        if ids in seen or any(w.start < window.stop and window.start < w.stop for w in picked):
            continue
        seen.add(ids)
        picked.append(window)


def correlation(one: Activity, other: Activity, tokens: int) -> float:
    """Return Pearson's correlation of two latents over all `tokens` tokens, zeros included; 0 if either is constant."""
    a, b = one.values.astype(np.float64), other.values.astype(np.float64)
    _, at_one, at_other = np.intersect1d(one.tokens, other.tokens, assume_unique=True, return_indices=True)
    covariance = a[at_one] @ b[at_other] - a.sum() * b.sum() / tokens
    spread = (a @ a - a.sum() ** 2 / tokens) * (b @ b - b.sum() ** 2 / tokens)
    return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0
