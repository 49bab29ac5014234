"""The transformers model: the same answers as numpy, quiet, offline, and strict about what it loads."""

from __future__ import annotations

import json
import shutil
import socket

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deltasmith import api
from deltasmith.errors import DamagedInputError, RecipeError
from deltasmith.evaluate.items import load_suite
from deltasmith.evaluate.language import Continuation, Decoding
from deltasmith.evaluate.models.numpy_model import NumpyModel
from deltasmith.evaluate.models.opening import open_language_model
from deltasmith.lab import family_folder

pytest.importorskip("torch")
pytest.importorskip("transformers")

from deltasmith.evaluate.models.torch_model import TorchModel

pytestmark = pytest.mark.filterwarnings("default:::torch", "default:::transformers")

FAMILY = family_folder()
MATH = FAMILY / "small" / "math"
ITEMS = load_suite(FAMILY / "items", ["math"])[:12]
ASKED = [Continuation(item.prompt, item.answer, ends=True) for item in ITEMS] + [
    Continuation("", "Ada has"),
    Continuation("", "<bos>Ada has"),
    Continuation("Ada <eos> has 2", "5"),
    Continuation("x", "y" * 200),
    Continuation("x" * 200, "é"),
]
TEXT = "Ada has 25 cups and gives away 11.\nHow many <eos> now? é" * 5


@pytest.fixture(scope="module")
def model():
    return TorchModel.load(MATH, batch=5)


@pytest.fixture(scope="module")
def other():
    return NumpyModel.load(MATH, batch=7)


def test_numpy_and_torch_agree_on_likelihoods(model, other):
    for ours, theirs in zip(model.likelihoods(ASKED), other.likelihoods(ASKED), strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-3)
        assert (ours.tokens, ours.greedy) == (theirs.tokens, theirs.greedy)


def test_numpy_and_torch_agree_on_windows(model, other):
    for ours, theirs in zip(model.windows(TEXT), other.windows(TEXT), strict=True):
        assert ours.loss == pytest.approx(theirs.loss, abs=1e-3)
        assert (ours.tokens, ours.right) == (theirs.tokens, theirs.right)


@pytest.mark.parametrize("stop", [(), ("=",), ("1=", "2="), ("<eos>",)])
def test_numpy_and_torch_generate_the_same(model, other, stop):
    prompts = [item.prompt for item in ITEMS] + ["x" * 200, ""]
    decoding = Decoding(24, stop)
    ours = model.generate(prompts, decoding)
    assert ours == other.generate(prompts, decoding)
    assert sum(ours[i] == item.answer for i, item in enumerate(ITEMS)) >= (
        9 if stop in ((), ("<eos>",)) else 0
    )


def test_runtime_and_context(model):
    import transformers

    assert model.runtime == f"transformers {transformers.__version__} on cpu, float32"
    assert model.context == 96
    assert TorchModel.load(MATH, dtype="bfloat16", context=20).runtime.endswith("bfloat16")


def test_it_is_quiet_and_needs_no_network(model, monkeypatch, capfd):
    def refuse(*_, **__):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    fresh = TorchModel.load(MATH)
    fresh.generate(["x" * 300, "Ada"], Decoding(4))
    fresh.windows("x" * 300)
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


def test_a_generation_config_cannot_change_greedy_decoding(tmp_path, model):
    folder = copied(tmp_path / "m")
    settings = {"do_sample": True, "temperature": 2.0, "repetition_penalty": 5.0, "max_length": 3}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    prompts = [item.prompt for item in ITEMS[:3]]
    assert TorchModel.load(folder).generate(prompts, Decoding(24)) == model.generate(prompts, Decoding(24))


def test_every_end_token_of_the_generation_config_ends(tmp_path, model):
    folder = copied(tmp_path / "m")
    equals = model._tokenizer.encode_bare("=")[0]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, equals]}))
    prompts = [item.prompt for item in ITEMS[:3]]
    assert TorchModel.load(folder).generate(prompts, Decoding(24)) == model.generate(
        prompts, Decoding(24, ("=",))
    )


