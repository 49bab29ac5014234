"""Result files: written whole or not at all, and never over another evaluation's."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from deltasmith.errors import DeltasmithError, RefusedError
from deltasmith.evaluate.results import Evaluation, load_evaluation
from deltasmith.formats.system import resource_error

__all__ = ["earlier_result", "refuse_another", "save", "write_whole"]


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under a name of its own beside `path`, then rename it; ResourceError where that fails."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with fresh.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as cause:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise resource_error(cause, path) from cause


def save(path: Path, evaluation: Evaluation) -> None:
    """Write a result file, whole."""
    write_whole(path, json.dumps(evaluation.as_json(), indent=1, ensure_ascii=False).encode() + b"\n")


def earlier_result(path: Path) -> Evaluation | None:
    """Read the result that lies at `path`; None where nothing does, RefusedError where it is something else."""
    if not path.exists():
        return None
    try:
        return load_evaluation(path)
    except DeltasmithError as cause:
        raise RefusedError(
            f"there is something that is not the result of an evaluation ({cause.what})",
            where=str(path),
            fix="choose another --out, or give --overwrite",
        ) from cause


def refuse_another(
    path: Path,
    earlier: Evaluation,
    wanted: Mapping[str, tuple[str, int]],
    model: tuple[str, str] | None = None,
) -> None:
    """Refuse to replace the result of another evaluation.

    `wanted` are digest and number of questions by task; `model` is fingerprint and runtime, once they are known.
    """
    found = {name: (task.digest, task.asked) for name, task in earlier.tasks.items()}
    which = sorted(n for n in {*found, *wanted} if found.get(n) != wanted.get(n))
    if which:
        what = f"there is a result of other questions ({', '.join(which[:5])})"
    elif model is not None and earlier.fingerprint != model[0]:
        what = f"there is a result of another model ({earlier.model})"
    elif model is not None and earlier.runtime != model[1]:
        what = f"there is a result that {earlier.runtime} computed, not {model[1]}"
    else:
        return
    raise RefusedError(what, where=str(path), fix="choose another --out, or give --overwrite")
