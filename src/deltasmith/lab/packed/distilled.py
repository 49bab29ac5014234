"""Scale distillation: a 1-bit expert before, and after its scales have seen data.

Paper: Liu et al. 2024, BitDelta, arXiv 2402.10193, section 3.1 and its settings: 200 steps of Adam at 1e-4, batches
of 4, 800 documents (there of C4). `general` data are what the base was pre-trained on, `task` data are training
problems of the expert's own task; neither holds a test item.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from deltasmith.codecs.catalogue import codec_name
from deltasmith.distillation.run import DistillResult, distill
from deltasmith.distillation.scales import SCALES
from deltasmith.formats.packed import open_packed
from deltasmith.lab import tasks as generator
from deltasmith.lab.bench import Bench
from deltasmith.lab.packed.containers import packed_expert, read_back
from deltasmith.lab.rows import Row
from deltasmith.packing import pack

__all__ = ["CODECS", "DATA", "DOCUMENTS", "run"]

CODECS = ("bitdelta", "bitdelta:scale=row", "residual_bits:passes=2")
DATA = ("general", "task")
DOCUMENTS = 800


def run(bench: Bench) -> Iterator[Row]:
    """Ask every expert in one and two bits the test items of its own task, before and after each distillation."""
    import torch

    torch.set_num_threads(1)
    for task in bench.tasks:
        for codec in CODECS:
            with packed_expert(bench, task, pack, codec=codec) as container:
                yield _row(bench, task, codec, "none", container.path, None)
                for kind in DATA:
                    data = container.folder / f"{kind}.jsonl"
                    _write(data, bench, task, kind)
                    out = container.folder / f"{kind}-distilled"
                    found = distill(
                        container.path, out, base=bench.base, model=bench.expert(task), data=data, length=96
                    )
                    yield _row(bench, task, codec, kind, out, found)


def _write(path: Path, bench: Bench, task: str, kind: str) -> None:
    """Write documents that depend on the training seed and nothing else of the family."""
    random = Random(f"{bench.train_seed} distill {kind} {task if kind == 'task' else ''}")
    if kind == "general":
        texts = generator.pretraining_text(random)
    else:
        texts = (f"{e.prompt}\n{e.answer}" for e in generator.examples(task, "train", random))
    lines = [json.dumps({"text": text}) for text in itertools.islice(texts, DOCUMENTS)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _mean_scale(path: Path) -> float:
    """Return the mean over tensors of their mean scale."""
    delta = open_packed(path).delta()
    names = [name for name in delta.names if codec_name(delta.codec(name)) in SCALES]
    arrays = [delta.source(name).whole(SCALES[codec_name(delta.codec(name))]) for name in names]
    return float(np.mean([np.mean(array) for array in arrays]))


def _row(bench: Bench, task: str, codec: str, data: str, path: Path, found: DistillResult | None) -> Row:
    coded = read_back(bench, path)
    keys: dict[str, Any] = {**bench.keys, "codec": codec, "data": data, "ratio": round(coded.ratio, 6)}
    keys |= {"error": round(coded.error, 6)}
    if found is not None:
        keys["factor"] = round(_mean_scale(path) / _mean_scale(path.with_name("packed")), 4)
        keys |= {
            "loss_before": round(found.before, 6),
            "loss_after": round(found.after, 6),
            "kept": found.step,
        }
    return Row(keys, task, bench.marks(coded.tensors, (task,), "test")[task])
