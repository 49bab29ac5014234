"""What kind of dictionary there is to train, and how: plain records, checked when they are built. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from deltasmith.operation.record import Record

__all__ = ["BatchTopK", "JumpRelu", "Kind", "Optimiser", "Relu", "ReluL1", "TopK", "as_json", "kind_of_json"]


class TopK(Record):
    """Keep the k largest pre-activations of every token, where they are positive.

    Paper: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv 2406.04093, section 2.3. Every token
    has at most k active latents, in every model alike.
    """

    kind: Literal["topk"] = "topk"
    k: int = Field(gt=0)
    """Latents that may fire on a token."""


class BatchTopK(Record):
    """Keep the n * k largest positive pre-activations of a batch of n tokens; afterwards, all above one threshold.

    Paper: Bussmann et al. 2024, "BatchTopK sparse autoencoders", arXiv 2412.06410. Departure: the threshold is not a
    running mean over the training but is set at the end, on held-out activations, where the mean number of latents
    that fire is k.
    """

    kind: Literal["batch-topk"] = "batch-topk"
    k: int = Field(gt=0)
    """Latents that fire on a token, on average."""


class ReluL1(Record):
    """Keep every positive pre-activation, and pay for their sum.

    The loss of a token is |x - x'|^2 + coefficient * sum of its activations, in activations scaled to a root mean
    square of one; decoder rows have unit length, so that the penalty cannot be evaded by longer rows.
    """

    kind: Literal["relu-l1"] = "relu-l1"
    coefficient: float = Field(ge=0)
    """The price of a unit of activation."""
    warm_up: float = Field(default=0.05, ge=0, le=1)
    """Share of the steps over which the price rises from nothing."""


class Relu(Record):
    """Keep every positive pre-activation, as found in a file. Only to encode: training needs another kind."""

    kind: Literal["relu"] = "relu"


class JumpRelu(Record):
    """Keep what exceeds its latent's threshold, as found in a file. Only to encode: training needs another kind."""

    kind: Literal["jump-relu"] = "jump-relu"


Kind = TopK | BatchTopK | ReluL1 | Relu | JumpRelu
"""Which latents fire. The first three can be trained."""

_KINDS: TypeAdapter[Kind] = TypeAdapter(Annotated[Kind, Field(discriminator="kind")])


class Optimiser(Record):
    """Adam (Kingma and Ba 2014) with a warm-up, a flat stretch and a linear decay to zero, and the auxiliary loss.

    Paper: the auxiliary loss is that of Gao et al. 2024, arXiv 2406.04093, appendix A.2: latents that have not fired
    for a while reconstruct what the others leave over. Departure: its coefficient is scaled down where fewer latents
    are dead than it would use.
    """

    rate: float = Field(default=1e-3, gt=0)
    """Learning rate in the flat stretch."""
    warm_up: float = Field(default=0.02, ge=0, le=1)
    """Share of the steps over which the learning rate rises from nothing."""
    decay: float = Field(default=0.2, ge=0, le=1)
    """Share of the steps, at the end, over which it falls to nothing."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Memory of the mean gradient."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Memory of the mean squared gradient."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the mean squared gradient."""
    aux: float = Field(default=1 / 32, ge=0)
    """Coefficient of the auxiliary loss; 0 leaves dead latents alone. `relu-l1` has none."""
    dead_after: int = Field(default=200_000, gt=0)
    """Tokens without firing after which a latent counts as dead."""

    @model_validator(mode="after")
    def _phases_fit(self) -> Self:
        if self.warm_up + self.decay > 1:
            raise ValueError(
                f"warm_up {self.warm_up} and decay {self.decay} together are longer than the training"
            )
        return self

    def rate_at(self, step: int, steps: int) -> float:
        """Return the learning rate of step 0, 1, ... of `steps`: positive throughout, lowest at both ends.

        >>> [round(Optimiser(rate=1.0, warm_up=0.2, decay=0.4).rate_at(i, 10), 2) for i in range(10)]
        [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
        """
        rising = (step + 1) / max(1.0, self.warm_up * steps)
        falling = (steps - step) / max(1.0, self.decay * steps)
        return self.rate * min(1.0, rising, falling)


def as_json(kind: Kind) -> dict[str, object]:
    """Return the fields of a kind, its name among them, as JSON values."""
    return kind.model_dump(mode="json")


def kind_of_json(document: object) -> Kind:
    """Return the kind that `as_json` described; pydantic's ValidationError where it describes none."""
    return _KINDS.validate_python(document)
