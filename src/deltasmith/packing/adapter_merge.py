"""Merging LoRA adapters into one LoRA adapter, in factor space: exactly by concatenation, or to a smaller rank."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from threadpoolctl import threadpool_limits

from deltasmith import __version__
from deltasmith.codecs.protocol import Ending, numpy_type
from deltasmith.engine.progress import Progress, Silent
from deltasmith.engine.workers import Stop
from deltasmith.errors import DeltasmithError, InterruptedRunError, RefusedError, printable
from deltasmith.formats.adapter_names import Arrangement, Modules, PairKind
from deltasmith.formats.adapter_writer import AdapterOutput, Origin
from deltasmith.formats.layout import natural_key
from deltasmith.formats.opening import OpenedModel, open_model
from deltasmith.formats.publish import side_files
from deltasmith.merges.sum import Sum
from deltasmith.packing.extraction_records import ExtractResult, adapter_manifest
from deltasmith.packing.factors import AdapterPair, Factors, concatenate, norm, pairs_of, recompress
from deltasmith.packing.records import hash_files
from deltasmith.recipe.checks import load
from deltasmith.recipe.model import Recipe
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES

__all__ = ["Goal", "adapters_of_recipe", "merge_adapters"]

_ROUNDING = 1e-20  # of a sum of squares, in float64


@dataclass(frozen=True)
class Goal:
    """What a merge of adapters aims at: all ranks together (exact), at most `rank`, or a relative `error`.

    `max_rank` limits what concatenation and `error` may lead to. `dtype` None: the inputs' common element type.
    """

    rank: int | None = None
    error: float | None = None
    max_rank: int | None = None
    dtype: str | None = None


class _Named(Modules):
    """The modules of a model known by its adapters alone: no name may be shortened, others could end alike."""

    def short(self, modules: Iterable[str], *, dotted: bool) -> list[str]:
        """Return the full names."""
        return sorted(set(modules))


def merge_adapters(
    adapters: Sequence[tuple[str | Path, float]],
    out: str | Path,
    goal: Goal | None = None,
    *,
    base: OpenedModel | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> ExtractResult:
    """Write the adapter of Σ w_i Δ_i, from PEFT adapters and their weights, without ever forming a matrix.

    Without rank or error in `goal` the factors are concatenated: exact but for one rounding to the element type, of
    rank Σ r_i, reduced to the smaller side of the matrix where it is beyond that. `base` (opened) only names modules
    and checks shapes; without one all module names are written in full. Exclusive tensors count as zero elsewhere.

    Raises:
        RefusedError: no adapters, another base or orientation among them, whole tensors in one (which add up only
            over a base), values that are not finite, and what writing to `out` refuses.
    """
    began, aim = time.perf_counter(), goal or Goal()
    opened = [(f"m{i}", open_model(str(source))) for i, (source, _) in enumerate(adapters)]
    job = _Job(opened, [weight for _, weight in adapters], aim, base)
    job.refuse_unlike()
    listener, stopper = progress or Silent(), stop or Stop()
    with AdapterOutput.open(
        Path(out), job.key, job.modules, job.arrangement, inputs=_folders(job.models), overwrite=overwrite
    ) as output:
        listener.phase("merging factors", 0)
        with threadpool_limits(limits=1, user_api="blas"):
            for name in sorted(job.kinds, key=natural_key):
                if stopper.asked:
                    raise InterruptedRunError("interrupted", fix="run the same command again")
                output.begin(name, ())
                output.end(job.merged(name))
        for _, model in job.models:
            model.check_unchanged()
        hashes = hash_files(job.models, stopper)
        late = output.publish(
            job.origin,
            side_files(None, opened[0][1].folder).files,
            lambda entries: adapter_manifest(job.models, hashes, entries, "merge-adapters", job.told),
        )
    how = (
        f", {len(job.cut)} of {len(job.kinds)} tensors truncated" if job.cut else ", exactly but for rounding"
    )
    note = f"{len(adapters)} adapters were merged by their factors{how}"
    seconds = time.perf_counter() - began
    return ExtractResult(str(out), output.pairs, (), (), output.nbytes, seconds, (note,), late)


@dataclass
class _Job:
    """Adapters opened and lined up."""

    opened: Sequence[tuple[str, OpenedModel]]
    weights: Sequence[float]
    goal: Goal
    base: OpenedModel | None
    parts: list[dict[str, AdapterPair]] = field(init=False)
    cut: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parts = [_pairs(model, self._specs) for _, model in self.opened]

    @property
    def _specs(self) -> Mapping[str, Spec] | None:
        return (
            self.base.checkpoint.specs if self.base is not None and self.base.checkpoint is not None else None
        )

    @property
    def models(self) -> list[tuple[str, OpenedModel]]:
        return [*([("base", self.base)] if self.base is not None else []), *self.opened]

    @property
    def kinds(self) -> dict[str, PairKind]:
        return {name: pair.kind for part in self.parts for name, pair in part.items()}

    @property
    def arrangement(self) -> Arrangement:
        return Arrangement(self.kinds, (), (), (), ())

    @property
    def modules(self) -> Modules:
        if self.base is not None and self._specs is not None:
            return Modules(self._specs, self.base.config or {})
        every = {name: pair for part in self.parts for name, pair in part.items()}
        return _Named({n: Spec(n, p.shape, DTYPES["float32"]) for n, p in every.items()}, {})

    @property
    def told(self) -> dict[str, Any]:
        return {"weights": list(self.weights), **vars(self.goal)}

    @property
    def key(self) -> str:
        parts = (__version__, self.told, [model.source for _, model in self.models])
        return xxhash.xxh3_128_hexdigest(repr(parts).encode())

    @property
    def origin(self) -> Origin:
        """Name the base, or what most of the adapters say they were trained on."""
        if self.base is not None:
            return Origin(self.base.name, self.base.revision)
        said = [m.adapter.base_name for _, m in self.opened if m.adapter is not None and m.adapter.base_name]
        return Origin(Counter(said).most_common(1)[0][0] if said else "")

    @property
    def dtype(self) -> str:
        types = {pair.dtype for part in self.parts for pair in part.values()}
        only = types.pop() if len(types) == 1 else "float32"
        return self.goal.dtype or (only if only in ("bfloat16", "float16") else "float32")

    def refuse_unlike(self) -> None:
        """Refuse adapters that do not change one and the same model in the same way."""
        if not self.parts:
            raise RefusedError("no adapters were given", where="merge_adapters", fix="give at least one")
        seen: dict[str, tuple[PairKind, tuple[int, ...]]] = {}
        for (_, model), part in zip(self.opened, self.parts, strict=True):
            for name, pair in part.items():
                if seen.setdefault(name, (pair.kind, pair.shape)) != (pair.kind, pair.shape):
                    raise RefusedError(
                        f"{printable(name, 120)} is changed as {pair.kind} {list(pair.shape)} by one adapter, and as "
                        f"{seen[name][0]} {list(seen[name][1])} by another",
                        where=printable(model.source),
                        fix="merge adapters of one base",
                    )

    def merged(self, name: str) -> Ending:
        """Merge one tensor and round it; the error is measured against the exact sum, in factor space too."""
        pairs = zip(self.weights, self.parts, strict=True)
        exact = concatenate([(weight, part[name].read()) for weight, part in pairs if name in part])
        limits = [r for r in (self.goal.rank, self.goal.max_rank) if r is not None]
        most = min([*limits, *exact.shape])
        near = exact
        if self.goal.error is not None or exact.rank > most:
            near, lost = recompress(exact, most, self.goal.error)
            if lost > _ROUNDING * norm(exact) ** 2:
                self.cut.append(name)
        with np.errstate(over="ignore"):
            left, right = (np.ascontiguousarray(f, numpy_type(self.dtype)) for f in (near.left, near.right))
        stored = Factors(left.astype(np.float64), right.astype(np.float64))
        if not (np.isfinite(stored.left).all() and np.isfinite(stored.right).all()):
            raise RefusedError(
                f"merged factors do not fit {self.dtype}", where=printable(name), fix="use float32"
            )
        missed = norm(concatenate([(1.0, exact), (-1.0, stored)]))
        return Ending({"left": left, "right": right}, norm(exact) ** 2, missed**2)


def _pairs(model: OpenedModel, specs: Mapping[str, Spec] | None) -> dict[str, AdapterPair]:
    if model.adapter is None:
        raise RefusedError("not an adapter", where=printable(model.source), fix="give PEFT adapter folders")
    return pairs_of(model.adapter, specs)


def _folders(models: Sequence[tuple[str, OpenedModel]]) -> list[Path]:
    return [p for _, m in models for p in ([m.folder] if m.folder else [Path(s.path) for s in m.files])]


def adapters_of_recipe(path: str | Path, base: OpenedModel) -> list[tuple[str, float]] | None:
    """Return the adapters that a recipe sums over `base`, with their weights times the scale.

    None for any other recipe: models that are no adapters or replace whole tensors, edits, another merge, schedules, a
    `where`, nesting, or a base of its own. Raises what reading the recipe raises.
    """
    recipe = load(path)
    if not _plain(recipe, base):
        return None
    found = []
    for entry in recipe.models:
        assert isinstance(entry.model, str)
        assert isinstance(entry.weight, (int, float))
        assert isinstance(recipe.scale, (int, float))
        source = entry.model
        model = open_model(source, relative_to=entry.relative_to)
        if model.adapter is None or model.adapter.full:
            return None
        local = entry.relative_to / source
        found.append((str(local) if local.exists() else source, float(entry.weight) * float(recipe.scale)))
    return found


def _plain(recipe: Recipe, base: OpenedModel) -> bool:
    numbers = [recipe.scale, *(entry.weight for entry in recipe.models)]
    return (
        type(recipe.merge) is Sum
        and recipe.space == "delta"
        and recipe.where == "*"
        and all(isinstance(n, (int, float)) for n in numbers)
        and all(isinstance(e.model, str) and not e.edits for e in recipe.models)
        and _same_base(recipe, base)
    )


def _same_base(recipe: Recipe, base: OpenedModel) -> bool:
    if not isinstance(recipe.base, str):
        return False
    try:
        other = open_model(recipe.base, relative_to=recipe.relative_to)
    except DeltasmithError:
        return False
    return [s.path for s in other.files] == [s.path for s in base.files]
