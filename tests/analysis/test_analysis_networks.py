"""Networks of a path: what loads, what lines up, the direction between them, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch import nn  # noqa: E402

from deltasmith import api  # noqa: E402
from deltasmith.analysis import networks  # noqa: E402
from deltasmith.analysis.data import Example  # noqa: E402
from deltasmith.analysis.language import LanguageChunks, language_loss  # noqa: E402
from deltasmith.analysis.networks import Loaded, differences, direction, load  # noqa: E402
from deltasmith.analysis.path import walk  # noqa: E402
from deltasmith.analysis.rules import Grid  # noqa: E402
from deltasmith.analysis.torch_objective import TorchObjective  # noqa: E402
from deltasmith.errors import DamagedInputError, MissingExtraError, RecipeError, RefusedError, ResourceError  # noqa: E402
from deltasmith.evaluate.models import transformers_loading  # noqa: E402
from deltasmith.lab import family_folder  # noqa: E402
from deltasmith.packing.single import pack  # noqa: E402

FAMILY = family_folder()
RECIPE = {
    "base": str(FAMILY / "base"),
    "models": [{"model": str(FAMILY / "small" / "math"), "edits": [{"drop": {"density": 0.5}}]}],
}
LAID = LanguageChunks.of([Example((1, 20, 30, 40, 2), 2), Example((1, 50, 9), 1)], 2)


@pytest.fixture(scope="module")
def base():
    return load(FAMILY / "base")


def loss_of(network):
    return float(language_loss(network, LAID.chunks[0]).detach())


# Loading.


def test_a_model_folder_in_float32_with_eager_attention(base):
    assert {p.dtype for p in base.network.parameters()} == {torch.float32}
    assert base.network.config._attn_implementation == "eager"
    assert (base.name, base.context, base.notes, base.tokenizer.vocabulary) == ("base", 96, (), 100)
    assert not base.network.training


def test_a_recipe_is_the_folder_that_merge_writes(tmp_path, base):
    api.merge(RECIPE, tmp_path / "out")
    in_memory, written = load(RECIPE), load(tmp_path / "out")
    assert in_memory.name == "recipe"
    assert {n: hash_of(p) for n, p in in_memory.network.named_parameters()} == {
        n: hash_of(p) for n, p in written.network.named_parameters()
    }
    assert in_memory.tokenizer.encode("a1").ids == base.tokenizer.encode("a1").ids
    other = load(RECIPE, overrides=["seed=5"])
    assert loss_of(other.network) != loss_of(in_memory.network)


def hash_of(tensor):
    return hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest()


def test_a_packed_delta_is_the_model_it_stands_for(tmp_path):
    shutil.copytree(FAMILY / "base", tmp_path / "base")  # it is looked for beside the delta
    pack(RECIPE["base"], FAMILY / "small" / "math", tmp_path / "packed", codec="lossless")
    found = load(tmp_path / "packed")
    assert loss_of(found.network) == loss_of(load(FAMILY / "small" / "math").network)


@pytest.mark.parametrize(("dtype", "kept"), [("float64", torch.float64), ("bfloat16", torch.float32)])
def test_element_types(dtype, kept):
    assert {p.dtype for p in load(FAMILY / "base", dtype=dtype).network.parameters()} == {kept}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "there is no element type 'float16'; use float32, float64, bfloat16"),
        ({"device": "tpu"}, "there is no device 'tpu'"),
        ({"overrides": ["seed=1"]}, "is no recipe, so no value of it can be set"),
    ],
)
def test_options_that_do_not_exist(options, message):
    with pytest.raises(RecipeError, match=message):
        load(FAMILY / "base", **options)


def test_a_missing_extra_is_named(monkeypatch):
    def gone(name):
        raise ImportError(f"no module named {name}")

    monkeypatch.setattr(transformers_loading.importlib, "import_module", gone)
    with pytest.raises(MissingExtraError, match=r'analysing a loss needs torch .*"deltasmith\[analysis\]"'):
        load(FAMILY / "base")


@pytest.mark.parametrize(
    ("source", "copies", "fits"),
    [("folder", 1, 4), ("folder", 2, 8), ("recipe", 1, 4 + 2), ("recipe", 2, 8 + 2)],
)
def test_what_will_not_fit_is_refused_before_it_is_loaded(monkeypatch, source, copies, fits):
    asked = FAMILY / "base" if source == "folder" else RECIPE
    count = sum(spec.size for spec in api.open_model(str(FAMILY / "base")).checkpoint.specs.values())
    monkeypatch.setattr(networks, "load_model", lambda *a, **k: pytest.fail("loaded"))
    monkeypatch.setattr(networks, "free_on_machine", lambda: fits * count - 1)
    with pytest.raises(
        ResourceError, match=r"needs .* MiB, and .* MiB are free in .*; use a smaller model"
    ) as caught:
        load(asked, copies=copies)
    assert caught.value.exit_code == 4
    with pytest.raises(ResourceError, match=r"use --dtype float32 \(half of it\)"):
        load(asked, copies=copies, dtype="float64")
    monkeypatch.setattr(networks, "free_on_machine", lambda: fits * count)
    with pytest.raises(pytest.fail.Exception, match="loaded"):
        load(asked, copies=copies)


def test_a_full_machine_is_one_line():
    with (
        pytest.raises(ResourceError, match="the memory does not suffice"),
        transformers_loading.memory_errors(4),
    ):
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="must match"), transformers_loading.memory_errors(4):
        torch.zeros(2) + torch.zeros(3)


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(FAMILY / "base", tmp_path / "copy")


def edit_config(folder, **entries):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_an_unknown_architecture_is_damaged(copy):
    edit_config(copy, model_type="lamma")
    with pytest.raises(DamagedInputError, match=r"transformers cannot load it .*lamma"):
        load(copy)


@pytest.mark.parametrize("source", ["folder", "recipe"])
def test_a_model_without_a_tokenizer_is_damaged(copy, source):
    for path in copy.glob("*token*"):
        path.unlink()
    with pytest.raises(DamagedInputError, match="fetch the tokenizer files"):
        load(copy if source == "folder" else {**RECIPE, "base": str(copy)})


def test_a_recipe_over_bare_weights_cannot_be_analysed(copy):
    (copy / "config.json").unlink()
    with pytest.raises(RefusedError, match="weights alone cannot answer"):
        load(copy / "model.safetensors")
    with pytest.raises(RefusedError, match=r"no config\.json"):
        load({**RECIPE, "base": str(copy / "model.safetensors")})


# The direction.


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


def test_the_direction_leads_from_start_to_end_and_touches_no_file(tmp_path):
    folder = shutil.copytree(FAMILY / "small" / "math", tmp_path / "model")
    before = digests(folder)
    start, end = load(folder), load(RECIPE)
    assert differences(start, end) == ()
    wanted = {name: p.detach().clone() for name, p in end.network.named_parameters()}
    there = loss_of(end.network)
    steps = direction(start.network, end.network)
    assert list(steps) == [name for name, _ in start.network.named_parameters() if name in steps]
    for name, p in start.network.named_parameters():
        assert torch.allclose(p + steps.get(name, 0), wanted[name], atol=1e-7)
    assert sum(p.numel() for p in end.network.parameters()) == 0
    objective = TorchObjective(start.network, steps, LAID.chunks, LAID.counts, language_loss)
    path = walk(objective, [Grid("midpoint", 4)])
    assert path.loss(1) == pytest.approx(there, abs=1e-6)
    assert path.predicted(Grid("midpoint", 4)) == pytest.approx(path.measured, abs=1e-4)
    assert abs(path.measured) > 1e-3
    assert digests(folder) == before


def gpt2(seed=0, **options):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 13, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
    tokens = {"bos_token_id": 1, "eos_token_id": 2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**sizes, **tokens, **options}))


def moved(network, **names):
    with torch.no_grad():
        for name, p in network.named_parameters():
            if any(name.endswith(ending.replace("_weight", ".weight")) for ending in names):
                p += 0.5
    return network


def test_a_tied_parameter_comes_once_and_what_rests_is_left_out():
    steps = direction(gpt2(), moved(gpt2(), wte_weight=1))
    assert list(steps) == ["transformer.wte.weight"]
    assert torch.allclose(steps["transformer.wte.weight"], torch.full((13, 8), 0.5), atol=1e-6)


def refusal(start, end):
    with pytest.raises(RefusedError) as caught:
        direction(start, end)
    assert caught.value.exit_code == 1
    return str(caught.value)


def test_another_vocabulary_is_refused_by_the_embeddings_name():
    assert refusal(gpt2(), gpt2(vocab_size=15)) == (
        "the vocabularies differ, transformer.wte.weight is [13, 8] at the start and [15, 8] at the end: a path "
        "needs one shape; start from a model with the vocabulary of the end (--from), or keep the recipe to models "
        "of one"
    )


def test_other_architectures_are_refused_by_name():
    assert "transformer.wpe.weight is [16, 8] at the start and [20, 8]" in refusal(
        gpt2(), gpt2(n_positions=20)
    )
    assert "transformer.h.1.attn.c_attn.bias is a parameter of the end alone (12 such)" in refusal(
        gpt2(), gpt2(n_layer=2)
    )
    untied = refusal(gpt2(tie_word_embeddings=False), gpt2())
    assert untied.startswith("lm_head.weight is a parameter of the start alone: a path needs")


def test_a_path_that_goes_nowhere_is_refused():
    assert refusal(gpt2(), gpt2()).startswith(
        "nothing moves: start and end of the path are the same weights; "
    )
    network = gpt2()
    with pytest.raises(ValueError, match="two networks"):
        direction(network, network)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_values_that_are_not_finite_are_refused_by_name(value):
    end = gpt2()
    end.transformer.ln_f.bias.data[3] = value
    assert refusal(gpt2(), end).startswith(
        "its values are not all finite at the ends of the path in transformer.ln_f.bias; "
    )


@pytest.mark.parametrize("value", [torch.tensor([1.5]), torch.tensor([2]), torch.tensor([True])])
def test_buffers_that_differ_are_refused_by_name(value):
    def with_buffer(held):
        network = nn.Linear(2, 2)
        network.register_buffer("counted", held)
        return network

    message = refusal(with_buffer(torch.zeros_like(value)), with_buffer(value))
    assert message.startswith(
        "the buffer counted differs between start and end, and a path moves parameters alone; "
    )
    assert direction(with_buffer(value), with_buffer(value.clone())).keys() == {"weight", "bias"}
    assert "the buffer counted differs" in refusal(nn.Linear(2, 2), with_buffer(value))


def test_rotary_frequencies_count_as_buffers(base, copy):
    edit_config(copy, rope_theta=500.0)
    assert "the buffer model.rotary_emb.inv_freq differs" in refusal(base.network, load(copy).network)


def test_quantised_parameters_are_refused(monkeypatch):
    network = gpt2()
    network.transformer.ln_f.bias = nn.Parameter(torch.zeros(8, dtype=torch.int8), requires_grad=False)
    monkeypatch.setattr(networks, "load_model", lambda *a, **k: (network, ()))
    with pytest.raises(
        RefusedError, match=r"ln_f\.bias is quantised \(int8\), and no path leads through integers"
    ):
        load(FAMILY / "base")


def test_what_lies_beside_the_weights_and_differs_is_a_note(base, copy):
    edit_config(copy, rms_norm_eps=0.01, hidden_act="gelu", eos_token_id=7, transformers_version="9")
    end = load(copy)
    (note,) = differences(base, end)
    assert note == (
        "the configs differ in hidden_act ('silu' and 'gelu'), rms_norm_eps (1e-05 and 0.01): the whole path is "
        "computed with the start's"
    )
    odd = Loaded(base.network, networks.of_transformers(_shifted(), 100), "odd", None, ())
    assert differences(base, odd) == ("the tokenizers differ: the data are numbered by the start's",)


def _shifted():
    inner = transformers.AutoTokenizer.from_pretrained(str(FAMILY / "base"))
    inner.add_tokens(["brown"])
    return inner
