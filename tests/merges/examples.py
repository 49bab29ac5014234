"""Records of every element-wise merge, for the shared contract suite, and tables for the tests beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deltasmith.merges.cabs import Cabs, CabsFilled, CabsWholeBlocks
from deltasmith.merges.consensus import Consensus
from deltasmith.merges.elect import Elect, ElectMax, ElectSum
from deltasmith.merges.emr import Emr
from deltasmith.merges.fisher import Fisher, FisherAdded
from deltasmith.merges.linear import Linear, LinearSum
from deltasmith.merges.mean import Mean
from deltasmith.merges.median import Median
from deltasmith.merges.passthrough import Passthrough
from deltasmith.merges.pcb import Pcb, PcbPairwise, PcbSigned
from deltasmith.merges.sce import Sce, SceMasked
from deltasmith.merges.sum import Sum
from deltasmith.merges.tall import Tall
from deltasmith.merges.unify import Unify
from deltasmith.operation.protocols import Merge

# Labels are those that `merge_table` gives by default. Those of FISHER_EXAMPLES need statistics per column.
MERGE_EXAMPLES: list[Merge] = [
    Sum(),
    Mean(),
    Linear(),
    LinearSum(),
    Median(),
    Elect(),
    Elect(zero="positive"),
    Elect(zero="majority"),
    ElectSum(),
    ElectMax(zero="majority"),
    Unify(),
    Emr(task="m0"),
    Emr(task="m1", rescaler="l1_tensor_mean"),
    Emr(task="m0", rescaler="l2"),
    Sce(),
    Sce(density=0.4),
    SceMasked(density=0.4),
    Consensus(k=2, mask_scale=0.3),
    Tall(task="m0"),
    Cabs(n=2, m=4),
    Cabs(n=3, m=5),
    CabsWholeBlocks(n=1, m=3),
    CabsFilled(n=1, m=1),
    Pcb(ratio=0.3),
    PcbSigned(ratio=0.3),
    PcbPairwise(ratio=0.3),
    Passthrough(model="m1"),
]

FISHER_EXAMPLES: list[Merge] = [
    Fisher(statistics={"m0": "a", "m1": "b"}),
    Fisher(statistics={"m0": "a", "m1": "b"}, norm="none", floored="all"),
    FisherAdded(statistics={"m0": "a", "m1": "b"}),
    FisherAdded(statistics={"m0": "a", "m1": "b"}, norm="none", floor=1e-3),
]

SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (7,), (4, 6), (3, 0), (2, 3, 5), (2, 3, 2, 2)]


def small_floats() -> st.SearchStrategy[float]:
    """Draw numbers with exact zeros, ties and cancellations: multiples of 1/4 in [-4, 4]."""
    return st.integers(-16, 16).map(lambda n: n / 4)


def rows(models: st.SearchStrategy[int] | None = None) -> st.SearchStrategy[Any]:
    """Draw (models, n) float32 cells."""
    count = st.integers(1, 5) if models is None else models
    shape = st.tuples(count, st.integers(0, 12))
    return shape.flatmap(lambda s: hnp.arrays(np.float32, s, elements=small_floats()))


def table(rng: np.random.Generator, shape: tuple[int, ...], scale: float = 1e-3) -> dict[str, Any]:
    """Return one column of three tensors, a tenth of whose elements are exactly 0."""
    shapes = {"a.weight": shape, "b.bias": (5,), "layers.0.w": (3, 4)}
    return {
        name: np.asarray(rng.normal(size=s) * scale * (rng.random(s) > 0.1), np.float32).reshape(s)
        for name, s in shapes.items()
    }
