"""Ranks, sizes and the config of a mixture, without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from deltasmith.errors import DamagedInputError, RecipeError
from deltasmith.upscaling.settings import DENSE, Settings, added_parameters, config_document, weights_of

TWO = ("math", "code")


@pytest.mark.parametrize(
    ("experts", "router", "rank", "expected"),
    [(1, 8, 8, 7_272_665_088), (3, 8, 8, 7_334_531_072), (3, 8, 512, 11_298_148_352)],
)
def test_mistral_has_as_many_parameters_as_the_authors_report(experts, router, rank, expected):
    settings = Settings(tuple(map(str, range(experts))), router_rank=router, expert_rank=rank)
    shapes = [(4096, 4096)] * 2 + [(1024, 4096)] * 2 + [(14336, 4096)] * 2 + [(4096, 14336)]
    added = 32 * sum(added_parameters(*shape, settings) for shape in shapes)
    layer = sum(rows * columns for rows, columns in shapes) + 2 * 4096
    base = 32 * layer + 2 * 32000 * 4096 + 4096
    assert base + added == expected


def test_clip_has_as_many_parameters_as_the_authors_report():
    settings = Settings(tuple(map(str, range(8))), router_rank=16, expert_rank=32)
    shapes = [(768, 768)] * 4 + [(3072, 768), (768, 3072)]
    added = 12 * sum(added_parameters(*shape, settings, bias=True) for shape in shapes)
    layer = sum(rows * columns + rows for rows, columns in shapes) + 4 * 768
    base = 12 * layer + 768 * 3 * 32 * 32 + 768 + 50 * 768 + 4 * 768
    assert base + added == 141_203_712


def test_rank():
    assert Settings(TWO, expert_rank=64).rank(10, 20) == 10
    assert Settings(TWO, expert_rank=DENSE).rank(10, 20) == DENSE
    assert Settings(TWO, expert_rank=None, density=0.1).rank(39, 100) == 3
    assert Settings(TWO, expert_rank=None, density=0.01).rank(39, 100) == 1
    assert added_parameters(10, 20, Settings(TWO, router_rank=2, expert_rank=DENSE)) == 2 * (40 + 200)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"top_k": 0}, "--top-k is 0, and there are 2 experts; use 1 to 2"),
        ({"top_k": 3}, "--top-k is 3, and there are 2 experts; use 1 to 2"),
        ({"router_rank": 0}, "--router-rank is 0; use 1 or more"),
        ({"expert_rank": 0}, "--expert-rank is 0; use 1 or more, or -1 for whole deltas"),
        ({"expert_rank": -2}, "--expert-rank is -2; use 1 or more, or -1 for whole deltas"),
        ({"expert_rank": None, "density": 1.5}, "--density is 1.5; use a fraction above 0, at most 1"),
        ({"expert_rank": None, "density": 0.0}, "--density is 0.0; use a fraction above 0, at most 1"),
        (
            {"density": 0.5},
            "an expert has a rank or a density, and exactly one of them; give --expert-rank or --density",
        ),
        ({"weights": (1.0,)}, "1 weights are given for 2 experts; give one for each"),
        ({"experts": ()}, "a mixture needs at least one expert; name one"),
    ],
)
def test_numbers_out_of_range(changes, words):
    with pytest.raises(RecipeError) as caught:
        Settings(**{"experts": TWO, **changes}).check()
    assert str(caught.value) == words


def test_weights():
    assert weights_of({"code": 2}, TWO) == (0.0, 2.0)
    assert weights_of([1, 0.5], TWO) == (1.0, 0.5)
    with pytest.raises(RecipeError, match="no expert is labelled 'mathe'; use one of: math, code"):
        weights_of({"mathe": 1}, TWO)
    with pytest.raises(RecipeError, match="3 weights are given for 2 experts"):
        weights_of([1, 2, 3], TWO)


def test_config_keeps_the_base_and_comes_back():
    settings = Settings(TWO, top_k=2, weights=(1.0, 0.0), linears=("layers.0.q",))
    base = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}
    document = config_document(base, settings)
    assert document["base_config"] == base
    assert document["model_type"] == "deltasmith_smile"
    assert document["architectures"] == ["SmileLlamaForCausalLM"]
    assert document["torch_dtype"] == "bfloat16"
    assert Settings.from_json(document["smile"]) == settings


@pytest.mark.parametrize(
    "damage", [None, 3, {}, {"experts": ["a"], "top_k": 2}, {"experts": ["a"], "new": 1}]
)
def test_damaged_config(damage):
    with pytest.raises(DamagedInputError, match="`smile` section cannot be read"):
        Settings.from_json(damage)


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, deltasmith.upscaling, deltasmith.upscaling.settings, deltasmith.upscaling.build\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
