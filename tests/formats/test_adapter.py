import json
import math

import numpy as np
import pytest

from deltasmith.errors import DamagedInputError, RefusedError
from deltasmith.formats.adapter import open_adapter
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES
from formats.attacks import BFLOAT16, small_file, write_adapter, write_safetensors

RNG = np.random.default_rng(3)
Q = "layers.0.q_proj"


def factor(*shape, kind=np.float32):
    return RNG.normal(size=shape).astype(np.float32).astype(kind)


def pair(module=Q, rows=5, columns=3, rank=2, kind=np.float32):
    return {
        f"{module}.lora_A.weight": factor(rank, columns, kind=kind),
        f"{module}.lora_B.weight": factor(rows, rank, kind=kind),
    }


def base(**shapes):
    return {n: Spec(n, tuple(s), DTYPES["bfloat16"]) for n, s in shapes.items()}


QBASE = base(**{f"{Q}.weight": (5, 3), "norm.weight": (3,)})


def read(column, name, start=0, stop=None):
    stop = column.specs[name].size if stop is None else stop
    out = np.full(stop - start, 99, np.float32)
    column.read(name, start, out)
    return out


def assert_refused(act, error=RefusedError, code=1):
    with pytest.raises(error) as caught:
        act()
    assert caught.value.exit_code == code
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("kind", [np.float32, np.float16, BFLOAT16])
def test_a_pair_reads_as_its_delta_from_anywhere(tmp_path, kind):
    arrays = pair(kind=kind)
    column = open_adapter(write_adapter(tmp_path, arrays)).bind(QBASE)
    a, b = (arrays[f"{Q}.lora_{s}.weight"].astype(np.float64) for s in "AB")
    expected = (4 / 2 * b @ a).reshape(-1)
    assert list(column.specs) == [f"{Q}.weight"]
    assert column.specs[f"{Q}.weight"] == Spec(f"{Q}.weight", (5, 3), DTYPES["float32"])
    assert column.is_delta(f"{Q}.weight")
    whole = read(column, f"{Q}.weight")
    assert np.allclose(whole, expected, rtol=1e-5, atol=1e-6)
    for start in range(16):
        for stop in range(start, 16):
            assert np.array_equal(read(column, f"{Q}.weight", start, stop), whole[start:stop])
    assert column.raw(f"{Q}.weight", 2, 9) == whole[2:9].tobytes()
    with pytest.raises(ValueError, match="outside tensor"):
        read(column, f"{Q}.weight", 10, 16)


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({"r": 2, "lora_alpha": 3}, 1.5),
        ({"r": 2, "lora_alpha": 3, "use_rslora": True}, 3 / math.sqrt(2)),
        ({"r": 8, "lora_alpha": 4, "rank_pattern": {"q_proj": 2}}, 2.0),
        ({"r": 8, "lora_alpha": 4, "rank_pattern": {"v_proj": 4, "layers.0.q_proj": 2, "q_proj": 8}}, 2.0),
        ({"r": 2, "lora_alpha": 4, "alpha_pattern": {"q_proj": 7}}, 3.5),
        ({"r": 2, "lora_alpha": 4, "alpha_pattern": {r"layers\.[0-3]\.q_proj": 7}}, 3.5),
        ({"r": 2, "lora_alpha": 4, "alpha_pattern": {r"layers.\d+.q_proj": 7, "q_proj": 1}}, 3.5),
        ({"r": 2, "lora_alpha": 4, "alpha_pattern": {"proj": 7, "_proj": 8, "q_pro": 9, "layers": 10}}, 2.0),
        ({"r": 2, "lora_alpha": 4, "alpha_pattern": {"^layers.0.q_proj": 5}}, 2.5),
        ({"r": 2, "lora_alpha": 4, "alpha_pattern": {"v_proj|q_proj": 5}}, 2.5),
        ({"r": 2, "lora_alpha": 0}, 0.0),
    ],
)
def test_fault_36_scaling_follows_the_configuration(tmp_path, config, scaling):
    adapter = open_adapter(write_adapter(tmp_path, pair(), **config))
    assert adapter.pairs[0].scaling == scaling
    (name,) = (column := adapter.bind(QBASE)).specs
    a, b = (adapter.file.raw(f"base_model.model.{Q}.lora_{s}.weight", 0, n) for s, n in (("A", 6), ("B", 10)))
    delta = np.frombuffer(b, np.float32).reshape(5, 2) @ np.frombuffer(a, np.float32).reshape(2, 3)
    assert np.allclose(read(column, name), scaling * delta.reshape(-1), rtol=1e-5, atol=1e-6)


