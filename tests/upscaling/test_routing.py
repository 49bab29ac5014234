"""Models with a trained router: each row is weighed by its prompt, whatever stands beside it or follows."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers
from safetensors.numpy import load_file, save_file
from tiny_architectures import everything, family, load

import deltasmith.upscaling.auto  # noqa: F401 - registers
from deltasmith import api
from deltasmith.engine.workers import Stop
from deltasmith.errors import DamagedInputError, InterruptedRunError, RecipeError, RefusedError
from deltasmith.evaluate.language import Continuation
from deltasmith.evaluate.models.torch_model import TorchModel
from deltasmith.upscaling import router_job, shared
from deltasmith.upscaling.build import upscale
from models import neighbours, tokenizer, tree

pytestmark = pytest.mark.filterwarnings("default:::torch", "default:::transformers")
KINDS = ("llama", "qwen2", "mistral", "gpt2", "roberta")
LOW, HIGH = range(4, 7), range(24, 27)
"""The words of the two experts' inputs."""


def give_tokenizer(folder: Path, words: int = 40) -> None:
    """Write a tokenizer whose token i is `w{i}`, between blanks; 8 is padding, 9 the end."""
    (folder / "tokenizer.json").write_text(
        json.dumps(tokenizer(words) | {"pre_tokenizer": {"type": "WhitespaceSplit"}})
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "w8", "eos_token": "w9"})
    )


