"""The loss of a classifier over arrays from a `.npz` file: mean cross-entropy in nats per example."""

from __future__ import annotations

import hashlib
import inspect
import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from deltasmith.analysis.language import sample_labels
from deltasmith.analysis.networks import Dtype, Loaded, Source, load_network
from deltasmith.engine.memory import DEFAULT_MEMORY
from deltasmith.engine.workers import Stop
from deltasmith.errors import DamagedInputError, RecipeError, RefusedError, ResourceError, printable
from deltasmith.evaluate.local.reading import read_bytes
from deltasmith.formats.json_file import read_json_object
from deltasmith.kernels.bits import uniform_bits

__all__ = [
    "ClassChunk",
    "ClassificationChunks",
    "ClassifiedExamples",
    "classification_loss",
    "is_arrays",
    "load_classifier",
    "read_arrays",
    "sampled_classification_loss",
]

Array = npt.NDArray[Any]

_LABELS = "labels"
_HEADS = {
    "ForImageClassification": "AutoModelForImageClassification",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
}


@dataclass(frozen=True, eq=False)
class ClassifiedExamples:
    """What a data file holds: `inputs` by the names of the forward pass, (n, ...), and `labels`, (n,)."""

    inputs: Mapping[str, Array]
    labels: npt.NDArray[np.int64]
    sha256: str
    name: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ClassChunk:
    """Examples that are computed together, on their device."""

    inputs: Mapping[str, Tensor]
    labels: Tensor


@dataclass(frozen=True, eq=False)
class ClassificationChunks:
    """All data of an analysis, laid out; `counts` are each chunk's examples."""

    chunks: tuple[ClassChunk, ...]
    counts: tuple[float, ...]

    @classmethod
    def of(
        cls, examples: ClassifiedExamples, network: nn.Module, batch: int, device: str | torch.device = "cpu"
    ) -> ClassificationChunks:
        """Group `batch` examples at a time in their order, floats in the element type of the network's parameters.

        Raises:
            RecipeError: `batch` is below 1. DamagedInputError: labels or names of inputs that the network has not.
            RefusedError: the network's outputs are not the logits of classes.
        """
        if batch < 1:
            raise RecipeError(f"batch is {batch}", fix="give 1 or more")
        _refuse_strangers(examples, network)
        kind = next(parameter.dtype for parameter in network.parameters() if parameter.is_floating_point())
        chunks = []
        for at in range(0, len(examples.labels), batch):
            inputs = {}
            for name, array in examples.inputs.items():
                piece = torch.from_numpy(np.array(array[at : at + batch]))
                inputs[name] = piece.to(device, kind if piece.is_floating_point() else torch.long)
            labels = torch.from_numpy(examples.labels[at : at + batch].copy()).to(device)
            chunks.append(ClassChunk(inputs, labels))
        return cls(tuple(chunks), tuple(float(len(chunk.labels)) for chunk in chunks))


def is_arrays(data: str | Path) -> bool:
    """Tell by its name whether a file of data holds a classifier's arrays, and not documents."""
    return Path(data).suffix.lower() == ".npz"


def read_arrays(path: str | Path, *, limit: int | None = None) -> ClassifiedExamples:
    """Read a `.npz` file: an array for each input of the forward pass, the first axis over examples, and `labels`.

    For example `pixel_values` (n, channels, height, width) as the network's processor scales them, or `input_ids`
    and `attention_mask` (n, length). `limit` keeps the first examples only. Nothing in it is unpickled.

    Raises:
        RecipeError: `limit` is below 1.
        DamagedInputError: no such archive, no labels or inputs, lengths that differ, values that are not finite.
    """
    path = Path(path)
    where = printable(str(path))
    if limit is not None and limit < 1:
        raise RecipeError(f"limit is {limit}", fix="give 1 or more")
    data = read_bytes(path)
    arrays = _arrays(data, where)
    labels = arrays.pop(_LABELS, None)
    if labels is None:
        raise DamagedInputError(
            "it has no array `labels`", where=where, fix="give one integer for each example"
        )
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise DamagedInputError(
            f"`labels` is {labels.dtype} of shape {list(labels.shape)}",
            where=where,
            fix="give one integer for each example",
        )
    if not arrays:
        raise DamagedInputError(
            "it has labels alone", where=where, fix="give the inputs too, `pixel_values` for example"
        )
    for name, array in arrays.items():
        _check(name, array, len(labels), where)
    digest = hashlib.sha256(data).hexdigest()
    kept = {name: array[:limit] for name, array in arrays.items()}
    notes = () if limit is None or limit >= len(labels) else (f"the first {limit} of {len(labels)} examples",)
    return ClassifiedExamples(kept, labels[:limit].astype(np.int64), digest, path.name, notes)