def test_fan_in_fan_out_transposes(tmp_path):
    arrays = pair()
    column = open_adapter(write_adapter(tmp_path, arrays, fan_in_fan_out=True)).bind(
        base(**{f"{Q}.weight": (3, 5)})
    )
    expected = 2 * (arrays[f"{Q}.lora_B.weight"] @ arrays[f"{Q}.lora_A.weight"]).T
    assert np.allclose(read(column, f"{Q}.weight"), expected.reshape(-1), atol=1e-6)


def test_embeddings_are_transposed_too(tmp_path):
    a, b = factor(2, 7), factor(4, 2)
    arrays = {"embed.lora_embedding_A": a, "embed.lora_embedding_B": b}
    column = open_adapter(write_adapter(tmp_path, arrays)).bind(base(**{"embed.weight": (7, 4)}))
    assert np.allclose(read(column, "embed.weight"), 2 * (b @ a).T.reshape(-1), atol=1e-6)
    assert np.allclose(read(column, "embed.weight", 5, 22), 2 * (b @ a).T.reshape(-1)[5:22], atol=1e-6)


def test_convolutions(tmp_path):
    a, b = factor(2, 3, 1, 2), factor(4, 2, 1, 1)
    arrays = {"conv.lora_A.weight": a, "conv.lora_B.weight": b}
    column = open_adapter(write_adapter(tmp_path, arrays)).bind(base(**{"conv.weight": (4, 3, 1, 2)}))
    expected = 2 * np.einsum("or,rihw->oihw", b.reshape(4, 2), a)
    assert np.allclose(read(column, "conv.weight"), expected.reshape(-1), atol=1e-6)


@pytest.mark.parametrize("middle", ["", ".modules_to_save", ".modules_to_save.default", ".base_layer"])
def test_fault_36_modules_to_save_and_biases_are_full_weights(tmp_path, middle):
    head, bias = factor(6, 3, kind=BFLOAT16), factor(5)
    arrays = pair() | {f"lm_head{middle}.weight": head, f"{Q}.bias": bias}
    adapter = open_adapter(write_adapter(tmp_path, arrays, modules_to_save=["lm_head"], bias="lora_only"))
    column = adapter.bind(QBASE | base(**{"lm_head.weight": (6, 3), f"{Q}.bias": (5,)}))
    assert sorted(column.specs) == sorted([f"{Q}.weight", f"{Q}.bias", "lm_head.weight"])
    assert not column.is_delta("lm_head.weight")
    assert not column.is_delta(f"{Q}.bias")
    assert column.is_delta(f"{Q}.weight")
    assert column.specs["lm_head.weight"].dtype.name == "bfloat16"
    assert np.array_equal(read(column, "lm_head.weight", 2, 9), head.reshape(-1)[2:9].astype(np.float32))
    assert column.raw("lm_head.weight", 2, 9) == head.tobytes()[4:18]


def test_an_embedding_that_is_both_saved_and_adapted(tmp_path):
    saved, a, b = factor(7, 4), factor(2, 7), factor(4, 2)
    arrays = {
        "embed.base_layer.weight": saved,
        "embed.lora_embedding_A": a,
        "embed.lora_embedding_B": b,
    }
    column = open_adapter(write_adapter(tmp_path, arrays)).bind(base(**{"embed.weight": (7, 4)}))
    expected = (saved + 2 * (b @ a).T).reshape(-1)
    assert not column.is_delta("embed.weight")
    assert np.allclose(read(column, "embed.weight", 3, 20), expected[3:20], atol=1e-6)
    assert np.allclose(np.frombuffer(column.raw("embed.weight", 0, 28), np.float32), expected, atol=1e-6)


