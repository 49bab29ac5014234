"""Thin modules that stand where a delta changes something: they share the base's parameters and heed the selection.

Nothing of the base is copied or written to. A site has the parameters, buffers and children of the module it
stands for (the same dictionaries), so names, `state_dict` and moves to another device are those of the base.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from deltasmith.runtime.bank import SignBank, bank_of
from deltasmith.runtime.selection import Active, Group, Selection
from deltasmith.runtime.terms import Tensor, Term

__all__ = ["EmbeddingSite", "MatrixSite", "NormSite", "Part", "Site", "is_conv1d", "site_of"]


@dataclass
class Part:
    """What one delta changes in one module: its own values of parameters, and the weight's product."""

    values: dict[str, Tensor] = field(default_factory=dict)
    term: Term | None = None


def is_conv1d(module: nn.Module) -> bool:
    """Tell whether a module is the Conv1D of transformers: y = x W + b, W (in, out)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def site_of(module: nn.Module, parts: Mapping[str, Part], active: Active) -> Site:
    """Return the module that stands in for another."""
    if type(module) is nn.Linear or is_conv1d(module):
        return MatrixSite(module, parts, active)
    if type(module) is nn.Embedding:
        return EmbeddingSite(module, parts, active)
    if _scales_rows(module) and all(set(part.values) == {"weight"} for part in parts.values()):
        return NormSite(module, parts, active)
    return Site(module, parts, active)


class Site(nn.Module):
    """Any module: runs once for each label that changes something in it, on that label's rows.

    Inputs and outputs are tensors (or tuples of tensors) whose first axis runs over the rows of the batch.
    """

    def __init__(self, base: nn.Module, parts: Mapping[str, Part], active: Active) -> None:
        """Share everything with `base`."""
        super().__init__()
        # Not registered as a child: it would add a level to every name.
        object.__setattr__(self, "base", base)
        self._parameters, self._buffers, self._modules = base._parameters, base._buffers, base._modules
        self._non_persistent_buffers_set = base._non_persistent_buffers_set
        self.training = base.training
        self.parts, self.active = dict(parts), active

    def __getattr__(self, name: str) -> Any:
        """Look at the base for whatever a site does not have (in_features, padding_idx, ...)."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["base"], name)

    def _apply(self, fn: Any, recurse: bool = True) -> Site:
        """Let what is attached follow the parameters to another device or element type."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call, unused-ignore]
        slots: dict[str, Any] = {**self._parameters, **self._buffers}
        for part in self.parts.values():
            part.values = {n: v.to(slots[n].device, slots[n].dtype) for n, v in part.values.items()}
            if part.term is not None:
                part.term.to(slots["weight"].device)
        return self

    def train(self, mode: bool = True) -> Site:
        """Set the base's mode too."""
        super().train(mode)
        self.base.train(mode)
        return self

    def extra_repr(self) -> str:
        """Say what is attached."""
        return f"{type(self.base).__name__} with {', '.join(self.parts)}"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the base with each row's own values."""
        selection = self.active.selection
        if selection.uniform:
            return self.alone(selection.label, args, kwargs)
        first = next((a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor) and a.dim()), None)
        if first is None or not any(label in self.parts for label in selection.rows):
            return self.base(*args, **kwargs)
        length = first.shape[0]
        return self.mixed(self._merged(selection.groups(length, first.device)), length, args, kwargs)

    def alone(self, label: str | None, args: Any, kwargs: Any) -> Any:
        """Run for rows of one label."""
        part = self.parts.get(label) if label is not None else None
        with _replaced(self.base, part.values if part else {}):
            return self.base(*args, **kwargs)

    def mixed(self, groups: list[Group], length: int, args: Any, kwargs: Any) -> Any:
        """Run each group by itself and put the rows back in place."""
        if len(groups) == 1:
            return self._narrowed(groups[0][0], args, kwargs)
        found = []
        for label, index in groups:
            own = [_rows(a, index, length) for a in args]
            named = {k: _rows(a, index, length) for k, a in kwargs.items()}
            found.append(self._narrowed(label, own, named))
        order = torch.argsort(torch.cat([index for _, index in groups]))
        return _joined(found, order)

    def _narrowed(self, label: str | None, args: Any, kwargs: Any) -> Any:
        """Run for one label, with that label selected for whatever lies inside."""
        before, self.active.selection = self.active.selection, Selection(label)
        try:
            return self.alone(label, args, kwargs)
        finally:
            self.active.selection = before

    def _merged(self, groups: list[Group]) -> list[Group]:
        """Put labels that change nothing here together with the base, unless something lies inside."""
        if any(True for _ in self.base.children()):
            return groups
        same = [index for label, index in groups if label not in self.parts]
        own = [group for group in groups if group[0] in self.parts]
        return [*own, (None, torch.cat(same))] if same else own


