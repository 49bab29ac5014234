"""What `deltasmith pack` means: one model by rules, one within a budget, several as EMR, or a trainer's delta."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltasmith.errors import RecipeError
from deltasmith.formats.trainer_delta import Encoding
from deltasmith.packing.choosing import LINEARS
from deltasmith.packing.single import PackResult, pack

__all__ = ["pack_models"]

_CODEC, _REST = "bitdelta", "lossless"
_RUN = ("overwrite", "progress", "stop")


def pack_models(
    base: str,
    models: Sequence[str],
    out: str,
    *,
    codec: str | None = None,
    budget: float | None = None,
    among: Sequence[str] = (),
    trainer: Encoding | None = None,
    **options: Any,
) -> PackResult:
    """Pack one model, or several with the codec `emr`; RecipeError for a combination that makes no sense."""
    if trainer is not None:
        chosen = {"--codec": codec, "--budget": budget, "--candidate": among} | _chosen(options)
        if given := [option for option, value in chosen.items() if value not in (None, (), [])]:
            raise RecipeError(
                f"--trainer stores the bytes that changed, and {', '.join(given)} would choose codecs",
                where="pack",
            )
        from deltasmith.packing.trained import pack_trained

        _refuse_several(models, "")
        run = {key: value for key, value in options.items() if key in _RUN}
        return pack_trained(base, models[0], out, encoding=trainer, **run)
    named, codec = codec is not None, _CODEC if codec is None else codec
    if codec.partition(":")[0] == "emr":
        from deltasmith.packing.unified import pack_unified

        if budget is not None:
            raise RecipeError("--budget chooses codecs, and emr is one", where="pack")
        if options.pop("statistics", None) is not None:
            raise RecipeError("emr knows no --statistics", where="pack")
        return pack_unified(base, models, out, codec=codec, **options)
    _refuse_several(models, ", or together with --codec emr")
    if budget is not None:
        if named:
            raise RecipeError(
                "--budget chooses codecs, and --codec names one",
                where="pack",
                fix="drop one of them, or offer codecs with --candidate",
            )
        from deltasmith.packing.candidates import CANDIDATES
        from deltasmith.packing.frugal import pack_within

        return pack_within(base, models[0], out, budget=budget, among=among or CANDIDATES, **options)
    if among:
        raise RecipeError("--candidate is for --budget", where="pack")
    return pack(base, models[0], out, codec=codec, **options)


def _chosen(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that decide which codec is for what, where they differ from their defaults."""
    defaults = {"where": LINEARS, "rest": _REST}
    return {
        option: value
        for option, key in (
            ("--rule", "rules"),
            ("--where", "where"),
            ("--rest", "rest"),
            ("--statistics", "statistics"),
        )
        if (value := options.get(key)) != defaults.get(key)
    }


def _refuse_several(models: Sequence[str], otherwise: str) -> None:
    if len(models) > 1:
        raise RecipeError(
            f"{len(models)} models were given", where="pack", fix=f"pack them one by one{otherwise}"
        )