def copied(folder, *, drop=(), resize=(), **config):
    shutil.copytree(MATH, folder)
    document = json.loads((MATH / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(document | config))
    if drop or resize:
        import ml_dtypes  # noqa: F401 - numpy learns bfloat16 from it

        tensors = load_file(folder / "model.safetensors")
        for name in drop:
            del tensors[name]
        for name in resize:
            tensors[name] = np.ascontiguousarray(tensors[name][:-1])
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def damaged(folder):
    with pytest.raises(DamagedInputError) as caught:
        TorchModel.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_weights_are_an_error_that_names_them(tmp_path):
    names = ["model.norm.weight", "model.layers.0.mlp.up_proj.weight"]
    said = damaged(copied(tmp_path / "m", drop=names))
    assert "the weights lack model.layers.0.mlp.up_proj.weight, model.norm.weight" in said
    assert "the weights lack" in damaged(copied(tmp_path / "n", num_hidden_layers=5))


def test_weights_of_another_shape_are_an_error_that_names_them(tmp_path):
    said = damaged(copied(tmp_path / "m", resize=["model.norm.weight"]))
    assert "shapes do not fit: model.norm.weight ([95] in the file, [96] by the config)" in said


def test_weights_without_a_place_are_noted(tmp_path):
    notes = TorchModel.load(copied(tmp_path / "m", num_hidden_layers=3)).notes
    assert "no use for model.layers.3." in notes[0]
    assert "and 6 more" in notes[0]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json"),
        (lambda f: (f / "config.json").write_text('{"model_type": "abacus"}'), "abacus"),
        (lambda f: (f / "config.json").write_text('{"model_type": "t5"}'), "T5Config"),
        (lambda f: (f / "model.safetensors").write_bytes(b"nothing"), "cannot load"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
        (lambda f: [p.unlink() for p in f.glob("*token*")], "token"),
    ],
    ids=[
        "no config",
        "half a config",
        "unknown",
        "no causal model",
        "no weights",
        "weights absent",
        "no tokenizer",
    ],
)
def test_a_damaged_folder_is_one_line(tmp_path, spoil, words):
    folder = copied(tmp_path / "m")
    spoil(folder)
    assert words in damaged(folder)


def test_code_in_the_folder_is_never_run(tmp_path):
    canary = tmp_path / "canary"
    folder = copied(
        tmp_path / "m",
        model_type="own",
        auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"},
    )
    (folder / "own.py").write_text(f"open({str(canary)!r}, 'w')\nclass Own: pass\n")
    damaged(folder)
    assert not canary.exists()


SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
KINDS = {
    # transformers keeps a mixture's experts in one tensor and on disk apart; GPT-2's matrices lie transposed.
    "MixtralConfig": SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "GPT2Config": {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_answers_as_the_folder_that_merge_writes(tmp_path, kind):
    import torch
    import transformers

    config = getattr(transformers, kind)(**KINDS[kind], bos_token_id=1, eos_token_id=2)
    for seed, label in enumerate(("base", "a", "b")):
        torch.manual_seed(seed)
        small = transformers.AutoModelForCausalLM.from_config(config)
        small.save_pretrained(tmp_path / label)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copy(MATH / name, tmp_path / label / name)
    recipe = {
        "base": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / label), "label": label} for label in ("a", "b")],
        "preset": "ties",
    }
    api.merge(recipe, tmp_path / "out")
    asked = [Continuation("ab", "cde"), Continuation("Ada", " has")]
    answers = []
    for source in (recipe, tmp_path / "out", tmp_path / "a"):
        opened = open_language_model(source, runtime="torch")
        assert opened.notes == ()
        answers.append((opened.model.likelihoods(asked), opened.model.generate(["Ada has"], Decoding(8))))
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "cpu:", "cuda:x"])
def test_devices_that_are_not_there(device):
    with pytest.raises(RecipeError, match="device"):
        TorchModel.load(MATH, device=device)


def test_types_that_do_not_exist():
    with pytest.raises(RecipeError, match="no element type 'int7'"):
        TorchModel.load(MATH, dtype="int7")


def test_the_chat_template_is_rendered_in_a_sandbox(tmp_path, model):
    assert model.chat("hi") == "hi"
    folder = copied(tmp_path / "m")
    template = folder / "chat_template.jinja"
    template.write_text("{% for m in messages %}<bos>{{ m.role }}: {{ m.content }}\n{% endfor %}")
    chatting = TorchModel.load(folder)
    assert chatting.chat("hi") == "<bos>user: hi\n"
    assert chatting._tokenizer.encode(chatting.chat("hi"))[:2] != [1, 1]
    template.write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(DamagedInputError, match="the chat template fails"):
        TorchModel.load(folder).chat("hi")
