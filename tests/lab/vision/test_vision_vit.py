"""The forward pass is transformers' ViTModel, and what is observed is what each linear layer reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deltasmith.lab.vision.data import Part
from deltasmith.lab.vision.vit import VitShape, features, initial, outcomes, write_trunk

torch = pytest.importorskip("torch")

SHAPE = VitShape(hidden=16, inner=24, layers=2, heads=2, patch=7)


@pytest.fixture
def params() -> dict:
    # Biases and norms away from 0 and 1, so that none of them can be forgotten.
    generator = torch.Generator().manual_seed(1)
    return {
        name: value + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in initial(SHAPE, 0).items()
    }


def test_transformers_computes_the_same(params: dict, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    write_trunk(tmp_path / "trunk", params, SHAPE)
    model, said = transformers.ViTModel.from_pretrained(
        tmp_path / "trunk", add_pooling_layer=False, output_loading_info=True
    )
    assert not any(said.values())
    images = torch.rand(5, 28, 28, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        theirs = model.eval()(images[:, None]).last_hidden_state
        ours = features(params, SHAPE, images)
    assert ours.shape == (5, 1 + SHAPE.patches, 16)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_folder_says_its_shape(params: dict, tmp_path: Path) -> None:
    write_trunk(tmp_path / "trunk", params, SHAPE)
    config = json.loads((tmp_path / "trunk" / "config.json").read_text())
    assert (config["model_type"], config["hidden_size"], config["patch_size"]) == ("vit", 16, 7)


def test_first_weights_follow_the_seed() -> None:
    first, again, other = initial(SHAPE, 3), initial(SHAPE, 3), initial(SHAPE, 4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "encoder.layer.1.output.dense.weight"
    assert not torch.equal(first[name], other[name])


def test_the_observer_sees_the_input_of_every_linear_layer(params: dict) -> None:
    seen: dict = {}
    images = torch.rand(3, 28, 28, generator=torch.Generator().manual_seed(2))
    features(params, SHAPE, images, lambda name, rows: seen.setdefault(name, rows))
    wanted = {name for name, value in params.items() if value.ndim == 2}
    assert set(seen) == wanted
    for name, rows in seen.items():
        assert rows.shape == (3 * (1 + SHAPE.patches), params[name].shape[1])
    # The first layer's query reads the normalised embeddings.
    at = "encoder.layer.0.attention.attention."
    torch.testing.assert_close(seen[f"{at}query.weight"].mean(0).mean(), seen[f"{at}key.weight"].mean())


def test_outcomes_follow_the_order_of_the_pictures(params: dict) -> None:
    generator = np.random.default_rng(0)
    images = generator.random((600, 28, 28), dtype=np.float32)
    head = torch.randn(4, 16, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        best = (features(params, SHAPE, torch.from_numpy(images))[:, 0] @ head.T).argmax(-1).numpy()
    labels = np.where(np.arange(600) % 3 == 0, (best + 1) % 4, best)
    right = outcomes(params, SHAPE, head, Part(images, labels))
    np.testing.assert_array_equal(right, np.arange(600) % 3 != 0)
