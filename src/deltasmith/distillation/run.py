"""The whole distillation: open, check, load both networks, train, write the container with its new scales."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deltasmith.codecs.protocol import Arrays
from deltasmith.distillation.documents import Data, prepare
from deltasmith.distillation.rewriting import Rewritten, rewrite
from deltasmith.distillation.scales import SCALES, Scaled, scaled
from deltasmith.engine.in_memory import Stored
from deltasmith.engine.workers import Stop
from deltasmith.errors import InterruptedRunError, RecipeError, RefusedError, printable
from deltasmith.evaluate.models.opening import is_recipe
from deltasmith.formats.claim import check_place, resolve_output
from deltasmith.formats.hashing import hash_bytes
from deltasmith.formats.opening import BaseNotFoundError, OpenedModel, find_base, open_model, split_label
from deltasmith.formats.packed import PackedDelta, open_packed
from deltasmith.formats.packed_model import PackedModel
from deltasmith.packing.material import gather
from deltasmith.table.checkpoint import Checkpoint, Floats

if TYPE_CHECKING:
    from deltasmith.distillation.training import Outcome, Settings

__all__ = ["DistillResult", "distill"]

_ROUNDED = 7
"""Significant digits of a loss that are written down: the same run gives the same bytes."""


@dataclass(frozen=True)
class DistillResult:
    """What a distillation has done: the validation loss before and after, and how many scales moved."""

    out: str
    label: str
    before: float
    after: float
    step: int
    steps: int
    tensors: int
    scales: int
    seconds: float
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {
            "out": self.out,
            "label": self.label,
            "loss_before": self.before,
            "loss_after": self.after,
            "kept_step": self.step,
            "steps": self.steps,
            "tensors": self.tensors,
            "scales": self.scales,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }


def distill(
    packed: str | Path,
    out: str | Path,
    *,
    model: str | Path,
    data: str | Path,
    base: str | Path | None = None,
    label: str | None = None,
    settings: Mapping[str, Any] | None = None,
    length: int = 128,
    device: str = "cpu",
    dtype: str = "auto",
    overwrite: bool = False,
    say: Callable[[int, float], None] = lambda step, loss: None,
    stop: Stop | None = None,
) -> DistillResult:
    """Train the scales of a packed delta so that its logits come near those of `model`, and write it to `out`.

    `packed` is PATH or PATH#LABEL, with tensors of `bitdelta` or `residual_bits`; all their scales learn together,
    and every other byte of the delta stays. `base` is the model it was packed against (default: the one that lies
    beside it), `model` the one that was packed (a folder, recipe or adapter), `data` a file of documents
    (`documents.read_documents`) of which pieces of `length` tokens are read, a tenth held out. `settings` are the
    fields of `training.Settings`.
    `dtype` is what both networks compute in: `auto` is float32 on a CPU, what the model is stored in elsewhere.
    Scales are chosen by the loss on what is held out, those as packed among them: it never rises.

    Memory: both networks in `dtype`, and a byte per weight and pass for the signs. The student is not rounded to the
    model's element type, as it is not when it runs packed; unpacking rounds.

    Raises:
        MissingExtraError: torch or transformers is missing. RecipeError: an option makes no sense.
        RefusedError: no scales to learn, or `model` is not the one that was packed.
        DamagedInputError: another base; data without documents; a model that does not load.
        ResourceError: memory or disk do not suffice. InterruptedRunError: asked to stop; nothing is written.
    """
    from deltasmith.evaluate.models.transformers_loading import check_device, require_transformers

    began, stopper = time.perf_counter(), stop or Stop()
    require_transformers()
    check_device(device)
    chosen = _settings(settings or {}, length)
    place, label = _place(str(packed), label)
    job = _job(open_packed(place).delta(label), str(model), base, device, dtype, stopper)
    inputs = [path for p in (place, data, model, base) if p is not None and (path := Path(p)).exists()]
    check_place(resolve_output(Path(out)), inputs, overwrite=overwrite)
    with ExitStack() as stack:
        outcome, read, notes = job.trained(Path(data), length, chosen, say, stopper, stack)
    if stopper.asked:
        raise InterruptedRunError("the distillation was interrupted", fix="run the same command again")
    changed = {name: job.rewritten(name, scale) for name, scale in outcome.scales.items()}
    history = _history(job.delta, outcome, read, chosen)
    warnings = rewrite(job.delta, Path(out), changed, history, inputs=inputs, overwrite=overwrite)
    return DistillResult(
        str(out),
        job.delta.label,
        outcome.before,
        outcome.after,
        outcome.step,
        len(outcome.training),
        len(changed),
        sum(scale.size for scale in outcome.scales.values()),
        time.perf_counter() - began,
        (*notes, *warnings),
    )


def _place(packed: str, label: str | None) -> tuple[Path, str | None]:
    """Split PATH#LABEL; a label that is also given must be the same."""
    place, inner = split_label(packed)
    if inner is not None and label not in (None, inner):
        raise RecipeError(
            f"two labels, {printable(inner, 80)!r} and {printable(str(label), 80)!r}",
            where="distill",
            fix="give one",
        )
    return Path(place), label if inner is None else inner


