"""The base and its experts, opened and lined up; their tensors one at a time, as float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deltasmith.errors import RecipeError, RefusedError, printable
from deltasmith.formats.adapter import AdapterColumn
from deltasmith.formats.opening import OpenedModel, open_model
from deltasmith.formats.packed_model import PackedModel
from deltasmith.kernels.decode import count_nonfinite
from deltasmith.table.checkpoint import Checkpoint, Floats, Spec
from deltasmith.table.names import numbered

__all__ = ["Expert", "Inputs", "open_inputs"]

_SHOWN = 3
_HEAD = ("lm_head.weight",)
_BLOCK = 1 << 22
_UNCHANGED = 1e-8
"""Up to this absolute difference in every element an expert counts as unchanged, as in the authors' code."""


@dataclass(frozen=True)
class Expert:
    """A fine-tuned model, an adapter or a packed delta, with its label."""

    label: str
    model: OpenedModel
    checkpoint: Checkpoint

    def changes(self, name: str) -> bool:
        """Tell whether the expert says anything about a tensor; an adapter says nothing about most."""
        return name in self.checkpoint.specs

    def delta(self, base: Checkpoint, name: str, start: int, stop: int) -> Floats:
        """Return elements [start, stop) less the base's, 1-D.

        Raises:
            RefusedError: a value of the base or the expert is not finite.
        """
        found = np.zeros(stop - start, np.float32)
        if not self.changes(name):
            return found
        self.checkpoint.read(name, start, found)
        if not (isinstance(self.checkpoint, AdapterColumn) and self.checkpoint.is_delta(name)):
            found -= read(base, name, start, stop)
        if count_nonfinite(found):
            raise RefusedError(
                f"{printable(name)} of {printable(self.label)} or of the base holds values that are not finite",
                fix="repair the model, or leave it out",
            )
        return found

    def changed(self, base: Checkpoint, name: str) -> float:
        """Return the largest |δ| of the first block in which one stands above 1e-8, or 0."""
        size = base.specs[name].size
        for start in range(0, size if self.changes(name) else 0, _BLOCK):
            largest = float(np.abs(self.delta(base, name, start, min(size, start + _BLOCK))).max())
            if largest > _UNCHANGED:
                return largest
        return 0.0


@dataclass(frozen=True)
class Inputs:
    """The base, whose tensors the mixture's file holds, and the experts in order."""

    base: OpenedModel
    checkpoint: Checkpoint
    folder: Path
    config: Mapping[str, object]
    experts: tuple[Expert, ...]

    @property
    def specs(self) -> Mapping[str, Spec]:
        """Return the base's specs."""
        return self.checkpoint.specs

    def opened(self) -> list[tuple[str, OpenedModel]]:
        """List every model with its label, the base first."""
        return [("base", self.base), *((expert.label, expert.model) for expert in self.experts)]


def read(checkpoint: Checkpoint, name: str, start: int, stop: int) -> Floats:
    """Return elements [start, stop) as 1-D float32."""
    out = np.empty(stop - start, np.float32)
    checkpoint.read(name, start, out)
    return out


def open_inputs(
    base: str | Path, experts: Sequence[str | Path], labels: Sequence[str] | None = None
) -> Inputs:
    """Open all models and refuse, from headers alone, what does not fit together.

    Labels are the folders' names, numbered where two are equal.

    Raises:
        RefusedError: a base that is no model folder (a packed delta is none); an expert of another architecture,
            vocabulary or shape.
        DamagedInputError: what cannot be opened.
    """
    opened = open_model(str(base))
    if opened.packed is not None:
        raise RefusedError(
            "a packed delta cannot be the base of a mixture",
            where=printable(str(base)),
            fix="unpack it first, or give the model it was packed against",
        )
    if opened.checkpoint is None or opened.folder is None or opened.config is None:
        raise RefusedError(
            "the base of a mixture is a model folder with a config.json",
            where=printable(str(base)),
            fix="give the folder of the base model",
        )
    default = numbered([Path(source).name or str(source) for source in experts])
    names = tuple(default if labels is None else labels)
    if len(names) != len(experts) or len(set(names)) != len(names):
        raise RecipeError(f"{len(names)} labels for {len(experts)} experts", fix="give each its own label")
    found = tuple(
        _expert(label, open_model(str(source)), opened) for label, source in zip(names, experts, strict=True)
    )
    return Inputs(opened, opened.checkpoint, opened.folder, opened.config, found)


def _expert(label: str, model: OpenedModel, base: OpenedModel) -> Expert:
    """Bind what needs a base to this one, and check what does not."""
    assert base.checkpoint is not None
    if model.adapter is not None:
        return Expert(label, model, model.adapter.bind(base.checkpoint.specs))
    if model.trainer is not None:
        return Expert(label, model, model.trainer.bind(base.checkpoint))
    checkpoint = model.checkpoint if model.packed is None else PackedModel.over(model.packed, base.checkpoint)
    assert checkpoint is not None
    _same_architecture(label, model, base)
    tied = any((m.config or {}).get("tie_word_embeddings") for m in (base, model))
    _same_tensors(label, checkpoint.specs, base.checkpoint.specs, _HEAD if tied else ())
    return Expert(label, model, checkpoint)


def _same_architecture(label: str, model: OpenedModel, base: OpenedModel) -> None:
    ours, theirs = ((m.config or {}).get("model_type") for m in (base, model))
    if theirs is not None and ours != theirs:
        raise RefusedError(
            f"{printable(label)} is of another architecture: {printable(str(theirs))},"
            f" and the base is {printable(str(ours))}",
            fix="upscale experts of one base",
        )


def _same_tensors(
    label: str, specs: Mapping[str, Spec], base: Mapping[str, Spec], optional: tuple[str, ...]
) -> None:
    """Refuse tensors that the expert lacks, has in another shape, or has besides."""
    absent = [n for n in base if n not in specs and base[n].dtype.floating and not n.endswith(optional)]
    other = [
        f"{printable(n)} is {list(spec.shape)} in the base and {list(specs[n].shape)} in {printable(label)}"
        for n, spec in base.items()
        if n in specs and specs[n].shape != spec.shape
    ]
    if absent:
        raise RefusedError(
            f"{printable(label)} lacks {len(absent)} tensors of the base: {_listed(absent)}",
            fix="upscale experts of one base",
        )
    if other:
        raise RefusedError("; ".join(other[:_SHOWN]), fix="upscale experts of one base, with its vocabulary")
    if extra := [n for n in specs if n not in base and not n.endswith(optional)]:
        raise RefusedError(
            f"{printable(label)} has {len(extra)} tensors that the base lacks: {_listed(extra)}",
            fix="upscale experts of one base",
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(printable, names[:_SHOWN])) + more
