"""Products with a delta in packed form: x Δᵀ from bits, masks, factors or nonzeros, never from a whole dense Δ.

Every term has `product(x)`, (n, in) → (n, out) float32; `rows(ids)`, (n,) → (n, in): rows of Δ, as an embedding
reads them; `to(device)`, in place; and `nbytes`. Sums are taken in float32 whatever the type of x.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from deltasmith.runtime.lookup import add_products, clear, expand

__all__ = ["LowRankTerm", "MaskTerm", "SignTerm", "SparseTerm", "Tensor", "Term", "sign_tile"]

Tensor = Any
"""A torch tensor."""

_TILE_ELEMENTS = 1 << 20
_LOOKUPS = 32
"""Up to so many vectors go through the lookup kernel; more are cheaper by expanding tiles of signs (measured)."""


class Term(Protocol):
    """x Δᵀ for one tensor of one delta."""

    @property
    def nbytes(self) -> int:
        """Count the bytes it holds."""

    def product(self, x: Tensor) -> Tensor:
        """Return x Δᵀ, (n, in) → (n, out) float32."""

    def rows(self, ids: Tensor) -> Tensor:
        """Return rows of Δ, (n,) → (n, in) float32."""

    def to(self, device: Any) -> None:
        """Move to a device."""


def _bytes(*tensors: Tensor) -> int:
    return sum(int(t.numel() * t.element_size()) for t in tensors)


def _tiles(n_rows: int, n_columns: int) -> list[tuple[int, int]]:
    """Cut the rows into tiles of about a million elements."""
    step = max(1, _TILE_ELEMENTS // max(1, n_columns))
    return [(at, min(n_rows, at + step)) for at in range(0, n_rows, step)]


def sign_tile(words: Tensor, n_columns: int, start: int, stop: int) -> Tensor:
    """Expand rows [start, stop) of words (w, rows) int32 to ±1, (columns, stop - start) float32."""
    if words.device.type == "cpu":
        out = np.empty((n_columns, stop - start), np.float32)
        expand(_unsigned(words), start, stop, out)
        return torch.from_numpy(out)
    return _expanded(words[:, start:stop])[:n_columns]


def _expanded(words: Tensor) -> Tensor:
    """Expand words (w, n) to ±1, (32 w, n) float32: the definition, on any device."""
    shifts = torch.arange(32, dtype=torch.int32, device=words.device)
    bits = words.unsqueeze(1) >> shifts.reshape(1, 32, 1) & 1
    return bits.reshape(-1, words.shape[1]).to(torch.float32).mul_(2).sub_(1)


def _unsigned(words: Tensor) -> Any:
    return words.numpy().view(np.uint32)


def _follows_gradients(x: Tensor) -> bool:
    return bool(torch.is_grad_enabled() and x.requires_grad)


class SignTerm:
    """Σ_p scales[p] · (x S_pᵀ) for matrices S_p of ±1: BitDelta with one pass, residual bits with several.

    Paper: Liu et al. 2024, "BitDelta: Your Fine-Tune May Only Be Worth One Bit", arXiv 2402.10193, section 3.
    """

    def __init__(self, words: Tensor, scales: Tensor, n_columns: int) -> None:
        """Take words (passes, ⌈in / 32⌉, out) int32 and scales (passes, out) float32."""
        self.words, self.scales, self.n_columns = words, scales, n_columns

    @property
    def nbytes(self) -> int:
        """Count bits and scales."""
        return _bytes(self.words, self.scales)

    def to(self, device: Any) -> None:
        """Move to a device."""
        self.words, self.scales = self.words.to(device), self.scales.to(device)

    def product(self, x: Tensor) -> Tensor:
        """Return the product: few vectors on a CPU by table lookup, else by tiles of expanded signs."""
        if x.device.type == "cpu" and x.shape[0] <= _LOOKUPS and not _follows_gradients(x):
            return self._looked_up(x)
        wide, n_rows = x.to(torch.float32), self.words.shape[2]
        parts = [wide.new_zeros(x.shape[0], 0)]
        for start, stop in _tiles(n_rows, self.n_columns):
            part = wide.new_zeros(x.shape[0], stop - start)
            for words, scale in zip(self.words, self.scales, strict=True):
                part = part + wide @ sign_tile(words, self.n_columns, start, stop) * scale[start:stop]
            parts.append(part)
        return torch.cat(parts, 1)

    def _looked_up(self, x: Tensor) -> Tensor:
        padded = np.zeros((x.shape[0], self.words.shape[1] * 32), np.float32)
        padded[:, : self.n_columns] = x.detach().to(torch.float32).numpy()
        out = np.zeros((x.shape[0], self.words.shape[2]), np.float32)
        add_products(_unsigned(self.words), self.scales.numpy(), padded, out, 0, out.shape[1])
        return torch.from_numpy(out)

    def rows(self, ids: Tensor) -> Tensor:
        """Return rows of the delta."""
        found = torch.zeros(ids.numel(), self.n_columns, device=ids.device)
        for words, scale in zip(self.words, self.scales, strict=True):
            found += (_expanded(words[:, ids])[: self.n_columns] * scale[ids]).T
        return found


class MaskTerm:
    """λ · (x (M ⊙ τ)ᵀ): EMR, the unified vector τ shared among tasks, one bit per element and task.

    Paper: Huang et al. 2024, "EMR-Merging: Tuning-Free High-Performance Model Merging", arXiv 2405.17461.
    """

    def __init__(self, words: Tensor, unified: Tensor, rescaler: float) -> None:
        """Take the mask's words (⌈in / 32⌉, out) int32 and τ (out, in), as stored."""
        self.words, self.unified, self.rescaler = words, unified, rescaler

    @property
    def nbytes(self) -> int:
        """Count mask and unified vector; others may share the latter."""
        return _bytes(self.words, self.unified)

    def to(self, device: Any) -> None:
        """Move to a device."""
        self.words, self.unified = self.words.to(device), self.unified.to(device)

    def product(self, x: Tensor) -> Tensor:
        """Return the product, by tiles."""
        n_rows, n_columns = self.unified.shape
        wide = x.to(torch.float32)
        parts = []
        for start, stop in _tiles(n_rows, n_columns):
            parts.append(wide @ self._tile(start, stop).T * self.rescaler)
        return torch.cat(parts, 1) if parts else wide.new_zeros(x.shape[0], 0)

    def _tile(self, start: int, stop: int) -> Tensor:
        """Return rows [start, stop) of M ⊙ τ, float32."""
        tile = self.unified[start:stop].to(torch.float32, copy=True)
        if tile.device.type == "cpu":
            clear(_unsigned(self.words), start, tile.numpy())
            return tile
        return tile * ((sign_tile(self.words, tile.shape[1], start, stop) + 1) * 0.5).T

    def rows(self, ids: Tensor) -> Tensor:
        """Return rows of the delta."""
        kept = (_expanded(self.words[:, ids])[: self.unified.shape[1]] + 1) * (0.5 * self.rescaler)
        return kept.T * self.unified[ids].to(torch.float32)


