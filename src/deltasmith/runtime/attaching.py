"""Attach packed deltas to a model in memory, choose among them, and take them off again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from torch import nn

from deltasmith.errors import RefusedError, printable
from deltasmith.runtime.deltas import Delta, opened
from deltasmith.runtime.loading import DecodedTerm, Pool, Stored, term_of
from deltasmith.runtime.selection import Active, Selection
from deltasmith.runtime.sites import Part, Site, is_conv1d, site_of
from deltasmith.runtime.terms import MaskTerm, Tensor

__all__ = ["Others", "Runtime", "attach"]

Others = Literal["dense", "packed"]

_READ_ELSEWHERE = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.RNNBase)
"""Modules that read their children's parameters, or hand their own to other code, without calling `forward`."""


def attach(
    model: nn.Module,
    deltas: Mapping[str, Delta | str | Path],
    *,
    others: Others = "dense",
    ignore: Sequence[str] = (),
) -> Runtime:
    """Let a base model compute as any of several fine-tuned ones, each row of a batch as another; it begins as itself.

    Modules whose tensors a delta changes are replaced by thin ones that share their parameters: no weight of the
    base is copied, rebuilt or written to. 1-bit, EMR, low-rank and sparse matrices of nn.Linear, Conv1D and
    nn.Embedding are used as they are stored. Of everything else that changed (norms, biases, whole embeddings,
    other codecs) the fine-tuned values themselves are kept, in the parameter's type, so that they are used
    exactly; with `others="packed"` matrices of such codecs stay packed and are decoded tile by tile at every use.
    Tensors that turn out to be the base's take no memory. Names that match a glob in `ignore` are left out.

    `deltas` maps labels to packed deltas or to paths (`FOLDER#LABEL` for one of several). For inference; one
    forward pass at a time.

    Raises:
        RefusedError: a model that deltas are attached to already; a tensor that the model does not have, of another
            shape, or in a place that cannot be served.
        DamagedInputError: a delta that cannot be read.
    """
    if any(isinstance(module, Site) for module in model.modules()):  # one would add its deltas to the other's
        raise RefusedError(
            "deltas are attached to this model already",
            fix="detach() that runtime first, or attach all deltas together",
        )
    found = {label: opened(delta) for label, delta in deltas.items()}
    return Runtime(model, _parts(model, found, others, tuple(ignore)))


class Runtime:
    """Deltas attached to a model: says which is used, and takes them off again."""

    def __init__(self, model: nn.Module, attached: _Attached) -> None:
        """Put the sites in place."""
        self.model = model
        self.labels = attached.labels
        self._active = Active()
        self._sites: list[tuple[nn.Module, str, nn.Module]] = []
        self._parts = attached.parts
        for module in model.modules():  # no site is in place yet, so none is visited
            for name, child in list(module._modules.items()):
                if child is not None and child in attached.parts:
                    self._sites.append((module, name, child))
        sites = {child: site_of(child, parts, self._active) for child, parts in attached.parts.items()}
        for parent, name, child in self._sites:
            parent._modules[name] = sites[child]

    def __repr__(self) -> str:
        """Say which deltas there are, which is in use, and how many bytes they take."""
        labels = ", ".join(map(_shown, self.labels))
        if not self._sites and self._parts:
            return f"<Runtime of {labels}: detached>"
        rows = ", ".join(map(_shown, self._active.selection.rows))
        used = rows if self._active.selection.uniform else f"{rows} by row"
        return f"<Runtime of {labels}: {used} in use, {self.total_nbytes:,} bytes>"

    def switch(self, label: str | Sequence[str | None] | None) -> None:
        """Use one delta for every row from now on, or one label per row; None is the base."""
        self._active.selection = self._selected(label)

    def use(self, label: str | None) -> Selected:
        """Use one delta for every row until the `with` block ends (without `with`: from now on)."""
        return self._until(self._selected(label))

    def rows(self, labels: Sequence[str | None]) -> Selected:
        """Use one delta per row of the batch until the `with` block ends (without `with`: from now on).

        The batch must have that many rows, or a multiple of it where a model repeats rows (beams).
        """
        return self._until(self._selected(tuple(labels)))

    @property
    def selected(self) -> str | tuple[str | None, ...] | None:
        """Return the label in use, or the labels of the rows."""
        selection = self._active.selection
        return selection.label if selection.uniform else selection.rows

    @property
    def nbytes(self) -> dict[str, int]:
        """Return the bytes of memory that each delta uses; what several share counts for each of them."""
        return {label: _bytes(self._of(label)) for label in self.labels}

    @property
    def total_nbytes(self) -> int:
        """Return the bytes of memory of all deltas; what several share counts once."""
        return _bytes([item for label in self.labels for item in self._of(label)])

    def detach(self) -> None:
        """Put the model back as it was: the same modules and the same parameters. A second time does nothing."""
        for parent, name, child in self._sites:
            parent._modules[name] = child
        self._sites = []
        self._active.selection = Selection(None)

    def _of(self, label: str) -> list[Any]:
        """List what a label holds: tensors and terms."""
        parts = [parts[label] for parts in self._parts.values() if label in parts]
        return [item for part in parts for item in (*part.values.values(), part.term) if item is not None]

    def _selected(self, label: str | Sequence[str | None] | None) -> Selection:
        selection = Selection(label)
        if not selection.rows:
            raise RefusedError("no labels were given", fix="give one label per row")
        if unknown := [name for name in selection.rows if name is not None and name not in self.labels]:
            known = ", ".join(printable(name, 40) for name in self.labels)
            raise RefusedError(
                f"no delta {printable(str(unknown[0]), 60)!r} is attached", fix=f"there are {known}"
            )
        if not self._sites and any(name is not None for name in selection.rows):
            raise RefusedError("the deltas were detached", fix="attach them again")
        return selection

    def _until(self, selection: Selection) -> Selected:
        before, self._active.selection = self._active.selection, selection
        return Selected(self._active, before)


