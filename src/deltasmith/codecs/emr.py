"""EMR: several models as one unified delta, and per model a bit for every element and one number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from deltasmith.codecs.protocol import Array, Cell, Codec, Decoder, Encoder, Source, Words
from deltasmith.codecs.signs import check_array, finite_scales, read_bits
from deltasmith.errors import RecipeError
from deltasmith.kernels import votes
from deltasmith.kernels.agreement import pack_agreement
from deltasmith.kernels.decode import decode
from deltasmith.kernels.sign_bits import Bytes, packed_size
from deltasmith.kernels.sign_expand import expand_masked
from deltasmith.table.checkpoint import Floats

__all__ = ["Emr", "mask_block", "unified_block"]

_TYPES = ("float32", "bfloat16", "float16")


def unified_block(deltas: Floats) -> Floats:
    """Return the unified vector of (models, n) deltas, (n,): per position the largest magnitude of the elected sign.

    The elected sign is that of Σ δ over the models, in their order; where the sum is 0 it is negative.

    Paper: Huang et al. 2024, EMR-Merging, arXiv 2405.17461, Elect.
    """
    return votes.unify(deltas, np.ones(len(deltas), np.float32))


def mask_block(unified: Floats, delta: Floats) -> tuple[Bytes, npt.NDArray[np.float64]]:
    """Return one model's mask bits, 1 where δ·τ > 0, and the sums for its rescaler, of 1-D blocks.

    `unified` is the unified vector in float32, as `unified_block` returns it: before it is rounded for storage. The
    bits are padded to whole 64-bit words. Sums: (pieces, 6) float64 for each 65536 elements of the block: Σ|δ|,
    Σ|Mτ|, Σ δ·Mτ, Σ (Mτ)², the number of elements, and Σδ². A block that begins at a multiple of 65536 yields the
    same pieces as any other; they are added in index order. With a rescaler λ the squared error is
    Σδ² - 2λ Σ δ·Mτ + λ² Σ (Mτ)².

    Paper: Huang et al. 2024, EMR-Merging, arXiv 2405.17461, Mask.
    """
    return pack_agreement(unified, delta)


class Emr(Codec):
    """Rebuild one model's delta as λ · M · τ: a unified delta τ of several models, its own mask M, and a number λ.

    τ takes at each position the sign of the deltas' sum (negative if that is 0) and the largest magnitude of that
    sign; M is 1 where the model's delta has τ's sign, strictly, found before τ is rounded for storage; λ is one
    number for the model (`rescaler`). All models must be packed together, and each costs one bit per element beside
    the shared τ. If nothing of a model survives its mask, λ is 1 and its delta 0.

    Arrays: `unified`, float32, bfloat16 or float16, of the tensor's shape; `mask`, uint8 of 8 · ceil(n / 64): bit
    i % 8 of byte i // 8 is 1 where τ is kept, row-major; `rescaler`, float32 (1,).

    Paper: Huang et al. 2024, EMR-Merging, arXiv 2405.17461. Departures: the authors' code keeps masks of a byte per
    element, and its rescaler is `l1_tensor_mean`; the paper's is `l1`; `l2` is the one of least squared error.
    """

    rescaler: Literal["l1", "l1_tensor_mean", "l2"] = "l1"
    """How λ is found: by L1 norms of the whole model, by L1 means of its tensors, or by least squares."""
    dtype: Literal["model", "float32", "bfloat16", "float16"] = "model"
    """The element type that the unified delta is rounded to; model: the tensor's own (float32 for wider and 8-bit
    ones)."""

    @property
    def bound(self) -> float:
        """Return infinity: λ is fitted to the whole model, and may fit one of its tensors as badly as it likes."""
        return float("inf")

    def stored_type(self, cell: Cell) -> str:
        """Return the element type of `unified` for a tensor."""
        if self.dtype != "model":
            return self.dtype
        return cell.spec.dtype.name if cell.spec.dtype.name in _TYPES else "float32"

    def encoder(self, cell: Cell) -> Encoder:
        """Raise RecipeError: one model alone has no unified delta."""
        raise RecipeError(
            "the codec emr needs all models at once",
            where=cell.spec.name,
            fix="give them together: `deltasmith pack BASE MODEL MODEL ... OUT --codec emr`",
        )

    def decoder(self, cell: Cell, source: Source) -> Decoder:
        """Begin to decode; ValueError if the arrays are not those of such a tensor."""
        found = source.specs.get("unified")
        kind = found.dtype.name if found is not None and found.dtype.name in _TYPES else "float32"
        check_array(source, "unified", kind, cell.spec.shape)
        check_array(source, "mask", "uint8", (packed_size(cell.spec.size),))
        return _EmrDecoder(source, kind, float(finite_scales(source, "rescaler", (1,))[0]))


@dataclass(frozen=True)
class _EmrDecoder:
    source: Source
    kind: str
    rescaler: float

    def read(self, start: int, out: Array, predicted: Words | None = None) -> None:
        stored = self.source.read("unified", start, start + out.size)
        unified = np.empty(out.size, np.float32)
        decode(self.kind, np.ascontiguousarray(stored).view(np.uint8), unified)
        expand_masked(read_bits(self.source, "mask", start, out.size), start % 8, unified, self.rescaler, out)
