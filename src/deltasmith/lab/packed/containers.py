"""One expert packed into a real container and read back: for what needs more than one tensor at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from deltasmith.formats.opening import open_model
from deltasmith.formats.packed import open_packed
from deltasmith.formats.packed_model import PackedModel
from deltasmith.lab.bench import Bench
from deltasmith.lab.packed.coding import BITS, Coded
from deltasmith.table.checkpoint import Floats

__all__ = ["Container", "packed_expert", "read_back"]


class Container:
    """A packed expert in a folder of its own."""

    def __init__(self, bench: Bench, task: str, folder: Path) -> None:
        """Say whose expert it is and where it lies."""
        self.bench, self.task, self.folder = bench, task, folder

    @property
    def path(self) -> Path:
        """Return the folder that `pack` writes."""
        return self.folder / "packed"


@contextmanager
def packed_expert(bench: Bench, task: str, pack: Callable[..., Any], **options: Any) -> Iterator[Container]:
    """Pack one expert with `pack(base, model, out, **options)` on one thread; the folder is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="deltasmith-") as root:
        found = Container(bench, task, Path(root))
        pack(bench.base, bench.expert(task), found.path, threads=1, **options)
        yield found


def read_back(bench: Bench, path: Path, label: str | None = None) -> Coded:
    """Unpack a container in memory, rounded as a written model is; bytes are those of its arrays."""
    delta = open_packed(path).delta(label)
    ground = open_model(str(bench.base)).checkpoint
    assert ground is not None
    model = PackedModel.over(delta, ground)
    specs = model.specs.values()
    nbytes = sum(spec.nbytes for name in delta.names for spec in delta.source(name).specs.values())
    size = sum(spec.size for spec in specs)
    records = delta.tensors.values()
    norm = sum(record.squared_norm or 0.0 for record in records)
    error = sum(record.squared_error or 0.0 for record in records)
    tensors = {spec.name: _read(model, spec.name) for spec in specs}
    return Coded(tensors, nbytes, 8 * nbytes / (BITS * size), float(np.sqrt(error / norm)) if norm else 0.0)


def _read(model: PackedModel, name: str) -> Floats:
    import ml_dtypes

    spec = model.specs[name]
    words = np.frombuffer(model.raw(name, 0, spec.size), ml_dtypes.bfloat16)
    values: Floats = words.astype(np.float32).reshape(spec.shape)
    return values
