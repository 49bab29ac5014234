"""The explicit union of operations: which record each name stands for, in each dialect.

A record is written "module:Class" and imported when it is first asked for, so that this table costs nothing.
A new operation is one file and one line below; a test keeps the lines and the files together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any, Literal, get_args

from deltasmith.operation.protocols import Edit, Merge

__all__ = [
    "DIALECTS",
    "EDITS",
    "MERGES",
    "Choice",
    "Dialect",
    "Kind",
    "choice",
    "dialects",
    "name_of",
    "operation",
    "table",
]

Dialect = Literal["paper", "authors", "mergekit"]
Kind = Literal["edit", "merge"]
DIALECTS: tuple[Dialect, ...] = get_args(Dialect)


@dataclass(frozen=True)
class Choice:
    """A record class by name, and the defaults in which a dialect differs without needing its own class."""

    target: str
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> type[Edit] | type[Merge]:
        """Import the record class."""
        return _load(self.target)


@cache
def _load(target: str) -> type[Edit] | type[Merge]:
    module, _, name = target.partition(":")
    found: type[Edit] | type[Merge] = getattr(import_module(f"deltasmith.{module}"), name)
    return found


def _agree(target: str, *names: Dialect) -> dict[Dialect, Choice]:
    """One record for `paper` and for the named dialects, whose formula is the same."""
    return {"paper": Choice(target), **dict.fromkeys(names, Choice(target))}


_ZERO_IS_POSITIVE = {"zero": "positive"}

EDITS: Mapping[str, Mapping[Dialect, Choice]] = {
    # A multiple is the same multiple everywhere.
    "amplify": _agree("edits.amplify:Amplify", "authors", "mergekit"),
    # DARE's released code divides by 1 - p, as the paper does; mergekit matches L1 norms.
    "drop": {
        **_agree("edits.drop:Drop", "authors"),
        "mergekit": Choice("edits.drop:DropMatchL1"),
    },
    # `rescale: false` in both.
    "drop_unscaled": _agree("edits.drop:DropUnscaled", "authors", "mergekit"),
    # These four are in no released code and no other tool.
    "drop_partly": _agree("edits.drop_partly:DropPartly"),
    "bias_by_sign": _agree("edits.drop_biased:BiasBySign"),
    "bias_by_gradient": _agree("edits.drop_biased:BiasByGradient"),
    "quantise": _agree("edits.quantise:Quantise"),
    "drop_by_rank": {
        "paper": Choice("edits.drop_by_rank:DropByRank"),
        "authors": Choice("edits.drop_by_rank:DropByRankInclusive"),
        "mergekit": Choice("edits.drop_by_rank:DropByRankMatchL1"),
    },
    "keep_largest": {
        "paper": Choice("edits.keep_largest:KeepLargest"),
        "authors": Choice("edits.keep_largest:KeepAtLeast"),
        "mergekit": Choice("edits.keep_largest:KeepLargestInTensor"),
    },
    "keep_largest_in_tensor": _agree("edits.keep_largest:KeepLargestInTensor", "mergekit"),
    # The paper's text was not available: its dialect is the released code.
    "keep_middle": {
        **_agree("edits.keep_middle:KeepMiddleOfRow", "authors"),
        "mergekit": Choice("edits.keep_middle:KeepMiddleOfTensor"),
    },
    "dynamic_prune": {
        "paper": Choice("edits.dynamic_prune:DynamicPrune"),
        "authors": Choice("edits.dynamic_prune:DynamicPruneAbove"),
    },
    "amplify_partitions": {
        "paper": Choice("edits.amplify_partitions:AmplifyPartitions"),
        "authors": Choice("edits.amplify_partitions:AmplifyPartitionsEverywhere"),
    },
    "low_rank": _agree("edits.low_rank:LowRank", "authors"),
}

MERGES: Mapping[str, Mapping[Dialect, Choice]] = {
    # Weighted sums and means leave no room for two readings (mergekit's `normalize` chooses between the two).
    "sum": _agree("merges.sum:Sum", "authors", "mergekit"),
    "mean": _agree("merges.mean:Mean", "authors", "mergekit"),
    "linear": _agree("merges.linear:Linear", "authors", "mergekit"),
    "linear_sum": _agree("merges.linear:LinearSum", "mergekit"),
    "passthrough": _agree("merges.passthrough:Passthrough", "mergekit"),
    # mergekit counts a sum of exactly zero as positive; TIES' code does what the paper says.
    "elect": {
        **_agree("merges.elect:Elect", "authors"),
        "mergekit": Choice("merges.elect:Elect", _ZERO_IS_POSITIVE),
    },
    "elect_sum": {
        **_agree("merges.elect:ElectSum", "authors"),
        "mergekit": Choice("merges.elect:ElectSum", _ZERO_IS_POSITIVE),
    },
    "elect_max": _agree("merges.elect:ElectMax", "authors"),
    "median": _agree("merges.median:Median"),
    "unify": _agree("merges.unify:Unify", "authors"),
    "emr": {
        "paper": Choice("merges.emr:Emr"),
        "authors": Choice("merges.emr:Emr", {"rescaler": "l1_tensor_mean"}),
    },
    "sce": {
        **_agree("merges.sce:Sce", "authors"),
        "mergekit": Choice("merges.sce:SceMasked"),
    },
    "consensus": _agree("merges.consensus:Consensus", "authors"),
    "tall": _agree("merges.tall:Tall", "authors"),
    # The authors have two scripts; `cabs_filled` is the one for 7B models.
    "cabs": {
        "paper": Choice("merges.cabs:Cabs"),
        "authors": Choice("merges.cabs:CabsWholeBlocks"),
    },
    "cabs_filled": _agree("merges.cabs:CabsFilled", "authors"),
    # Three formulas from one repository; the papers' text was not available to choose between them.
    "pcb": _agree("merges.pcb:Pcb", "authors"),
    "pcb_signed": _agree("merges.pcb:PcbSigned", "authors"),
    "pcb_pairwise": _agree("merges.pcb:PcbPairwise", "authors"),
    "fisher": _agree("merges.fisher:Fisher", "authors"),
    "fisher_added": _agree("merges.fisher:FisherAdded"),
    "regmean": _agree("merges.regmean:RegMean"),
    "slerp": {
        "paper": Choice("merges.slerp:Slerp"),
        "mergekit": Choice("merges.slerp:SlerpMergekit"),
    },
    # mergekit's own methods; they part only where it has no sound answer (opposite and zero tensors).
    "nuslerp": _agree("merges.nuslerp:NuSlerp", "mergekit"),
    "nuslerp_rows": _agree("merges.nuslerp:NuSlerpRows", "mergekit"),
    "nuslerp_columns": _agree("merges.nuslerp:NuSlerpColumns", "mergekit"),
    "multislerp": _agree("merges.multislerp:MultiSlerp", "mergekit"),
    "multislerp_unnormalised": _agree("merges.multislerp:MultiSlerpUnnormalised", "mergekit"),
    "karcher": _agree("merges.karcher:Karcher", "mergekit"),
    "model_stock": {
        "paper": Choice("merges.model_stock:ModelStock"),
        "mergekit": Choice("merges.model_stock:ModelStockMergekit"),
    },
    "model_stock_rows": {
        "paper": Choice("merges.model_stock:ModelStockRows"),
        "mergekit": Choice("merges.model_stock:ModelStockRowsMergekit"),
    },
    "twin": _agree("merges.twin:Twin", "authors"),
    "twin_magnitude": _agree("merges.twin:TwinMagnitude", "authors"),
    "tsv": _agree("merges.tsv:Tsv", "authors"),
    "tsv_lossless": _agree("merges.tsv:TsvLossless", "authors"),
    "iso_c": _agree("merges.iso:IsoC", "authors"),
    "iso_cts": _agree("merges.iso:IsoCts", "authors"),
    "wudi": _agree("merges.wudi:Wudi", "authors"),
}


def table(kind: Kind) -> Mapping[str, Mapping[Dialect, Choice]]:
    """Return the names of one kind of operation and their dialects."""
    return EDITS if kind == "edit" else MERGES


def dialects(kind: Kind, name: str) -> tuple[Dialect, ...]:
    """List the dialects an operation knows, `paper` first."""
    known = table(kind)[name]
    return tuple(dialect for dialect in DIALECTS if dialect in known)


def choice(kind: Kind, name: str, dialect: Dialect) -> Choice | None:
    """Return what a name stands for in a dialect, or None where that dialect does not know the operation."""
    return table(kind)[name].get(dialect)


def operation(kind: Kind, name: str, dialect: Dialect = "paper", **fields: Any) -> Edit | Merge:
    """Build the record of an operation by name, with the dialect's defaults under the given fields.

    Raises KeyError for a name or dialect that does not exist, and pydantic's ValidationError for a bad field.
    """
    found = table(kind)[name][dialect]
    return found.load()(**{**found.defaults, **fields})


def name_of(record: Edit | Merge, dialect: Dialect = "paper") -> tuple[str, Dialect]:
    """Return a name and dialect that stand for the class of a record, the given dialect if it does.

    Raises KeyError for a record that is not in the catalogue.
    """
    target = f"{type(record).__module__.removeprefix('deltasmith.')}:{type(record).__name__}"
    for tried in (dialect, *DIALECTS):
        for name, choices in table("edit" if isinstance(record, Edit) else "merge").items():
            if tried in choices and choices[tried].target == target:
                return name, tried
    raise KeyError(f"{type(record).__name__} is not in the catalogue")