class MatrixSite(Site):
    """nn.Linear and Conv1D: one product with the base's matrix for all rows, and each label's term on its rows."""

    def __init__(self, base: nn.Module, parts: Mapping[str, Part], active: Active) -> None:
        """Share everything with `base`."""
        super().__init__(base, parts, active)
        self.turned = is_conv1d(base)
        self.bank: SignBank | None = None
        self._gather()

    def _apply(self, fn: Any, recurse: bool = True) -> Site:
        """Gather the bits anew where they are now."""
        super()._apply(fn, recurse)
        self._gather()
        return self

    def _gather(self) -> None:
        self.bank = bank_of({k: p.term for k, p in self.parts.items()}, self.base.weight.device)

    def alone(self, label: str | None, args: Any, kwargs: Any) -> Any:
        """Run for rows of one label."""
        y = super().alone(label, args, kwargs)
        part = self.parts.get(label) if label is not None else None
        if part is None or part.term is None:
            return y
        x = _only(args, kwargs)
        return self._plus(y, x, [(label, None)])

    def mixed(self, groups: list[Group], length: int, args: Any, kwargs: Any) -> Any:
        """Run all rows on the base's matrix but those whose label has a matrix of its own."""
        x = _only(args, kwargs)
        own = [
            group for group in groups if group[0] in self.parts and "weight" in self.parts[group[0]].values
        ]
        if own and len(own) == len(groups):
            return super().mixed(groups, length, args, kwargs)
        shared = [group for group in groups if group not in own]
        y = self._shared(x, shared, length)
        y = self._plus(y, x, [g for g in shared if g[0] in self.parts and self.parts[g[0]].term is not None])
        for label, index in own:
            y[index] = self.alone(label, (x[index],), {})
        return y

    def _shared(self, x: Tensor, groups: list[Group], length: int) -> Tensor:
        """Multiply by the base's matrix; add each row's own bias. Rows outside the groups come out too."""
        biases = {label: self.parts[label].values.get("bias") for label, _ in groups if label in self.parts}
        if all(bias is None for bias in biases.values()):
            return self.base(x)
        weight, bias = self.base.weight, self.base.bias
        y = x @ weight if self.turned else functional.linear(x, weight)
        for label, index in groups:
            changed = biases.get(label or "")
            y[index] = y[index] + (bias if changed is None else changed)
        return y

    def _plus(self, y: Tensor, x: Tensor, groups: list[tuple[str | None, Any]]) -> Tensor:
        """Add the terms of the groups' labels to their rows; an index of None means all rows."""
        if self.bank is not None and x.is_cuda and y.dtype == x.dtype and not torch.is_grad_enabled():
            groups = self.bank.add(y, x, groups)
        for label, index in groups:
            term = self.parts[label or ""].term
            if term is None:
                continue
            part = x if index is None else x[index]
            more = term.product(part.reshape(-1, part.shape[-1])).reshape(*part.shape[:-1], y.shape[-1])
            if index is None:
                y = (y + more).to(y.dtype)
            else:
                y[index] = (y[index] + more).to(y.dtype)
        return y


class NormSite(Site):
    """An RMSNorm written in Python: each row is scaled by its own label's weight, all rows at once."""

    def mixed(self, groups: list[Group], length: int, args: Any, kwargs: Any) -> Any:
        """Run all rows with a weight that has the rows' axis in front."""
        x, weight = _only(args, kwargs), self.base.weight
        rows = weight.detach().expand(length, *weight.shape).clone()
        for label, index in groups:
            if label in self.parts:
                rows[index] = self.parts[label].values["weight"]
        inner = [1] * (x.dim() - 1 - weight.dim())
        with _replaced(self.base, {"weight": rows.reshape(length, *inner, *weight.shape)}):
            return self.base(*args, **kwargs)


def _scales_rows(module: nn.Module) -> bool:
    """Tell whether a module is transformers' kind of RMSNorm, which multiplies by a weight that may have rows."""
    plain = not isinstance(module, nn.RMSNorm) and "forward" not in module.__dict__
    return plain and type(module).__name__.endswith("RMSNorm") and set(module._parameters) == {"weight"}


class EmbeddingSite(Site):
    """nn.Embedding: the base's rows, plus the rows of each label's delta."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Spread ids that all rows share (positions) over the rows first."""
        selection = self.active.selection
        if not selection.uniform and any(label in self.parts for label in selection.rows):
            ids = _only(args, kwargs)
            if ids.shape[0] == 1 and len(selection.rows) > 1:
                args, kwargs = (ids.expand(len(selection.rows), *ids.shape[1:]),), {}
        return super().forward(*args, **kwargs)

    def alone(self, label: str | None, args: Any, kwargs: Any) -> Any:
        """Run for rows of one label."""
        y = super().alone(label, args, kwargs)
        part = self.parts.get(label) if label is not None else None
        if part is None or part.term is None:
            return y
        ids = _only(args, kwargs)
        more = part.term.rows(ids.reshape(-1)).reshape(y.shape)
        return (y + more).to(y.dtype)


def _only(args: Any, kwargs: Any) -> Tensor:
    """Return the one input of a module that takes one."""
    values = [*args, *kwargs.values()]
    if len(values) != 1:
        raise TypeError(f"one input was expected, {len(values)} were given")
    return values[0]


@contextlib.contextmanager
def _replaced(module: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a module compute with other values; its own are back afterwards, the same objects."""
    slots: list[tuple[dict[str, Any], str, Tensor]] = [
        (module._parameters if name in module._parameters else module._buffers, name, value)
        for name, value in values.items()
    ]
    before = [slot[name] for slot, name, _ in slots]
    try:
        for slot, name, value in slots:
            slot[name] = value
        yield
    finally:
        for (slot, name, _), own in zip(slots, before, strict=True):
            slot[name] = own


def _rows(value: Any, index: Tensor, length: int) -> Any:
    """Take the rows of a tensor that has them; pass anything else on."""
    if isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == length:
        return value[index]
    if isinstance(value, tuple):
        return tuple(_rows(v, index, length) for v in value)
    return value


def _joined(found: list[Any], order: Tensor) -> Any:
    """Put the outputs of the groups together, rows back in their order."""
    if isinstance(found[0], torch.Tensor):
        return torch.cat(found)[order]
    if isinstance(found[0], tuple):
        return tuple(_joined([f[i] for f in found], order) for i in range(len(found[0])))
    return found[0]
