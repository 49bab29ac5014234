"""The family itself: what the base and every expert can do on every task, its own and the others'."""

from __future__ import annotations

from collections.abc import Iterator

from deltasmith.lab.bench import Bench
from deltasmith.lab.rows import Row

__all__ = ["run"]


def run(bench: Bench) -> Iterator[Row]:
    """Ask the base and the experts of a regime the test items of all tasks."""
    models = {"base": bench.base, **{task: bench.expert(task) for task in bench.tasks}}
    keys = {"train_seed": bench.train_seed, "mask_seed": 0}
    for name, folder in models.items():
        marks = bench.marks(bench.tensors(folder), bench.tasks, "test")
        for task in bench.tasks:
            yield Row({**keys, "model": f"{bench.regime}/{name}"}, task, marks[task])
