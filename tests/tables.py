"""Small tables of checkpoints in memory, and a sink that keeps what the engine writes."""

from __future__ import annotations

from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

from deltasmith.engine.evaluator import Evaluator
from deltasmith.engine.memory import budget
from deltasmith.engine.progress import Silent
from deltasmith.engine.run import execute
from deltasmith.engine.workers import Stop
from deltasmith.operation.protocols import Edit, Merge
from deltasmith.planning.align import Wishes, align
from deltasmith.planning.plan import Column, EditRule, Plan
from deltasmith.table.checkpoint import DictCheckpoint

SHAPES = {
    "model.embed_tokens.weight": (300, 257),
    "model.layers.0.self_attn.q_proj.weight": (129, 257),
    "model.layers.0.mlp.experts.weight": (3, 50, 40),
    "model.layers.1.self_attn.q_proj.weight": (520, 300),
    "model.layers.1.conv.weight": (8, 4, 3, 3),
    "model.layers.1.norm.weight": (257,),
    "model.scalar": (),
    "model.empty": (0, 4),
    "model.one": (1,),
}


def table(
    seed: int, spread: float = 1.0, shapes: dict[str, tuple[int, ...]] = SHAPES
) -> dict[str, np.ndarray]:
    """Draw a table of float32 tensors."""
    rng = np.random.default_rng(seed)
    return {n: np.asarray(rng.normal(size=s) * spread, dtype=np.float32) for n, s in shapes.items()}


def family(experts: int = 3, tied: bool = False) -> tuple[dict, list[dict]]:
    """Return a base and fine-tunes of it; `tied` rounds everything so that many deltas are equal."""
    base = table(0)
    tunes = [{n: base[n] + d for n, d in table(i + 1, 0.05).items()} for i in range(experts)]
    if tied:
        base = {n: coarse(v) for n, v in base.items()}
        tunes = [{n: coarse(v) for n, v in t.items()} for t in tunes]
    return base, tunes


def coarse(values: np.ndarray) -> np.ndarray:
    """Round to bfloat16 and back."""
    return np.asarray(values.astype(ml_dtypes.bfloat16).astype(np.float32))


def make_plan(
    base: dict | None,
    tunes: list[dict],
    merge: Merge,
    edits: tuple[Edit, ...] = (),
    space: str = "delta",
    weights: tuple[float, ...] | None = None,
    **wishes: object,
) -> Plan:
    """Build a plan over dictionaries; every column gets the same edits."""
    rules = tuple(EditRule(edit) for edit in edits)
    weights = weights or (1.0,) * len(tunes)
    columns = tuple(
        Column(f"m{i}", DictCheckpoint(t), w, rules)
        for i, (t, w) in enumerate(zip(tunes, weights, strict=True))
    )
    ground = None if base is None else DictCheckpoint(base)
    return align(ground, columns, Wishes(merge, space, **wishes))  # type: ignore[arg-type]


@dataclass
class MemorySink:
    """Keeps bytes and hashes."""

    plan: Plan
    finished: dict[str, str] = field(default_factory=dict)
    data: dict[str, bytearray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.data = {row.name: bytearray(row.spec.nbytes) for row in self.plan.rows}

    def write(self, name: str, offset: int, data: memoryview) -> None:
        self.data[name][offset : offset + len(data)] = data

    def finish(self, name: str, digest: str) -> None:
        assert name not in self.finished
        self.finished[name] = digest

    def arrays(self) -> dict[str, np.ndarray]:
        """Return float32 outputs as arrays."""
        return {
            row.name: np.frombuffer(self.data[row.name], np.float32).reshape(row.spec.shape)
            for row in self.plan.rows
        }


def run(plan: Plan, threads: int = 1, tile: int | None = None, memory: int = 512 << 20) -> MemorySink:
    """Run a plan with the streaming engine."""
    sink = MemorySink(plan)
    order = [row.name for row in plan.rows]
    execute(Evaluator(plan), sink, order, budget(plan, memory, threads, tile), Stop(), Silent())
    assert set(sink.finished) == set(order)
    return sink
