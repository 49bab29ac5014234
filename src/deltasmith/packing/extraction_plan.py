"""What an extraction asks for, and where it sends every tensor: into factors, whole, in place, or nowhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import xxhash
from pydantic import Field, ValidationError

from deltasmith import __version__
from deltasmith.codecs.dense import DenseEncoder
from deltasmith.codecs.low_rank import LowRank
from deltasmith.codecs.protocol import Cell, Codec, Encoder, StoredCodec
from deltasmith.engine.coding import CodingTask
from deltasmith.engine.progress import Progress
from deltasmith.errors import RecipeError, RefusedError, printable
from deltasmith.formats.adapter_names import Arrangement, Modules
from deltasmith.formats.layout import natural_key
from deltasmith.formats.opening import OpenedModel
from deltasmith.formats.tokenizer import compare_vocabularies
from deltasmith.kernels.randomised import Device, Target
from deltasmith.packing.adapter_merge import Goal
from deltasmith.packing.material import CellValues, Material, Rooms, cell_of
from deltasmith.table.checkpoint import Checkpoint, Floats
from deltasmith.table.dtypes import DTYPES
from deltasmith.table.names import matches

__all__ = ["Extracted", "Extraction", "Whole", "Wish"]

_BLOCK = 1 << 18
_SHOWN = 5


@dataclass(frozen=True)
class Wish:
    """What is asked of an extraction: ranks, element type, which tensors become factors, which may be left out.

    Exactly one of `rank`, `error` and `energy`, or none: `max_rank` then. `include` and `exclude` are globs of whole
    tensor names: tensors that are not included keep their change whole. `drop` names tensors whose change is lost.
    """

    rank: int | None = None
    error: float | None = None
    energy: float | None = None
    max_rank: int = 128
    sv_epsilon: float = 0.0
    distribute_scale: bool = True
    embed_lora: bool = False
    dtype: str = "bfloat16"
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    device: Device = "cpu"

    @property
    def selective(self) -> bool:
        """Tell whether some tensors are to be treated otherwise, or factors in another way than factor space has."""
        chosen = self.include != ("*",) or self.exclude or self.drop
        return bool(chosen or self.sv_epsilon or not self.distribute_scale)

    def goal(self) -> Goal:
        """Return the same for a merge of adapters in factor space."""
        error = math.sqrt(1.0 - self.energy) if self.energy is not None else self.error
        return Goal(self.rank, error, self.max_rank if self.rank is None else None, self.dtype)

    def codec(self) -> Extracted:
        """Return what decomposes each tensor; RecipeError for numbers that make no sense."""
        given = {
            key: value for key in ("rank", "error", "energy") if (value := getattr(self, key)) is not None
        }
        if len(given) > 1:
            raise RecipeError(
                f"{' and '.join(given)} are given, and each decides the rank",
                where="extract-lora",
                fix="give one of rank, error and energy",
            )
        limit = {"max_rank": self.max_rank} if given.keys() & {"error", "energy"} else {}
        fields = (given or {"rank": self.max_rank}) | limit
        side = "both" if self.distribute_scale else "right"
        try:
            return Extracted.model_validate(
                {**fields, "dtype": self.dtype, "floor": self.sv_epsilon, "device": self.device, "side": side}
            )
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(str(part) for part in first["loc"])
            raise RecipeError(
                f"{name + ': ' if name else ''}{first['msg']}",
                where="extract-lora",
                fix="see `deltasmith extract-lora --help`",
            ) from error


class Extracted(LowRank):
    """`LowRank`, with a floor for singular values, and a choice of the factor that holds them.

    mergekit's extract-lora computes the same from `rank` 128, in float32 (golden cases in tests/golden).
    """

    floor: Annotated[float, Field(ge=0)] = 0.0
    """Singular values up to this are left out (absolute)."""
    side: Literal["both", "left", "right"] = "both"
    """The factor that the singular values multiply; `both`: √S each."""
    device: Device = "cpu"
    """Where randomised decompositions are computed."""

    @property
    def target(self) -> Target:
        """Add the floor to what `LowRank` aims at."""
        return replace(super().target, floor=self.floor)

    @property
    def where(self) -> Device:
        """Return the device."""
        return self.device

    def shares(self, spectrum: Floats) -> tuple[Floats, Floats]:
        """Put the singular values where `side` says."""
        if self.side == "both":
            return super().shares(spectrum)
        ones = np.ones_like(spectrum)
        return (spectrum, ones) if self.side == "left" else (ones, spectrum)


@dataclass
class Extraction:
    """One extraction: base, model, and where every tensor goes."""

    base: OpenedModel
    material: Material
    wish: Wish
    codec: Extracted = field(init=False)
    modules: Modules = field(init=False)
    arrangement: Arrangement = field(init=False)
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    _rooms: Rooms = field(default_factory=Rooms, repr=False)

    def __post_init__(self) -> None:
        self.codec = self.wish.codec()
        self.modules = Modules(self.ground.specs, self.base.config or {})

    @property
    def ground(self) -> Checkpoint:
        """Return the base's tensors."""
        assert self.base.checkpoint is not None
        return self.base.checkpoint

    @property
    def told(self) -> dict[str, Any]:
        """Return what the manifest says was asked."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self.wish).items()}

    @property
    def inputs(self) -> list[Path]:
        """List the folders and files that are read."""
        opened = [self.base, *(m for _, m in self.material.opened)]
        return [p for m in opened for p in ([m.folder] if m.folder else [Path(s.path) for s in m.files])]

    @property
    def key(self) -> str:
        """Name what is being made, for the folder it is made in."""
        return xxhash.xxh3_128_hexdigest(
            repr((__version__, self.told, self.base.source, self.material.name)).encode()
        )

    def refuse_strangers(self) -> None:
        """Refuse, from headers and tokenizers alone, a model that is no fine-tune of this base."""
        ours, theirs = self.ground.specs, self.material.checkpoint.specs
        for name in sorted(ours.keys() & theirs.keys(), key=natural_key):
            if ours[name].shape != theirs[name].shape:
                outer = self.modules.is_embedding(name) or self.modules.is_head(name)
                raise RefusedError(
                    f"{printable(name, 120)} is {list(theirs[name].shape)} in the model and {list(ours[name].shape)} "
                    f"in the base{': their vocabularies differ' if outer else ''}",
                    where=printable(self.material.name),
                    fix="extract from a model that has the shapes of its base",
                )
        if self.base.folder is not None and self.material.folder is not None:
            compare_vocabularies(self.base.folder, "base", self.material.folder, "the model")
        lacking = [n for n in ours if n not in theirs and not self._dropped(n)]
        added = [n for n in theirs if n not in ours and not self._dropped(n) and not self._tied_twin(n)]
        if self.modules.tied:
            lacking = [n for n in lacking if not self.modules.is_head(n)]
        if lacking or added:
            which, names = (
                ("the base has and the model lacks", lacking) if lacking else ("the base lacks", added)
            )
            raise RefusedError(
                f"{len(names)} tensors that {which} ({_listed(names)})",
                where=printable(self.material.name),
                fix="give the base it was trained from, or leave them out with --drop GLOB",
            )

    def _tied_twin(self, name: str) -> bool:
        """Tell whether a tensor of the model is only a copy of its tied embedding."""
        return self.modules.tied and name.endswith(".weight") and name.split(".")[-2:-1] == ["lm_head"]

    def _dropped(self, name: str) -> bool:
        return any(matches(glob, name) for glob in self.wish.drop)

    def decide(self, progress: Progress) -> None:
        """Sort the base's tensors: factors, saved whole, biases in place, left out; refuse what nothing can hold."""
        names = [n for n in self.ground.specs if n in self.material.checkpoint.specs]
        self._refuse_idle_globs()
        pairs = {
            n: kind
            for n in names
            if not self._dropped(n)
            and any(matches(glob, n) for glob in self.wish.include)
            and not any(matches(glob, n) for glob in self.wish.exclude)
            and (kind := self.modules.pair_kind(n, embeddings=self.wish.embed_lora)) is not None
        }
        pairs = {n: kind for n, kind in pairs.items() if not self._tied_copy(n)}
        rest = [n for n in names if n not in pairs]
        progress.phase("looking for what else has changed", sum(self.ground.specs[n].nbytes for n in rest))
        changed = [n for n in rest if not self._tied_copy(n) and self._differs(n, progress)]
        self.dropped = tuple(n for n in changed if self._dropped(n))
        self.arrangement = self.modules.arrange(pairs, [n for n in changed if n not in self.dropped])
        if self.arrangement.unheld:
            raise RefusedError(
                f"{len(self.arrangement.unheld)} changed tensors belong to no module, and an adapter cannot hold them "
                f"({_listed(self.arrangement.unheld)})",
                where=printable(self.material.name),
                fix="leave their change out with --drop GLOB",
            )
        self.notes = tuple(self._told_notes())

    def _refuse_idle_globs(self) -> None:
        for glob in (*self.wish.include, *self.wish.exclude, *self.wish.drop):
            known = [*self.ground.specs, *self.material.checkpoint.specs]
            if not any(matches(glob, name) for name in known):
                raise RecipeError(
                    f"no tensor matches {printable(repr(glob), 80)}",
                    where="extract-lora",
                    fix="globs match whole names: *.mlp.*",
                )

    def _tied_copy(self, name: str) -> bool:
        """Tell whether a base holds its tied head beside the embedding: PEFT ties it again."""
        embeds = any(self.modules.is_embedding(n) for n in self.ground.specs)
        return self.modules.tied and embeds and name.split(".")[-2:] == ["lm_head", "weight"]

    def _told_notes(self) -> Iterator[str]:
        if self.arrangement.whole:
            size = sum(self.material.checkpoint.specs[n].nbytes for n in self.arrangement.whole)
            saved = self.modules.short(self.arrangement.saved, dotted=False)
            yield f"saved whole: {_listed(saved)} ({len(self.arrangement.whole)} tensors, {size} bytes)"
        if self.arrangement.placed:
            count = len(self.arrangement.placed)
            listed = _listed(self.arrangement.placed)
            yield f"{count} tensors replace the base's while loaded, the adapter disabled or not: {listed}"
        if self.dropped:
            yield f"{len(self.dropped)} changed tensors are left out, as asked: {_listed(self.dropped)}"

    def _differs(self, name: str, progress: Progress) -> bool:
        """Compare one tensor with the base's, up to the first difference."""
        ours, theirs = self.ground.specs[name], self.material.checkpoint.specs[name]
        alike = ours.dtype == theirs.dtype
        if not alike and not (ours.dtype.floating and theirs.dtype.floating):
            return True
        for start in range(0, ours.size, _BLOCK):
            stop = min(ours.size, start + _BLOCK)
            if alike and bytes(self.ground.raw(name, start, stop)) != bytes(
                self.material.checkpoint.raw(name, start, stop)
            ):
                return True
            if not alike and not np.array_equal(
                _values(self.ground, name, start, stop),
                _values(self.material.checkpoint, name, start, stop),
            ):
                return True
            progress.advance((stop - start) * ours.dtype.itemsize)
        return False

    def tasks(self) -> list[CodingTask]:
        """Return one task per tensor, those of wider stored elements first."""
        whole = [self._task(n, Whole()) for n in (*self.arrangement.whole, *self.arrangement.placed)]
        turned = {"both": self.codec, "right": self.codec.model_copy(update={"side": "left"})}[
            self.codec.side
        ]
        pairs = [
            self._task(n, turned if kind in ("flipped", "embedding") else self.codec)
            for n, kind in self.arrangement.pairs.items()
        ]
        return sorted([*whole, *pairs], key=lambda t: (-_width(t, self.codec), natural_key(t.name)))

    def _task(self, name: str, codec: Codec) -> CodingTask:
        model, label = self.material.checkpoint, self.material.label
        cell = cell_of(model.specs[name], self.ground, label, 0)
        ground = self.ground if codec.domain == "delta" else None
        return CodingTask(cell, codec, CellValues(model, ground, cell.spec, codec.domain, label, self._rooms))


def _width(task: CodingTask, codec: LowRank) -> int:
    return task.cell.spec.dtype.itemsize if isinstance(task.codec, Whole) else DTYPES[codec.dtype].itemsize


def _values(checkpoint: Checkpoint, name: str, start: int, stop: int) -> Floats:
    out = np.empty(stop - start, np.float32)
    checkpoint.read(name, start, out)
    return out


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = ", …" if len(every) > _SHOWN else ""
    return printable(", ".join(every[:_SHOWN]), 600) + more


class Whole(StoredCodec):
    """Keep a tensor's stored words as they are, in its own element type."""

    def encoder(self, cell: Cell) -> Encoder:
        """Begin to copy a tensor."""
        return DenseEncoder(cell.spec, cell.spec.dtype.name)
