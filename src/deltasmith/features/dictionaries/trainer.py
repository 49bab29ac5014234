"""Train a dictionary, batch by batch: the loop's body, its state for resuming, and the threshold at the end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from deltasmith.errors import DamagedInputError, RefusedError
from deltasmith.features.dictionaries import dense, kernels, sparse
from deltasmith.features.dictionaries.dictionary import Dictionary
from deltasmith.features.dictionaries.selecting import checked_rows, shaped_rows
from deltasmith.features.dictionaries.settings import BatchTopK, JumpRelu, Optimiser, Relu, ReluL1
from deltasmith.features.dictionaries.torch_here import Tensor, torch

__all__ = ["StepReport", "Trainer"]

_WEIGHTS = "encoder", "decoder", "latent_bias", "output_bias"


@dataclass(frozen=True)
class StepReport:
    """What one batch showed, before the step was taken.

    `loss` in scaled activations; `fvu` the unexplained share of the batch's variance; `l0` the mean number of latents
    that fired on a token; `dead` the share of latents that have not fired for `Optimiser.dead_after` tokens.
    """

    loss: float
    fvu: float
    l0: float
    dead: float


class Trainer:
    """Change a dictionary, step by step, so that it reconstructs batches of activations from few latents.

    The dictionary handed in stays as it is. Nothing is drawn at random: the result is a function of the dictionary,
    the settings, and the batches in their order; on the CPU also of the number of threads, through matrix products.

    Raises:
        RefusedError: no steps, or a kind that only encodes (`relu`, `jump-relu`).
    """

    def __init__(self, dictionary: Dictionary, optimiser: Optimiser, steps: int) -> None:
        if isinstance(dictionary.kind, Relu | JumpRelu):
            raise RefusedError(
                f"a dictionary of kind {dictionary.kind.kind} can only encode",
                where="training",
                fix="say which kind to train it on as: topk, batch-topk or relu-l1",
            )
        if steps < 1:
            raise RefusedError(f"{steps} steps of training", fix="ask for at least one")
        self.optimiser, self.steps = optimiser, steps
        self._begun, self._scale = dictionary, dictionary.scale
        lengths = dictionary.decoder.norm(dim=1).clamp_min(1e-30)
        self._weights = {
            "encoder": (dictionary.encoder * lengths[:, None]).contiguous(),
            "decoder": (dictionary.decoder / lengths[:, None]).contiguous(),
            "latent_bias": dictionary.latent_bias * lengths * self._scale,
            "output_bias": dictionary.output_bias * self._scale,
        }
        self._means = {name: torch.zeros_like(weight) for name, weight in self._weights.items()}
        self._squares = {name: torch.zeros_like(weight) for name, weight in self._weights.items()}
        self._since = torch.zeros(dictionary.latents, dtype=torch.int64, device=dictionary.device)
        self._done = 0
        self._z: Tensor | None = None
        self._workers = sparse.Workers(torch.get_num_threads()) if dictionary.device.type == "cpu" else None

    @property
    def done(self) -> int:
        """Count the steps taken."""
        return self._done

    @torch.no_grad()
    def step(self, raw: Tensor) -> StepReport:
        """Take one step on a batch (tokens, width) of activations as they come out of the model.

        RefusedError where it has another width, is empty or not finite, where the loss becomes infinite, or where
        all steps are done. The message names the step; the dictionary is as it was before it.
        """
        x = self._checked(raw)
        centred = x - self._weights["output_bias"]
        variance = torch.linalg.vector_norm(centred) ** 2 - len(x) * centred.mean(0).square().sum()
        z = self._product(centred)
        price = self._price()
        if self._workers is None:
            found, slopes = dense.gradients(self._weights, centred, z, self._begun.kind, price)
        else:
            found, rest = sparse.gradients(self._weights, centred, z, self._begun.kind, price, self._workers)
        aux = self._auxiliary(found, centred, z)
        report = self._report(found, aux, variance, price, len(x))
        moments = self._means, self._squares
        if self._workers is None:
            dense.update_(self._weights, slopes, aux, *moments, self._numbers())
        else:
            sparse.update_(self._weights, rest, aux, *moments, self._numbers(), self._workers)
        self._since += len(x)
        self._since[found.fires] = 0
        self._done += 1
        return report

    def dictionary(self) -> Dictionary:
        """Return the dictionary as it is now, in the activations' own units; a BatchTopK has no threshold yet."""
        return replace(
            self._begun,
            encoder=self._weights["encoder"].clone(),
            decoder=self._weights["decoder"].clone(),
            latent_bias=self._weights["latent_bias"] / self._scale,
            output_bias=self._weights["output_bias"] / self._scale,
            threshold=None,
        )

    def finished(self, held_out_batches: Iterable[Tensor]) -> Dictionary:
        """Return the trained dictionary; a BatchTopK gets the threshold at which k latents fire on a token, on average.

        `held_out_batches` are activations (tokens, width) that training has not seen; only BatchTopK looks at them,
        and refuses to do without. The mean is met to about one part in a thousand.
        """
        trained = self.dictionary()
        if not isinstance(trained.kind, BatchTopK):
            return trained
        threshold = _calibrated(trained, trained.kind.k, held_out_batches)
        return replace(trained, threshold=torch.full_like(trained.latent_bias, threshold))

    def state(self) -> dict[str, Tensor]:
        """Return copies, on the CPU, of all that further steps depend on."""
        parts = {"weight": self._weights, "mean": self._means, "square": self._squares}
        state = {f"{part}.{name}": value for part, all_ in parts.items() for name, value in all_.items()}
        state |= {"since": self._since, "done": torch.tensor(self._done)}
        return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state()` returned: further steps are equal, bit by bit, to those of the trainer it was.

        DamagedInputError where tensors are missing or have other shapes.
        """
        mine = self.state()
        wrong = sorted(
            name
            for name in mine.keys() | state.keys()
            if name not in mine
            or name not in state
            or mine[name].shape != state[name].shape
            or mine[name].dtype != state[name].dtype
        )
        if wrong or not 0 <= int(state["done"]) <= self.steps:
            raise DamagedInputError(
                f"it does not belong to this training ({', '.join(wrong[:3]) or 'its steps are more'})",
                where="the checkpoint",
                fix="delete it and train again",
            )
        for part, all_ in (("weight", self._weights), ("mean", self._means), ("square", self._squares)):
            for name, tensor in all_.items():
                tensor.copy_(state[f"{part}.{name}"])
        self._since.copy_(state["since"])
        self._done = int(state["done"])

    def _checked(self, raw: Tensor) -> Tensor:
        where = f"step {self._done + 1} of {self.steps}"
        if self._done >= self.steps:
            raise RefusedError(f"all {self.steps} steps are done", where="training", fix="plan more steps")
        try:
            x = shaped_rows(raw.detach().to(self._begun.device), self._begun.width)
        except RefusedError as cause:
            raise RefusedError(cause.what, where=f"the activations of {where}", fix=cause.fix) from cause
        if len(x) == 0:
            raise RefusedError("the batch is empty", where=where, fix="give it tokens")
        return x * self._scale

    def _product(self, centred: Tensor) -> Tensor:
        """Compute pre-activations into memory that is kept: fresh pages would cost as much as the selection."""
        shape = len(centred), self._begun.latents
        if self._z is None or self._z.shape != shape:
            self._z = torch.empty(shape, device=centred.device)
        return torch.addmm(self._weights["latent_bias"], centred, self._weights["encoder"].T, out=self._z)

    def _price(self) -> float:
        kind = self._begun.kind
        if not isinstance(kind, ReluL1):
            return 0.0
        return kind.coefficient * min(1.0, (self._done + 1) / max(1.0, kind.warm_up * self.steps))

    def _auxiliary(self, found: dense.Forward, centred: Tensor, z: Tensor) -> dense.Auxiliary | None:
        if self.optimiser.aux == 0 or isinstance(self._begun.kind, ReluL1):
            return None
        dead = self._dead()
        if not bool(dead.any()):
            return None
        return dense.auxiliary(self._weights, found, centred, z, dead, self.optimiser.aux)

    def _dead(self) -> Tensor:
        return self._since >= self.optimiser.dead_after

    def _report(
        self, found: dense.Forward, aux: dense.Auxiliary | None, variance: Tensor, price: float, rows: int
    ) -> StepReport:
        added = variance.new_zeros(()) if aux is None else aux.loss
        numbers = (found.error, variance, found.activity, found.count, self._dead().sum(), added)
        error, spread, activity, count, dead, more = torch.stack(
            [n.to(torch.float64) for n in numbers]
        ).tolist()
        loss = (error + price * activity) / rows + more
        where = f"step {self._done + 1} of {self.steps}"
        if not math.isfinite(spread):
            fix = "check the model's weights, or compute in float32"
            raise RefusedError("not every number is finite", where=f"the activations of {where}", fix=fix)
        if not math.isfinite(loss):
            raise RefusedError(f"the loss is {loss}", where=where, fix="lower the learning rate")
        fvu = error / spread if spread > 0 else float(error > 0)
        return StepReport(loss, fvu, count / rows, dead / self._begun.latents)

    def _numbers(self) -> tuple[float, ...]:
        its, t = self.optimiser, self._done + 1
        rate = its.rate_at(self._done, self.steps)
        return rate, its.beta1, its.beta2, 1 - its.beta1**t, 1 - its.beta2**t, its.epsilon


_SHIFT = 11
"""Bits of a float32 that the calibration does not tell apart: bins are 1/4096 to 1/2048 wide, relatively."""


def _calibrated(dictionary: Dictionary, k: int, batches: Iterable[Tensor]) -> float:
    """Return the threshold that k pre-activations a token exceed, on average, over all batches."""
    counts, tokens = np.zeros(1 << (32 - _SHIFT), np.int64), 0
    for batch in batches:
        rows = checked_rows(batch.detach().to(dictionary.device), dictionary.width)
        step = max(1, (1 << 24) // dictionary.latents)
        for part in (rows[at : at + step] for at in range(0, len(rows), step)):
            z = dictionary.pre_activations(part)
            if z.device.type == "cpu":
                kernels.histogram(z.numpy(), _SHIFT, counts)
            else:
                bits = z[z > 0].view(torch.int32) >> _SHIFT
                counts += torch.bincount(bits, minlength=len(counts)).cpu().numpy()
            tokens += len(part)
    if tokens == 0:
        raise RefusedError(
            "a BatchTopK dictionary needs held-out activations to set its threshold", fix="give some batches"
        )
    above = np.cumsum(counts[::-1])[::-1]  # above[b]: how many lie in bin b or higher
    found = int(np.argmin(np.abs(above - k * tokens)))
    if found == 0 or above[0] <= k * tokens:
        return 0.0
    edge = np.array([(found << _SHIFT) - 1], np.uint32).view(np.float32)  # the largest number below the bin
    return float(edge[0])
