"""`deltasmith distill` as a command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from deltasmith.lab import family_folder
from deltasmith.packing import pack
from models import check_refusal, run

FAMILY = family_folder()
FINE = FAMILY / "small/math"
DATA = FAMILY / "items/validation_math.jsonl"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "math"
    pack(FAMILY / "base", FINE, out, threads=1)
    return out


def command(packed: Path, out: Path, *more: object) -> tuple[object, ...]:
    fixed = ("distill", packed, out, "--base", FAMILY / "base", "--model", FINE, "--data", DATA)
    return (*fixed, "--steps", 2, "--batch", 2, *more)


def test_it_distils_and_says_what_it_did(packed: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    done = run(*command(packed, tmp_path / "a"))
    assert done.code == 0, done.err
    assert "28 scales of 28 tensors; validation loss 0." in done.out
    assert "step 2 of 2: validation loss" in done.err
    assert run("verify", tmp_path / "a").code == 0
    done = run(*command(packed, tmp_path / "b", "--json", "--schedule", "cosine", "--lr", "3e-4"))
    found = json.loads(done.out)
    assert done.err == ""
    assert found["loss_after"] <= found["loss_before"]
    labelled = Path(f"{packed}#math")
    assert run(*command(labelled, tmp_path / "a", "--quiet", "--overwrite")).out == ""
    check_refusal(run(*command(labelled, tmp_path / "c", "--label", "code")), 2, "two labels")
    check_refusal(run(*command(Path(f"{packed}#x"), tmp_path / "c")), 1, "no delta 'x'")


def test_without_transformers_it_names_the_extra(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    check_refusal(run(*command(packed, tmp_path / "a")), 2, 'pip install "deltasmith[eval]"')


def test_usage(packed: Path, tmp_path: Path) -> None:
    for more in (["--steps", 0], ["--lr", 0], ["--length", 1], ["--schedule", "x"]):
        assert run(*command(packed, tmp_path / "a", *more)).code == 2
    assert run("distill", packed, tmp_path / "a").code == 2
