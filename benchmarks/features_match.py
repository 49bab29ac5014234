"""Measures what matching two dictionaries takes: all correlations of 16,384 x 16,384 latents over 240,000 tokens.

python benchmarks/features_match.py [WORK] [--out FILE] prints a table in Markdown. 32 latents fire on each token; half
of the child's firings are the parent's, the others are drawn anew, and some latents fire a hundred times as often as
others. Every run is a fresh process with one thread that loads the codes, compiles, and then measures its own CPU
seconds for the work and its own peak memory, everything included. The rival is scipy's product of sparse matrices,
1,024 parents at a time (the whole product has 10^8 entries or more), with what the tool reads off it done in numpy.
A dense product is told by its operations: they are 2 x tokens x latents squared. Linux only; needs scipy.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from machine import describe

TOKENS, LATENTS, FIRING = 240_000, 16_384, 32
REPETITIONS = 5
SMALL = 2_000  # tokens of the run that compiles
AT_ONCE = 1_024
PAIRS = 16_384


def drawn(seed: int, kept: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Draw codes: one latent out of each of 32 strata per token, the low ones of a stratum more often."""
    rng = np.random.default_rng(seed)
    stratum = LATENTS // FIRING
    places = (rng.random((TOKENS, FIRING), np.float32) ** 2 * stratum).astype(np.int32)
    latents = np.minimum(places, stratum - 1) + np.arange(FIRING, dtype=np.int32) * stratum
    if kept is not None:
        latents = np.where(rng.random(latents.shape, np.float32) < 0.5, kept.reshape(latents.shape), latents)
    return {
        "starts": np.arange(0, TOKENS * FIRING + 1, FIRING, dtype=np.int64),
        "latents": latents.reshape(-1),
        "values": rng.gamma(2.0, 0.5, latents.size).astype(np.float32) + np.float32(1e-3),
    }