def inputs(words, count=40, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{i}" for i in rng.choice(words, size=rng.integers(3, 9))) for _ in range(count)]


EXAMPLES = {"m0": inputs(LOW, 200), "m1": inputs(HIGH, 200, seed=1)}


def twin(root, **options):
    folders = [root / "m0", root / "m1"]
    given = {"density": 1.0, "router_rank": 2, "router_data": EXAMPLES, "router_epochs": 100, **options}
    return upscale(root / "base", folders, root / "out", preset="twin", **given)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """For each architecture, once: the folder, the experts, and what upscaling said."""
    known = {}

    def make(kind):
        if kind not in known:
            root = tmp_path_factory.mktemp(kind)
            models = family(root, kind, 2, everything)
            give_tokenizer(root / "base")
            with pytest.MonkeyPatch.context() as patch:
                if kind == "qwen2":  # transformers makes byte pairs of any tokenizer beside this architecture
                    patch.setattr(
                        shared, "load_tokenizer", transformers.PreTrainedTokenizerFast.from_pretrained
                    )
                result = twin(root)
            known[kind] = root / "out", models[1:], result
        return known[kind]

    return make


FIRST, SECOND = [5, 4, 6, 6], [25, 26, 24, 24]
BATCH = torch.tensor([FIRST, SECOND, FIRST[::-1]])


def near(got, wanted):
    """Within what a weight of 0.99 instead of 1 makes of logits whose experts differ by several."""
    torch.testing.assert_close(got, wanted, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_gets_its_own_expert(made, kind):
    folder, experts, result = made(kind)
    assert result.router.accuracy == 1.0
    assert result.router.confusion == ((18, 0), (0, 17))
    model = load(kind, folder)
    mask = torch.ones_like(BATCH)
    with torch.inference_mode():
        got = model(BATCH, attention_mask=mask).logits
        each = [expert(BATCH, attention_mask=mask).logits for expert in experts]
        alone = [model(row[None], attention_mask=mask[:1]).logits[0] for row in BATCH]
    for row, expert in enumerate((0, 1, 0)):
        near(got[row], each[expert][row])
        torch.testing.assert_close(got[row], alone[row], atol=1e-4, rtol=1e-4)
    assert (each[0] - each[1]).abs().max() > 0.5
    assert model._mixture.weights is None
    assert not model._mixture.alone


def test_the_shared_expert_alone_reads_the_prompt(made):
    folder, _, _ = made("gpt2")
    model = load("gpt2", folder)
    with torch.inference_mode():
        weights = model(BATCH, use_cache=True).past_key_values._deltasmith_weights
        model.set_expert_weights([0, 0])
        states = model.transformer(BATCH).last_hidden_state.mean(dim=1)
        torch.testing.assert_close(weights, model.smile_router(states))
        model.set_expert_weights(weights)
        got = model(BATCH).logits
        model.set_expert_weights(None)
        assert torch.equal(model(BATCH).logits, got)


def test_padding_has_no_influence(made):
    folder, _, _ = made("llama")
    model = load("llama", folder)
    mixed = torch.tensor([[*FIRST, 8, 8], [*SECOND, 26, 25]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    with torch.inference_mode():
        wanted = model(mixed[:1, :4]).logits[0]
        other = mixed.clone()
        other[0, 4:] = torch.tensor([24, 25])  # what is masked could be anything
        for tokens, given in ((mixed, mask), (other, mask), (mixed, None)):
            got = model(tokens, attention_mask=given).logits
            torch.testing.assert_close(got[0, :4], wanted, atol=1e-5, rtol=1e-5)
        unmasked = model(other).logits[0, :4]
    assert (unmasked - wanted).abs().max() > 1e-4


OPTIONS = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 8, "eos_token_id": None}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_generation_keeps_the_prompts_weights(made, kind):
    folder, experts, _ = made(kind)
    model = load(kind, folder)
    got = model.generate(BATCH, **OPTIONS)
    assert torch.equal(got, model.generate(BATCH, use_cache=False, **OPTIONS))
    assert torch.equal(got, model.generate(input_ids=BATCH, **OPTIONS))
    assert torch.equal(got[0], experts[0].generate(BATCH[:1], **OPTIONS)[0])
    assert torch.equal(got[1], experts[1].generate(BATCH[1:2], **OPTIONS)[0])
    beams = model.generate(BATCH, num_beams=3, **OPTIONS)
    assert torch.equal(beams[1], experts[1].generate(BATCH[1:2], num_beams=3, **OPTIONS)[0])
    assert model._mixture.prompt is None


def test_prompts_of_different_length_are_padded_on_the_left(made):
    folder, _, _ = made("llama")
    model = load("llama", folder)
    tokens = torch.tensor([[8, 8, 5, 4], SECOND])
    mask = torch.tensor([[0, 0, 1, 1], [1] * 4])
    got = model.generate(tokens, attention_mask=mask, **OPTIONS)
    assert torch.equal(got[0, 4:], model.generate(tokens[:1, 2:], **OPTIONS)[0, 2:])
    assert torch.equal(got[1], model.generate(tokens[1:], **OPTIONS)[0])


def test_what_follows_in_a_cache_keeps_its_weights(made):
    folder, _, _ = made("llama")
    model = load("llama", folder)
    with torch.inference_mode():
        first = model(BATCH, use_cache=True)
        step = model(torch.tensor([[30], [5], [30]]), past_key_values=first.past_key_values)
        weights = first.past_key_values._deltasmith_weights
        model.set_expert_weights(weights)
        whole = model(torch.cat([BATCH, torch.tensor([[30], [5], [30]])], dim=1)).logits
        torch.testing.assert_close(step.logits[:, 0], whole[:, -1], atol=1e-4, rtol=1e-4)
        filled = model(BATCH, use_cache=True).past_key_values  # under weights of the caller
        model.set_expert_weights(None)
        with pytest.raises(ValueError, match="this cache was not filled under the router"):
            model(BATCH[:, :1], past_key_values=filled)
    empty = transformers.DynamicCache()
    with torch.inference_mode():
        torch.testing.assert_close(model(BATCH, past_key_values=empty).logits, first.logits)


def test_the_caller_overrules_the_router(made):
    folder, experts, _ = made("llama")
    model = load("llama", folder)
    with torch.inference_mode():
        routed = model(BATCH).logits
        model.set_expert_weights({"m1": 1.0})
        torch.testing.assert_close(model(BATCH).logits, experts[1](BATCH).logits, atol=1e-3, rtol=1e-3)
        model.set_expert_weights(None)
        assert torch.equal(model(BATCH).logits, routed)
        assert torch.equal(copy.deepcopy(model)(BATCH).logits, routed)
        embedded = model(inputs_embeds=model.get_input_embeddings()(BATCH), use_cache=True)
        weights = model(BATCH, use_cache=True).past_key_values._deltasmith_weights
        torch.testing.assert_close(embedded.past_key_values._deltasmith_weights, weights)
        assert torch.equal(model(input_ids=BATCH, return_dict=False)[0], routed)


def test_saved_and_loaded_it_is_the_same_model(made, tmp_path):
    folder, _, _ = made("qwen2")
    model = load("qwen2", folder)
    with torch.inference_mode():
        wanted = model(BATCH).logits
        model.save_pretrained(tmp_path / "again")
        assert torch.equal(load("qwen2", tmp_path / "again")(BATCH).logits, wanted)
        body = transformers.AutoModel.from_pretrained(folder)
        own = transformers.AutoModel.from_pretrained(tmp_path / "again")(BATCH).last_hidden_state
        assert torch.equal(body(BATCH).last_hidden_state, own)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["smile"]["router"] == {"width": 16, "hidden": 32, "padding": 8}


def test_in_16_bits_the_router_stays_in_float32(made):
    folder, _, _ = made("llama")
    model = load("llama", folder, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.smile_router.weight_0.dtype == torch.float32
    with torch.inference_mode():
        out = model(BATCH, use_cache=True)
    assert out.past_key_values._deltasmith_weights.argmax(dim=1).tolist() == [0, 1, 0]
    assert out.logits.dtype == torch.bfloat16


def test_a_router_that_the_files_lack_weighs_all_alike(made, tmp_path):
    folder, _, _ = made("llama")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = {n: a for n, a in load_file(folder / "model.safetensors").items() if "smile_router" not in n}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    model = load("llama", tmp_path)
    with torch.inference_mode():
        weights = model(BATCH, use_cache=True).past_key_values._deltasmith_weights
    torch.testing.assert_close(weights, torch.full((3, 2), 0.5))


def test_what_is_scored_after_a_prompt_does_not_weigh(made):
    folder, _, _ = made("llama")
    model = TorchModel.load(folder)
    after = [Continuation("w5 w4 w6 w6", " w25 w24 w26 w25 w26"), Continuation("w25 w24", " w5")]
    got = model.likelihoods(after)
    model._model.set_expert_weights({"m0": 1.0})
    assert got[0].logprob == pytest.approx(model.likelihoods(after)[0].logprob, abs=0.1)
    model._model.set_expert_weights({"m1": 1.0})
    other = model.likelihoods(after)
    assert got[1].logprob == pytest.approx(other[1].logprob, abs=0.1)
    assert abs(other[0].logprob - got[0].logprob) > 0.5
    model._model.set_expert_weights(None)
    tokens = torch.tensor([[24, 5, 4, 6, 6, 5], [5, 25, 26, 24, 24, 25]])
    with model._model.reading_prompts(tokens, [1, 1]):  # no prompt: the rows decide
        assert model._model._mixture.prompt.argmax(dim=1).tolist() == [0, 1]
    assert model._model._mixture.prompt is None


def test_what_is_written(made):
    folder, _, result = made("llama")
    assert api.verify(folder).ok
    assert not [note for note in result.notes if "gate" in note]
    document = json.loads((folder / "manifest.json").read_text())
    router = document["recipe"]["upscale"]["router"]
    assert router["found"] == result.as_json()["router"]
    assert router["data"]["m0"]["examples"] == len(set(EXAMPLES["m0"]))
    assert (router["seed"], router["epochs"]) == (0, 100)
    tensors = load_file(folder / "model.safetensors")
    assert tensors["smile_router.weight_2"].shape == (2, 32)
    card = (folder / "README.md").read_text()
    assert "accuracy: 1.0" in card
    assert "w5" not in card


def test_the_same_bytes_again_and_after_an_interruption(tmp_path, monkeypatch):
    family(tmp_path, "llama", 2, everything)
    give_tokenizer(tmp_path / "base")
    twin(tmp_path, router_epochs=3)
    whole = tree(tmp_path / "out")
    twin(tmp_path, router_epochs=3, overwrite=True)
    assert tree(tmp_path / "out") == whole
    twin(tmp_path, router_epochs=3, router_seed=1, overwrite=True)
    assert tree(tmp_path / "out") != whole
    stop, write = Stop(), router_job.RouterJob.write

    def written(self, *args):
        write(self, *args)
        stop.ask()

    monkeypatch.setattr(router_job.RouterJob, "write", written)
    for seed in (0, 1):  # what is half done resumes, and is no part of another run
        with pytest.raises(InterruptedRunError):
            twin(tmp_path, router_epochs=3, router_seed=seed, overwrite=True, stop=stop)
        assert neighbours(tmp_path / "out") != []
        with monkeypatch.context() as patch:
            patch.setattr(router_job.RouterJob, "write", write)
            twin(tmp_path, router_epochs=3, overwrite=True)
        assert tree(tmp_path / "out") == whole
        stop = Stop()


def test_stopped_while_it_reads(tmp_path):
    family(tmp_path, "llama", 2, everything)
    give_tokenizer(tmp_path / "base")

    class Heard:
        def phase(self, name, total):
            if name == "training the router":
                stop.ask()

        def advance(self, nbytes):
            pass

    stop = Stop()
    with pytest.raises(InterruptedRunError):
        twin(tmp_path, progress=Heard(), stop=stop)
    assert not (tmp_path / "out").exists()


def test_long_and_ambiguous_examples_are_noted(tmp_path):
    family(tmp_path, "llama", 2, everything)
    give_tokenizer(tmp_path / "base")
    long = " ".join(["w30"] * 40)  # and the context is 32
    data = {"m0": [*EXAMPLES["m0"], "w3 w3"], "m1": [*EXAMPLES["m1"], "w3 w3", long]}
    result = twin(tmp_path, router_data=data, router_epochs=1)
    assert result.router.cut == 1
    assert "1 router examples stand under several labels: no router can tell whose they are" in result.notes
    assert "1 router examples were longer than the model's context, and were cut" in result.notes


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"router_data": {"m0": EXAMPLES["m0"]}}, RecipeError, "--router-data: there is none for m1"),
        ({"router_data": EXAMPLES | {"x": []}}, RecipeError, "no expert is labelled 'x'; use one of: m0, m1"),
        ({"router_data": EXAMPLES | {"m1": []}}, DamagedInputError, "in --router-data m1; give hundreds"),
        ({"weights": [1, 0]}, RecipeError, "--weights would overrule the router"),
        ({"preset": "smile"}, RecipeError, "--router-data trains Twin-Merging's router; add --preset twin"),
        ({"router_epochs": 0}, RecipeError, "--router-epochs is 0"),
    ],
)
def test_refusals(tmp_path, options, error, words):
    family(tmp_path, "llama", 2, everything)
    give_tokenizer(tmp_path / "base")
    before = tree(tmp_path)
    given = {"preset": "twin", "router_data": EXAMPLES, **options}
    with pytest.raises(error) as caught:
        upscale(tmp_path / "base", [tmp_path / "m0", tmp_path / "m1"], tmp_path / "out", **given)
    assert words in str(caught.value)
    assert tree(tmp_path) == before


