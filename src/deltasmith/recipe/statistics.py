"""The statistics files that stand beside the models of a recipe: for its merge, or for a model's edits."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping

from deltasmith.errors import DamagedInputError, RecipeError, RefusedError, printable
from deltasmith.formats.base_fingerprint import fingerprint
from deltasmith.formats.opening import OpenedModel, open_model
from deltasmith.operation.protocols import Edit
from deltasmith.planning.plan import Plan
from deltasmith.recipe.model import ModelEntry, Recipe
from deltasmith.recipe.together import reader_of
from deltasmith.table.checkpoint import Checkpoint

__all__ = ["FINGERPRINT", "MODEL", "on_disk", "open_statistics", "refuse_of_another", "refuse_unfit"]

_FORMAT = "deltasmith-stats-1"
_SHOWN = 8

MODEL, FINGERPRINT = "model", "model_fingerprint"
"""Where a statistics file's metadata keep the name and the fingerprint of the model they were taken of."""


def open_statistics(recipe: Recipe) -> tuple[OpenedModel | None, ...]:
    """Open the file of every model whose merge or edits read one; None for the others.

    Raises:
        RecipeError: a file that is needed is not named. DamagedInputError: it is not one of statistics.
        RefusedError: it is of another kind than the edit reads.
    """
    merge_reads = "statistics" in type(recipe.merge).model_fields
    return tuple(_opened(entry, merge_reads) for entry in recipe.models)


def _opened(entry: ModelEntry, merge_reads: bool) -> OpenedModel | None:
    reader = reader_of(entry)
    if not reader and not merge_reads:
        return None
    label = printable(entry.label)
    if entry.statistics is None:
        what = f"{reader or 'this merge'} needs a statistics file of this model"
        raise RecipeError(what, where=label, fix="add `statistics: FILE`")
    try:
        opened = open_model(entry.statistics, relative_to=entry.relative_to)
    except (DamagedInputError, RefusedError) as error:
        raise type(error)(f"{label}: {error.what}", where=error.where, fix=error.fix) from error
    if opened.checkpoint is None:
        raise DamagedInputError(
            f"{label}: not a statistics file",
            where=printable(entry.statistics),
            fix="give a .safetensors or .npz file of statistics",
        )
    if reader:
        _refuse_other_kind(entry, reader, getattr(opened.checkpoint, "metadata", {}))
    return opened


def _refuse_other_kind(entry: ModelEntry, reader: str, metadata: Mapping[str, str]) -> None:
    kind = next(edit.record.statistics for edit in entry.edits if edit.record.statistics)
    label, where = printable(entry.label), printable(str(entry.statistics))
    if metadata.get("format") != _FORMAT:
        fix = f"{reader} reads a file of kind '{kind}'"
        raise DamagedInputError(f"{label}: not a statistics file", where=where, fix=fix)
    if metadata.get("kind") != kind:
        held = printable(repr(metadata.get("kind", "")), 60)
        what = f"{label}: the statistics are of kind {held}, and {reader} reads the kind '{kind}'"
        raise RefusedError(what, where=where, fix=f"name a file of kind '{kind}' of this model")


def refuse_unfit(plan: Plan) -> None:
    """Refuse, all at once, tensors that an edit touches and its statistics lack or have in another shape."""
    for index, column in enumerate(plan.columns):
        if column.statistics is None:
            continue
        has, problems = column.statistics.specs, []
        for row in plan.rows:
            sites = row.edits[index] if row.edits else ()
            if not any(isinstance(s.record, Edit) and s.record.statistics for s in sites):
                continue
            found = has.get(row.name)
            if found is None:
                problems.append(f"{printable(row.name)} is missing")
            elif found.shape != row.spec.shape:
                shapes = f"{list(found.shape)} and not {list(row.spec.shape)}"
                problems.append(f"{printable(row.name)} is {shapes}")
        if problems:
            more = f", and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            what = f"the statistics of {printable(column.label)} do not fit the model"
            raise RefusedError(
                f"{what}: {', '.join(problems[:_SHOWN])}{more}", fix="collect them on this very model"
            )


def on_disk(model: OpenedModel) -> Checkpoint | None:
    """Return the checkpoint of a model that lies whole on disk; None for an adapter or any delta."""
    return None if model.packed is not None or model.trainer is not None else model.checkpoint


def refuse_of_another(
    label: str, model: OpenedModel, file: OpenedModel, stopped: Callable[[], bool] = lambda: False
) -> None:
    """Refuse statistics that were taken of another model, as far as the file and the model tell.

    Reads every byte of the model once, and remembers what it was while the files do not change. A file without a
    fingerprint is accepted, and so is any for a model that does not lie whole on disk.

    Raises:
        RefusedError: the fingerprint in the file is not the model's. InterruptedRunError: `stopped` became true.
    """
    metadata: Mapping[str, str] = getattr(file.checkpoint, "metadata", {})
    checkpoint, wanted = on_disk(model), metadata.get(FINGERPRINT)
    if wanted is None or checkpoint is None or fingerprint(checkpoint, stopped) == wanted:
        return
    place = shlex.quote(printable(str(model.folder or model.files[0].path)))
    kind = metadata.get("kind", "")
    option = f"--save-{kind}" if kind in ("gradient", "fisher", "gram") else "--save-KIND"
    raise RefusedError(
        f"the statistics of {printable(label)} were taken of another model "
        f"({printable(metadata.get(MODEL, 'unnamed'), 60)})",
        where=printable(file.source),
        fix=f"take its own: deltasmith loss {place} --from {place} --data FILE {option} FILE.safetensors",
    )
