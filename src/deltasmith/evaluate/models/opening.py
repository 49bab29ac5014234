"""Whatever a user names, opened as a model that answers: a folder, what can be merged, or a recipe.

`open_material` stops before a network is built. A recipe is merged in memory, evaluated and discarded; only its
config and tokenizer lie in a temporary folder while the model is loaded.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deltasmith import api
from deltasmith.engine.in_memory import Stored
from deltasmith.engine.memory import DEFAULT_MEMORY
from deltasmith.errors import MissingExtraError, RecipeError, RefusedError, printable
from deltasmith.evaluate.language import LanguageModel
from deltasmith.formats.fingerprint import sha256_of
from deltasmith.formats.hf_folder import ShardedCheckpoint
from deltasmith.formats.json_file import read_json_object
from deltasmith.formats.opening import OpenedModel, open_model
from deltasmith.formats.publish import side_files
from deltasmith.recipe.checks import is_recipe_file
from deltasmith.recipe.model import Recipe
from deltasmith.upscaling.settings import MODEL_TYPE

if TYPE_CHECKING:
    from deltasmith.engine.columns import EditedColumns
    from deltasmith.engine.progress import Progress
    from deltasmith.engine.workers import Stop

__all__ = ["Material", "OpenedLanguageModel", "Runtime", "is_recipe", "open_language_model", "open_material"]

Runtime = Literal["auto", "numpy", "torch"]
"""`auto` is torch where torch and transformers are installed, and numpy elsewhere."""

_DECIDING = (".json", ".jinja", ".model", ".txt", ".tiktoken")
_INDEPENDENT = ("manifest.json", "model.safetensors.index.json", "README.md")
_CHUNK = 1 << 24


@dataclass(frozen=True)
class OpenedLanguageModel:
    """A model that answers. `fingerprint` changes whenever its answers could; `name` holds no absolute path."""

    model: LanguageModel
    name: str
    fingerprint: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Material:
    """What a model is made of: a folder with config and tokenizer, the weights if they are not in it too.

    `weights` changes whenever they do; `name` holds no absolute path. The folder may be gone when the context that
    yielded this ends.
    """

    name: str
    folder: Path
    tensors: Mapping[str, Stored] | None
    weights: str
    notes: tuple[str, ...]


def is_recipe(source: str | Path | Mapping[str, Any] | Recipe) -> bool:
    """Tell whether `source` is a recipe: a record, a mapping, or a file whose name ends in .yaml or .yml."""
    return isinstance(source, Mapping | Recipe) or is_recipe_file(source)


def open_language_model(
    source: str | Path | Mapping[str, Any],
    *,
    device: str = "cpu",
    runtime: Runtime = "auto",
    dtype: str = "auto",
    batch: int | None = None,
    context: int | None = None,
    overrides: Sequence[str] = (),
    memory: int = DEFAULT_MEMORY,
    threads: int | None = None,
    seed: int | None = None,
    columns: EditedColumns | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> OpenedLanguageModel:
    """Open a model folder, anything else that `open_model` opens with a config beside it, or a recipe.

    `device` is cpu, cuda or cuda:N; `dtype` auto, float32, bfloat16 or float16; `batch` the texts computed at once
    (default 32 for numpy, 8 for torch); `context` bounds the model's own longest input. The options from
    `overrides` on are for recipes, `columns` those of `api.compute`. Nothing but a hub id is ever fetched.

    Raises:
        RecipeError: an option or a recipe makes no sense. MissingExtraError: a package is not installed.
        DamagedInputError: the model does not load, or not completely.
        RefusedError: an adapter without its base, weights without a config, or a model numpy cannot compute.
        ResourceError: the memory does not suffice.
    """
    chosen = _runtime(runtime, device, dtype)
    made = open_material(
        source,
        overrides=overrides,
        columns=columns,
        memory=memory,
        threads=threads,
        seed=seed,
        progress=progress,
        stop=stop,
    )
    with made as material:
        limits = {"context": context} | ({} if batch is None else {"batch": batch})
        model, notes = _load(material, chosen, device, dtype, limits)
        print_of = _fingerprint(material, model)
    return OpenedLanguageModel(model, material.name, print_of, (*material.notes, *notes))


def open_material(
    source: str | Path | Mapping[str, Any] | Recipe,
    *,
    overrides: Sequence[str] = (),
    memory: int = DEFAULT_MEMORY,
    threads: int | None = None,
    seed: int | None = None,
    columns: EditedColumns | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> AbstractContextManager[Material]:
    """Lay out what `open_language_model` opens, a recipe computed as `merge` would write it, without a network.

    Raises what that raises before it loads one: RecipeError, DamagedInputError, RefusedError, ResourceError.
    """
    if is_recipe(source):
        options = {"memory": memory, "threads": threads, "seed": seed, "progress": progress, "stop": stop}
        return _from_recipe(source, overrides=overrides, columns=columns, **options)
    if overrides or seed is not None:
        raise RecipeError(
            f"{printable(str(source))} is no recipe, so no value of it can be set",
            fix="leave the settings out, or give a recipe (*.yaml)",
        )
    return _from_model(str(source))


def _runtime(runtime: str, device: str, dtype: str) -> str:
    """Choose between numpy and torch, and refuse what numpy has not."""
    if runtime not in ("auto", "numpy", "torch"):
        raise RecipeError(f"there is no runtime {printable(runtime)!r}", fix="use auto, numpy or torch")
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if runtime == "torch" and missing:
        raise MissingExtraError(f"{missing[0]} is not installed", fix='pip install "deltasmith[eval]"')
    chosen = ("numpy" if missing else "torch") if runtime == "auto" else runtime
    if chosen == "numpy" and (device != "cpu" or dtype not in ("auto", "float32")):
        asked = f"--device {printable(device)}" if device != "cpu" else f"dtype {printable(dtype)}"
        raise MissingExtraError(
            f"{asked} needs torch and transformers; numpy computes in float32 on the CPU",
            fix='pip install "deltasmith[eval]"',
        )
    return chosen


def _load(
    material: Material, runtime: str, device: str, dtype: str, limits: Mapping[str, Any]
) -> tuple[LanguageModel, tuple[str, ...]]:
    if runtime == "torch":
        from deltasmith.evaluate.models.torch_model import TorchModel

        where = str(material.folder) if material.tensors is None else material.name
        model = TorchModel.load(
            material.folder, material.tensors, device=device, dtype=dtype, where=where, **limits
        )
        return model, model.notes
    if read_json_object(material.folder / "config.json").get("model_type") == MODEL_TYPE:
        raise MissingExtraError(
            "a mixture of experts is computed by torch and transformers",
            where=printable(material.name),
            fix='pip install "deltasmith[eval]", and use --runtime torch or auto',
        )
    from deltasmith.evaluate.models.numpy_model import NumpyModel

    if material.tensors is None:
        return NumpyModel.load(material.folder, **limits), ()
    arrays = {name: s.values() for name, s in material.tensors.items() if s.spec.dtype.floating}
    return NumpyModel.from_tensors(arrays, material.folder, **limits), ()


@contextmanager
def _from_recipe(source: str | Path | Mapping[str, Any] | Recipe, **options: Any) -> Iterator[Material]:
    computed = api.compute(source, **options)
    name = Path(source).stem if isinstance(source, str | Path) else "recipe"
    with _beside(computed.files, name) as folder:
        state = hashlib.sha256()
        for tensor, stored in sorted(computed.tensors.items()):
            state.update(repr((tensor, stored.spec.dtype.name, stored.spec.shape)).encode())
            for at in range(0, len(stored.data), _CHUNK):
                state.update(stored.data[at : at + _CHUNK])
        yield Material(name, folder, computed.tensors, state.hexdigest(), computed.warnings)


@contextmanager
def _from_model(source: str) -> Iterator[Material]:
    opened = open_model(source)
    folder, checkpoint = _complete(opened)
    weights = repr([(file.name, sha256_of(file.path)) for file in opened.files])
    if isinstance(checkpoint, ShardedCheckpoint):
        yield Material(opened.name, folder, None, weights, opened.warnings)
        opened.check_unchanged()
        return
    # The stored bytes are not what a model computes with (fp8 with scales): hand over what they stand for.
    tensors = {
        name: Stored(spec, memoryview(checkpoint.raw(name, 0, spec.size)))
        for name, spec in checkpoint.specs.items()
    }
    with _beside(side_files(folder, folder, dequantised=True).files, opened.name) as beside:
        yield Material(opened.name, beside, tensors, weights, opened.warnings)


def _complete(opened: OpenedModel) -> tuple[Path, Any]:
    """Return folder and checkpoint, or refuse what is no model by itself."""
    if opened.checkpoint is None:
        raise RefusedError(
            f"{opened.kind} is not a model by itself",
            where=printable(opened.source),
            fix="evaluate a recipe that names it and its base",
        )
    if opened.folder is None or opened.config is None:
        raise RefusedError(
            "weights alone cannot answer, without config.json and tokenizer",
            where=printable(opened.source),
            fix="give the model's folder",
        )
    return opened.folder, opened.checkpoint


@contextmanager
def _beside(files: Mapping[str, bytes | Path], name: str) -> Iterator[Path]:
    """Lay out config and tokenizer files in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="deltasmith-") as root:
        folder = Path(root) / "model"
        for relative, content in files.items():
            path = folder / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        if not (folder / "config.json").is_file():
            raise RefusedError(
                "the merged model has no config.json, so it cannot answer",
                where=printable(name),
                fix="give a base that is a model folder",
            )
        yield folder


def _fingerprint(material: Material, model: LanguageModel) -> str:
    """Hash the weights, every small file that config, tokenizer or template may lie in, and the runtime."""
    state = hashlib.sha256(repr((material.weights, model.runtime, model.context)).encode())
    for path in sorted(material.folder.iterdir()):
        if path.is_file() and path.suffix in _DECIDING and path.name not in _INDEPENDENT:
            state.update(repr((path.name, hashlib.sha256(path.read_bytes()).hexdigest())).encode())
    return state.hexdigest()