def test_fault_36_configuration_or_weights_missing(tmp_path):
    folder = write_adapter(tmp_path / "a", pair())
    (folder / "adapter_config.json").unlink()
    message = assert_refused(lambda: open_adapter(folder), DamagedInputError, 3)
    assert "there is no such file" in message
    assert "adapter_config.json" in message
    folder = write_adapter(tmp_path / "b", pair())
    (folder / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors" in assert_refused(lambda: open_adapter(folder), DamagedInputError, 3)
    (folder / "adapter_model.bin").write_bytes(b"\x80\x02.")
    assert "run deltasmith convert" in assert_refused(lambda: open_adapter(folder), DamagedInputError, 3)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"peft_type": "IA3"}, "peft_type IA3"),
        ({"peft_type": None}, "peft_type None"),
        ({"peft_type": "ADALORA"}, "peft_type ADALORA"),
        ({"use_dora": True}, "DoRA"),
        ({"layer_replication": [[0, 4], [2, 5]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4, which changes the base"),
        ({"init_lora_weights": "olora"}, "olora, which changes the base"),
    ],
)
def test_fault_36_other_kinds_are_refused_by_name(tmp_path, config, word):
    folder = write_adapter(tmp_path, pair(), **config)
    message = assert_refused(lambda: open_adapter(folder))
    assert word in message
    assert "merge it into its base with PEFT" in message


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal"])
def test_initialisations_that_leave_the_base_alone(tmp_path, start):
    assert len(open_adapter(write_adapter(tmp_path, pair(), init_lora_weights=start)).pairs) == 1


@pytest.mark.parametrize("config", [{"r": 0}, {"r": -1}, {"rank_pattern": {"q_proj": 0}}])
def test_fault_36_rank_zero(tmp_path, config):
    folder = write_adapter(tmp_path, pair(), **config)
    assert f'the rank of module "{Q}" is' in assert_refused(lambda: open_adapter(folder))


def test_fault_36_factors_of_two_ranks(tmp_path):
    for a, b in ((4, 2), (2, 4)):
        arrays = {f"{Q}.lora_A.weight": factor(a, 3), f"{Q}.lora_B.weight": factor(5, b)}
        folder = write_adapter(tmp_path / str(a), arrays)
        assert f"the shapes [{a}, 3] and [5, {b}], but the rank is 2" in assert_refused(
            lambda f=folder: open_adapter(f)
        )


def test_fault_36_a_rank_that_the_factors_do_not_have(tmp_path):
    folder = write_adapter(tmp_path, pair(), r=4)
    message = assert_refused(lambda: open_adapter(folder))
    assert f'module "{Q}" have the shapes [2, 3] and [5, 2], but the rank is 4' in message


@pytest.mark.parametrize("value", [None, "8", True, float("nan"), float("inf"), [1]])
@pytest.mark.parametrize("key", ["r", "lora_alpha"])
def test_fault_36_numbers_that_are_none(tmp_path, key, value):
    folder = write_adapter(tmp_path, pair(), **{key: value})
    message = assert_refused(lambda: open_adapter(folder), DamagedInputError, 3)
    assert f"{key} is {value!r} instead of a number" in message
    assert "adapter_config.json" in message


def test_fault_36_targets_that_the_base_lacks_are_all_listed(tmp_path):
    arrays = pair() | pair("layers.7.q_proj") | pair("layers.8.q_proj") | {"score.weight": factor(2, 3)}
    adapter = open_adapter(write_adapter(tmp_path, arrays))
    message = assert_refused(lambda: adapter.bind(QBASE))
    assert "lacks 3 of 4 tensors" in message
    assert "layers.7.q_proj.weight, layers.8.q_proj.weight, score.weight" in message


def test_fault_39_a_delta_of_another_shape(tmp_path):
    adapter = open_adapter(write_adapter(tmp_path, pair()))
    message = assert_refused(lambda: adapter.bind(base(**{f"{Q}.weight": (5, 4)})))
    assert f'changes "{Q}.weight" by [5, 3], the tensor has [5, 4]' in message


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        ("transformer.h.0.q", "h.0.q"),
        ("model.layers.0.q", "layers.0.q"),
        ("layers.0.q", "language_model.layers.0.q"),
    ],
)
def test_one_leading_part_more_or_less(tmp_path, inside, outside):
    adapter = open_adapter(write_adapter(tmp_path, pair(inside)))
    column = adapter.bind(base(**{f"{outside}.weight": (5, 3), "other.weight": (1,)}))
    assert list(column.specs) == [f"{outside}.weight"]
    assert column.is_delta(f"{outside}.weight")


def test_two_possible_leading_parts_are_no_guess(tmp_path):
    adapter = open_adapter(write_adapter(tmp_path, pair("layers.0.q")))
    specs = base(**{"vision.layers.0.q.weight": (5, 3), "text.layers.0.q.weight": (5, 3)})
    assert "lacks 1 of 1" in assert_refused(lambda: adapter.bind(specs))


