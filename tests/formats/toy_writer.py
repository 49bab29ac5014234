"""A small writer that drives `Output` as a run would; also a program, so that tests can kill it.

Usage: toy_writer.py OUT PAUSE [overwrite]
"""

import hashlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deltasmith.formats.hashing import ChunkHasher
from deltasmith.formats.layout import plan_layout
from deltasmith.formats.manifest import Lineage, Manifest, TensorRecord
from deltasmith.formats.output import Output
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES

PLAN = "0123456789abcdef0123456789abcdef"
PARTIAL = f"out.partial-{PLAN[:8]}"
SCRIPT = Path(__file__)
SPECS = [
    *(Spec(f"layers.{i}.w", (64, 100 + i), DTYPES["float32"]) for i in range(12)),
    Spec("scalar", (), DTYPES["bfloat16"]),
    Spec("empty", (0, 7), DTYPES["float32"]),
    Spec("steps", (5,), DTYPES["int64"]),
]
SHARD_BYTES = 100_000
SIDE_FILES = {
    "config.json": b'{"a": 1}\n',
    "README.md": b"# toy\n",
    "additional_chat_templates/x.jinja": b"{{ x }}",
}
PIECE = 9_001


def values(spec):
    """The bytes of a tensor: finite numbers that depend on its name alone."""
    seed = hashlib.sha256(spec.name.encode()).digest()
    data = bytearray((seed * (spec.nbytes // 32 + 1))[: spec.nbytes])
    width = spec.dtype.itemsize
    for i in range(width - 1, len(data), width):
        data[i] &= 0x3F  # no exponent of all ones
    return bytes(data)


def layout(specs=SPECS, shard_bytes=SHARD_BYTES):
    return plan_layout(specs, shard_bytes)


def manifest(output, specs=SPECS):
    shards = output.layout.shards
    tensors = {
        s.name: TensorRecord(
            s.dtype.name, s.shape, shards[output.layout.slots[s.name].shard].name, output.finished[s.name]
        )
        for s in specs
    }
    return Manifest("0", {"merge": "sum"}, 0, [], Lineage(None, (), "sum"), tensors).encode()


def write_tensor(output, spec):
    data = values(spec)
    hasher = ChunkHasher(spec.nbytes)
    for start in reversed(range(0, spec.nbytes, PIECE)):
        piece = memoryview(data)[start : start + PIECE]
        output.write(spec.name, start, piece)
        hasher.add(start, piece)
    output.finish(spec.name, hasher.digest())


def fill(output, specs=SPECS, threads=1, pause=0.0):
    def work(spec):
        time.sleep(pause)
        write_tensor(output, spec)

    todo = [s for s in specs if s.name not in output.finished]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, todo))
    return len(todo)


def produce(
    out, *, plan=PLAN, overwrite=False, inputs=(), threads=1, pause=0.0, specs=SPECS, shard_bytes=SHARD_BYTES
):
    """Write the whole toy model; return how many tensors had to be written."""
    with Output.open(
        Path(out), layout(specs, shard_bytes), plan, overwrite=overwrite, inputs=inputs
    ) as output:
        print(f"resuming with {len(output.finished)}", flush=True)
        count = fill(output, specs, threads, pause)
        output.publish(SIDE_FILES, manifest(output, specs))
    return count


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def opened(out, **options) -> Output:
    return Output.open(out, layout(), PLAN, **options)


def interrupted(out, specs=SPECS, **options):
    """Leave the partial folder of a run that was stopped after `specs`; return it."""
    try:
        with opened(out, **options) as output:
            fill(output, specs)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        return out.parent / PARTIAL


def environment(**extra):
    paths = [str(SCRIPT.parent), *(p for p in sys.path if p)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **extra}


def start(*arguments, **extra) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env=environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def failing(function, number, code):
    """Fail at the n-th call, as a shim under the writer would."""
    calls = 0

    def call(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls >= number:
            raise OSError(code, os.strerror(code))
        return function(*arguments, **options)

    return call


if __name__ == "__main__":
    produce(sys.argv[1], threads=2, pause=float(sys.argv[2]), overwrite="overwrite" in sys.argv[3:])
