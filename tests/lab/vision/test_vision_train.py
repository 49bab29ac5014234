"""Training is decided by its seed, moves what it may and nothing else, and writes what the table reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deltasmith.errors import RefusedError
from deltasmith.lab.vision import TASKS
from deltasmith.lab.vision.data import Part

torch = pytest.importorskip("torch")

from deltasmith.lab.train import Schedule  # noqa: E402
from deltasmith.lab.vision import train  # noqa: E402
from deltasmith.lab.vision.vit import VitShape, initial, outcomes  # noqa: E402

SHAPE = VitShape(hidden=16, inner=24, layers=1, heads=2)
SHORT = Schedule(steps=30, rate=3e-3, warmup=5, batch=16)


def bars() -> Part:
    """Class 0 is a horizontal bar, class 1 a vertical one."""
    images = np.zeros((40, 28, 28), np.float32)
    images[::2, 12:16] = 1.0
    images[1::2, :, 12:16] = 1.0
    return Part(images, np.arange(40) % 2)


def learn(moving: tuple[str, ...]) -> tuple:
    torch.manual_seed(0)  # must not matter
    params, heads = (
        initial(SHAPE, 0),
        {"bars": torch.randn(2, 16, generator=torch.Generator().manual_seed(1))},
    )
    before = {name: value.clone() for name, value in params.items()}
    rng = np.random.default_rng(0)
    trunk, tops, log = train.train(params, heads, SHAPE, SHORT, {"bars": bars()}, rng, str, moving=moving)
    assert all(torch.equal(before[name], params[name]) for name in params)
    return before, heads, trunk, tops, log


def test_fine_tuning_moves_the_trunk_and_not_the_head() -> None:
    before, heads, trunk, tops, log = learn(())
    assert not any(torch.equal(before[name], trunk[name]) for name in trunk)
    assert torch.equal(heads["bars"], tops["bars"])
    assert outcomes(trunk, SHAPE, tops["bars"], bars()).all()
    assert log[-1][0] == 30
    assert log[-1][1] < log[0][1]


def test_pre_training_moves_the_heads_too() -> None:
    _, heads, _, tops, _ = learn(("bars",))
    assert not torch.equal(heads["bars"], tops["bars"])


def test_the_same_generator_gives_the_same_weights() -> None:
    first, again = learn(())[2], learn(())[2]
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_augmenting_moves_pictures_a_little_and_keeps_flat_ones() -> None:
    part = bars()
    images, labels = train.augmented(part, np.random.default_rng(0), "cpu")
    np.testing.assert_array_equal(labels.numpy(), part.labels)
    assert images.shape == (40, 28, 28)
    change = np.abs(images.numpy() - part.images).mean(axis=(1, 2))
    assert (change > 0).all()
    assert (change < 0.2).all()
    flat = Part(np.full((3, 28, 28), 0.7, np.float32), np.zeros(3, np.int64))
    np.testing.assert_allclose(train.augmented(flat, np.random.default_rng(0), "cpu")[0], 0.7, atol=1e-6)


def test_the_family(tiny_family: Path) -> None:
    from safetensors.numpy import load_file

    record = json.loads((tiny_family / "RECORD.json").read_text())
    base = load_file(tiny_family / "base" / "model.safetensors")
    assert record["parameters"] == sum(array.size for array in base.values())
    heads = load_file(tiny_family / "heads.safetensors")
    assert {name: head.shape[0] for name, head in heads.items()} == {
        name: sizes["classes"] for name, sizes in record["tasks"].items()
    }
    assert tuple(record["tasks"]) == TASKS
    for task in TASKS:
        expert = load_file(tiny_family / "experts" / task / "model.safetensors")
        assert expert.keys() == base.keys()
        assert any((expert[name] != base[name]).any() for name in base)
        assert record["deltas"][task]["norm_ratio"] > 0
        assert set(record["accuracy"][task]) == set(TASKS)


def test_a_family_follows_its_seed(tiny_family: Path, build_tiny, tmp_path: Path) -> None:
    again, other = build_tiny(tmp_path / "again", 0), build_tiny(tmp_path / "other", 1)
    files = [path.relative_to(tiny_family) for path in sorted(tiny_family.rglob("*")) if path.is_file()]
    assert len(files) == 2 + 2 * 9
    for file in files:
        assert (again / file).read_bytes() == (tiny_family / file).read_bytes(), file
    weights = Path("base", "model.safetensors")
    assert (other / weights).read_bytes() != (tiny_family / weights).read_bytes()


def test_an_existing_folder_is_refused(data_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="the folder exists"):
        train.build_family(data_folder, tmp_path, 0, str)