@pytest.mark.parametrize(
    "name",
    [
        f"base_model.model.{Q}.lora_magnitude_vector.weight",
        f"base_model.model.{Q}.lora_B.bias",
        "base_model.model.embed.token_adapter.trainable_tokens_delta",
        "base_model.model.lm_head.original_module.weight",
        f"base_model.model.{Q}.lora_embedding_A.weight",
        f"base_model.model.{Q}.lora_A",
        "unet:0:down",
        "lora_unet_x.lora_down.weight",
        "prompt_embeddings",
    ],
)
def test_fault_36_no_tensor_is_ignored(tmp_path, name):
    folder = write_adapter(tmp_path, pair())
    prefixed = {f"base_model.model.{n}": a for n, a in pair().items()}
    write_safetensors(folder / "adapter_model.safetensors", prefixed | {name: factor(2)})
    message = assert_refused(lambda: open_adapter(folder))
    assert "1 tensors are not of the LoRA layout that PEFT writes" in message
    assert name in message


def test_the_same_saved_tensor_twice(tmp_path):
    arrays = {"head.weight": factor(2), "head.modules_to_save.weight": factor(2)}
    folder = write_adapter(tmp_path, arrays)
    assert "head.modules_to_save.weight" in assert_refused(lambda: open_adapter(folder))


@pytest.mark.parametrize("left", ["A", "B"])
def test_a_factor_without_its_partner(tmp_path, left):
    arrays = {n: a for n, a in pair().items() if f"lora_{left}" in n}
    folder = write_adapter(tmp_path, arrays)
    message = assert_refused(lambda: open_adapter(folder), DamagedInputError, 3)
    assert f'module "{Q}" has {left} of the two factors' in message


def test_an_adapter_without_tensors(tmp_path):
    folder = write_adapter(tmp_path, {})
    assert "no tensors" in assert_refused(lambda: open_adapter(folder), DamagedInputError, 3)


@pytest.mark.parametrize("pattern", ["(a+)+", "(.*)*b", ".*.*.*x", "x" * 1001, "a{2,}b*c+"])
def test_fault_16_patterns_that_could_take_for_ever(tmp_path, pattern):
    folder = write_adapter(tmp_path, pair("a" * 40), alpha_pattern={pattern: 1})
    assert "too involved" in assert_refused(lambda: open_adapter(folder))


def test_a_pattern_that_is_none(tmp_path):
    folder = write_adapter(tmp_path, pair(), alpha_pattern={"[": 1})
    assert "no regular expression" in assert_refused(lambda: open_adapter(folder), DamagedInputError, 3)
    folder = write_adapter(tmp_path, pair(), rank_pattern=["q_proj"])
    assert "rank_pattern is not a map" in assert_refused(lambda: open_adapter(folder), DamagedInputError, 3)


def test_fault_26_a_link_to_outside(tmp_path):
    folder = write_adapter(tmp_path / "a", pair())
    (folder / "adapter_model.safetensors").unlink()
    small_file(tmp_path / "x.safetensors")
    (folder / "adapter_model.safetensors").symlink_to(tmp_path / "x.safetensors")
    assert "outside the folder" in assert_refused(lambda: open_adapter(folder), DamagedInputError, 3)


def test_what_it_was_trained_on_is_told(tmp_path):
    adapter = open_adapter(write_adapter(tmp_path, pair(), base_model_name_or_path="o/n"))
    assert adapter.base_name == "o/n"
    assert [s.name for s in adapter.sources] == ["adapter_model.safetensors", "adapter_config.json"]
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 2
    adapter.check_unchanged()
    (tmp_path / "adapter_config.json").write_text("{}")
    message = assert_refused(adapter.check_unchanged, DamagedInputError, 3)
    assert "adapter_config.json" in message


def test_fault_45_factors_that_are_not_finite_show_in_the_delta(tmp_path):
    arrays = pair()
    arrays[f"{Q}.lora_A.weight"][0, 1] = np.nan
    column = open_adapter(write_adapter(tmp_path, arrays)).bind(QBASE)
    assert np.isnan(read(column, f"{Q}.weight").reshape(5, 3)).sum(axis=0).tolist() == [0, 5, 0]
