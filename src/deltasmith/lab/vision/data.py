"""The pictures of the eight tasks: reading, resizing to 28 by 28, splitting by seed. No training here.

`DIR` holds `mnist/t10k-images-idx3-ubyte.gz`, `mnist/t10k-labels-idx1-ubyte.gz` and `omniglot/*small*.zip`;
the digits come with scikit-learn. Nothing is fetched and nothing is bundled.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal
from zlib import crc32

import numpy as np
import numpy.typing as npt

from deltasmith.errors import DamagedInputError, MissingExtraError
from deltasmith.lab.vision import TASKS

__all__ = [
    "ALPHABETS",
    "AUXILIARY",
    "SIDE",
    "Part",
    "Pictures",
    "digest",
    "divide",
    "load_pictures",
    "read_digits",
    "read_idx",
    "read_omniglot",
    "resize",
]

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Split = Literal["train", "validation", "test"]

SIDE = 28
"""Height and width of every picture, in pixels."""

ALPHABETS: Mapping[str, str] = MappingProxyType(
    {"greek": "Greek", "latin": "Latin", "korean": "Korean", "katakana": "Japanese_(katakana)"}
)
"""Tasks that are one Omniglot alphabet each, and the folder of that alphabet."""
AUXILIARY = ("Balinese", "Early_Aramaic", "Sanskrit", "Tagalog")
"""Alphabets that only pre-training sees: their head is thrown away and no task asks about them."""

_DRAWERS = 20  # Omniglot: every character was drawn once by each of 20 people
_HELD_OUT_DRAWERS = (3, 5)  # validation, test
_HELD_OUT_SHARES = (0.15, 0.30)
_MARGIN = 2  # pixels around pictures that would otherwise touch the border


@dataclass(frozen=True, slots=True)
class Part:
    """Hold pictures `(n, 28, 28)` in [0, 1] and their class numbers `(n,)`."""

    images: Floats
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: Sequence[int] | npt.NDArray[np.int64]) -> Part:
        return Part(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True, slots=True)
class Pictures:
    """Hold one task: its three parts share no picture and, for alphabets, no drawer."""

    name: str
    classes: int
    train: Part
    validation: Part
    test: Part

    def part(self, split: Split) -> Part:
        """Return one part by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]


def load_pictures(folder: Path | str, seed: int) -> tuple[dict[str, Pictures], Part]:
    """Read and split every task; second, return the auxiliary characters that only pre-training uses.

    `seed` decides which third of MNIST each of its tasks gets, which pictures are held out, and which drawers.
    Raises DamagedInputError for a file that is missing or not what its name says, MissingExtraError without
    scikit-learn or Pillow.
    """
    folder = Path(folder)
    found: dict[str, Pictures] = {}
    mnist = _read_mnist(folder / "mnist")
    thirds = np.array_split(_generator(seed, "thirds").permutation(len(mnist)), 3)
    for name, chosen in zip(("mnist", "mnist_rotated", "mnist_inverted"), thirds, strict=True):
        found[name] = divide(name, _shifted(name, mnist[np.sort(chosen)]), seed)
    found["digits"] = divide("digits", read_digits(), seed)
    alphabets = read_omniglot(folder / "omniglot")
    missing = [name for name in (*ALPHABETS.values(), *AUXILIARY) if name not in alphabets]
    if missing:
        raise DamagedInputError(
            f"no alphabet {missing[0]}",
            where=str(folder / "omniglot"),
            fix="it needs Omniglot's images_background_small1.zip and _small2.zip",
        )
    for name, alphabet in ALPHABETS.items():
        found[name] = _divide_by_drawer(name, alphabets[alphabet], seed)
    return {name: found[name] for name in TASKS}, _turned([alphabets[name] for name in AUXILIARY])


