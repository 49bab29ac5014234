"""`deltasmith pack`: what it says, and what its options do."""

from __future__ import annotations

import json
import re

import pytest

from containers import words
from deltasmith.formats.packed import open_packed
from models import check_refusal, family, run


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return family(tmp_path_factory.mktemp("cli-pack") / "models", experts=2)


def packing(models, out, *options, model="m0"):
    return run("pack", models.root / "base", models.root / model, out, *options)


def codecs(out):
    tensors = open_packed(out).delta().tensors
    return {n: type(r.codec).__name__ for n, r in tensors.items()}


def test_in_words(models, tmp_path):
    result = packing(models, tmp_path / "out")
    assert result.code == 0
    first, second = result.out.splitlines()
    size = r"[\d.]+ KiB"
    assert re.fullmatch(
        rf".*out: 21 tensors in {size}, [\d.]+ % of 16 bits an element; relative error 0\.[56]\d*; [\d.]+ s",
        first,
    )
    assert re.fullmatch(
        r"next: deltasmith inspect .*out, or deltasmith unpack .*out MODEL --base .*base", second
    )


def test_as_json_and_quiet(models, tmp_path):
    result = packing(models, tmp_path / "a", "--json")
    assert set(result.document) == {
        "out", "tensors", "nbytes", "elements", "bytes_read", "relative_error", "seconds", "notes", "warnings", "ratio",
    }  # fmt: skip
    assert result.err == ""
    result = packing(models, tmp_path / "b", "--quiet")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert (tmp_path / "a" / "delta.safetensors").read_bytes() == (
        tmp_path / "b" / "delta.safetensors"
    ).read_bytes()


def test_codec_where_rule_and_rest(models, tmp_path):
    packing(
        models, tmp_path / "out", "--quiet", "--codec", "claq:bits=2", "--where", "*.mlp.*",
        "--rule", "*.mlp.up_proj.*=sparse:values=float32", "--rule", "lm_head.weight={bitdelta: {scale: row}}",
        "--rest", "dense",
    )  # fmt: skip
    found = codecs(tmp_path / "out")
    assert found["model.layers.0.mlp.up_proj.weight"] == "Sparse"
    assert found["model.layers.1.mlp.down_proj.weight"] == "Claq"
    assert found["lm_head.weight"] == "BitDelta"
    assert found["model.layers.0.self_attn.q_proj.weight"] == "Dense"
    assert open_packed(tmp_path / "out").delta().codec("lm_head.weight").scale == "row"


def test_seed_threads_and_memory(models, tmp_path):
    for name, options in {"a": (), "b": ("--threads", "1", "--memory", "1G"), "c": ("--seed", "5")}.items():
        packing(models, tmp_path / name, "--quiet", "--codec", "bitdelta_random", *options)
    data = [(tmp_path / name / "delta.safetensors").read_bytes() for name in "abc"]
    assert data[0] == data[1] != data[2]


def test_notes_are_shown(models, tmp_path):
    result = packing(models, tmp_path / "out", "--where", "*", "--codec", "low_rank:rank=2")
    assert result.code == 0
    assert "lossless instead of low_rank:rank=2, because" in result.err


def test_overwrite(models, tmp_path):
    assert packing(models, tmp_path / "out", "--quiet").code == 0
    check_refusal(packing(models, tmp_path / "out", "--quiet"), 1, "--overwrite")
    assert packing(models, tmp_path / "out", "--quiet", "--overwrite", "--codec", "lossless").code == 0
    assert words(tmp_path / "out", models.root / "base") | {} == words(models.root / "m0")


def test_several_models_are_for_emr(models, tmp_path):
    result = run(
        "pack", models.root / "base", models.root / "m0", models.root / "m1", tmp_path / "out", "--quiet"
    )
    check_refusal(
        result, 2, "2 models were given in pack; pack them one by one, or together with --codec emr"
    )
    both = (models.root / "base", models.root / "m0", models.root / "m1")
    assert run("pack", *both, tmp_path / "emr", "--codec", "emr", "--quiet").code == 0
    assert open_packed(tmp_path / "emr").labels == ("m0", "m1")
    check_refusal(
        run("pack", *both, tmp_path / "x", "--codec", "emr", "--budget", "0.2", "--quiet"), 2, "--budget"
    )
    check_refusal(
        run("pack", *both[:2], tmp_path / "x", "--codec", "emr", "--quiet"), 1, "two models or more"
    )
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--rule", "nonsense"), "is not GLOB=CODEC"),
        (("--rule", "=dense"), "is not GLOB=CODEC"),
        (("--budget", "0"), "--budget"),
        (("--budget", "1.5"), "--budget"),
        (("--memory", "much"), "is not a size"),
        (("--threads", "0"), "--threads"),
        (("--colour",), "No such option"),
    ],
)
def test_usage(models, tmp_path, options, words):
    result = packing(models, tmp_path / "out", *options)
    assert result.code == 2
    assert words in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--codec", ""), "no codec is called ''"),
        (("--codec", "dense", "--budget", "0.5"), "--budget chooses codecs, and --codec names one"),
        (("--codec", "bitdelta", "--budget", "0.5"), "--candidate"),
        (("--codec", "", "--trainer", "xor"), "--codec would choose codecs"),
        (("--codec", "bitdelta:zeros=minus"), "codec bitdelta has no field 'zeros'; did you mean zero?"),
    ],
)
def test_options_that_make_no_sense(models, tmp_path, options, words):
    check_refusal(packing(models, tmp_path / "out", *options, "--quiet"), 2, words)
    assert not (tmp_path / "out").exists()


def test_too_few_arguments():
    assert run("pack").code == 2
    assert run("pack", "base", "model").code == 2
    assert "OUT" in run("pack", "--help").out


def test_an_interruption_is_one_line(models, tmp_path, monkeypatch):
    from deltasmith.engine import coding

    real = coding.run_jobs

    def asked(jobs, work, states, stop):
        stop.ask()
        real(jobs, work, states, stop)

    monkeypatch.setattr(coding, "run_jobs", asked)
    check_refusal(packing(models, tmp_path / "out", "--quiet"), 5, "run the same command again")
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_tells_the_codecs(models, tmp_path):
    packing(models, tmp_path / "out", "--quiet")
    recipe = json.loads((tmp_path / "out" / "manifest.json").read_text())["recipe"]
    assert recipe["pack"]["base"] == "base"
    assert recipe["pack"]["codecs"]["lm_head.weight"] == {"lossless": {}}
