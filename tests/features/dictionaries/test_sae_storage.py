"""Dictionaries on disk: what is written, what is read again, and what is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from sae_making import KINDS, begun, planted
from safetensors.torch import save

from deltasmith.errors import DamagedInputError, RefusedError
from deltasmith.features.dictionaries.settings import BatchTopK, JumpRelu, Relu, TopK
from deltasmith.features.dictionaries.storage import files, load

TENSORS = "encoder", "decoder", "latent_bias", "output_bias", "threshold"


def written(folder: Path, contents: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return folder


def foreign(folder: Path, tensors=None, **options) -> Path:
    """Write what SAELens would: three inputs, two latents."""
    tensors = {
        "W_enc": torch.tensor([[1.0, 0], [0, 2], [0, 0]]),
        "W_dec": torch.tensor([[2.0, 0, 0], [0, 0, 0.5]]),
        "b_enc": torch.tensor([0.5, -1]),
        "b_dec": torch.tensor([1.0, 1, 1]),
    } | (tensors or {})
    config = {
        "architecture": "standard",
        "d_in": 3,
        "d_sae": 2,
        "metadata": {"sae_lens_version": "6.5.0"},
    } | options
    contents = {"cfg.json": json.dumps(config).encode(), "sae_weights.safetensors": save(tensors)}
    return written(folder, contents)


def finished(kind):
    dictionary = begun(kind)
    return (
        replace(dictionary, threshold=torch.linspace(0, 1, 64))
        if isinstance(kind, BatchTopK | JumpRelu)
        else dictionary
    )


@pytest.mark.parametrize("kind", [*KINDS, Relu(), JumpRelu()])
def test_what_is_written_is_read_again(tmp_path, kind):
    dictionary = finished(kind)
    contents = files(dictionary, {"model_name": "m"})
    assert contents == files(dictionary, {"model_name": "m"})
    found = load(written(tmp_path, contents))
    assert (found.kind, found.scale) == (dictionary.kind, dictionary.scale)
    for name in TENSORS:
        mine, theirs = getattr(dictionary, name), getattr(found, name)
        assert (mine is None and theirs is None) or torch.equal(mine, theirs)


def test_the_configuration_is_that_of_saelens():
    config = json.loads(
        files(begun(TopK(k=4)), {"model_name": "m", "deltasmith": {"member": "lua"}})["cfg.json"]
    )
    assert config == {
        "architecture": "topk",
        "k": 4,
        "rescale_acts_by_decoder_norm": False,
        "d_in": 32,
        "d_sae": 64,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.0.0",
            "sae_lens_training_version": None,
            "model_name": "m",
            "deltasmith": {
                "member": "lua",
                "kind": {"kind": "topk", "k": 4},
                "scale": begun(TopK(k=4)).scale,
            },
        },
    }


@pytest.mark.parametrize(
    ("kind", "architecture"), list(zip(KINDS, ["topk", "jumprelu", "standard"], strict=True))
)
def test_architectures(kind, architecture):
    assert json.loads(files(finished(kind), {})["cfg.json"])["architecture"] == architecture


def test_a_batch_topk_without_threshold_is_not_saved():
    with pytest.raises(RefusedError, match="a dictionary of kind batch-topk has no threshold; save what"):
        files(begun(BatchTopK(k=4)), {})


TOKEN = torch.tensor([[3.0, 2.0, 0.0]])


def test_by_hand(tmp_path):
    found = load(foreign(tmp_path))
    assert found.kind == Relu()
    assert found.encode(TOKEN).dense().tolist() == [[2.5, 1.0]]  # 3 - 1 + .5, 2 (2 - 1) - 1
    assert found.reconstruct(TOKEN).tolist() == [[6.0, 1.0, 1.5]]


def test_without_the_shift_of_the_input(tmp_path):
    found = load(foreign(tmp_path, apply_b_dec_to_input=False))
    assert found.encode(TOKEN).dense().tolist() == [[3.5, 3.0]]


def test_rescaled_by_decoder_lengths(tmp_path):
    plain = load(foreign(tmp_path / "a", architecture="topk", k=1))
    assert plain.encode(torch.tensor([[1.0, 3.0, 0.0]])).dense().tolist() == [[0.0, 3.0]]
    found = load(foreign(tmp_path / "b", architecture="topk", k=1, rescale_acts_by_decoder_norm=True))
    assert found.encode(TOKEN).dense().tolist() == [[5.0, 0.0]]
    assert found.reconstruct(TOKEN).tolist() == [[6.0, 1.0, 1.0]]
    np.testing.assert_allclose(found.decoder.norm(dim=1), 1)


def test_thresholds_of_each_latent(tmp_path):
    found = load(foreign(tmp_path, {"threshold": torch.tensor([2.5, 0.9])}, architecture="jumprelu"))
    assert found.kind == JumpRelu()
    assert found.encode(TOKEN).dense().tolist() == [[0.0, 1.0]]


def test_half_precision_becomes_single(tmp_path):
    found = load(
        foreign(tmp_path, {"W_enc": torch.tensor([[1.0, 0], [0, 2], [0, 0]]).bfloat16()}, dtype="bfloat16")
    )
    assert found.encoder.dtype == torch.float32
    assert found.encode(TOKEN).dense().tolist() == [[2.5, 1.0]]


def test_the_names_of_older_files(tmp_path):
    place = foreign(tmp_path / "a")
    (place / "cfg.json").write_text(json.dumps({"d_in": 3, "d_sae": 2, "activation_fn_str": "relu"}))
    assert load(place).kind == Relu()
    (place / "cfg.json").write_text(
        json.dumps({"d_in": 3, "d_sae": 2, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 1}})
    )
    assert load(place).kind == TopK(k=1)
    (place / "cfg.json").write_text(json.dumps({"d_in": 3, "d_sae": 2, "activation_fn": "tanh-relu"}))
    with pytest.raises(RefusedError, match="the activation function 'tanh-relu' cannot be represented in"):
        load(place)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"architecture": "gated"}, "the architecture 'gated'"),
        ({"architecture": "batchtopk"}, "the architecture 'batchtopk'"),
        ({"architecture": "transcoder"}, "the architecture 'transcoder'"),
        ({"architecture": "matryoshka_batchtopk"}, "the architecture 'matryoshka_batchtopk'"),
        ({"architecture": ["x"]}, "the architecture \"['x']\""),
        ({"normalize_activations": "layer_norm"}, "normalize_activations = 'layer_norm'"),
        (
            {"normalize_activations": "expected_average_only_in"},
            "normalize_activations = 'expected_average_only_in'",
        ),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(tmp_path, options, named):
    with pytest.raises(RefusedError) as error:
        load(foreign(tmp_path, **options))
    assert str(error.value).startswith(
        f"{named} cannot be represented in {tmp_path}/cfg.json; choose a standard, topk"
    )


def test_a_scaling_factor_is_refused(tmp_path):
    assert load(foreign(tmp_path / "a", {"scaling_factor": torch.ones(2)})).latents == 2
    with pytest.raises(RefusedError, match="a scaling_factor other than 1 cannot be represented"):
        load(foreign(tmp_path / "b", {"scaling_factor": torch.tensor([1.0, 2.0])}))


@pytest.mark.parametrize(
    ("tensors", "options", "message"),
    [
        ({}, {"d_sae": 3}, "W_enc of shape (3, 3) is expected, it has (3, 2)"),
        ({}, {"architecture": "jumprelu"}, "threshold of shape (2,) is expected, it is not there"),
        ({"b_dec": torch.tensor([1.0, float("nan"), 1])}, {}, "b_dec holds numbers that are not finite"),
        ({}, {"d_in": "three"}, "d_in, d_sae or k is no whole number above 0 (three, 2)"),
        ({}, {"architecture": "topk"}, "d_in, d_sae or k is no whole number above 0 (3, 2, None)"),
        ({}, {"architecture": "topk", "k": 9}, "k = 9 of 2 latents"),
        ({}, {"d_sae": float("nan")}, "d_in, d_sae or k is no whole number above 0 (3, nan)"),
        ({}, {"d_sae": True}, "d_in, d_sae or k is no whole number above 0 (3, True)"),
    ],
)
def test_damaged_files(tmp_path, tensors, options, message):
    with pytest.raises(DamagedInputError) as error:
        load(foreign(tmp_path, tensors, **options))
    assert str(error.value).startswith(f"{message} in {tmp_path}/")


@pytest.mark.parametrize(
    "ours",
    [
        {"kind": {"kind": "relu-l1", "coefficient": 1}, "scale": 1.0},
        {"kind": {"kind": "topk", "k": 4}, "scale": 0.0},
        {"kind": {"kind": "topk", "k": 4}},
        {"kind": "topk", "scale": 1.0},
    ],
)
def test_metadata_that_belongs_to_another_dictionary(tmp_path, ours):
    place = written(tmp_path, files(begun(TopK(k=4)), {}))
    config = json.loads((place / "cfg.json").read_text())
    config["metadata"]["deltasmith"] = ours
    (place / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(DamagedInputError, match="does not describe the dictionary beside it"):
        load(place)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(DamagedInputError, match=r"cfg\.json"):
        load(tmp_path / "nowhere")
    place = written(tmp_path, files(begun(TopK(k=4)), {}))
    weights = place / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(DamagedInputError, match=r"it is no safetensors file in .*sae_weights\.safetensors"):
        load(place)
    weights.unlink()
    with pytest.raises(
        DamagedInputError, match=r"it cannot be read \(No such file or directory\) in .*sae_weights"
    ):
        load(place)


def test_a_loaded_dictionary_encodes_alike(tmp_path):
    dictionary, raw = finished(BatchTopK(k=4)), planted(50, 3)
    found = load(written(tmp_path, files(dictionary, {})))
    np.testing.assert_array_equal(found.encode(raw).dense(), dictionary.encode(raw).dense())
