"""A sparse autoencoder as plain tensors: how it begins, how it grows, what it says of activations. No training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from deltasmith.errors import RefusedError
from deltasmith.features.codes import Codes, joined
from deltasmith.features.dictionaries import kernels
from deltasmith.features.dictionaries.selecting import checked_rows, fired
from deltasmith.features.dictionaries.settings import BatchTopK, Kind, ReluL1, TopK
from deltasmith.features.dictionaries.torch_here import Tensor, torch
from deltasmith.operation.randomness import cell_key

__all__ = ["Dictionary", "fresh", "grown", "scale_of"]

_ROOM = 1 << 26  # bytes of pre-activations held at once when encoding: 64 MiB


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Hold a sparse autoencoder of activations as they come out of the model, all tensors float32 on one device.

    A token x of (width,) has the pre-activations encoder @ (x - output_bias) + latent_bias; the `kind` says which of
    them fire; the reconstruction is output_bias + the sum of what fires times its decoder row. `encoder` and
    `decoder` are (latents, width), `latent_bias` and `threshold` (latents,), `output_bias` (width,). Decoder rows
    have unit length where this package trained them, so that an activation is the length of what the feature adds;
    dictionaries of others are kept as they are.

    `scale` is what training multiplies activations by, so that their root mean square is about one. It is fitted
    on one model and handed on to all that descend from it; encoding does not use it.
    """

    kind: Kind
    encoder: Tensor
    decoder: Tensor
    latent_bias: Tensor
    output_bias: Tensor
    threshold: Tensor | None
    scale: float

    @property
    def latents(self) -> int:
        """Count the latents."""
        return int(self.encoder.shape[0])

    @property
    def width(self) -> int:
        """Return the width of the activations."""
        return int(self.encoder.shape[1])

    @property
    def device(self) -> torch.device:
        """Return where the tensors are."""
        return self.encoder.device

    def to(self, device: str | torch.device) -> Dictionary:
        """Return the dictionary on another device."""
        threshold = None if self.threshold is None else self.threshold.to(device)
        return replace(
            self,
            encoder=self.encoder.to(device),
            decoder=self.decoder.to(device),
            latent_bias=self.latent_bias.to(device),
            output_bias=self.output_bias.to(device),
            threshold=threshold,
        )

    def pre_activations(self, raw: Tensor) -> Tensor:
        """Return (raw - output_bias) @ encoder.T + latent_bias, (tokens, latents); activations are not checked."""
        return torch.addmm(self.latent_bias, raw - self.output_bias, self.encoder.T)

    def encode(self, raw: Tensor) -> Codes:
        """Return which latents fire on the tokens (tokens, width), and how strongly, in the activations' own units.

        RefusedError for another width and for numbers that are not finite.
        """
        raw = checked_rows(raw.detach().to(self.device), self.width)
        parts = [fired(self.pre_activations(part), self.kind, self.threshold) for part in self._parts(raw)]
        return joined(parts)

    def decode(self, codes: Codes) -> Tensor:
        """Return output_bias + the sum of the activations times their decoder rows, (tokens, width)."""
        if codes.width != self.latents:
            raise RefusedError(
                f"codes of {codes.width} latents for a dictionary of {self.latents}",
                fix="decode codes with the dictionary that made them",
            )
        if self.device.type == "cpu":
            out = np.empty((codes.tokens, self.width), np.float32)
            arrays = self.decoder.numpy(), self.output_bias.numpy()
            kernels.decoded(0, codes.tokens, codes.starts, codes.latents, codes.values, *arrays, out)
            return torch.from_numpy(out)
        summed = torch.nn.functional.embedding_bag(
            torch.from_numpy(codes.latents).to(self.device, torch.int64),
            self.decoder,
            torch.from_numpy(codes.starts[:-1]).to(self.device),
            mode="sum",
            per_sample_weights=torch.from_numpy(codes.values).to(self.device),
        )
        return summed + self.output_bias

    def reconstruct(self, raw: Tensor) -> Tensor:
        """Return what the dictionary makes of the tokens: `decode(encode(raw))`, in float32 on its device."""
        return self.decode(self.encode(raw))

    def _parts(self, raw: Tensor) -> Iterator[Tensor]:
        rows = max(1, _ROOM // (4 * self.latents))
        return (raw[at : at + rows] for at in range(0, max(1, len(raw)), rows))


def scale_of(sample_raw: Tensor) -> float:
    """Return 1 / the root mean square of a sample of activations, the factor that brings it to one.

    RefusedError for an empty sample, one of zeros, or numbers that are not finite.
    """
    mean = float(sample_raw.detach().to(torch.float64).square().mean()) if sample_raw.numel() else 0.0
    if not math.isfinite(mean) or mean == 0.0:
        found = "not every number is finite" if mean else "there is nothing but zeros"
        raise RefusedError(
            found, where="the sample of activations", fix="choose another site or another text"
        )
    return 1 / math.sqrt(mean)


def fresh(kind: Kind, latents: int, sample_raw: Tensor, scale: float, seed: int) -> Dictionary:
    """Begin a dictionary: decoder rows of unit length in random directions, the encoder equal to the decoder.

    The output bias is the mean of `sample_raw` (tokens, width), latent biases are zero. With `relu-l1` half of all
    latents fire at first, so the encoder is shortened by 2 * width / latents (at most 1): the reconstruction then
    has the length of what it reconstructs. The same seed and shape give the same directions on every device.

    Raises:
        RefusedError: fewer latents than fire on a token, activations that are not finite, a scale that is no
            positive number.
    """
    sample = checked_rows(sample_raw.detach(), int(sample_raw.shape[-1]))
    _check(kind, latents, scale)
    decoder = _directions(latents, sample.shape[1], seed, "fresh").to(sample.device)
    shrink = min(1.0, 2 * sample.shape[1] / latents) if isinstance(kind, ReluL1) else 1.0
    return Dictionary(
        kind,
        decoder * shrink,
        decoder,
        torch.zeros(latents, device=sample.device),
        sample.mean(0, dtype=torch.float64).to(torch.float32),
        None,
        float(scale),
    )


def grown(
    parent: Dictionary, spare: int, sample_raw: Tensor, seed: int, kind: Kind | None = None
) -> Dictionary:
    """Begin a child's dictionary as the parent's, with `spare` fresh latents after the parent's own.

    Latent i of the parent is latent i of the child. A spare latent points, at first, at what the parent's dictionary
    leaves over of one token of the sample of the child's activations, a token being drawn with a probability
    proportional to the square of what is left; its encoder row is the same direction with the median length of the
    parent's encoder rows. Decoder rows are brought to unit length (the encoder, bias and threshold by the inverse:
    the same reconstructions, except that TopK then compares what latents add). `kind` replaces the parent's kind.

    Paper: starting points at badly reconstructed tokens follow the resampling of Bricken et al. 2023, "Towards
    monosemanticity", appendix; there for dead latents, with encoder rows a fifth as long.

    Raises:
        RefusedError: activations of another width, or not finite; a kind that does not fit the number of latents.
    """
    sample = checked_rows(sample_raw.detach().to(parent.device), parent.width)
    kind = parent.kind if kind is None else kind
    _check(kind, parent.latents + spare, parent.scale)
    if spare < 0:
        raise RefusedError(f"{spare} spare latents", fix="ask for 0 or more")
    lengths = parent.decoder.norm(dim=1).clamp_min(1e-30)
    encoder = parent.encoder * lengths[:, None]
    new = _badly_reconstructed(parent, spare, sample, seed)
    threshold = None
    if parent.threshold is not None and type(kind) is type(parent.kind):
        threshold = parent.threshold * lengths
        threshold = torch.cat([threshold, threshold.median().expand(spare)])
    return Dictionary(
        kind,
        torch.cat([encoder, new * encoder.norm(dim=1).median()]),
        torch.cat([parent.decoder / lengths[:, None], new]),
        torch.cat([parent.latent_bias * lengths, torch.zeros(spare, device=parent.device)]),
        parent.output_bias.clone(),
        threshold,
        parent.scale,
    )


def _check(kind: Kind, latents: int, scale: float) -> None:
    if isinstance(kind, TopK | BatchTopK) and kind.k > latents:
        raise RefusedError(
            f"k = {kind.k} of {latents} latents",
            where="the dictionary",
            fix="choose a smaller k or more latents",
        )
    if latents < 1:
        raise RefusedError(f"{latents} latents", where="the dictionary", fix="ask for at least one")
    if not (math.isfinite(scale) and scale > 0):
        raise RefusedError(f"a scale of {scale}", where="the dictionary", fix="give a positive number")


def _directions(count: int, width: int, seed: int, name: str) -> Tensor:
    """Draw directions uniformly, keyed by seed and purpose, on the CPU so that they do not depend on the device."""
    generator = torch.Generator().manual_seed(cell_key(seed, "dictionary", name) >> 1)
    rows: Tensor = torch.randn(count, width, generator=generator)
    unit: Tensor = rows / rows.norm(dim=1, keepdim=True)
    return unit


def _badly_reconstructed(parent: Dictionary, spare: int, sample: Tensor, seed: int) -> Tensor:
    """Return unit rows along the residuals of sampled tokens; random ones where there are too few residuals."""
    new = _directions(spare, parent.width, seed, "spare").to(parent.device)
    if spare == 0 or len(sample) == 0 or (isinstance(parent.kind, BatchTopK) and parent.threshold is None):
        return new
    left = (sample - parent.reconstruct(sample)).cpu()
    squares = left.to(torch.float64).square().sum(1)
    usable = int((squares > 0).sum())
    count = min(spare, usable)
    if count:
        generator = torch.Generator().manual_seed(cell_key(seed, "dictionary", "tokens") >> 1)
        drawn = torch.multinomial(squares, count, replacement=False, generator=generator)
        rows = left[drawn]
        new[:count] = (rows / rows.norm(dim=1, keepdim=True)).to(parent.device)
    return new
