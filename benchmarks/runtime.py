"""One decode step through the matrices of a decoder, for several fine-tunes: packed over one base, or whole copies.

python benchmarks/runtime.py [--device cuda] prints a table in Markdown. What runs is every linear layer of the
decoder blocks (q, k, v, o, gate, up, down at the given sizes, random weights), one token per row of the batch, no
attention and no cache, since these are the same for all. Each row of the batch belongs to another of the deltas:

- base: the base alone, all rows at once: what cannot be beaten;
- packed: the base and each row's own 1-bit delta (deltasmith.runtime);
- copies: a whole fine-tuned model per delta, each called on its own rows: what the runtime replaces.

Medians over the repetitions after two to warm up; on CUDA the clock is that of the device.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from deltasmith.codecs.bitdelta import BitDelta
from deltasmith.codecs.protocol import Cell
from deltasmith.runtime import HeldDelta, attach
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES

__all__ = ["main"]


class Block(nn.Module):
    """The matrices of one decoder block, in the order of a forward pass."""

    def __init__(self, hidden: int, inner: int, key: int) -> None:
        super().__init__()
        sizes = {"q": hidden, "k": key, "v": key}
        for name, size in sizes.items():
            setattr(self, f"{name}_proj", nn.Linear(hidden, size, bias=False))
        self.o_proj = nn.Linear(hidden, hidden, bias=False)
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Any) -> Any:
        q, _, _ = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        x = x + self.o_proj(q)
        return x + self.down_proj(self.gate_proj(x) * torch.sigmoid(self.up_proj(x)))


def stack(options: argparse.Namespace) -> nn.Module:
    with torch.device(options.device):
        blocks = [Block(options.hidden, options.inner, options.key) for _ in range(options.layers)]
        return nn.Sequential(*blocks).to(getattr(torch, options.dtype)).eval()


def random_delta(model: nn.Module, seed: int) -> HeldDelta:
    """Make a BitDelta of random signs for every matrix."""
    random, tensors = np.random.default_rng(seed), {}
    for name, value in model.named_parameters():
        spec = Spec(name, tuple(value.shape), DTYPES[str(value.dtype).removeprefix("torch.")])
        signs = random.integers(0, 256, -(-spec.size // 64) * 8, np.uint8)
        arrays = {"signs": signs, "scale": np.array([1e-4], np.float32)}
        tensors[name] = BitDelta(), arrays, Cell(spec, spec)
    return HeldDelta(tensors)


def median_ms(step: Callable[[], Any], device: str, repetitions: int) -> float:
    """Return the median time of a step in milliseconds."""
    for _ in range(2):
        step()
    found = []
    for _ in range(repetitions):
        if device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            step()
            end.record()
            torch.cuda.synchronize()
            found.append(begin.elapsed_time(end))
        else:
            start = time.perf_counter()
            step()
            found.append((time.perf_counter() - start) * 1e3)
    return statistics.median(found)


@torch.inference_mode()
def measure(options: argparse.Namespace, n_deltas: int, batch: int) -> tuple[str, ...]:
    model = stack(options)
    dtype = getattr(torch, options.dtype)
    x = torch.randn(batch, 1, options.hidden, dtype=dtype, device=options.device)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    base = median_ms(lambda: model(x), options.device, options.repetitions)
    # Rows of their own: torch takes a far slower path for rows cut out of a batch in bfloat16.
    pairs = [(stack(options), torch.rand_like(x[: len(x[i::n_deltas])])) for i in range(n_deltas)]
    whole = median_ms(lambda: [copy(part) for copy, part in pairs], options.device, options.repetitions)
    pairs.clear()
    runtime = attach(model, {str(i): random_delta(model, i) for i in range(n_deltas)})
    runtime.switch([str(i % n_deltas) for i in range(batch)] if n_deltas > 1 else "0")
    packed = median_ms(lambda: model(x), options.device, options.repetitions)
    held = weights + runtime.total_nbytes
    return (
        str(n_deltas),
        str(batch),
        f"{base:.2f}",
        f"{packed:.2f}",
        f"{whole:.2f}",
        f"{whole / packed:.2f}",
        f"{held / 1e9:.2f}",
        f"{n_deltas * weights / 1e9:.2f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default=None, help="default: float32 on a CPU, bfloat16 on CUDA")
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--inner", type=int, default=11008)
    parser.add_argument("--key", type=int, default=4096, help="width of keys and values")
    parser.add_argument("--layers", type=int, default=None, help="default: 1 on a CPU, 8 on CUDA")
    parser.add_argument("--deltas", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rows", type=int, default=1, help="rows of the batch per delta")
    parser.add_argument("--repetitions", type=int, default=9)
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    options.dtype = options.dtype or ("bfloat16" if on_gpu else "float32")
    options.layers = options.layers or (8 if on_gpu else 1)
    machine = torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine()
    print(
        f"{machine}, torch {torch.__version__}, {torch.get_num_threads()} threads, {options.dtype}; "
        f"{options.layers} blocks of {options.hidden} × {options.inner}; medians of {options.repetitions}\n"
    )
    print("| deltas | rows | base ms | packed ms | copies ms | copies ÷ packed | packed GB | copies GB |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for n_deltas in options.deltas:
        print("| " + " | ".join(measure(options, n_deltas, n_deltas * options.rows)) + " |", flush=True)


if __name__ == "__main__":
    main()