def load_classifier(
    source: Source,
    *,
    device: str = "cpu",
    dtype: Dtype = "float32",
    overrides: Sequence[str] = (),
    memory: int = DEFAULT_MEMORY,
    threads: int | None = None,
    seed: int | None = None,
    stop: Stop | None = None,
    copies: int = 1,
) -> Loaded:
    """Load an image or sequence classifier as `networks.load` loads a language model; no tokenizer is read.

    Which of the two it is `architectures` in its config.json says. Raises what `networks.load` raises, and
    RefusedError where it says neither.
    """
    return load_network(
        source,
        _auto_class,
        False,
        device=device,
        dtype=dtype,
        overrides=overrides,
        memory=memory,
        threads=threads,
        seed=seed,
        stop=stop,
        copies=copies,
    )


def classification_loss(network: nn.Module, chunk: ClassChunk) -> Tensor:
    """Return the mean cross-entropy of the chunk's labels, a scalar in nats per example."""
    return cross_entropy(_logits(network, chunk), chunk.labels)


def sampled_classification_loss(network: nn.Module, chunk: ClassChunk, key: int) -> Tensor:
    """Return the mean of −log p of labels that the network itself draws; see `language.sampled_loss`."""
    logits = _logits(network, chunk)
    drawn = sample_labels(logits.detach(), uniform_bits(key, 0, len(chunk.labels)))
    return cross_entropy(logits, drawn)


def _logits(network: nn.Module, chunk: ClassChunk) -> Tensor:
    logits: Tensor = network(**chunk.inputs).logits
    return logits if logits.dtype == torch.float64 else logits.float()


def _arrays(data: bytes, where: str) -> dict[str, Array]:
    """Return every array of the archive."""
    try:
        archive = np.load(io.BytesIO(data), allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("one array, and no archive of named ones")
        with archive:
            return {name: archive[name] for name in archive.files}
    except MemoryError as cause:
        raise ResourceError(
            "its arrays do not fit in memory", where=where, fix="give fewer examples"
        ) from cause
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as cause:
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        raise DamagedInputError(
            f"it is no .npz archive of plain arrays ({printable(lines[0])})",
            where=where,
            fix="write it with numpy.savez",
        ) from cause


def _check(name: str, array: Array, count: int, where: str) -> None:
    shown = f"`{printable(name, 80)}`"
    if array.dtype.kind not in "fiub":
        raise DamagedInputError(f"{shown} is {array.dtype}", where=where, fix="give numbers")
    if not array.ndim or len(array) != count:
        length = len(array) if array.ndim else 0
        raise DamagedInputError(
            f"{shown} has {length} examples, and `labels` has {count}",
            where=where,
            fix="give as many of each",
        )
    if array.dtype.kind == "f":
        rows = ~np.isfinite(array.reshape(count, -1)).all(axis=1)
        if rows.any():
            raise DamagedInputError(
                f"{shown} is not finite in example {int(rows.argmax())}",
                where=where,
                fix="leave the example out",
            )


def _refuse_strangers(examples: ClassifiedExamples, network: Any) -> None:
    """Refuse inputs, labels and heads that do not go together."""
    known = inspect.signature(network.forward).parameters
    strangers = [name for name in examples.inputs if name not in known]
    if strangers:
        wanted = ", ".join(f"`{name}`" for name in list(known)[:3])
        raise DamagedInputError(
            f"the network takes no `{printable(strangers[0], 80)}`",
            where=examples.name,
            fix=f"name the arrays after its inputs ({wanted})",
        )
    config = network.config
    if config.problem_type not in (None, "single_label_classification") or config.num_labels < 2:
        raise RefusedError(
            f"the network's {config.num_labels} outputs are not the classes of one label",
            fix="give a classifier that was trained with cross-entropy",
        )
    beyond = np.flatnonzero((examples.labels < 0) | (examples.labels >= config.num_labels))
    if beyond.size:
        at = int(beyond[0])
        raise DamagedInputError(
            f"example {at} has the label {examples.labels[at]}, and the network knows 0 to {config.num_labels - 1}",
            where=examples.name,
            fix="number the labels as the network's config does",
        )


def _auto_class(folder: Path) -> str:
    named = read_json_object(folder / "config.json").get("architectures")
    names = [str(name) for name in named] if isinstance(named, list) else []
    for ending, auto in _HEADS.items():
        if any(name.endswith(ending) for name in names):
            return auto
    raise RefusedError(
        f"it is no classifier of images or sequences ({printable(', '.join(names) or 'no architecture', 120)})",
        where="config.json",
        fix="give texts as the data of a language model, or a classifier",
    )
