"""The statistics of a network on data, tensor by tensor: mean gradient, Fisher diagonal, Gram matrices. Torch.

Writing them is in `statistics_files`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltasmith.analysis.classification import (
    ClassChunk,
    ClassificationChunks,
    classification_loss,
    is_arrays,
    load_classifier,
    read_arrays,
    sampled_classification_loss,
)
from deltasmith.analysis.curvature import Sampled
from deltasmith.analysis.data import Example, Examples, read_examples
from deltasmith.analysis.language import Chunk, LanguageChunks, forward, language_loss, sampled_loss
from deltasmith.analysis.networks import Dtype, Source, computed_in, load, sampled_in
from deltasmith.analysis.torch_objective import LossOf
from deltasmith.engine.workers import Stop
from deltasmith.errors import InterruptedRunError, RefusedError, ResourceError, printable
from deltasmith.operation.randomness import cell_key
from deltasmith.table.checkpoint import Floats

__all__ = ["Ready", "Run", "prepare"]

_SHOWN = 3
_WIDE = 8  # bytes of a float64, in which Gram matrices are added up
_TOKENS = 4096  # of a text model's inputs, at most, that one forward pass reads for the Gram matrices


@dataclass(frozen=True, eq=False)
class Ready:
    """A network and its data: `chunks` as they were asked for, `singles` of one example each, and their losses."""

    network: nn.Module
    name: str
    examples: int
    notes: tuple[str, ...]
    loss: LossOf
    sampled: Sampled
    lay_out: Callable[[int], tuple[Sequence[Any], Sequence[float]]]
    batch: int
    inputs: Callable[[], Iterator[Any]]
    """Yield chunks without padding, each example in one of them."""
    forward: Callable[[nn.Module, Any], Any]

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters by their names, a tied one once."""
        return dict(self.network.named_parameters())


def prepare(
    model: Source,
    data: str | Path,
    *,
    device: str,
    dtype: Dtype,
    batch: int,
    length: int,
    limit: int | None,
    stop: Stop | None,
) -> Ready:
    """Load a model and its data: texts for a language model, or a `.npz` of labelled inputs for a classifier.

    Raises what `networks.load`, `read_examples`, `load_classifier` and `read_arrays` raise.
    """
    if is_arrays(data):
        return _classifier(model, data, device, dtype, batch, limit, stop)
    loaded = load(model, device=device, dtype=dtype, stop=stop, copies=2)
    assert loaded.tokenizer is not None, "a language model is loaded with its tokenizer"
    tokenizer = loaded.tokenizer
    found = read_examples(data, tokenizer, length=length, limit=limit, context=loaded.context)

    def lay_out(size: int) -> tuple[Sequence[Any], Sequence[float]]:
        laid = LanguageChunks.of(found.examples, size, device, tokenizer.padding)
        return laid.chunks, laid.counts

    def inputs() -> Iterator[Chunk]:
        for group in _of_one_length(found, batch):
            yield Chunk.of(group, device, tokenizer.padding)

    return Ready(
        loaded.network,
        loaded.name,
        len(found.examples),
        (*loaded.notes, *found.notes),
        computed_in(dtype, device, language_loss),
        sampled_in(dtype, device, sampled_loss),
        lay_out,
        batch,
        inputs,
        forward,
    )


def _classifier(
    model: Source,
    data: str | Path,
    device: str,
    dtype: Dtype,
    batch: int,
    limit: int | None,
    stop: Stop | None,
) -> Ready:
    found = read_arrays(data, limit=limit)
    loaded = load_classifier(model, device=device, dtype=dtype, stop=stop, copies=2)

    def lay_out(size: int) -> tuple[Sequence[Any], Sequence[float]]:
        laid = ClassificationChunks.of(found, loaded.network, size, device)
        return laid.chunks, laid.counts

    def inputs() -> Iterator[ClassChunk]:
        mask = found.inputs.get("attention_mask")
        if mask is not None and not mask.all():
            raise RefusedError(
                "some examples are padded, and Gram matrices would count the padding",
                where=found.name,
                fix="give examples of one length, without padding",
            )
        yield from lay_out(batch)[0]

    return Ready(
        loaded.network,
        loaded.name,
        len(found.labels),
        (*loaded.notes, *found.notes),
        computed_in(dtype, device, classification_loss),
        sampled_in(dtype, device, sampled_classification_loss),
        lay_out,
        batch,
        inputs,
        lambda network, chunk: network(**chunk.inputs),
    )


