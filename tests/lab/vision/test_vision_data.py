"""Pictures are read, resized and split as described, and nothing that is held out is ever trained on."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from deltasmith.errors import DamagedInputError, MissingExtraError
from deltasmith.lab.vision import TASKS, data
from deltasmith.lab.vision.data import Part, Pictures

PARTS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def loaded(data_folder: Path) -> dict[str, Pictures]:
    pytest.importorskip("sklearn")
    return data.load_pictures(data_folder, 0)[0]


def test_enlarging_interpolates_linearly() -> None:
    row = data.resize(np.tile(np.array([0.0, 1.0, 2.0, 3.0], np.float32), (1, 4, 1)), 8)[0, 0]
    np.testing.assert_allclose(row, [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3], atol=1e-6)


def test_shrinking_weighs_with_a_tent() -> None:
    picture = np.zeros((1, 8, 8), np.float32)
    picture[0, :, 3] = 1.0
    # A tent of reach 2 around 2.5: pixels 1 to 4 weigh 0.25, 0.75, 0.75, 0.25, of 2 in all.
    np.testing.assert_allclose(data.resize(picture, 4)[0, 0], [0, 0.375, 0.125, 0], atol=1e-6)


@pytest.mark.parametrize("side", [1, 5, 9, 28])
def test_resizing_keeps_what_is_flat(side: int) -> None:
    np.testing.assert_allclose(data.resize(np.full((2, 9, 9), 0.4, np.float32), side), 0.4, atol=1e-6)


def test_resizing_to_the_same_size_changes_nothing() -> None:
    picture = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    np.testing.assert_array_equal(data.resize(picture, 4), picture)


def test_divide_parts_everything_and_follows_the_seed() -> None:
    images = np.broadcast_to(np.arange(200, dtype=np.float32)[:, None, None], (200, 28, 28))
    everything = Part(images, np.arange(200) % 10)
    numbers = [
        data.divide("digits", everything, seed).part(part).images[:, 0, 0]
        for seed in (0, 0, 1)
        for part in PARTS
    ]
    first, again, other = numbers[:3], numbers[3:6], numbers[6:]
    assert sorted(np.concatenate(first)) == list(range(200))
    assert [len(part) for part in first] == [110, 30, 60]
    assert all(map(np.array_equal, first, again))
    assert not any(map(np.array_equal, first, other))


def test_every_task_is_there(loaded: dict[str, Pictures]) -> None:
    assert tuple(loaded) == TASKS
    for task in loaded.values():
        for part in (task.train, task.validation, task.test):
            assert part.images.shape == (len(part), 28, 28)
            assert part.images.dtype == np.float32
            assert part.images.min() >= 0.0
            assert part.images.max() <= 1.0
            assert part.labels.min() >= 0
            assert part.labels.max() < task.classes


def number(name: str, images: np.ndarray) -> np.ndarray:
    """Read the number in the middle of a synthetic MNIST picture, wherever its task has moved it."""
    at = {"mnist": (14, 14), "mnist_rotated": (13, 14), "mnist_inverted": (14, 14)}[name]
    values = images[:, at[0], at[1]]
    return np.rint(255 * (1 - values if name == "mnist_inverted" else values)).astype(int) - 1


def test_no_mnist_picture_is_in_two_places(loaded: dict[str, Pictures]) -> None:
    seen = []
    for name in TASKS[:3]:
        for part in PARTS:
            found = number(name, loaded[name].part(part).images)  # type: ignore[arg-type]
            np.testing.assert_array_equal(loaded[name].part(part).labels, found % 10)  # type: ignore[arg-type]
            seen.extend(found)
    assert sorted(seen) == list(range(120))


def test_domain_shifts(loaded: dict[str, Pictures]) -> None:
    plain, turned, inverted = (loaded[name].train.images[0] for name in TASKS[:3])
    assert (plain[4, 5], inverted[4, 5], inverted[0, 0]) == pytest.approx((100 / 255, 155 / 255, 1.0))
    assert turned[22, 4] == pytest.approx(100 / 255)  # (r, c) goes to (27 - c, r)


def test_alphabets_are_split_by_drawer(loaded: dict[str, Pictures]) -> None:
    for name in data.ALPHABETS:
        drawers = {}
        for part, count in zip(PARTS, (12, 3, 5), strict=True):
            chosen = loaded[name].part(part)  # type: ignore[arg-type]
            np.testing.assert_array_equal(np.bincount(chosen.labels), [count] * 3)
            drawers[part] = set(chosen.images[:, 24].argmax(axis=1))
        for one, other in itertools.combinations(PARTS, 2):
            assert not drawers[one] & drawers[other]


def test_ink_is_one_and_labels_follow_characters(loaded: dict[str, Pictures]) -> None:
    part = loaded["greek"].train
    assert part.images[:, 0].max() == 0.0  # paper
    for image, label in zip(part.images, part.labels, strict=True):
        ink = np.flatnonzero(image[:17, 3] > 0.5)
        assert ink.mean() == pytest.approx((15 + 20 * label) * 24 / 105 + 1.5, abs=0.6)


def test_auxiliary_characters_come_in_four_turns(data_folder: Path) -> None:
    pytest.importorskip("sklearn")
    auxiliary = data.load_pictures(data_folder, 0)[1]
    np.testing.assert_array_equal(np.bincount(auxiliary.labels), [20] * (4 * 3 * len(data.AUXILIARY)))
    upright, turned = (auxiliary.images[auxiliary.labels == label] for label in (0, 3))
    np.testing.assert_array_equal(np.rot90(upright, axes=(1, 2)), turned)


def test_the_digest_sees_pictures_labels_and_splits(loaded: dict[str, Pictures], data_folder: Path) -> None:
    whole = data.digest(loaded)
    assert whole == data.digest(data.load_pictures(data_folder, 0)[0])
    assert whole != data.digest(data.load_pictures(data_folder, 1)[0])
    task = loaded["digits"]
    dimmed = dataclasses.replace(task, test=Part(task.test.images * np.float32(0.9), task.test.labels))
    relabelled = dataclasses.replace(task, test=Part(task.test.images, 9 - task.test.labels))
    for changed in (dimmed, relabelled):
        assert whole != data.digest({**loaded, "digits": changed})


def test_digits() -> None:
    pytest.importorskip("sklearn")
    digits = data.read_digits()
    assert digits.images.shape == (1797, 28, 28)
    assert set(digits.labels) == set(range(10))
    np.testing.assert_array_equal(digits.images.max(axis=(1, 2)), 1.0)
    assert digits.images[:, :2].max() == 0.0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"no gzip", "cannot read"),
        (gzip.compress(b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0"), "not an IDX file of bytes"),
        (gzip.compress(b"\0\0"), "not an IDX file of bytes"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x05abc"), r"3 values where the header says \(5,\)"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x05abcde")[:-9], "cannot read"),
    ],
)
def test_a_damaged_idx_file_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "some.gz"
    path.write_bytes(content)
    with pytest.raises(DamagedInputError, match=says):
        data.read_idx(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DamagedInputError, match="t10k-images-idx3-ubyte"):
        data.load_pictures(tmp_path, 0)
    with pytest.raises(DamagedInputError, match="no zip files"):
        data.read_omniglot(tmp_path)


def test_a_missing_alphabet_is_named(data_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    shutil.copytree(data_folder, tmp_path / "less")
    (tmp_path / "less" / "omniglot" / "images_background_small2.zip").unlink()
    with pytest.raises(DamagedInputError, match="no alphabet Japanese_"):
        data.load_pictures(tmp_path / "less", 0)


def test_damaged_pictures_are_named(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    for content, count, says in ((b"nothing", 20, "not a PNG picture"), (b"nothing", 19, "19 pictures of 1")):
        with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
            for drawer in range(count):
                archive.writestr(f"one/Greek/character01/01_{drawer + 1:02d}.png", content)
        with pytest.raises(DamagedInputError, match=says):
            data.read_omniglot(tmp_path)
    (tmp_path / "one.zip").write_bytes(b"no zip")
    with pytest.raises(DamagedInputError, match="cannot read"):
        data.read_omniglot(tmp_path)


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"deltasmith\[vision\]"):
        data.read_digits()
