"""Records of the spherical and the matrix methods for the contract suite, and tools for their tests."""

from __future__ import annotations

import numpy as np
from hypothesis import settings

from deltasmith.edits.low_rank import LowRank
from deltasmith.merges.iso import IsoC, IsoCts
from deltasmith.merges.karcher import Karcher
from deltasmith.merges.model_stock import (
    ModelStock,
    ModelStockMergekit,
    ModelStockRows,
    ModelStockRowsMergekit,
)
from deltasmith.merges.multislerp import MultiSlerp, MultiSlerpUnnormalised
from deltasmith.merges.nuslerp import NuSlerp, NuSlerpColumns, NuSlerpRows
from deltasmith.merges.regmean import RegMean
from deltasmith.merges.slerp import Slerp, SlerpMergekit
from deltasmith.merges.tsv import Tsv, TsvLossless
from deltasmith.merges.twin import Twin, TwinMagnitude
from deltasmith.merges.wudi import Wudi
from deltasmith.operation.reference import merge_table

EDIT_EXAMPLES = [LowRank(density=0.5), LowRank(rank=1)]

MERGE_EXAMPLES = [
    Slerp(t=0.3),
    SlerpMergekit(t=0.3),
    NuSlerp(),
    NuSlerpRows(),
    NuSlerpColumns(),
    MultiSlerp(),
    MultiSlerpUnnormalised(),
    Karcher(),
    ModelStock(),
    ModelStockMergekit(),
    ModelStockRows(),
    ModelStockRowsMergekit(),
    Twin(task="m0", density=0.5),
    TwinMagnitude(task="m0", density=0.5),
    Tsv(),
    TsvLossless(),
    IsoC(),
    IsoCts(common=0.5),
    Wudi(steps=3),
]
"""All work on any two models with default labels. RegMean is apart: it refuses to run without statistics."""

REGMEAN_EXAMPLES = [RegMean(statistics={"m0": "m0.safetensors", "m1": "m1.safetensors"})]

SHAPES = [(), (0,), (1,), (7,), (0, 4), (1, 1), (3, 5), (5, 3), (2, 3, 4), (2, 3, 2, 2)]

quick = settings(deadline=None, max_examples=50)


def merged(operation, cells, name="w.weight", **options):
    """Merge one tensor of several models."""
    return merge_table(operation, [{name: cell} for cell in cells], **options)[name]


def drawn(seed, *shape, scale=1.0):
    """Draw float32 normal values."""
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def spectrum(matrix):
    """Return the singular values in float64."""
    return np.linalg.svd(np.asarray(matrix, dtype=np.float64), compute_uv=False)