def _turned(alphabets: Sequence[Part]) -> Part:
    """Pool the characters of several alphabets; each of a character's four quarter turns is its own class."""
    images, labels, classes = [], [], 0
    for part, turns in itertools.product(alphabets, range(4)):
        images.append(np.ascontiguousarray(np.rot90(part.images, turns, axes=(1, 2))))
        labels.append(part.labels + classes)
        classes += int(part.labels.max()) + 1
    return Part(np.concatenate(images), np.concatenate(labels))


def digest(tasks: Mapping[str, Pictures]) -> str:
    """Hash every picture, label and split, so that a table is never made from other data than its models."""
    state = hashlib.sha256()
    for name, task in tasks.items():
        for part in (task.train, task.validation, task.test):
            state.update(f"{name} {len(part)} ".encode())
            # Bytes rather than floats: the last bit of a resized picture differs between processors.
            state.update(np.rint(part.images * 255).astype(np.uint8).tobytes())
            state.update(part.labels.tobytes())
    return state.hexdigest()


def divide(name: str, everything: Part, seed: int) -> Pictures:
    """Split pictures at random: 15 % validation, 30 % test, the rest training."""
    order = _generator(seed, name).permutation(len(everything))
    validation, test = (round(share * len(order)) for share in _HELD_OUT_SHARES)
    cuts = np.split(order, [test, test + validation])
    held_out, checked, trained = (everything[np.sort(cut)] for cut in cuts)
    return Pictures(name, int(everything.labels.max()) + 1, trained, checked, held_out)


def _divide_by_drawer(name: str, everything: Part, seed: int) -> Pictures:
    # Pictures come ordered by character, then drawer; the drawers of one alphabet are the same 20 people.
    drawer = np.arange(len(everything)) % _DRAWERS
    order = _generator(seed, name).permutation(_DRAWERS)
    validation, test = _HELD_OUT_DRAWERS
    groups = np.split(order, [test, test + validation])
    held_out, checked, trained = (everything[np.flatnonzero(np.isin(drawer, group))] for group in groups)
    return Pictures(name, int(everything.labels.max()) + 1, trained, checked, held_out)


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, crc32(name.encode())])


def _shifted(name: str, part: Part) -> Part:
    """Apply the domain shift that a task's name says: a quarter turn, or ink and paper exchanged."""
    if name == "mnist_rotated":
        return Part(np.ascontiguousarray(np.rot90(part.images, axes=(1, 2))), part.labels)
    return Part(1 - part.images, part.labels) if name == "mnist_inverted" else part


def resize(images: Floats, side: int) -> Floats:
    """Scale square pictures `(n, s, s)` to `(n, side, side)` with a tent filter, as wide as either pixel grid.

    Enlarging interpolates linearly; shrinking averages, so that thin strokes fade rather than break.
    """
    old = images.shape[-1]
    reach = max(1.0, old / side)
    centres = (np.arange(side) + 0.5) * old / side - 0.5
    tent = np.maximum(0.0, 1 - np.abs(centres[:, None] - np.arange(old)) / reach)
    tent /= tent.sum(axis=1, keepdims=True)
    return np.asarray(tent @ images.astype(np.float64) @ tent.T, dtype=np.float32)


