"""Named arrays in one safetensors file, with errors that say which file is damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from deltasmith.errors import DamagedInputError, printable

__all__ = ["read_arrays", "written_arrays"]

Array = npt.NDArray[Any]


def written_arrays(arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a safetensors file that holds the arrays, the same for the same arrays."""
    return bytes(
        save({name: np.ascontiguousarray(a) for name, a in arrays.items()}, metadata=dict(metadata or {}))
    )


def read_arrays(
    path: Path, wanted: Mapping[str, type[np.generic]], *, sha256: str | None = None
) -> dict[str, Array]:
    """Read a safetensors file and check that it holds the wanted arrays in their element types.

    `sha256` is what study.json says of the file; None where it is not yet written.

    Raises:
        DamagedInputError: the file is missing, damaged, another than the one with that hash, or lacks an array.
    """
    where = printable(str(path))
    try:
        data = path.read_bytes()
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise DamagedInputError(
                "it is not what study.json says", where=where, fix="train the study again"
            )
        found = load(data)
    except OSError as cause:
        raise DamagedInputError(
            f"it cannot be read ({cause.strerror})", where=where, fix="train the study again"
        ) from cause
    except (SafetensorError, ValueError, KeyError) as cause:
        raise DamagedInputError(
            "it is no safetensors file", where=where, fix="train the study again"
        ) from cause
    for name, kind in wanted.items():
        if name not in found or found[name].dtype != np.dtype(kind):
            raise DamagedInputError(
                f"it lacks the array {name!r} of type {np.dtype(kind).name}",
                where=where,
                fix="train the study again",
            )
    return found
