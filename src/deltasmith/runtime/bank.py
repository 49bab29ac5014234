"""The bits of all deltas of one matrix side by side, so that a GPU takes a batch of different deltas in one launch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch

from deltasmith.runtime.selection import Group
from deltasmith.runtime.terms import SignTerm, Tensor

__all__ = ["SignBank", "bank_of"]


def bank_of(terms: Mapping[str, Any], device: Any) -> SignBank | None:
    """Put the 1-bit terms among `terms` into a bank, if they are on a GPU and triton is there."""
    signs = {label: term for label, term in terms.items() if isinstance(term, SignTerm)}
    if not signs or torch.device(device).type != "cuda" or find_spec("triton") is None:
        return None
    return SignBank(signs)


class SignBank:
    """The planes of several labels in one tensor; the terms become views of it."""

    def __init__(self, terms: Mapping[str, SignTerm]) -> None:
        """Take the terms of one matrix over."""
        self.words = torch.cat([term.words for term in terms.values()])
        self.scales = torch.cat([term.scales for term in terms.values()])
        self.spans: dict[str | None, tuple[int, int]] = {}
        at = 0
        for label, term in terms.items():
            count = len(term.scales)
            self.spans[label] = at, count
            term.words, term.scales = self.words[at : at + count], self.scales[at : at + count]
            at += count
        self._known: dict[tuple[str | None, ...], tuple[Tensor, Tensor]] = {}

    def add(self, y: Tensor, x: Tensor, groups: list[Group]) -> list[Group]:
        """Add the products of the labels it holds to y (…, out), in place, and return the groups that are left.

        A group's index of None stands for all rows; otherwise indices are those of the first axis.
        """
        from deltasmith.runtime.triton_bits import add_signs

        mine = [group for group in groups if group[0] in self.spans]
        if not mine:
            return groups
        flat, out = x.reshape(-1, x.shape[-1]).contiguous(), y.view(-1, y.shape[-1])
        firsts, counts = self._planes(tuple(label for label, _ in mine))
        if mine[0][1] is None:
            add_signs(out, flat, self.words, self.scales, firsts, counts)
        else:
            inner = flat.shape[0] // x.shape[0]
            order, starts, most = _tokens([index for _, index in mine], inner)
            add_signs(out, flat, self.words, self.scales, firsts, counts, order, starts, most)
        return [group for group in groups if group[0] not in self.spans]

    def _planes(self, labels: tuple[str | None, ...]) -> tuple[Tensor, Tensor]:
        """Return the first plane and the number of planes of each label, on the device."""
        if labels not in self._known:
            spans = torch.tensor([self.spans[label] for label in labels], dtype=torch.int32)
            firsts, counts = spans.T.contiguous().to(self.words.device)
            self._known[labels] = firsts, counts
        return self._known[labels]


def _tokens(indices: list[Tensor], inner: int) -> tuple[Tensor, Tensor, int]:
    """List the tokens of each group one group after the other; also where each begins, and the largest's size."""
    rows = torch.cat(indices).to(torch.int32)
    order = (rows.unsqueeze(1) * inner + torch.arange(inner, dtype=torch.int32, device=rows.device)).reshape(
        -1
    )
    sizes = [int(index.numel()) * inner for index in indices]
    starts = torch.tensor(
        [sum(sizes[:i]) for i in range(len(sizes) + 1)], dtype=torch.int32, device=rows.device
    )
    return order, starts, max(sizes)