def _framed(images: Floats) -> Floats:
    """Resize to leave an empty margin, and stretch every picture to the full range of grey."""
    small = resize(images, SIDE - 2 * _MARGIN)
    small /= np.maximum(small.max(axis=(1, 2), keepdims=True), np.float32(1e-6))
    return np.pad(small, ((0, 0), (_MARGIN, _MARGIN), (_MARGIN, _MARGIN)))


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read a gzipped IDX file of unsigned bytes.

    Raises DamagedInputError when it is missing, not gzip, of another element type, or of the wrong length.
    """
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as cause:
        raise DamagedInputError(f"cannot read ({cause})", where=str(path), fix=_MNIST) from cause
    dimensions = raw[3] if len(raw) > 3 else 0
    header = 4 + 4 * dimensions
    if raw[:3] != b"\0\0\x08" or len(raw) < header:
        raise DamagedInputError("not an IDX file of bytes", where=str(path), fix=_MNIST)
    shape = tuple(int.from_bytes(raw[at : at + 4], "big") for at in range(4, header, 4))
    if len(raw) - header != int(np.prod(shape)):
        what = f"{len(raw) - header} values where the header says {shape}"
        raise DamagedInputError(what, where=str(path), fix=_MNIST)
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


_MNIST = "give the folder that holds mnist/t10k-images-idx3-ubyte.gz and mnist/t10k-labels-idx1-ubyte.gz"


def _read_mnist(folder: Path) -> Part:
    images = read_idx(folder / "t10k-images-idx3-ubyte.gz")
    labels = read_idx(folder / "t10k-labels-idx1-ubyte.gz")
    if images.shape != (len(labels), SIDE, SIDE):
        what = f"pictures {images.shape} do not go with {len(labels)} labels"
        raise DamagedInputError(what, where=str(folder), fix=_MNIST)
    return Part(images.astype(np.float32) / np.float32(255), labels.astype(np.int64))


def read_digits() -> Part:
    """Return scikit-learn's 1797 digits, enlarged from 8 by 8; MissingExtraError without scikit-learn."""
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped, unused-ignore]
    except ModuleNotFoundError as cause:
        raise MissingExtraError(
            "the digits need scikit-learn", fix="run: pip install 'deltasmith[vision]'"
        ) from cause
    loaded = load_digits()
    images = np.asarray(loaded.images, dtype=np.float32)
    return Part(_framed(images), np.asarray(loaded.target, dtype=np.int64))


def read_omniglot(folder: Path) -> dict[str, Part]:
    """Read every alphabet in the zip files of `folder`: ink is 1, pictures ordered by character, then drawer.

    Raises DamagedInputError when there is no zip file, one is damaged, or a character lacks a drawer.
    """
    files: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.zip")):
        for alphabet, name, raw in _pictures_in(path):
            files.setdefault(alphabet, {}).setdefault(name, raw)
    if not files:
        raise DamagedInputError("no zip files", where=str(folder), fix="put Omniglot's zip files there")
    return {alphabet: _alphabet(alphabet, files[alphabet]) for alphabet in sorted(files)}


def _pictures_in(path: Path) -> Iterator[tuple[str, str, bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                _, *parts = member.split("/")
                if member.endswith(".png") and len(parts) == 3:
                    # 0108_01.png: the numbers of the character and of the drawer.
                    yield parts[0], "/".join(parts[1:]), archive.read(member)
    except (OSError, zipfile.BadZipFile) as cause:
        raise DamagedInputError(f"cannot read ({cause})", where=str(path), fix="copy it again") from cause


def _alphabet(name: str, files: Mapping[str, bytes]) -> Part:
    ordered = sorted(files)
    characters = sorted({file.partition("/")[0] for file in ordered})
    labels = np.array([characters.index(file.partition("/")[0]) for file in ordered], dtype=np.int64)
    if len(ordered) != _DRAWERS * len(characters) or (np.bincount(labels) != _DRAWERS).any():
        what = f"{len(ordered)} pictures of {len(characters)} characters, not {_DRAWERS} of each"
        raise DamagedInputError(what, where=f"alphabet {name}", fix="copy Omniglot's zip files again")
    return Part(_framed(np.stack([_ink(files[file], f"{name}/{file}") for file in ordered])), labels)


def _ink(raw: bytes, where: str) -> Floats:
    try:
        from PIL import Image, UnidentifiedImageError
    except ModuleNotFoundError as cause:
        raise MissingExtraError(
            "reading PNG needs Pillow", fix="run: pip install 'deltasmith[vision]'"
        ) from cause
    try:
        with Image.open(io.BytesIO(raw), formats=["PNG"]) as picture:
            grey = np.asarray(picture.convert("L"), dtype=np.float32)
    except (UnidentifiedImageError, OSError, SyntaxError) as cause:
        raise DamagedInputError(
            f"not a PNG picture ({cause})", where=where, fix="copy Omniglot's zip files again"
        ) from cause
    return 1 - grey / np.float32(255)
