"""Synthetic pictures in the layout of the real data; every picture says which one it is."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

CHARACTERS = 3
MNIST = 120


def write_idx(path: Path, values: np.ndarray) -> None:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(gzip.compress(b"\0\0\x08" + bytes([values.ndim]) + sizes + values.tobytes()))


def png(array: np.ndarray) -> bytes:
    image = pytest.importorskip("PIL.Image")
    out = io.BytesIO()
    image.fromarray(array).convert("1").save(out, "PNG")
    return out.getvalue()


def drawing(character: int, drawer: int) -> bytes:
    """Draw a horizontal bar that tells the character and a vertical one that tells the drawer, black on white."""
    array = np.full((105, 105), 255, np.uint8)
    array[10 + 20 * character : 20 + 20 * character, :50] = 0
    array[70:, 5 * drawer : 5 * drawer + 5] = 0
    return png(array)


def write_alphabets(path: Path, names: tuple[str, ...]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{path.stem}/", "")
        for name in names:
            for character in range(CHARACTERS):
                for drawer in range(20):
                    member = f"{path.stem}/{name}/character{character + 1:02d}/01_{drawer + 1:02d}.png"
                    archive.writestr(member, drawing(character, drawer))


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("PIL")
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "mnist").mkdir()
    (folder / "omniglot").mkdir()
    images = np.zeros((MNIST, 28, 28), np.uint8)
    images[:, 3:9, 5] = 100
    images[:, 14, 14] = np.arange(MNIST) + 1  # the picture's number, in the middle
    write_idx(folder / "mnist" / "t10k-images-idx3-ubyte.gz", images)
    write_idx(folder / "mnist" / "t10k-labels-idx1-ubyte.gz", (np.arange(MNIST) % 10).astype(np.uint8))
    first = ("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin")
    write_alphabets(folder / "omniglot" / "images_background_small1.zip", first)
    second = ("Greek", "Japanese_(katakana)", "Latin", "Sanskrit", "Tagalog")
    write_alphabets(folder / "omniglot" / "images_background_small2.zip", second)
    return folder


@pytest.fixture(scope="session")
def build_tiny(data_folder: Path) -> Callable[[Path, int], Path]:
    """Return a function that trains a family for a few steps."""
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    from deltasmith.lab.train import Schedule
    from deltasmith.lab.vision.train import build_family
    from deltasmith.lab.vision.vit import VitShape

    schedule = Schedule(steps=3, rate=3e-3, warmup=2, batch=4)
    schedules = {"base": schedule, "expert": schedule}
    shape = VitShape(hidden=16, inner=24, layers=1, heads=2)

    def build(out: Path, seed: int) -> Path:
        build_family(data_folder, out, seed, str, shape=shape, schedules=schedules)
        return out

    return build


@pytest.fixture(scope="session")
def tiny_family(build_tiny: Callable[[Path, int], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("family") / "seed0", 0)
