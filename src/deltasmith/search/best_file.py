"""BEST.yaml: the recipe with its numbers filled in. Written whole or not at all, and over nothing but its like."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from deltasmith.errors import RefusedError, ResourceError
from deltasmith.recipe.yaml_file import to_yaml
from deltasmith.search.outcome import TrialResult, Tuned

__all__ = ["refuse_foreign", "refuse_other", "write_best"]

_HEAD = "# Written by deltasmith tune"
_SEARCH = "# Search: "


def refuse_foreign(out: Path) -> None:
    """Refuse a place that holds anything but an earlier result, before any work is done.

    Raises RefusedError, or ResourceError where nothing can be written beside `out`.
    """
    if not out.parent.is_dir():
        raise ResourceError("the folder does not exist", where=str(out.parent), fix="make it first")
    if out.is_dir():
        raise RefusedError("it is a folder", where=str(out), fix="name a file with --out")
    if out.exists() and not out.read_bytes().startswith(_HEAD.encode()):
        raise RefusedError(
            "there is a file that tune has not written", where=str(out), fix="choose another --out"
        )


def refuse_other(out: Path, digest: str, *, front: bool) -> None:
    """Refuse a place that holds the result of another search than `digest`, which may be the better one.

    With a `front` the places beside it that recipes of a front would get are looked at too, unless `out` is of
    this search. Raises RefusedError.
    """
    if out.exists() and _search_of(out) == digest:
        return
    beside = sorted(out.parent.glob(f"{glob.escape(out.stem)}.trial-*{glob.escape(out.suffix)}"))
    for path in (out, *(beside if front else ())):
        if path.exists() and _search_of(path) != digest:
            raise RefusedError(
                "it is the result of another search (recipe, models, tasks, sampler, objective, seed or version"
                " of deltasmith differ)",
                where=str(path),
                fix="name another --out, or give --overwrite to replace it",
            )


def _search_of(path: Path) -> str | None:
    """Return the digest in the head of a result, or None without one."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[:2]
    return next((line.removeprefix(_SEARCH).strip() for line in lines if line.startswith(_SEARCH)), None)


def write_best(tuned: Tuned, out: Path) -> list[Path]:
    """Write the best trial's recipe to `out`, and every other one of a Pareto front beside it; return all paths.

    Paths in the recipes count from their new place. Those of the front are called `STEM.trial-N.yaml`.
    """
    places = {tuned.best.number: out}
    for trial in tuned.front:
        places.setdefault(trial.number, out.with_name(f"{out.stem}.trial-{trial.number}{out.suffix}"))
    trials = {trial.number: trial for trial in (tuned.best, *tuned.front)}
    return [_write(tuned, trials[number], place) for number, place in places.items()]


def _write(tuned: Tuned, trial: TrialResult, out: Path) -> Path:
    refuse_foreign(out)
    mapping = tuned.marked.mapping(trial.values, out.parent)
    text = f"{_HEAD}: {_told(tuned, trial.figures)}, trial {trial.number} of {len(tuned.trials)}"
    text += f" ({tuned.sampler}, seed {tuned.seed}).\n"
    text += f"{_SEARCH}{tuned.digest}\n{to_yaml(mapping)}"
    part = out.with_name(f".{out.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(out)
    except OSError as cause:
        part.unlink(missing_ok=True)
        raise ResourceError(
            f"it cannot be written ({os.strerror(cause.errno or 0)})",
            where=str(out),
            fix="choose another --out",
        ) from cause
    return out


def _told(tuned: Tuned, figures: Sequence[float]) -> str:
    pairs = zip(tuned.objectives, figures, strict=True)
    return ", ".join(f"{goal.name} {figure:.4g} on validation" for goal, figure in pairs)