def _job(
    delta: PackedDelta, model: str, base: str | Path | None, device: str, dtype: str, stop: Stop
) -> _Job:
    """Open the base and the model that was packed, and find the tensors whose scales can learn."""
    ground = open_model(str(base)) if base is not None else None
    bound = PackedModel.over(delta, _checkpoint(ground) if ground is not None else _beside(delta))
    teacher = _teacher(delta, bound, ground, model, stop)
    return _Job(delta, bound, teacher, _tensors(delta), device, dtype)


def _beside(delta: PackedDelta) -> Checkpoint:
    try:
        return find_base(delta)
    except BaseNotFoundError as error:
        raise BaseNotFoundError(
            error.what, where=error.where, fix="give it with --base, or put it beside"
        ) from error


def _settings(fields: Mapping[str, Any], length: int) -> Settings:
    from deltasmith.distillation.training import Settings

    found = Settings(**fields)
    least = {"steps": found.steps, "batch": found.batch, "checks": found.checks, "length": length - 1}
    for name, value in least.items():
        if value < 1:
            raise RecipeError(f"{name} is {value + (name == 'length')}", fix="give a larger number")
    if not (np.isfinite(found.lr) and found.lr > 0):
        raise RecipeError(f"lr is {found.lr}", fix="give a positive number")
    if found.schedule not in ("constant", "cosine"):
        raise RecipeError(f"there is no schedule {printable(found.schedule)!r}", fix="use constant or cosine")
    return found


def _checkpoint(opened: OpenedModel) -> Checkpoint:
    if opened.checkpoint is None:
        raise RefusedError(
            "an adapter cannot be the base of a packed delta",
            where=printable(opened.source),
            fix="give the model that was packed against",
        )
    return opened.checkpoint


def _teacher(
    delta: PackedDelta, bound: PackedModel, ground: OpenedModel | None, model: str, stop: Stop
) -> Checkpoint:
    """Open the fine-tuned model, and refuse one that cannot be what was packed."""
    if ground is None:
        ground = open_model(
            f"{delta.packed.file.path}#{delta.label}"
        )  # any model would do, but for an adapter
        if not is_recipe(model) and open_model(model).checkpoint is None:
            raise RefusedError(
                "an adapter is not a model by itself", where=printable(model), fix="name --base"
            )
    found = gather(ground, model, "model", 1, stop).checkpoint
    wanted = {name: spec.shape for name, spec in bound.specs.items()}
    there = {name: spec.shape for name, spec in found.specs.items()}
    fix = "give the fine-tuned model that was packed"
    if different := sorted(
        name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name)
    ):
        raise RefusedError(
            f"{len(different)} tensors differ in name or shape from those packed, the first "
            f"{printable(different[0], 120)}",
            where=printable(model),
            fix=fix,
        )
    for name, record in delta.tensors.items():
        same_type = found.specs[name].dtype == record.spec.dtype
        known = record.xxh3_128 if same_type else None
        if known is not None and hash_bytes(found.raw(name, 0, record.spec.size)) != known:
            raise RefusedError(
                f"{printable(name, 120)} is not what was packed", where=printable(model), fix=fix
            )
    return found


def _arrays(delta: PackedDelta, name: str) -> Arrays:
    source = delta.source(name)
    return {part: source.whole(part) for part in source.specs}


def _tensors(delta: PackedDelta) -> dict[str, Scaled]:
    """Take every tensor with scales apart."""
    found = {}
    for name in delta.names:
        try:
            one = scaled(delta.codec(name), _arrays(delta, name), delta.cell(name))
        except (ValueError, KeyError) as cause:
            raise delta.damaged(name, cause) from cause
        if one is not None and delta.tensors[name].against_base:
            found[name] = one
    if not found:
        raise RefusedError(
            "the delta has no scales to learn", where=delta.where, fix=f"pack it with {' or '.join(SCALES)}"
        )
    return found


