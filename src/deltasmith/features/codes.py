"""Sparse codes: which latents of a dictionary fire on which tokens, and how strongly. Compressed rows, never dense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

__all__ = ["Codes", "joined"]


@dataclass(frozen=True, eq=False)
class Codes:
    """Hold the activations of `width` latents over `tokens` tokens, row by row; what is not stored is zero.

    `starts` (tokens + 1,) int64 bounds the rows; `latents` int32 (ascending within a row) and `values` float32 (all
    > 0) are as long as there are activations.
    """

    starts: npt.NDArray[np.int64]
    latents: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32]
    width: int

    def __post_init__(self) -> None:
        if (
            self.starts[0] != 0
            or self.starts[-1] != len(self.latents)
            or len(self.latents) != len(self.values)
        ):
            raise ValueError("the rows do not span the activations")

    @property
    def tokens(self) -> int:
        """Count the tokens."""
        return len(self.starts) - 1

    @cached_property
    def fires(self) -> npt.NDArray[np.int64]:
        """Count the tokens that each latent fires on, (width,)."""
        return np.bincount(self.latents, minlength=self.width)

    @cached_property
    def rows(self) -> npt.NDArray[np.int32]:
        """Return the token of every stored activation."""
        return np.repeat(np.arange(self.tokens, dtype=np.int32), np.diff(self.starts))

    def permuted(self, order: npt.NDArray[np.int64]) -> Codes:
        """Return the codes with token `order[i]` in place i."""
        lengths = np.diff(self.starts)[order]
        starts = np.concatenate(([0], np.cumsum(lengths)))
        picked = np.repeat(self.starts[order] - starts[:-1], lengths) + np.arange(starts[-1])
        return Codes(starts, self.latents[picked], self.values[picked], self.width)

    def dense(self) -> npt.NDArray[np.float32]:
        """Return the (tokens, width) matrix: for tests and small cases."""
        out = np.zeros((self.tokens, self.width), np.float32)
        out[self.rows, self.latents] = self.values
        return out

    @classmethod
    def of_dense(cls, matrix: npt.NDArray[np.float32]) -> Codes:
        """Keep the positive entries of a (tokens, width) matrix."""
        rows, latents = np.nonzero(matrix > 0)
        starts = np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=len(matrix)))))
        return cls(
            starts.astype(np.int64),
            latents.astype(np.int32),
            matrix[rows, latents].astype(np.float32),
            matrix.shape[1],
        )


def joined(parts: Sequence[Codes]) -> Codes:
    """Put codes of consecutive tokens one after the other."""
    offsets = np.cumsum([0, *(len(part.latents) for part in parts)])
    return Codes(
        np.concatenate(
            [[0], *(part.starts[1:] + at for part, at in zip(parts, offsets[:-1], strict=True))]
        ).astype(np.int64),
        np.concatenate([part.latents for part in parts]),
        np.concatenate([part.values for part in parts]),
        parts[0].width,
    )
