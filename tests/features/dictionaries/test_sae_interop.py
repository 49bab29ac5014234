"""SAELens reads what we write, and we what it writes: the same codes and reconstructions to a hundred-thousandth.

Skipped without SAELens. To run it where SAELens is installed in an environment of its own, give that interpreter:
DELTASMITH_SAELENS_PYTHON=/path/to/bin/python pytest tests/features/dictionaries/test_sae_interop.py
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from sae_making import KINDS, begun, planted

from deltasmith.features.dictionaries.settings import JumpRelu, Optimiser, Relu, TopK
from deltasmith.features.dictionaries.storage import files, load
from deltasmith.features.dictionaries.trainer import Trainer

RIVAL = os.environ.get("DELTASMITH_SAELENS_PYTHON") or (
    sys.executable if importlib.util.find_spec("sae_lens") else None
)
pytestmark = pytest.mark.skipif(
    RIVAL is None, reason="needs SAELens: set DELTASMITH_SAELENS_PYTHON to an interpreter that has it"
)
THEIRS = {
    "standard": Relu(),
    "standard-unshifted": Relu(),
    "jumprelu": JumpRelu(),
    "topk": TopK(k=5),
    "topk-unshifted": TopK(k=5),
    "topk-rescaled": TopK(k=5),
    "topk-trained": TopK(k=5),
    "batchtopk-trained": JumpRelu(),
}


@pytest.fixture(scope="module")
def exchange(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("saelens")
    np.save(folder / "x.npy", planted(200, 4).numpy())
    for kind in KINDS:
        trainer = Trainer(begun(kind), Optimiser(), 20)
        for i in range(20):
            trainer.step(planted(64, i))
        place = folder / "ours" / kind.kind
        place.mkdir(parents=True)
        for name, data in files(trainer.finished([planted(500, 99)]), {"hook_name": "here:in"}).items():
            (place / name).write_bytes(data)
    side = Path(__file__).with_name("saelens_side.py")
    done = subprocess.run([str(RIVAL), str(side), str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(folder / "results.npz") as results:
        return folder, dict(results)


def check(exchange, name: str):
    folder, results = exchange
    dictionary = load(folder / name)
    raw = planted(200, 4)
    codes, made = results[f"{name}.codes"], results[f"{name}.made"]
    assert (codes > 0).any()
    np.testing.assert_allclose(dictionary.encode(raw).dense(), codes, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dictionary.reconstruct(raw), made, rtol=1e-5, atol=2e-5)
    return dictionary


@pytest.mark.parametrize("kind", KINDS)
def test_saelens_reads_ours(exchange, kind):
    found = check(exchange, f"ours/{kind.kind}")
    assert found.kind == kind
    assert str(exchange[1][f"ours/{kind.kind}.hook"]) == "here:in"


@pytest.mark.parametrize("name", THEIRS)
def test_we_read_theirs(exchange, name):
    found = check(exchange, f"theirs/{name}")
    assert found.kind == THEIRS[name]
    assert found.scale == 1.0
    assert found.decoder.dtype == torch.float32
