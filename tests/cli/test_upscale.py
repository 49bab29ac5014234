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
    assert "(lm_head.weight, …) were changed by m0; the base's are kept" in result.err


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


def examples(root):
    """Write example inputs of two experts, one file of lines and one of objects."""
    (root / "m0.txt").write_text("".join(f"w{i % 7}\n\n" * (i % 3 + 1) for i in range(9)))
    lines = [json.dumps({"question": f"w{i}", "answer": "w39"}) for i in range(20, 36)]
    (root / "m1.jsonl").write_text("\n".join(lines))
    (root / "more.txt").write_text("".join(f"w{i}\r\n" for i in range(7, 16)))
    return [f"--router-data=m0={root / 'm0.txt'}", f"--router-data=m0={root / 'more.txt'}"]


@needs_transformers
def test_a_router(tmp_path):
    family(tmp_path, 2)
    models = [tmp_path / "base", tmp_path / "m0", tmp_path / "m1", tmp_path / "out", "--preset", "twin"]
    options = [*examples(tmp_path), f"--router-data=m1={tmp_path / 'm1.jsonl'}", "--router-epochs=2"]
    result = run("upscale", *models, *options)
    assert result.code == 0, result
    lines = result.out.splitlines()
    assert " of 4 held-out examples sent to their expert, trained on 24 (epoch " in lines[1]
    assert (len(lines) == 3) == lines[1].startswith("router: 4 ")  # else which it takes for which
    assert "Loading" not in result.err
    again = run("upscale", *models, *options, "--router-seed=3", "--overwrite", "--json")
    found = again.document["router"]
    assert (found["trained"], found["epochs"], sum(map(sum, found["confusion"]))) == (24, 2, 4)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    router = manifest["recipe"]["upscale"]["router"]
    assert (router["seed"], router["data"]["m0"]["examples"], router["found"]) == (3, 16, found)


def test_what_a_router_takes_for_what():
    from deltasmith.cli.upscale import _routed
    from deltasmith.upscaling.examples import RouterReport

    lines = _routed(RouterReport(0.75, ((3, 1), (1, 3)), 64, 5, 15), ("a", "b"))
    assert lines == [
        "router: 6 of 8 held-out examples sent to their expert, trained on 64 (epoch 5 of 15)",
        "  a: 3 to a, 1 to b",
        "  b: 1 to a, 3 to b",
    ]


@needs_transformers
@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--router-data", "m1"], 2, "'m1' is not LABEL=FILE"),
        (["--router-data", "m1=nowhere.txt"], 3, "it cannot be read"),
        (["--router-data", "m1={root}/empty.txt"], 3, "it holds no example in {root}/empty.txt"),
        (["--router-data", "m1={root}/other.jsonl"], 3, "'text' is missing in {root}/other.jsonl:1"),
        ([], 2, "--router-data: there is none for m1"),
        (["--router-data", "m1={root}/m1.jsonl", "--weights", "m1=1"], 2, "--weights would overrule"),
        (["--router-data", "m2={root}/m1.jsonl"], 2, "no expert is labelled 'm2'"),
        (["--router-data", "m1={root}/m1.jsonl", "--preset", "smile"], 2, "add --preset twin"),
    ],
)
def test_router_data_that_is_refused(tmp_path, options, code, words):
    family(tmp_path, 2)
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "other.jsonl").write_text('{"answer": "w1"}\n')
    first = examples(tmp_path)[1]
    given = [option.replace("{root}", str(tmp_path)) for option in options]
    models = [tmp_path / "base", tmp_path / "m0", tmp_path / "m1", tmp_path / "out", "--preset", "twin"]
    result = run("upscale", *models, first, *given, "--quiet")
    check_refusal(result, code, words.replace("{root}", str(tmp_path)))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(HAS_TRANSFORMERS, reason="torch and transformers are installed")
def test_without_transformers(tmp_path):
    family(tmp_path, 1)
    result = run("upscale", tmp_path / "base", tmp_path / "m0", tmp_path / "out", "--quiet")
    check_refusal(result, 2, "upscaling needs torch and transformers", 'pip install "deltasmith[hf]"')
    assert not (tmp_path / "out").exists()
