"""Packing into the delta folders that RL trainers exchange: the bytes that changed, no codec."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from deltasmith.engine.progress import Progress, Silent
from deltasmith.engine.workers import Stop
from deltasmith.errors import InterruptedRunError
from deltasmith.formats.opening import OpenedModel
from deltasmith.formats.trainer_delta import Encoding
from deltasmith.formats.trainer_delta_writer import write_trainer_delta
from deltasmith.packing.material import gather
from deltasmith.packing.single import PackResult, label_of
from deltasmith.packing.writing import open_base

__all__ = ["pack_trained"]

_NAMED = re.compile(r"weight_v0*([1-9][0-9]{0,8})")


def pack_trained(
    base: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    encoding: Encoding = "xor",
    overwrite: bool = False,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> PackResult:
    """Write the bytes in which `model` differs from `base` to the folder `out`, laid out as RL trainers do.

    `model` is what `pack` takes. Exact to the bit. A folder called weight_v000007 holds version 7, made against
    version 6; under any other name it is version 1, made against 0. Config and tokenizer do not travel with it. One
    thread; memory as `write_trainer_delta`.

    Raises what `write_trainer_delta` raises, and InterruptedRunError: nothing is kept then.
    """
    began, stop = time.perf_counter(), stop or Stop()
    ground = open_base(str(base))
    material = gather(ground, str(model), label_of(model), 1, stop)
    assert ground.checkpoint is not None
    models = [ground, *(opened for _, opened in material.opened)]
    files = list(dict.fromkeys(source for opened in models for source in opened.files))
    named = _NAMED.fullmatch(Path(out).name)
    version = int(named[1]) if named else 1
    told = _Told(progress or Silent(), stop, tuple(models))
    told.progress.phase("packing", sum(spec.nbytes for spec in material.checkpoint.specs.values()))
    changed = write_trainer_delta(
        ground.checkpoint,
        material.checkpoint,
        Path(out),
        encoding=encoding,
        version=version,
        base_version=version - 1,
        inputs=[opened.folder or Path(opened.files[0].path) for opened in models],
        overwrite=overwrite,
        done=told.advance,
        check=told.check,
    )
    specs = material.checkpoint.specs.values()
    return PackResult(
        str(out),
        len(specs),
        sum(path.stat().st_size for path in Path(out).iterdir()),
        sum(spec.size for spec in specs),
        sum(file.nbytes for file in files),
        0.0,
        time.perf_counter() - began,
        (f"version {version} over {version - 1}: {changed:,} bytes changed",),
        material.warnings,
    )


@dataclass(frozen=True)
class _Told:
    progress: Progress
    stop: Stop
    models: tuple[OpenedModel, ...]

    def check(self) -> None:
        for opened in self.models:
            opened.check_unchanged()

    def advance(self, nbytes: int) -> None:
        if self.stop.asked:
            raise InterruptedRunError("interrupted", fix="run the same command again")
        self.progress.advance(nbytes)