class Selected:
    """A choice that is in force; leaving the `with` block brings the one before back."""

    def __init__(self, active: Active, before: Selection) -> None:
        """Remember what to go back to."""
        self._active, self._before = active, before

    def __enter__(self) -> None:
        """Do nothing: the choice is in force already."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Go back."""
        self._active.selection = self._before


@dataclass
class _Attached:
    """What each module gets, by label."""

    labels: tuple[str, ...]
    parts: dict[nn.Module, dict[str, Part]]


@dataclass(frozen=True)
class _Owner:
    """A parameter in its place: the module that has it, and under which name."""

    module: nn.Module
    own_name: str


def _parts(
    model: nn.Module, deltas: Mapping[str, Delta], others: Others, ignore: tuple[str, ...]
) -> _Attached:
    """Load all deltas, after everything that names and shapes can show has been checked."""
    owners = _owners(model)
    places = {label: _places(model, owners, label, delta, ignore) for label, delta in deltas.items()}
    parts: dict[nn.Module, dict[str, Part]] = {}
    pool: Pool = {}
    for label, delta in deltas.items():
        for name, found in places[label].items():
            terms: dict[bool, Any] = {}
            whole: list[Tensor] = []
            for owner in found:
                slot = _slot(owner)
                stored = Stored(delta, label, name, slot)
                part = parts.setdefault(owner.module, {}).setdefault(label, Part())
                turned = is_conv1d(owner.module)
                if _multiplies(owner):
                    if turned not in terms:
                        terms[turned] = _term(stored, pool, others, turned)
                    part.term = terms[turned]
                if part.term is None or owner.own_name != "weight":
                    if not whole:
                        whole.append(stored.whole())
                    if not torch.equal(whole[0], slot):
                        part.values[owner.own_name] = whole[0]
    kept = {m: {k: p for k, p in by.items() if p.values or p.term is not None} for m, by in parts.items()}
    return _Attached(tuple(deltas), {module: by for module, by in kept.items() if by})


def _term(stored: Stored, pool: Pool, others: Others, turned: bool) -> Any:
    term = term_of(stored, pool, transposed=turned)
    if term is None and others == "packed" and not turned and len(stored.cell.spec.shape) == 2:
        return DecodedTerm(stored)
    return term


def _multiplies(owner: _Owner) -> bool:
    """Tell whether a parameter is the matrix of a module that knows terms."""
    known = type(owner.module) in (nn.Linear, nn.Embedding) or is_conv1d(owner.module)
    return known and owner.own_name == "weight" and getattr(owner.module, "max_norm", None) is None


