"""Unpacking: base and delta, packed or a trainer's, become the fine-tuned model's folder again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deltasmith.api import MergeResult
from deltasmith.conversion import copy_model
from deltasmith.engine.progress import Progress, Silent
from deltasmith.errors import RefusedError, VerificationError, printable
from deltasmith.formats.opening import BaseNotFoundError, OpenedModel, open_model
from deltasmith.formats.packed import PackedDelta
from deltasmith.formats.packed_model import PackedModel
from deltasmith.packing.writing import open_base

__all__ = ["open_packed_model", "unpack"]


def open_packed_model(packed: str | Path, base: str | Path | None = None) -> tuple[OpenedModel, PackedModel]:
    """Open a packed delta with its base, checked: the one given, or the one that lies where it should.

    Raises:
        RefusedError: not a packed delta, or its base is nowhere. DamagedInputError: damaged, or another base.
    """
    opened = open_model(str(packed))
    if opened.packed is None or not isinstance(opened.checkpoint, PackedModel):
        raise RefusedError(
            "not a packed delta",
            where=printable(str(packed)),
            fix="give a folder that `deltasmith pack` wrote",
        )
    if base is None:
        try:
            _ = opened.checkpoint.base
        except BaseNotFoundError as error:
            raise BaseNotFoundError(
                error.what, where=error.where, fix=f"give it with --base, {error.fix}"
            ) from error
        return opened, opened.checkpoint
    ground = open_model(str(base))
    if ground.checkpoint is None:
        raise RefusedError(
            f"{ground.kind} cannot be the base of a packed delta",
            where=printable(str(base)),
            fix="give the model that was packed against",
        )
    return opened, PackedModel.over(opened.packed, ground.checkpoint)


def unpack(
    packed: str | Path, out: str | Path, *, base: str | Path | None = None, **options: Any
) -> MergeResult:
    """Write the fine-tuned model that `packed` stands for to the folder `out`: base plus delta, rounded once.

    Tensors of lossless codecs are the fine-tuned model's to the bit, which is checked by their hashes; the others
    are as near as `inspect` says. A trainer's delta names no base: one must be given, and every tensor is exact.
    `options` are those of `conversion.copy_model`. An interrupted call resumes.

    Raises:
        DamagedInputError: damaged, of a newer version, or another base. RefusedError: no base found, or as `merge`.
        VerificationError: a tensor that should be exact is not.
    """
    options["progress"] = _Unpacking(options.get("progress") or Silent())
    if (trained := open_model(str(packed))).trainer is not None:
        return _unpack_trained(trained, Path(packed), base, Path(out), options)
    opened, model = open_packed_model(packed, base)
    assert opened.packed is not None
    delta = opened.packed

    for name in delta.names:
        delta.decoder(name)  # arrays that cannot be a codec's are refused before anything is written

    def check(digests: dict[str, str]) -> None:
        model.check_unchanged()
        _refuse_inexact(delta, digests)

    homes = [Path(file.path).parent for file in model.sources]
    folders = [home for home in dict.fromkeys(homes) if (home / "config.json").exists()]
    return copy_model(
        model, opened, Path(packed), Path(out), kind="unpack", check=check, inputs=folders, **options
    )


class _Unpacking:
    """Calls the one phase that unpacking has by its name: a copy has nothing to survey or to merge."""

    def __init__(self, listener: Progress) -> None:
        self.listener = listener

    def phase(self, name: str, total: int) -> None:
        if name != "surveying":
            self.listener.phase("unpacking", total)

    def advance(self, nbytes: int) -> None:
        self.listener.advance(nbytes)


def _unpack_trained(
    opened: OpenedModel, source: Path, base: str | Path | None, out: Path, options: dict[str, Any]
) -> MergeResult:
    """Write the model that a trainer's delta makes of its base; its own checksums are checked on the way."""
    if base is None:
        raise RefusedError(
            "a trainer's delta does not say which model it changes",
            where=printable(opened.source),
            fix="give that model with --base",
        )
    ground = open_base(str(base))
    assert opened.trainer is not None
    assert ground.checkpoint is not None
    model = opened.trainer.bind(ground.checkpoint)
    return copy_model(model, opened, source, out, kind="unpack", base=ground, **options)


def _refuse_inexact(delta: PackedDelta, digests: dict[str, str]) -> None:
    """Compare the hashes of what was written with those of the fine-tuned model, where decoding is exact."""
    for name, record in delta.tensors.items():
        if record.xxh3_128 is not None and digests[name] != record.xxh3_128:
            raise VerificationError(
                f"{printable(name, 120)} did not come back to the bit", where=delta.where, fix="pack it again"
            )
