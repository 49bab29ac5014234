"""What `deltasmith pack` means: one model by rules, one within a budget, or several as EMR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltasmith.errors import RecipeError
from deltasmith.packing.pack import PackResult, pack

__all__ = ["pack_models"]


def pack_models(
    base: str,
    models: Sequence[str],
    out: str,
    *,
    codec: str,
    budget: float | None = None,
    among: Sequence[str] = (),
    **options: Any,
) -> PackResult:
    """Pack one model, or several with the codec `emr`; RecipeError for a combination that makes no sense."""
    if codec.partition(":")[0] == "emr":
        from deltasmith.packing.unified import pack_unified

        if budget is not None:
            raise RecipeError("--budget chooses codecs, and emr is one", where="pack")
        if options.pop("statistics", None) is not None:
            raise RecipeError("emr knows no --statistics", where="pack")
        return pack_unified(base, models, out, codec=codec, **options)
    if len(models) > 1:
        raise RecipeError(
            f"{len(models)} models were given",
            where="pack",
            fix="pack them one by one, or together with --codec emr",
        )
    if budget is not None:
        from deltasmith.packing.candidates import CANDIDATES
        from deltasmith.packing.frugal import pack_within

        return pack_within(base, models[0], out, budget=budget, among=among or CANDIDATES, **options)
    if among:
        raise RecipeError("--candidate is for --budget", where="pack")
    return pack(base, models[0], out, codec=codec, **options)
