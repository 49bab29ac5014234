"""`deltasmith upscale`: what it says, and its exit codes."""

from __future__ import annotations

import importlib.util
import json

import pytest

from models import check_refusal, family, run

HAS_TRANSFORMERS = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
needs_transformers = pytest.mark.skipif(not HAS_TRANSFORMERS, reason="needs torch and transformers")


@needs_transformers
def test_a_mixture(tmp_path):
    family(tmp_path, 2)
    result = run(
        "upscale", tmp_path / "base", tmp_path / "m0", tmp_path / "m1", tmp_path / "out",
        "--router-rank", "2", "--expert-rank", "4",
    )  # fmt: skip
    assert result.code == 0, result
    assert f"{tmp_path / 'out'}: 14 linears of 2 experts, 10,640 parameters (+86.3%)" in result.out
    assert "next: deltasmith evaluate" in result.out
    assert "note: m0 has changed lm_head.weight" in result.err


@needs_transformers
def test_json_and_options(tmp_path):
    family(tmp_path, 2)
    result = run(
        "upscale", tmp_path / "base", tmp_path / "m0", tmp_path / "m1", tmp_path / "out", "--json",
        "--preset", "twin", "--router-rank", "2", "--weights", "a=1,b=0.5", "--label", "a", "--label", "b",
        "--where", "*.mlp.*", "--shard-size", "8K",
    )  # fmt: skip
    assert result.code == 0, result
    assert result.document["experts"] == ["a", "b"]
    assert result.document["linears"] == 6
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    smile = json.loads((tmp_path / "out" / "config.json").read_text())["smile"]
    assert (smile["weights"], smile["top_k"], smile["density"]) == ([1.0, 0.5], 2, 0.1)


@needs_transformers
@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--top-k", "9"], 2, "--top-k is 9, and there are 2 experts"),
        (["--router-rank", "99"], 1, "--router-rank 99 is more than the 16 directions"),
        (["--weights", "m0"], 2, "'m0' is not LABEL=WEIGHT"),
        (["--weights", "m7=1"], 2, "no expert is labelled 'm7'"),
        (["--preset", "twin", "--density", "0"], 2, "--density is 0.0"),
    ],
)
def test_refusals(tmp_path, options, code, words):
    family(tmp_path, 2)
    out = tmp_path / "out"
    result = run("upscale", tmp_path / "base", tmp_path / "m0", tmp_path / "m1", out, *options, "--quiet")
    check_refusal(result, code, words)
    assert not out.exists()


@pytest.mark.skipif(HAS_TRANSFORMERS, reason="torch and transformers are installed")
def test_without_transformers(tmp_path):
    family(tmp_path, 1)
    result = run("upscale", tmp_path / "base", tmp_path / "m0", tmp_path / "out", "--quiet")
    check_refusal(result, 2, "upscaling needs torch and transformers", 'pip install "deltasmith[hf]"')
    assert not (tmp_path / "out").exists()