def test_data_that_does_not_tokenise(tmp_path):
    family(tmp_path, "llama", 2, everything)
    with pytest.raises(RefusedError, match="--router-data needs the base's tokenizer"):
        twin(tmp_path)
    give_tokenizer(tmp_path / "base", words=60)
    far = [*EXAMPLES["m1"][:2], "w4 w59", *EXAMPLES["m1"][2:]]
    with pytest.raises(
        DamagedInputError, match="token 59 of a vocabulary of 40 in --router-data m1, example 3"
    ):
        twin(tmp_path, router_data=EXAMPLES | {"m1": far})
    document = json.loads((tmp_path / "base" / "tokenizer.json").read_text())
    document["normalizer"] = {"type": "Replace", "pattern": {"String": "w7 w7"}, "content": ""}
    (tmp_path / "base" / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(DamagedInputError, match="no token in it in --router-data m0, example 1"):
        twin(tmp_path, router_data=EXAMPLES | {"m0": ["w7 w7", *EXAMPLES["m0"]]})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_models_that_see_have_no_router(tmp_path, kind):
    family(tmp_path, kind, 2, everything)
    give_tokenizer(tmp_path / "base")
    with pytest.raises(RefusedError, match=r"a router reads text, and .* does not read text alone"):
        twin(tmp_path)
    assert not (tmp_path / "out").exists()
