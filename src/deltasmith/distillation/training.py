"""The steps: Adam on the squared distance of logits, padding left out, the best scales kept. No files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deltasmith.distillation.documents import Piece, batches

__all__ = ["Outcome", "Settings", "distance", "train"]

Network = Callable[[Tensor], Tensor]
"""Token ids (batch, length) to logits (batch, length, vocabulary)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the scales learn: the paper's 200 steps of Adam at 1e-4 with 4 pieces each, unless asked otherwise.

    `schedule` is `constant`, as the paper, or `cosine` to zero, as the released code. The validation loss is taken
    before the first step and then `checks` times, evenly spread.
    """

    steps: int = 200
    lr: float = 1e-4
    batch: int = 4
    seed: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    checks: int = 10

    def lr_at(self, step: int) -> float:
        """Return the learning rate of `step`, counted from 0."""
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass(frozen=True)
class Outcome:
    """The scales of the lowest validation loss, and how the losses went: (step, loss), step 0 before the first.

    `step` is where those scales stood: 0 where training improved nothing.
    """

    scales: Mapping[str, Any] = field(repr=False)
    step: int
    validation: tuple[tuple[int, float], ...]
    training: tuple[tuple[int, float], ...]

    @property
    def before(self) -> float:
        """Return the validation loss of the scales as they were packed."""
        return self.validation[0][1]

    @property
    def after(self) -> float:
        """Return the validation loss of the scales that were kept; never above `before`."""
        return dict(self.validation)[self.step]


def distance(
    student: Network, teacher: Network, pieces: Sequence[Piece], device: str, padding: int
) -> Tensor:
    """Return the mean squared difference of the logits over all positions that are not padding, and the vocabulary.

    Padding stands on the right, where causal attention hides it from every position that counts.
    """
    tokens, real = _padded(pieces, padding)
    tokens, real = tokens.to(device), real.to(device)
    with torch.no_grad():
        wanted = teacher(tokens)[real]
    return (student(tokens)[real].float() - wanted.float()).square().mean()


def train(
    student: Network,
    teacher: Network,
    scales: Mapping[str, nn.Parameter],
    training: Sequence[Piece],
    validation: Sequence[Piece],
    settings: Settings,
    *,
    device: str = "cpu",
    padding: int = 0,
    say: Callable[[int, float], None] = lambda step, loss: None,
    asked: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Move `scales` down the gradient of `distance`, and put the best of them back in the end.

    Paper: Liu et al. 2024, BitDelta, arXiv 2402.10193, section 3.1: min over all α of E‖Z_fine(x) − Z_bin(x; α)‖²,
    everything else frozen; Adam (0.9, 0.999, 1e-8), no decay. Departures: padding does not count; of the scales at
    the checks those with the lowest validation loss are kept, α as packed among them. Training ends early at a loss
    that is not finite, and when `asked` says so. `say` hears of every check. The same inputs give the same scales on
    a CPU with the same number of threads.
    """
    student_loss = _Loss(student, teacher, device, padding)
    optimiser = torch.optim.Adam(scales.values(), lr=settings.lr, betas=(0.9, 0.999), eps=1e-8)
    best, best_step = _copied(scales), 0
    lowest = student_loss.over(validation, settings.batch)
    checked, losses = [(0, lowest)], []
    say(0, lowest)
    due = {round(settings.steps * (n + 1) / settings.checks) for n in range(settings.checks)} - {0}
    stream = batches(training, settings.batch, settings.seed)
    for step in range(1, settings.steps + 1):
        loss = student_loss.stepped(next(stream), optimiser, settings.lr_at(step - 1))
        losses.append((step, loss))
        if step in due or asked() or not math.isfinite(loss):
            now = student_loss.over(validation, settings.batch)
            checked.append((step, now))
            say(step, now)
            if now < lowest:
                best, best_step, lowest = _copied(scales), step, now
        if asked() or not math.isfinite(loss):
            break
    with torch.no_grad():
        for name, scale in scales.items():
            scale.copy_(best[name])
    return Outcome(
        {name: value.cpu().numpy() for name, value in best.items()}, best_step, tuple(checked), tuple(losses)
    )


@dataclass(frozen=True)
class _Loss:
    student: Network
    teacher: Network
    device: str
    padding: int

    def stepped(self, pieces: Sequence[Piece], optimiser: torch.optim.Optimizer, lr: float) -> float:
        """Take one step and return the loss before it."""
        for group in optimiser.param_groups:
            group["lr"] = lr
        loss = distance(self.student, self.teacher, pieces, self.device, self.padding)
        value = float(loss.detach())
        if math.isfinite(value):
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        return value

    def over(self, pieces: Sequence[Piece], batch: int) -> float:
        """Average the loss over all tokens of `pieces`, pieces of like length side by side."""
        total = count = 0.0
        with torch.no_grad():
            for group in _grouped(pieces, batch):
                tokens = sum(map(len, group))
                loss = distance(self.student, self.teacher, group, self.device, self.padding)
                total += float(loss) * tokens
                count += tokens
        return total / count


def _grouped(pieces: Sequence[Piece], batch: int) -> Iterator[list[Piece]]:
    ordered = sorted(pieces, key=len)
    for at in range(0, len(ordered), batch):
        yield ordered[at : at + batch]


def _padded(pieces: Sequence[Piece], padding: int) -> tuple[Tensor, Tensor]:
    longest = max(map(len, pieces))
    tokens = torch.full((len(pieces), longest), padding, dtype=torch.long)
    real = torch.zeros((len(pieces), longest), dtype=torch.bool)
    for row, piece in enumerate(pieces):
        tokens[row, : len(piece)] = torch.tensor(piece)
        real[row, : len(piece)] = True
    return tokens, real


def _copied(scales: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: scale.detach().clone() for name, scale in scales.items()}