def _of_one_length(found: Examples, batch: int) -> Iterator[list[Example]]:
    """Group examples of the same length, so that nothing is padded: shortest first, else in their order."""
    groups: dict[int, list[Example]] = defaultdict(list)
    for example in found.examples:
        groups[len(example.tokens)].append(example)
    for length, group in sorted(groups.items()):
        step = max(1, min(batch, _TOKENS // length))
        yield from (group[at : at + step] for at in range(0, len(group), step))


@dataclass(eq=False)
class Run:
    """One statistic being taken; `names` says what the checkpoint calls each parameter.

    The methods yield tensors by the checkpoint's names, in alphabetical order, and each needs the whole data before
    the first of them (Gram matrices: the whole data for every group that `memory` allows).
    """

    ready: Ready
    names: Mapping[str, str]
    seed: int
    memory: int
    stop: Stop
    say: Callable[[int, int], None]
    notes: list[str] = field(default_factory=list)

    def planned(self, kind: str) -> list[str]:
        """List the names of the tensors that will come."""
        if kind != "gram":
            return list(self.names.values())
        return [f"{name}::gram" for name in self._linears()]

    def gradient(self) -> Iterator[tuple[str, Floats]]:
        """Yield the gradient of the mean loss over all data, 0 for a parameter that the loss does not use."""
        chunks, counts = self.ready.lay_out(self.ready.batch)
        total = sum(counts)
        with self._collecting(lambda sums, gradient, scale: sums.add_(gradient, alpha=scale)) as collect:
            for at, (chunk, count) in enumerate(zip(chunks, counts, strict=True)):
                self._listen(at, len(chunks))
                collect(self.ready.loss(self.ready.network, chunk), count / total)
            yield from self._finished(collect.sums)

    def fisher(self) -> Iterator[tuple[str, Floats]]:
        """Yield the diagonal of the Fisher information of one token: E[s²], s the gradient of −log p(y), y ~ p.

        Every example draws labels of its own. The gradient g of the mean over its n tokens has E[n g²] = E[s²], so
        n g² is averaged, by n, over the examples. Examples are taken one by one: of several together, one square
        would be left.
        """
        chunks, counts = self.ready.lay_out(1)
        total = sum(counts)
        with self._collecting(
            lambda sums, gradient, scale: sums.addcmul_(gradient, gradient, value=scale)
        ) as collect:
            for at, (chunk, count) in enumerate(zip(chunks, counts, strict=True)):
                self._listen(at, len(chunks))
                key = cell_key(self.seed, "labels", str(at))
                collect(self.ready.sampled(self.ready.network, chunk, key), count * count / total)
            yield from self._finished(collect.sums)

    def grams(self) -> Iterator[tuple[str, Floats]]:
        """Yield X'X / tokens of every linear layer's inputs, added up in float64 on the network's device."""
        linears = self._linears()
        if not linears:
            raise RefusedError("the network has no linear layer", where=printable(self.ready.name))
        idle = [n for n, p in self.ready.parameters.items() if p.dim() >= 2 and self.names[n] not in linears]
        if idle:
            more = f" and {len(idle) - _SHOWN} more" if len(idle) > _SHOWN else ""
            self.notes.append(f"no linear layer reads {', '.join(idle[:_SHOWN])}{more}: no Gram matrix of it")
        groups = list(_groups(linears, self.memory))
        done = 0
        for group in groups:
            sums, rows = self._gram_group({name: linears[name] for name in group}, done, len(groups))
            done += 1
            for name in group:
                if not rows[name]:
                    self.notes.append(f"no input ever reached {name}: no Gram matrix of it")
                    continue
                yield f"{name}::gram", _array(sums.pop(name) / rows[name])

    def _linears(self) -> dict[str, nn.Linear]:
        """Return the linear layers by the checkpoint's names of their weights; one that is an embedding too is none."""
        embeddings = {id(m.weight) for m in self.ready.network.modules() if isinstance(m, nn.Embedding)}
        by_weight = {id(p): self.names[n] for n, p in self.ready.parameters.items()}
        found = {
            by_weight[id(module.weight)]: module
            for module in self.ready.network.modules()
            if isinstance(module, nn.Linear) and id(module.weight) not in embeddings
        }
        return dict(sorted(found.items()))

    def _gram_group(
        self, linears: Mapping[str, nn.Linear], done: int, of: int
    ) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Read all data once, and add up the products of some layers' inputs, (in, in) each, with their rows."""
        sums = {
            name: torch.zeros(m.in_features, m.in_features, dtype=torch.float64, device=m.weight.device)
            for name, m in linears.items()
        }
        rows = dict.fromkeys(linears, 0)

        def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def read(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).double()
                sums[name].addmm_(x.T, x)
                rows[name] += len(x)

            return read

        hooks = [m.register_forward_pre_hook(watch(name)) for name, m in linears.items()]
        head = getattr(self.ready.network, "get_output_embeddings", lambda: None)()
        if type(head) is nn.Linear:  # nobody looks at the logits: one position of them will do
            hooks.append(head.register_forward_pre_hook(lambda _, inputs: tuple(x[:1, :1] for x in inputs)))
        chunks = list(self.ready.inputs())
        try:
            with torch.no_grad():
                for at, chunk in enumerate(chunks):
                    self._listen(done * len(chunks) + at, of * len(chunks))
                    self.ready.forward(self.ready.network, chunk)
        finally:
            for hook in hooks:
                hook.remove()
        return sums, rows

    def _collecting(self, fold: Callable[[Tensor, Tensor, float], Any]) -> AbstractContextManager[_Collector]:
        return _collecting(self.ready.parameters, fold)

    def _finished(self, sums: dict[str, Tensor]) -> Iterator[tuple[str, Floats]]:
        """Yield sums under the checkpoint's names, each given up once it is out."""
        for name in sorted(sums, key=lambda n: self.names[n]):
            yield self.names[name], _array(sums.pop(name))

    def _listen(self, done: int, of: int) -> None:
        if self.stop.asked:
            raise InterruptedRunError(
                "taking the statistic was interrupted", fix="run the same command again"
            )
        self.say(done, of)


@dataclass(eq=False)
class _Collector:
    """Folds the gradients of one loss after another into `sums`; a gradient is dropped once it is folded."""

    sums: dict[str, Tensor]
    scale: float = 0.0

    def __call__(self, loss: Tensor, scale: float) -> None:
        """Differentiate a loss; `scale` is what the fold multiplies by."""
        self.scale = scale
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call, unused-ignore]


@contextmanager
def _collecting(
    parameters: Mapping[str, nn.Parameter], fold: Callable[[Tensor, Tensor, float], Any]
) -> Iterator[_Collector]:
    collector = _Collector({name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()})

    def watch(name: str) -> Callable[[Tensor], None]:
        def complete(parameter: Tensor) -> None:
            assert parameter.grad is not None
            with torch.no_grad():
                fold(collector.sums[name], parameter.grad, collector.scale)
            parameter.grad = None

        return complete

    for parameter in parameters.values():
        parameter.requires_grad_(True)
    hooks = []
    for name, parameter in parameters.items():
        hooking: Any = parameter.register_post_accumulate_grad_hook
        hooks.append(hooking(watch(name)))
    try:
        yield collector
    finally:
        for hook in hooks:
            hook.remove()


def _groups(linears: Mapping[str, nn.Linear], memory: int) -> Iterator[list[str]]:
    """Divide the layers, in their order, into groups whose matrices fit the memory."""
    group: list[str] = []
    taken = 0
    for name, module in linears.items():
        size = _WIDE * module.in_features**2
        if size > memory:
            raise ResourceError(
                f"its Gram matrix needs {-(-size >> 20)} MiB, beyond the {memory >> 20} MiB it may have",
                where=printable(name),
                fix="give more memory",
            )
        if group and taken + size > memory:
            yield group
            group, taken = [], 0
        group.append(name)
        taken += size
    if group:
        yield group


def _array(values: Tensor) -> Floats:
    found: Floats = values.detach().to("cpu", torch.float32).numpy()
    return found
