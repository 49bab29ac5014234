"""What `deltasmith pack` means: one model by rules, one within a budget, several as EMR, or a trainer's delta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltasmith.codecs.catalogue import CodecLike, codec_from
from deltasmith.codecs.emr import Emr
from deltasmith.errors import RecipeError
from deltasmith.formats.trainer_delta import Encoding
from deltasmith.packing.single import PackResult, pack

__all__ = ["pack_models"]

_CODEC, _REST = "bitdelta", "lossless"
_RUN = ("overwrite", "progress", "stop")


def pack_models(
    base: str,
    models: Sequence[str],
    out: str,
    *,
    codec: CodecLike | None = None,
    where: str | None = None,
    budget: float | None = None,
    among: Sequence[str] = (),
    trainer: Encoding | None = None,
    **options: Any,
) -> PackResult:
    """Pack one model, or several with the codec `emr`; RecipeError for a combination that makes no sense.

    Without `where`, emr takes every floating tensor, and other codecs the `linears`.
    """
    options |= {} if where is None else {"where": where}
    if trainer is not None:
        named = {"--codec": codec, "--budget": budget, "--candidate": among}
        return _pack_trained(base, models, out, trainer, named, options)
    chosen = codec_from(_CODEC if codec is None else codec)
    if isinstance(chosen, Emr):
        return _pack_emr(base, models, out, chosen, budget, options)
    _refuse_several(models, ", or together with --codec emr")
    if budget is None:
        if among:
            raise RecipeError("--candidate is for --budget", where="pack", fix="give both, or a --codec")
        return pack(base, models[0], out, codec=chosen, **options)
    if codec is not None:
        raise RecipeError(
            "--budget chooses codecs, and --codec names one",
            where="pack",
            fix="drop one of them, or offer codecs with --candidate",
        )
    from deltasmith.packing.candidates import CANDIDATES
    from deltasmith.packing.frugal import pack_within

    return pack_within(base, models[0], out, budget=budget, among=among or CANDIDATES, **options)


def _pack_trained(
    base: str,
    models: Sequence[str],
    out: str,
    encoding: Encoding,
    named: Mapping[str, Any],
    options: Mapping[str, Any],
) -> PackResult:
    """Write a trainer's delta, which knows no codecs: `named` and some of `options` would choose them."""
    if given := [
        option for option, value in ({**named, **_chosen(options)}).items() if value not in (None, (), [])
    ]:
        raise RecipeError(
            f"--trainer stores the bytes that changed, and {', '.join(given)} would choose codecs",
            where="pack",
            fix="leave one or the other out",
        )
    from deltasmith.packing.trained import pack_trained

    _refuse_several(models, "")
    run = {key: value for key, value in options.items() if key in _RUN}
    return pack_trained(base, models[0], out, encoding=encoding, **run)


def _pack_emr(
    base: str,
    models: Sequence[str],
    out: str,
    codec: Emr,
    budget: float | None,
    options: dict[str, Any],
) -> PackResult:
    """Write one container of several models, and refuse what emr does not know."""
    if budget is not None:
        raise RecipeError(
            "--budget chooses codecs, and emr is one", where="pack", fix="leave one of them out"
        )
    if options.pop("statistics", None) is not None:
        raise RecipeError(
            "emr knows no --statistics", where="pack", fix="leave it out, or pack the models one by one"
        )
    from deltasmith.packing.unified import pack_unified

    return pack_unified(base, models, out, codec=codec, **options)


def _chosen(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that decide which codec is for what, where they differ from their defaults."""
    defaults = {"rest": _REST}
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
