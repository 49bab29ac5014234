"""Every expert packed in every way: accuracy on its own task against bytes.

Settings behind the claims of BitDelta (arXiv 2402.10193), its generalisations in A Unified View of Delta Parameter
Editing (arXiv 2410.13841, section on BitDelta), CLAQ (arXiv 2405.17233), DARE (arXiv 2311.03099) and DPPA (arXiv
2403.02799). Nothing is tuned, and only test items are asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from deltasmith.codecs.catalogue import codec_from
from deltasmith.lab.bench import Bench
from deltasmith.lab.packed.coding import Coded, Tensors, code, linears
from deltasmith.lab.packed.containers import packed_expert, read_back
from deltasmith.lab.packed.points import BUDGETS, POINTS, Point
from deltasmith.lab.rows import Row
from deltasmith.packing.frugal import pack_within
from deltasmith.table.checkpoint import Floats

__all__ = ["run"]


def run(bench: Bench, points: Sequence[Point] = POINTS, budgets: Sequence[float] = BUDGETS) -> Iterator[Row]:
    """Ask base and experts, and every expert packed at every point, the test items of its own task."""
    base = bench.tensors(bench.base)
    for task in bench.tasks:
        expert = bench.tensors(bench.expert(task))
        yield _row(bench, task, Point("base", "", ""), 0, Coded(base, 0, 0.0, 1.0))
        size = sum(value.size for value in expert.values())
        yield _row(bench, task, Point("expert", "", ""), 0, Coded(expert, 2 * size, 1.0, 0.0))
        for point in points:
            for draw in range(point.draws):
                edited = None if point.edit is None else _edited(bench, task, point, draw, base)
                coded = code(
                    base, expert, linears(codec_from(point.codec)), label=task, seed=draw, edited=edited
                )
                yield _row(bench, task, point, draw, coded)
        for budget in budgets:
            with packed_expert(bench, task, pack_within, budget=budget) as container:
                coded = read_back(bench, container.path)
            yield _row(bench, task, Point("budget", f"budget {budget}", ""), 0, coded)


def _edited(bench: Bench, task: str, point: Point, seed: int, base: Tensors) -> dict[str, Floats]:
    """Carry the point's edit out on the expert's delta, in float32."""
    recipe = bench.recipe([task], merge="sum", seed=seed, dtype="float32")
    recipe["models"][0]["edits"] = [point.edit]
    return {name: value - base[name] for name, value in bench.merged(recipe).items()}


def _row(bench: Bench, task: str, point: Point, draw: int, coded: Coded) -> Row:
    keys: dict[str, Any] = {**bench.keys, "mask_seed": draw, "group": point.group, "point": point.name}
    keys |= {"bytes": coded.nbytes, "ratio": round(coded.ratio, 6), "error": round(coded.error, 6)}
    return Row(keys, task, bench.marks(coded.tensors, (task,), "test")[task])