def ours(work: Path, part: str) -> dict[str, float]:
    """Correlate, or resample the best pairs, as `features match` does."""
    from deltasmith.analysis.resampling import multiplicities
    from deltasmith.features.codes import Codes
    from deltasmith.features.matching.correlation import correlate
    from deltasmith.features.matching.moments import block_moments, blocks_of, resampled_r

    pair = [Codes(**load_file(work / f"{name}.safetensors"), width=LATENTS) for name in ("parent", "child")]
    few = [
        Codes(c.starts[: SMALL + 1], c.latents[: c.starts[SMALL]], c.values[: c.starts[SMALL]], LATENTS)
        for c in pair
    ]
    blocks = blocks_of(np.arange(TOKENS, dtype=np.int32) // 200)
    pairs = np.arange(PAIRS, dtype=np.int32), np.arange(PAIRS, dtype=np.int32)
    if part == "correlate":
        correlate(*few)
        start = time.process_time()
        found = correlate(*pair)
        return {
            "cpu": time.process_time() - start,
            "pairs": len(found.r),
            "sum": float(found.of_parents.r.sum()),
        }
    block_moments(*few, pairs, blocks[:SMALL])
    start = time.process_time()
    moments = block_moments(*pair, pairs, blocks)
    r = resampled_r(moments, multiplicities(len(moments.tokens), 0, 2000))
    return {"cpu": time.process_time() - start, "pairs": r.shape[1], "sum": float(r[0].sum())}


def scipys(work: Path, part: str) -> dict[str, float]:
    """Multiply sparse matrices, and turn the product into correlations, best partners and pairs."""
    from scipy.sparse import csr_matrix

    pair = [load_file(work / f"{name}.safetensors") for name in ("parent", "child")]
    start = time.process_time()
    a, b = (
        csr_matrix((c["values"].astype(np.float64), c["latents"], c["starts"]), (TOKENS, LATENTS))
        for c in pair
    )
    columns = a.T.tocsr()
    if part == "product":
        entries = sum((columns[at : at + AT_ONCE] @ b).nnz for at in range(0, LATENTS, AT_ONCE))
        return {"cpu": time.process_time() - start, "pairs": entries, "sum": 0.0}
    moments = []
    for matrix in (a, b):
        mean = np.asarray(matrix.mean(axis=0)).ravel()
        square = np.asarray(matrix.multiply(matrix).sum(axis=0)).ravel() - TOKENS * mean**2
        moments.append((mean, np.where(square > 0, 1 / np.sqrt(np.maximum(square, 1e-300)), 0)))
    (mean, inverse), (other_mean, other_inverse) = moments
    pairs, best = 0, []
    below = np.full((2, LATENTS), -2.0)
    for at in range(0, LATENTS, AT_ONCE):
        some = slice(at, at + AT_ONCE)
        r = (columns[some] @ b).toarray()
        r -= TOKENS * mean[some, None] * other_mean
        r *= inverse[some, None]
        r *= other_inverse
        pairs += len(np.nonzero(r >= 0.3)[0])
        best.append(np.partition(r, (-2, -1), axis=1)[:, -1])  # without saying which: that costs more
        below = np.partition(np.vstack((below, r)), (-2, -1), axis=0)[-2:]
    return {"cpu": time.process_time() - start, "pairs": pairs, "sum": float(np.concatenate(best).sum())}


def run(case: str, work: Path) -> dict[str, float]:
    """Measure one case in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(work), "--case", case]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    words = child.stdout.read() if child.stdout else b""
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise RuntimeError(f"{case}: status {os.waitstatus_to_exitcode(status)}")
    return {**json.loads(words), "peak": usage.ru_maxrss / 2**20}


CASES = {
    "`correlate`, all of it": ("ours", "correlate"),
    "scipy, the product alone": ("scipys", "product"),
    "scipy and numpy, product, correlations, best two, pairs": ("scipys", "whole"),
    "`block_moments` and 2,000 resamples of 16,384 pairs": ("ours", "resample"),
}


def dense_seconds() -> float:
    """Tell what the dense product would take at the rate of a smaller one."""
    a = np.ones((2048, 2048), np.float32)
    times = []
    for _ in range(5):
        start = time.process_time()
        a @ a
        times.append(time.process_time() - start)
    return float(2.0 * TOKENS * LATENTS**2 * statistics.median(times) / (2 * 2048**3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", nargs="?", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--case", help="measure this one here, as the others are in processes of their own")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    chosen = parser.parse_args()
    work = chosen.work / "features-match"
    if chosen.case:
        who, part = CASES[chosen.case]
        print(json.dumps(globals()[who](chosen.work, part)))
        return
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "child.safetensors").exists():
        parent = drawn(0)
        save_file(parent, work / "parent.safetensors")
        save_file(drawn(1, parent["latents"]), work / "child.safetensors")
    runs: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
    for _ in range(REPETITIONS):
        for case, done in runs.items():  # in turns, so that what else the machine does meets all of them
            done.append(run(case, work))
    figures = {
        case: {key: statistics.median(one[key] for one in done) for key in done[0]}
        for case, done in runs.items()
    }
    print(describe())
    print("| | CPU-s | peak GB | pairs | sum of r |\n|---|---:|---:|---:|---:|")
    for case, one in figures.items():
        print(f"| {case} | {one['cpu']:.2f} | {one['peak']:.2f} | {one['pairs']:,.0f} | {one['sum']:.3f} |")
    dense = dense_seconds()
    held = 2 * 4 * TOKENS * LATENTS / 2**30
    print(
        f"\nDense, in float32: about {dense:,.0f} CPU-s at this machine's rate, and {held:.0f} GB to hold both sides."
    )
    if chosen.out:
        chosen.out.write_text(
            json.dumps({"machine": describe(), "dense CPU-s": dense, "cases": figures}, indent=1)
        )


if __name__ == "__main__":
    main()
