"""Models opened by whatever names them: a recipe in memory is the folder that `merge` writes."""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile

import pytest

from deltasmith import api
from deltasmith.errors import MissingExtraError, RecipeError, RefusedError
from deltasmith.evaluate.items import load_suite
from deltasmith.evaluate.language import Continuation, Decoding
from deltasmith.evaluate.models.opening import is_recipe, open_language_model
from deltasmith.lab import EXPERTS, family_folder
from models import draw, write_adapter, write_fp8, write_model, write_recipe

FAMILY = family_folder()
RECIPE = {
    "preset": "della",
    "density": 0.7,
    "window": 0.14,
    "base": str(FAMILY / "base"),
    "models": [{"model": str(FAMILY / "small" / label), "label": label} for label in EXPERTS],
}
ITEMS = load_suite(FAMILY / "items", EXPERTS)[::50]
HAS_TORCH = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
RUNTIMES = ["numpy", pytest.param("torch", marks=pytest.mark.skipif(not HAS_TORCH, reason="needs torch"))]


def answers(opened):
    asked = [Continuation(item.prompt, item.answer, ends=True) for item in ITEMS]
    prompts = [item.prompt for item in ITEMS]
    return opened.model.likelihoods(asked), opened.model.generate(prompts, Decoding(24))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_recipe_answers_as_the_folder_that_merge_writes(tmp_path, runtime):
    api.merge(RECIPE, tmp_path / "out")
    written = open_language_model(tmp_path / "out", runtime=runtime)
    in_memory = open_language_model(RECIPE, runtime=runtime)
    assert answers(in_memory) == answers(written)
    expert = open_language_model(FAMILY / "small" / "math", runtime=runtime)
    assert answers(expert) != answers(written)
    assert (written.name, in_memory.name, expert.name) == ("out", "recipe", "math")
    assert len({written.fingerprint, in_memory.fingerprint, expert.fingerprint}) == 3


def test_a_recipe_writes_no_weights_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    written = []
    real = tempfile.TemporaryDirectory.cleanup

    def look(self):
        written.extend(p.name for p in tmp_path.rglob("*") if p.is_file())
        real(self)

    monkeypatch.setattr(tempfile.TemporaryDirectory, "cleanup", look)
    monkeypatch.setattr(tempfile.TemporaryDirectory, "__exit__", lambda self, *_: look(self))
    open_language_model(RECIPE, runtime="numpy")
    assert "config.json" in written
    assert not [name for name in written if name.endswith(".safetensors")]
    assert list(tmp_path.iterdir()) == []


def test_the_fingerprint_follows_what_decides_the_answers(tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(FAMILY / "small" / "math", folder)

    def mark(**options):
        return open_language_model(folder, runtime="numpy", **options).fingerprint

    first = mark()
    assert mark() == first
    assert mark(batch=3) == first
    assert mark(context=50) != first
    (folder / "README.md").write_text("a card")
    (folder / "manifest.json").write_text("{}")
    assert mark() == first
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    changed = mark()
    assert changed != first
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    assert mark() not in (first, changed)


def test_the_fingerprint_of_a_recipe_follows_its_settings():
    found = [
        open_language_model(RECIPE, runtime="numpy", overrides=given, seed=seed).fingerprint
        for given, seed in (((), None), ((), None), (("scale=0.9",), None), ((), 1))
    ]
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_a_recipe_file_is_named_after_itself(tmp_path):
    path = write_recipe(tmp_path / "mine.yaml", RECIPE)
    assert is_recipe(path)
    opened = open_language_model(str(path), runtime="numpy")
    assert opened.name == "mine"
    assert opened.fingerprint == open_language_model(RECIPE, runtime="numpy").fingerprint


def test_the_runtime_is_torch_where_it_can_be():
    opened = open_language_model(FAMILY / "base")
    assert opened.model.runtime.startswith("transformers" if HAS_TORCH else "numpy")


def test_without_torch_the_way_to_it_is_named(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "deltasmith.evaluate.models.opening.find_spec", lambda name: None if name == "torch" else real(name)
    )
    assert open_language_model(FAMILY / "base").model.runtime == "numpy"
    for options in ({"runtime": "torch"}, {"device": "cuda"}, {"dtype": "bfloat16"}):
        with pytest.raises(MissingExtraError, match=r'pip install "deltasmith\[eval\]"'):
            open_language_model(FAMILY / "base", **options)


def test_options_that_make_no_sense():
    with pytest.raises(RecipeError, match="no runtime 'jax'"):
        open_language_model(FAMILY / "base", runtime="jax")
    with pytest.raises(RecipeError, match="base is no recipe"):
        open_language_model(FAMILY / "base", runtime="numpy", overrides=["scale=1"])


def test_what_is_no_model_by_itself_is_refused(tmp_path):
    write_adapter(tmp_path / "adapter", draw(0), 1)
    with pytest.raises(RefusedError, match="an adapter is not a model by itself"):
        open_language_model(tmp_path / "adapter", runtime="numpy")
    with pytest.raises(RefusedError, match=r"without config\.json"):
        open_language_model(FAMILY / "base" / "model.safetensors", runtime="numpy")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_fp8_weights_answer_as_the_values_they_stand_for(tmp_path, runtime):
    values = write_fp8(tmp_path / "fp8", draw(0, vocab=100))
    write_model(tmp_path / "plain", values)
    found = []
    for folder in (tmp_path / "fp8", tmp_path / "plain"):
        config = json.loads((folder / "config.json").read_text())
        sizes = {"vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2}
        (folder / "config.json").write_text(json.dumps(config | sizes))
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copy(FAMILY / "base" / name, folder / name)
        found.append(answers(open_language_model(folder, runtime=runtime)))
    assert found[0] == found[1]