def _slot(owner: _Owner) -> Tensor:
    return {**owner.module._parameters, **owner.module._buffers}[owner.own_name]


def _owners(model: nn.Module) -> dict[str, _Owner]:
    """Map the name of every parameter and buffer to its place; a tied one has several names."""
    found = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None:
                found[f"{prefix}.{name}" if prefix else name] = _Owner(module, name)
    return found


def _places(
    model: nn.Module, owners: Mapping[str, _Owner], label: str, delta: Delta, ignore: tuple[str, ...]
) -> dict[str, list[_Owner]]:
    """Find where each tensor of a delta belongs, with the places tied to it that have no tensor of their own."""
    where = f"the delta {printable(label, 60)!r}"
    names = [name for name in delta.names if not any(fnmatchcase(name, glob) for glob in ignore)]
    resolve = _resolver(model, owners)
    here = {name: resolve(name) for name in names}
    if missing := [name for name in names if here[name] is None]:
        raise RefusedError(
            f"the model has no tensor {printable(missing[0], 120)}" + _and_more(missing),
            where=where,
            fix="attach it to its own base, or name what to leave out in `ignore`",
        )
    _refuse_places(model, owners, [full for full in here.values() if full is not None], where)
    tied = _tied(owners)
    own = set(here.values())
    places = {}
    for name, full in here.items():
        owner, spec = owners[full or ""], delta.cell(name).spec
        shape = tuple(_slot(owner).shape)
        if shape != tuple(spec.shape):
            raise RefusedError(
                f"{printable(name, 120)} is {list(spec.shape)}, the model's is {list(shape)}",
                where=where,
                fix="attach it to its own base",
            )
        alike = [owners[other] for other in tied[id(_slot(owner))] if other == full or other not in own]
        places[name] = list(dict.fromkeys(alike))
    return places


def _and_more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _resolver(model: nn.Module, owners: Mapping[str, _Owner]) -> Callable[[str], str | None]:
    """Return what finds a checkpoint's name among the model's: as it is, or with or without the base's prefix."""
    prefix = str(getattr(model, "base_model_prefix", "") or "")

    def resolve(name: str) -> str | None:
        spellings = [name]
        if prefix:
            spellings += [f"{prefix}.{name}", name.removeprefix(f"{prefix}.")]
        return next((spelling for spelling in spellings if spelling in owners), None)

    return resolve


def _tied(owners: Mapping[str, _Owner]) -> dict[int, list[str]]:
    """Group names by the tensor they stand for."""
    found: dict[int, list[str]] = {}
    for name, owner in owners.items():
        found.setdefault(id(_slot(owner)), []).append(name)
    return found


def _refuse_places(model: nn.Module, owners: Mapping[str, _Owner], names: list[str], where: str) -> None:
    """Refuse parameters that no replaced module could serve."""
    for prefix, module in _readers(model):
        if inside := [name for name in names if name.startswith(f"{prefix}." if prefix else "")]:
            raise RefusedError(
                f"{printable(inside[0], 120)} lies in a {type(module).__name__}, which reads parameters without "
                f"calling their modules",
                where=where,
                fix="merge the delta into a model of its own",
            )
    for name in names:
        owner = owners[name]
        if owner.module is model:
            raise RefusedError(
                f"{printable(name, 120)} belongs to the model itself, not to a module in it",
                where=where,
                fix="put the model into another module, or name it in `ignore`",
            )
        if _slot(owner).is_meta:
            raise RefusedError(
                f"{printable(name, 120)} is not in memory", where="the model", fix="load the whole model"
            )


def _readers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((prefix, m) for prefix, m in model.named_modules() if isinstance(m, _READ_ELSEWHERE))


def _shown(label: str | None) -> str:
    return "the base" if label is None else printable(label, 40)


def _bytes(items: Sequence[Any]) -> int:
    """Count the bytes of tensors and terms, each tensor once."""
    seen: dict[int, int] = {}
    for item in items:
        if isinstance(item, torch.Tensor):
            seen[id(item)] = item.numel() * item.element_size()
        elif isinstance(item, MaskTerm):
            seen[id(item)] = item.nbytes - item.unified.numel() * item.unified.element_size()
            seen[id(item.unified)] = item.unified.numel() * item.unified.element_size()
        else:
            seen[id(item)] = item.nbytes
    return sum(seen.values())
