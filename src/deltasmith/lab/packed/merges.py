"""Several experts at once: one static merge, EMR, a mixture (SMILE, Twin-Merging), or every expert packed by itself.

Papers: EMR, arXiv 2405.17461; SMILE, arXiv 2408.10174; Twin-Merging, arXiv 2406.15479. EMR, the packed experts and
Twin-Merging with given weights are told the task; the others are not. `ratio` is everything that is kept beside the
base, over all experts in 16 bits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltasmith.evaluate.items import score
from deltasmith.lab.bench import Bench
from deltasmith.lab.experiments import emr
from deltasmith.lab.packed.containers import read_back
from deltasmith.lab.rows import Marks, Row
from deltasmith.lab.tokens import BOS, EOS, CharTokenizer
from deltasmith.packing import pack
from deltasmith.packing.choosing import is_linear
from deltasmith.packing.unified import pack_unified
from deltasmith.table.checkpoint import Floats

__all__ = ["SMILE", "TWIN", "run", "smile_name"]

SMILE = ((1, 16, 1), (8, 8, 1), (8, 16, 1), (8, 32, 1), (8, -1, 1), (48, -1, 1), (8, 32, 2))
"""Router rank, expert rank (-1: the whole delta) and top k."""
TWIN = (0.1, 0.3)
"""Densities of Twin-Merging's exclusive experts: the paper's, and three times that."""
_STATIC = {"base": 0.0, "experts": 1.0}
_PACKED = ("bitdelta", "claq:bits=2")


def run(bench: Bench) -> Iterator[Row]:
    """Ask everything that stands for all experts the test items of every task."""
    count = len(bench.tasks)
    for row in emr.run(bench):
        method = str(row.keys["method"])
        shared = _STATIC.get(method, 1 / count)
        masked = method == "elect_mask" or method.startswith("emr")
        ratio = (16 + count) / (16 * count) if masked else shared
        yield Row({**row.keys, "ratio": round(ratio, 6)}, row.task, row.right)
    yield from _linears(bench)
    yield from _containers(bench)
    yield from _mixtures(bench)


def _linears(bench: Bench) -> Iterator[Row]:
    """The experts' linears between the base's embeddings, norms and head: what a perfect SMILE would be."""
    base = bench.tensors(bench.base)
    for task in bench.tasks:
        expert = bench.tensors(bench.expert(task))
        mixed = {name: expert[name] if is_linear(name, base[name].shape) else base[name] for name in base}
        yield _row(bench, "linears", 1.0, task, bench.marks(mixed, (task,), "test")[task])


def smile_name(router: int, rank: int, top: int) -> str:
    """Name a mixture by its numbers."""
    return f"smile: router {router}, rank {'whole' if rank < 0 else rank}, top {top}"


def _containers(bench: Bench) -> Iterator[Row]:
    """EMR as `pack` writes it, in 16 bits; and the experts packed one by one."""
    with tempfile.TemporaryDirectory(prefix="deltasmith-") as root:
        models = [bench.expert(task) for task in bench.tasks]
        out = Path(root) / "emr"
        pack_unified(bench.base, models, out, threads=1)
        coded = {task: read_back(bench, out, task) for task in bench.tasks}
        # Every label's arrays name the unified vector, which is stored once.
        ratio = float(np.mean([one.ratio for one in coded.values()])) - 1 + 1 / len(models)
        for task, one in coded.items():
            yield _row(bench, "emr_packed", ratio, task, bench.marks(one.tensors, (task,), "test")[task])
        for codec in _PACKED:
            packed = {}
            for task in bench.tasks:
                path = Path(root) / f"{task}-{codec.partition(':')[0]}"
                pack(bench.base, bench.expert(task), path, codec=codec, threads=1)
                packed[task] = read_back(bench, path)
            mean = float(np.mean([one.ratio for one in packed.values()]))
            for task, one in packed.items():
                yield _row(bench, codec, mean, task, bench.marks(one.tensors, (task,), "test")[task])


@dataclass(frozen=True)
class _Network:
    """A network of transformers that answers as the lab's own Llama does."""

    model: Any
    config: Mapping[str, Any]

    def logits_at(self, tokens: NDArray[np.int64], wanted: NDArray[np.bool_]) -> Floats:
        """Compute the logits where `wanted` is true; padding stands on the right."""
        import torch

        with torch.inference_mode():
            logits = self.model(input_ids=torch.from_numpy(tokens), use_cache=False).logits
        found: Floats = logits[torch.from_numpy(wanted)].float().numpy()
        return found


def _mixtures(bench: Bench) -> Iterator[Row]:
    import torch

    from deltasmith.upscaling.modelling import set_expert_weights

    torch.set_num_threads(1)
    for router, rank, top in SMILE:
        name = smile_name(router, rank, top)
        with _mixture(bench, router_rank=router, expert_rank=rank, top_k=top) as (network, ratio):
            for task in bench.tasks:
                yield _row(bench, name, ratio, task, _marks(bench, network, task))
    for density in TWIN:
        with _mixture(bench, preset="twin", density=density) as (network, ratio):
            for task in bench.tasks:
                yield _row(
                    bench, f"twin: density {density}, gates", ratio, task, _marks(bench, network, task)
                )
            for index, task in enumerate(bench.tasks):
                set_expert_weights(network.model, [float(n == index) for n in range(len(bench.tasks))])
                yield _row(bench, f"twin: density {density}, told", ratio, task, _marks(bench, network, task))


@contextmanager
def _mixture(bench: Bench, **options: Any) -> Iterator[tuple[_Network, float]]:
    """Write a mixture of all experts, load it, yield it with its ratio, and remove it again."""
    from deltasmith.evaluate.models.transformers_loading import load_model, quiet
    from deltasmith.upscaling.build import upscale
    from deltasmith.upscaling.modelling import register

    with tempfile.TemporaryDirectory(prefix="deltasmith-") as root:
        out = Path(root) / "mixture"
        made = upscale(bench.base, [bench.expert(task) for task in bench.tasks], out, **options)
        with quiet():
            register()
            model = load_model(out, None, dtype="float32", device="cpu", where=str(out))[0]
        # The shared expert of Twin-Merging is not the base: it is kept whole.
        shared = made.base_parameters if options.get("preset") == "twin" else 0
        added = made.parameters - made.base_parameters + shared
        config = {"bos_token_id": BOS, "eos_token_id": EOS}
        yield _Network(model, config), added / (len(bench.tasks) * made.base_parameters)


def _marks(bench: Bench, network: _Network, task: str) -> Marks:
    items: Sequence[Any] = bench.items(task, "test")
    right = score(network, CharTokenizer.load(bench.base), items, batch=20).correct[task]  # type: ignore[arg-type]
    return np.asarray(right, np.bool_)


def _row(bench: Bench, method: str, ratio: float, task: str, marks: Marks) -> Row:
    return Row({**bench.keys, "method": method, "ratio": round(ratio, 6)}, task, marks)
