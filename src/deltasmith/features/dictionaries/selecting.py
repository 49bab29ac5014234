"""Which latents fire: sparse codes from pre-activations, on any device."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deltasmith.errors import RefusedError
from deltasmith.features.codes import Codes
from deltasmith.features.dictionaries import kernels
from deltasmith.features.dictionaries.settings import BatchTopK, Kind, TopK
from deltasmith.features.dictionaries.torch_here import Tensor, torch

__all__ = ["checked_rows", "codes_of_dense", "fired", "selected", "shaped_rows", "trained"]


def shaped_rows(raw: Tensor, width: int) -> Tensor:
    """Return activations as (tokens, width) float32; RefusedError where they have another shape."""
    if raw.ndim != 2 or raw.shape[1] != width:
        raise RefusedError(
            f"activations of shape {tuple(raw.shape)}, the dictionary takes (tokens, {width})",
            where="the activations",
            fix="use the site and the width that the dictionary was made for",
        )
    return raw.to(torch.float32)


def checked_rows(raw: Tensor, width: int) -> Tensor:
    """Return activations as they must be, (tokens, width) float32 and finite; RefusedError where they are not."""
    raw = shaped_rows(raw, width)
    if not bool(torch.isfinite(raw).all()):
        raise RefusedError(
            "not every number is finite",
            where="the activations",
            fix="check the model's weights, or compute in float32",
        )
    return raw


def fired(z: Tensor, kind: Kind, threshold: Tensor | None) -> Codes:
    """Return what fires among the pre-activations z (tokens, latents): in a finished dictionary, each token alone.

    Raises:
        RefusedError: a BatchTopK dictionary without a threshold, which `Trainer.finished` sets.
    """
    if z.device.type != "cpu":
        return codes_of_dense(selected(z, kind, threshold))
    pre = z.numpy()
    if isinstance(kind, TopK):
        return Codes(*_top(pre, kind.k), z.shape[1])
    return Codes(*_above(pre, limits(kind, threshold, z).numpy()), z.shape[1])


def selected(z: Tensor, kind: Kind, threshold: Tensor | None) -> Tensor:
    """Return the activations of a finished dictionary as a dense matrix: the definition of `fired`."""
    if isinstance(kind, TopK):
        return trained(z, kind)
    return torch.where(z > limits(kind, threshold, z), z, 0.0).relu()


def trained(z: Tensor, kind: Kind) -> Tensor:
    """Return the activations of a dictionary in training as a dense matrix; BatchTopK looks at all of z at once."""
    if isinstance(kind, TopK):
        values, places = torch.topk(z, kind.k, dim=1, sorted=False)
        return torch.zeros_like(z).scatter_(1, places, values.relu())
    if isinstance(kind, BatchTopK):
        flat = z.reshape(-1)
        values, places = torch.topk(flat, min(len(flat), kind.k * len(z)), sorted=False)
        return torch.zeros_like(flat).scatter_(0, places, values.relu()).reshape(z.shape)
    return z.relu()


def limits(kind: Kind, threshold: Tensor | None, z: Tensor) -> Tensor:
    """Return what a pre-activation must exceed, for every latent."""
    if threshold is not None:
        return threshold
    if isinstance(kind, BatchTopK):
        raise RefusedError(
            "a BatchTopK dictionary has no threshold yet", fix="encode with what `Trainer.finished` returns"
        )
    return torch.zeros(z.shape[1], dtype=z.dtype, device=z.device)


def codes_of_dense(active: Tensor) -> Codes:
    """Collect the positive entries of a matrix on any device."""
    places = active.nonzero()
    counts = torch.bincount(places[:, 0], minlength=len(active)).cpu().numpy()
    return Codes(
        np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        places[:, 1].to(torch.int32).cpu().numpy(),
        active[places[:, 0], places[:, 1]].to(torch.float32).cpu().numpy(),
        active.shape[1],
    )


Rows = tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.float32]]


def _top(pre: npt.NDArray[np.float32], k: int) -> Rows:
    shape = len(pre), k
    latents, values = np.empty(shape, np.int32), np.empty(shape, np.float32)
    counts = np.empty(len(pre), np.int32)
    kernels.top_rows(pre, k, 0, len(pre), latents, values, counts)
    return kernels.compacted(latents, values, counts)


def _above(pre: npt.NDArray[np.float32], threshold: npt.NDArray[np.float32]) -> Rows:
    starts = np.zeros(len(pre) + 1, np.int64)
    kernels.count_above(pre, threshold, 0, len(pre), starts[1:])
    np.cumsum(starts, out=starts)
    latents, values = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.float32)
    kernels.above(pre, threshold, 0, len(pre), starts, latents, values)
    return starts, latents, values