@dataclass(frozen=True)
class _Job:
    """The two networks of a distillation and what the student learns."""

    delta: PackedDelta
    bound: PackedModel
    teacher: Checkpoint
    tensors: Mapping[str, Scaled]
    device: str
    dtype: str

    def trained(
        self,
        data: Path,
        length: int,
        settings: Settings,
        say: Callable[[int, float], None],
        stop: Stop,
        stack: ExitStack,
    ) -> tuple[Outcome, Data, tuple[str, ...]]:
        """Load the networks, read the data and train."""
        from deltasmith.distillation.modules import install
        from deltasmith.distillation.training import train
        from deltasmith.evaluate.models.transformers_loading import load_tokenizer, memory_errors, quiet

        folder = self._folder()
        stack.enter_context(quiet())
        stack.enter_context(memory_errors(settings.batch))
        tokenizer = load_tokenizer(folder, printable(str(folder)))
        student, teacher = self._student(folder), self._loaded(folder, self.teacher)
        used = min(length, getattr(student.config, "max_position_embeddings", None) or length)
        read = prepare(data, lambda text: tokenizer.encode(text, verbose=False), used, settings.seed)
        scales = install(student, self.tensors)
        if not scales:
            raise RefusedError(
                "the network has no parameter of the names of the packed scales",
                where=self.delta.where,
                fix="pack a model that transformers loads under its own names",
            )
        padding = tokenizer.pad_token_id
        outcome = train(
            _logits(student),
            _logits(teacher),
            scales,
            read.training,
            read.validation,
            settings,
            device=self.device,
            padding=0 if padding is None else int(padding),
            say=say,
            asked=lambda: stop.asked,
        )
        return outcome, read, self._notes(len(scales), used, length)

    def _notes(self, found: int, used: int, asked: int) -> tuple[str, ...]:
        notes = []
        if found < len(self.tensors):
            notes.append(f"{len(self.tensors) - found} tensors with scales are no parameters and keep theirs")
        if used < asked:
            notes.append(f"pieces of {used} tokens, the model's longest input")
        return tuple(notes)

    def _folder(self) -> Path:
        """Return the folder with config and tokenizer."""
        folder = self.delta.packed.folder
        if folder is None or not (folder / "config.json").is_file():
            raise RefusedError(
                "the delta has no config.json beside it, so no network can be built",
                where=self.delta.where,
                fix="give the folder that `deltasmith pack` wrote",
            )
        return folder

    def _student(self, folder: Path) -> Any:
        """Build the network with the base's values where scales learn, and the packed model's elsewhere."""
        base = self.bound.base
        return self._loaded(folder, self.bound, dict.fromkeys(self.tensors, base))

    def _loaded(
        self, folder: Path, model: Checkpoint, instead: Mapping[str, Checkpoint] | None = None
    ) -> Any:
        from deltasmith.evaluate.models.transformers_loading import load_model

        sources = {name: (instead or {}).get(name, model) for name in model.specs}
        stored = {
            name: Stored(source.specs[name], memoryview(source.raw(name, 0, source.specs[name].size)))
            for name, source in sources.items()
        }
        kind: Any = "float32" if self.dtype == "auto" and self.device == "cpu" else self.dtype
        return load_model(folder, stored, dtype=kind, device=self.device, where=self.delta.where)[0]

    def rewritten(self, name: str, scale: Floats) -> Rewritten:
        """Return the new scales of a tensor and how far it now decodes from the fine-tuned one."""
        delta, one = self.delta, self.tensors[name]
        stored = one.restored(scale)
        arrays = {**_arrays(delta, name), one.array: stored}
        near = delta.codec(name).decode(arrays, delta.cell(name)).reshape(-1)
        wanted, ground = np.empty(near.size, np.float32), np.empty(near.size, np.float32)
        self.teacher.read(name, 0, wanted)
        self.bound.base.read(name, 0, ground)
        wanted -= ground
        rest = wanted.astype(np.float64)
        norm = float(rest @ rest)
        rest -= near
        return Rewritten({one.array: stored}, norm, float(rest @ rest))


def _logits(network: Any) -> Any:
    return lambda tokens: network(input_ids=tokens, use_cache=False).logits


def _history(delta: PackedDelta, outcome: Outcome, data: Data, settings: Settings) -> dict[str, Any]:
    """Write down what was done, after whatever was done before."""
    fields = {"steps", "lr", "batch", "seed", "schedule"}
    entry = {
        **{key: getattr(settings, key) for key in sorted(fields)},
        "length": data.length,
        "data_sha256": data.sha256,
        "documents": data.documents,
        "training_pieces": len(data.training),
        "validation_pieces": len(data.validation),
        "loss_before": _short(outcome.before),
        "loss_after": _short(outcome.after),
        "kept_step": outcome.step,
        "validation": [[step, _short(loss)] for step, loss in outcome.validation],
    }
    before = delta.packed.document.sources.get(delta.label, {})
    return {**before, "distilled": [*before.get("distilled", []), entry]}


def _short(loss: float) -> float | None:
    return float(f"{loss:.{_ROUNDED}g}") if np.isfinite(loss) else None