class LowRankTerm:
    """(x rightᵀ) leftᵀ."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        """Take left (out, r) and right (r, in), as stored."""
        self.left, self.right = left, right

    @property
    def nbytes(self) -> int:
        """Count the factors."""
        return _bytes(self.left, self.right)

    def to(self, device: Any) -> None:
        """Move to a device."""
        self.left, self.right = self.left.to(device), self.right.to(device)

    def product(self, x: Tensor) -> Tensor:
        """Return the product."""
        inner = x.to(torch.float32) @ self.right.to(torch.float32).T
        return inner @ self.left.to(torch.float32).T

    def rows(self, ids: Tensor) -> Tensor:
        """Return rows of the delta."""
        return self.left[ids].to(torch.float32) @ self.right.to(torch.float32)


class SparseTerm:
    """x Δᵀ from the nonzeros of Δ: compressed rows, 8 bytes each."""

    def __init__(self, starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> None:
        """Take starts (out + 1,) int32, columns (nonzeros,) int32 and values (nonzeros,) float32."""
        self.starts, self.columns, self.values, self.shape = starts, columns, values, shape

    @property
    def nbytes(self) -> int:
        """Count indices and values."""
        return _bytes(self.starts, self.columns, self.values)

    def to(self, device: Any) -> None:
        """Move to a device."""
        self.starts, self.columns = self.starts.to(device), self.columns.to(device)
        self.values = self.values.to(device)

    def product(self, x: Tensor) -> Tensor:
        """Return the product."""
        import warnings

        with warnings.catch_warnings():  # torch says once that compressed rows are in beta state
            warnings.simplefilter("ignore", UserWarning)
            matrix = torch.sparse_csr_tensor(
                self.starts, self.columns, self.values, self.shape, check_invariants=False
            )
        return (matrix @ x.to(torch.float32).T).T

    def rows(self, ids: Tensor) -> Tensor:
        """Return rows of the delta."""
        starts = self.starts.to(torch.int64)
        first, count = starts[ids], starts[ids + 1] - starts[ids]
        into = torch.repeat_interleave(torch.arange(ids.numel(), device=ids.device), count)
        before = torch.cumsum(count, 0) - count
        at = torch.arange(into.numel(), device=ids.device) - before[into] + first[into]
        found = torch.zeros(ids.numel(), self.shape[1], device=ids.device)
        found[into, self.columns[at].to(torch.int64)] = self.values[at]
        return found
