"""Rewriting checkpoints as safetensors folders. Pickles are unpacked by a child process, never in this one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import xxhash

from deltasmith import __version__
from deltasmith.api import SHARD_BYTES, MergeResult, available_threads
from deltasmith.engine.evaluator import Evaluator
from deltasmith.engine.memory import DEFAULT_MEMORY, budget
from deltasmith.engine.progress import Progress, Silent
from deltasmith.engine.run import execute
from deltasmith.engine.workers import Stop
from deltasmith.errors import DamagedInputError, MissingExtraError, RefusedError, printable
from deltasmith.formats.fingerprint import sha256_of
from deltasmith.formats.layout import plan_layout
from deltasmith.formats.manifest import Lineage, Manifest
from deltasmith.formats.opening import OpenedModel, open_model
from deltasmith.formats.output import Output
from deltasmith.formats.publish import side_files
from deltasmith.planning.align import copy_of
from deltasmith.recipe.publication import input_record, tensor_records
from deltasmith.table.checkpoint import Checkpoint

__all__ = ["PICKLES", "convert", "copy_model"]

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_SECONDS = 3600


def convert(
    source: str | Path,
    out: str | Path,
    *,
    shard_size: int = SHARD_BYTES,
    overwrite: bool = False,
    stop: Stop | None = None,
) -> MergeResult:
    """Copy every tensor of `source`, bit for bit, into a safetensors folder `out`, with config and tokenizer.

    Raises MissingExtraError for pickles where torch is not installed, DamagedInputError for what cannot be read,
    RefusedError for adapters (merge them instead) and as `merge` does for `out`.
    """
    with _readable(Path(source)) as readable:
        model = open_model(str(readable), relative_to=Path())
        if model.checkpoint is None:
            raise RefusedError(
                f"{model.kind} is not a model by itself",
                where=printable(str(source)),
                fix="unpack it, with --base" if model.trainer is not None else "merge it",
            )
        return copy_model(
            model.checkpoint,
            model,
            Path(source),
            Path(out),
            shard_size=shard_size,
            overwrite=overwrite,
            stop=stop,
        )


def copy_model(
    checkpoint: Checkpoint,
    model: OpenedModel,
    source: Path,
    out: Path,
    *,
    kind: str = "convert",
    check: Callable[[dict[str, str]], None] = lambda digests: None,
    inputs: Sequence[Path] = (),
    base: OpenedModel | None = None,
    shard_size: int = SHARD_BYTES,
    overwrite: bool = False,
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> MergeResult:
    """Write every tensor of a checkpoint, byte for byte, to the folder `out`, with the side files of `model`.

    `kind` is what the manifest calls it; `check` sees the hashes of all tensors before anything is published, and
    raises if they will not do; `inputs` are further paths that must not be written over. `base` is the model that
    lends `model` its missing tensors and its side files, where that is not complete. Raises what `convert` raises.
    """
    began = time.perf_counter()
    plan = copy_of(checkpoint)
    layout = plan_layout([row.spec for row in plan.rows], shard_size)
    home, models = base or model, [model] if base is None else [base, model]
    hashes = [{file.name: sha256_of(file.path) for file in each.files} for each in models]
    stamp = xxhash.xxh3_128_hexdigest(
        repr((__version__, kind, layout.digest, [sorted(found.items()) for found in hashes])).encode()
    )
    limits = budget(plan, memory, threads or available_threads())
    guarded = [source, *(Path(file.path) for file in checkpoint.sources), *inputs]
    with Output.open(out, layout, stamp, overwrite=overwrite, inputs=guarded) as output:
        order = [name for shard in layout.shards for name in shard.tensors]
        execute(Evaluator(plan), output, order, limits, stop or Stop(), progress or Silent())
        for each in models:
            each.check_unchanged()
        check(output.finished)
        beside = side_files(home.folder, home.folder)
        names = [each.name for each in models[:-1]] + [source.name]
        labels = ("base", "delta")[: len(models)]
        records = [input_record(*each) for each in zip(labels, names, models, hashes, strict=True)]
        manifest = Manifest(
            __version__,
            {kind: source.name},
            0,
            records,
            Lineage("base", labels[1:], kind),
            tensor_records(plan, layout, output.finished),
            beside.warnings,
        )
        late = output.publish(beside.files, manifest.encode())
    nbytes = sum(file.nbytes for each in models for file in each.files)
    seconds = time.perf_counter() - began
    return MergeResult(str(out), len(plan.rows), nbytes, layout.nbytes, seconds, (*beside.warnings, *late))


@contextmanager
def _readable(source: Path) -> Iterator[Path]:
    """Yield the source itself, or the safetensors file that a child process made of a pickle."""
    if source.suffix not in PICKLES:
        yield source
        return
    if not source.is_file():
        raise DamagedInputError("no such file", where=printable(str(source)), fix="check the path")
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError(
            "reading a pickle needs torch",
            where=printable(str(source)),
            fix='pip install "deltasmith[torch]"',
        )
    with tempfile.TemporaryDirectory(prefix="deltasmith-") as folder:
        target = Path(folder) / "model.safetensors"
        command = [sys.executable, "-m", "deltasmith.unpickle", str(source.resolve()), str(target)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        if done.returncode or not target.is_file():
            reason = (done.stderr.strip().splitlines() or ["it could not be read"])[-1]
            raise DamagedInputError(
                printable(reason), where=printable(str(source)), fix="fetch safetensors instead"
            )
        yield target
