"""`deltasmith extract-lora`: what lies in the folder, what the command says, and its exit codes."""

from __future__ import annotations

import json

import pytest

from models import family, neighbours, run, tree, write_adapter, write_recipe


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return family(tmp_path_factory.mktemp("extract"), experts=1)


def test_an_adapter_is_written_and_described(models, tmp_path):
    before = tree(models.root)
    result = run("extract-lora", models.root / "base", models.root / "m0", tmp_path / "out", "--rank", 4)
    assert result.code == 0, result
    lines = result.out.splitlines()
    assert any(line.startswith("model.layers.*.mlp.up_proj.weight") and "rank 4" in line for line in lines)
    assert "14 pairs and 7 whole tensors" in lines[-1]
    assert "saved whole: " in result.err
    assert tree(models.root) == before
    assert neighbours(tmp_path / "out") == []
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 4
    assert run("verify", tmp_path / "out").code == 0
    recipe = {"base": "./base", "models": [{"model": str(tmp_path / "out")}]}
    merged = run("merge", write_recipe(models.root / "again.yaml", recipe), tmp_path / "merged")
    assert merged.code == 0, merged


def test_json_tells_every_tensor(models, tmp_path):
    arguments = ("--error", 0.5, "--dtype", "float32", "--embed-lora", "--json")
    result = run("extract-lora", models.root / "base", models.root / "m0", tmp_path / "out", *arguments)
    document = result.document
    assert len(document["tensors"]) == 16
    assert all(t["relative_error"] <= 0.5 + 1e-4 for t in document["tensors"].values())
    assert document["kinds"][0].keys() == {"kind", "tensors", "ranks", "relative_error"}
    assert document["bytes"] == (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    assert {name.split(".")[-2] for name in document["whole"]} == {
        "input_layernorm",
        "norm",
        "post_attention_layernorm",
    }


def test_globs_and_quiet(models, tmp_path):
    arguments = (
        "--include",
        "*.mlp.*",
        "--exclude",
        "*up_proj*",
        "--drop",
        "*norm*",
        "--drop",
        "lm_head*",
        "--quiet",
    )
    result = run("extract-lora", models.root / "base", models.root / "m0", tmp_path / "out", *arguments)
    assert (result.code, result.out, result.err) == (0, "", "")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "gate_proj"]
    assert config["modules_to_save"] == ["embed_tokens", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def test_a_sum_of_adapters_says_that_it_went_by_factors(models, tmp_path):
    for i in range(2):
        write_adapter(models.root / f"lora{i}", models.base, i)
    entries = [{"model": f"./lora{i}"} for i in range(2)]
    recipe = write_recipe(models.root / "sum.yaml", {"base": "./base", "models": entries})
    result = run("extract-lora", models.root / "base", recipe, tmp_path / "out")
    assert result.code == 0, result
    assert "2 adapters were merged by their factors, exactly" in result.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--rank", 2, "--error", 0.1), 2, "give one of rank, error and energy"),
        (("--rank", 0), 2, "--rank"),
        (("--energy", 1), 2, "--energy"),
        (("--drop", "nothing*"), 2, "no tensor matches"),
        (("--memory", "200M"), 4, "give --memory"),
    ],
)
def test_refusals(models, tmp_path, arguments, code, words):
    result = run("extract-lora", models.root / "base", models.root / "m0", tmp_path / "out", *arguments)
    assert result.code == code, result
    assert len(result.errors) == 1
    assert words in result.errors[0]
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_replaced_on_demand_only(models, tmp_path):
    arguments = (
        "extract-lora",
        models.root / "base",
        models.root / "m0",
        tmp_path / "out",
        "--quiet",
        "--rank",
    )
    assert run(*arguments, 1).code == 0
    assert run(*arguments, 2).code == 1
    assert run(*arguments, 2, "--overwrite").code == 0
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 2
    assert neighbours(tmp_path / "out") == []


def test_an_adapter_is_no_base(models, tmp_path):
    write_adapter(models.root / "lora", models.base, 0)
    result = run("extract-lora", models.root / "lora", models.root / "m0", tmp_path / "out")
    assert result.code == 1
    assert "cannot be the base of another" in result.errors[0]


def test_help_lists_the_command_and_its_options():
    assert "extract-lora" in run("--help").out
    text = run("extract-lora", "--help").out
    assert "--max-rank" in text
    assert "[default: 128" in text
