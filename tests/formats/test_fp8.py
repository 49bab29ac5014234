import json

import ml_dtypes
import numpy as np
import pytest

from deltasmith.errors import DamagedInputError, RefusedError
from deltasmith.formats.hf_folder import open_folder, open_single
from formats.attacks import BFLOAT16, FP8, write_model, write_safetensors

E5M2 = np.dtype(ml_dtypes.float8_e5m2)


def read(checkpoint, name, start=0, stop=None):
    stop = checkpoint.specs[name].size if stop is None else stop
    out = np.full(stop - start, 99, np.float32)
    checkpoint.read(name, start, out)
    return out


def opened(folder, arrays, **quantization):
    config = {"quantization_config": {"quant_method": "fp8"} | quantization}
    return open_folder(write_model(folder, arrays, config=config))


def weights(*shape, kind=FP8):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32).astype(kind)


def blocks(scale, shape, rows, columns):
    wide = np.repeat(np.repeat(scale, rows, axis=-2), columns, axis=-1)
    return wide[..., : shape[-2], : shape[-1]]


@pytest.mark.parametrize("shape", [(5, 7), (4, 8), (1, 1), (9, 3), (2, 5, 7), (3, 1, 4)])
@pytest.mark.parametrize("kind", [FP8, E5M2])
def test_fault_44_block_scales(tmp_path, shape, kind):
    w = weights(*shape, kind=kind)
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.5, 2, (*shape[:-2], -(-shape[-2] // 2), -(-shape[-1] // 4))).astype(np.float32)
    arrays = {"q.weight": w, "q.weight_scale_inv": scale, "n.weight": np.ones(3, BFLOAT16)}
    folder = opened(tmp_path, arrays, weight_block_size=[2, 4])
    specs = folder.checkpoint.specs
    assert {n: (s.shape, s.dtype.name) for n, s in specs.items()} == {
        "q.weight": (shape, "bfloat16"),
        "n.weight": ((3,), "bfloat16"),
    }
    expected = (w.astype(np.float32) * blocks(scale, shape, 2, 4)).astype(np.float32).reshape(-1)
    assert np.array_equal(read(folder.checkpoint, "q.weight"), expected)
    for start in range(0, w.size, 3):
        for stop in range(start, w.size + 1, 5):
            assert np.array_equal(read(folder.checkpoint, "q.weight", start, stop), expected[start:stop])
    assert folder.checkpoint.raw("q.weight", 0, 1) == expected[:1].astype(BFLOAT16).tobytes()
    assert folder.checkpoint.raw("n.weight", 1, 2) == np.ones(1, BFLOAT16).tobytes()
    assert folder.warnings == ("fp8 weights are read as bfloat16; 1 scale tensors go away",)


def test_default_blocks_are_128_by_128(tmp_path):
    w = weights(130, 257)
    scale = np.arange(6, dtype=np.float32).reshape(2, 3) + 1
    checkpoint = opened(tmp_path, {"q.weight": w, "q.weight_scale_inv": scale}).checkpoint
    expected = w.astype(np.float32) * blocks(scale, w.shape, 128, 128)
    assert np.array_equal(read(checkpoint, "q.weight"), expected.reshape(-1))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_scale_per_tensor(tmp_path, shape):
    w = weights(4, 3)
    arrays = {
        "q.weight": w,
        "q.weight_scale": np.full(shape, 0.5, BFLOAT16),
        "q.input_scale": np.ones((), np.float32),
    }
    folder = opened(tmp_path, arrays)
    assert list(folder.checkpoint.specs) == ["q.weight"]
    assert np.array_equal(read(folder.checkpoint, "q.weight"), w.astype(np.float32).reshape(-1) / 2)


@pytest.mark.parametrize("shape", [(4, 1), (4,)])
def test_one_scale_per_row(tmp_path, shape):
    w = weights(4, 3)
    scale = np.arange(1, 5, dtype=np.float32)
    arrays = {"q.weight": w, "q.weight_scale": scale.reshape(shape)}
    checkpoint = opened(
        tmp_path, arrays, quant_method="compressed-tensors", format="float-quantized"
    ).checkpoint
    expected = (w.astype(np.float32) * scale[:, None]).reshape(-1)
    assert np.array_equal(read(checkpoint, "q.weight"), expected)
    assert np.array_equal(read(checkpoint, "q.weight", 2, 8), expected[2:8])


def test_one_scale_per_expert(tmp_path):
    w = weights(2, 3, 4)
    scale = np.array([2.0, 3.0], np.float32)
    checkpoint = opened(tmp_path, {"e.weight": w, "e.weight_scale": scale}).checkpoint
    expected = (w.astype(np.float32) * scale[:, None, None]).reshape(-1)
    assert np.array_equal(read(checkpoint, "e.weight", 5, 17), expected[5:17])


def test_empty_and_scalar_weights(tmp_path):
    arrays = {
        "none": np.zeros((0, 4), FP8),
        "none_scale_inv": np.ones((0, 1), np.float32),
        "one": np.array(2.0, FP8),
        "one_scale": np.array(4.0, np.float32),
    }
    checkpoint = opened(tmp_path, arrays).checkpoint
    assert read(checkpoint, "none").size == 0
    assert read(checkpoint, "one").tolist() == [8.0]


def test_fault_44_fp8_without_scales_is_refused_by_name(tmp_path):
    arrays = {"a.weight": weights(2, 2), "a.weight_scale": np.ones((), np.float32), "b.weight": weights(2, 2)}
    with pytest.raises(RefusedError, match=r"1 fp8 tensors have no scale, first b\.weight") as caught:
        opened(tmp_path / "m", arrays)
    assert caught.value.exit_code == 1
    with pytest.raises(RefusedError, match=r"b\.weight"):
        open_single(write_safetensors(tmp_path / "x.safetensors", arrays))


def test_a_scale_of_the_wrong_shape_names_both(tmp_path):
    arrays = {"a.weight": weights(4, 4), "a.weight_scale_inv": np.ones((3, 1), np.float32)}
    with pytest.raises(DamagedInputError) as caught:
        opened(tmp_path, arrays)
    assert '"a.weight_scale_inv" of shape [3, 1] fits neither "a.weight" of shape [4, 4]' in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_block_size_beyond_all_bounds_costs_nothing(tmp_path):
    w = weights(2, 3)
    arrays = {"a.weight": w, "a.weight_scale_inv": np.full((1, 1), 2, np.float32)}
    checkpoint = opened(tmp_path, arrays, weight_block_size=[1 << 60, 1 << 60]).checkpoint
    assert np.array_equal(read(checkpoint, "a.weight"), w.astype(np.float32).reshape(-1) * 2)
    arrays = {"a.weight": weights(2, 3, 1), "a.weight_scale_inv": np.full((2, 1, 1), 2, np.float32)}
    checkpoint = opened(tmp_path, arrays, weight_block_size=[1 << 60, 1 << 60]).checkpoint
    assert read(checkpoint, "a.weight").size == 6


@pytest.mark.parametrize("size", [None, [128], [0, 128], ["a", 1], [True, 1], "128"])
def test_an_odd_block_size_means_the_default(tmp_path, size):
    arrays = {"a.weight": weights(2, 3), "a.weight_scale_inv": np.ones((1, 1), np.float32)}
    (tmp_path / "m").mkdir()
    assert opened(tmp_path / "m", arrays, weight_block_size=size).checkpoint.specs.keys() == {"a.weight"}


def test_a_model_without_fp8_is_left_alone(tmp_path):
    arrays = {"a.weight": np.ones((2, 2), BFLOAT16), "a.weight_scale": np.ones((), np.float32)}
    folder = opened(tmp_path, arrays)
    assert folder.checkpoint.specs.keys() == arrays.keys()
    assert folder.warnings == ()
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]


def test_scales_cannot_be_read_through_the_view(tmp_path):
    checkpoint = opened(
        tmp_path, {"a.weight": weights(2, 2), "a.weight_scale": np.ones((), np.float32)}
    ).checkpoint
    for act in (
        lambda: read(checkpoint, "a.weight_scale", 0, 1),
        lambda: checkpoint.raw("a.weight_scale", 0, 1),
    ):
        with pytest.raises(KeyError, match=r"a\.weight_scale"):
            act()


def test_fault_45_nan_of_fp8_stays_nan(tmp_path):
    w = np.array([[0x7F, 0x80]], np.uint8).view(FP8)
    checkpoint = opened(tmp_path, {"a.weight": w, "a.weight_scale": np.ones((), np.float32)}).checkpoint
    found = read(checkpoint, "a.weight")
    assert np.isnan(found[0])
    assert found[1] == 0
    assert np.signbit(found[1])
