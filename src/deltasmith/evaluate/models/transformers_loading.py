"""transformers made quiet, offline and strict: what it only warns of when it loads a model is an error here."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltasmith.errors import (
    DamagedInputError,
    DeltasmithError,
    MissingExtraError,
    RecipeError,
    ResourceError,
    printable,
)
from deltasmith.formats.json_file import read_json_object
from deltasmith.upscaling.settings import MODEL_TYPE

if TYPE_CHECKING:
    from deltasmith.engine.in_memory import Stored

__all__ = [
    "check_device",
    "load_model",
    "load_tokenizer",
    "longest_input",
    "memory_errors",
    "quiet",
    "register_mixtures",
    "require_transformers",
]

_SHOWN = 3
_ALLOCATION = "DefaultCPUAllocator"
_LENGTHS = ("n_positions", "max_position_embeddings", "n_ctx")
_UNSET = 10**9  # tokenizers without a length of their own name an absurd one


def require_transformers(purpose: str = "evaluating this model", extra: str = "eval") -> None:
    """Raise MissingExtraError, which says what for, unless torch and transformers can be imported."""
    try:
        for name in ("torch", "transformers"):
            importlib.import_module(name)
    except ImportError as cause:
        raise MissingExtraError(
            f"{purpose} needs torch and transformers ({cause})",
            fix=f'pip install "deltasmith[{extra}]"',
        ) from cause


def check_device(device: str) -> None:
    """Raise RecipeError unless `device` is `cpu`, `cuda` or `cuda:N`, and there."""
    import torch

    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()) or device == "cpu:":
        raise RecipeError(f"there is no device {printable(device)!r}", fix="use cpu, cuda or cuda:N")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            raise RecipeError(
                f"torch sees {count} CUDA devices, and {device} was asked for", fix="use --device cpu"
            )


def register_mixtures(folder: Path) -> None:
    """Make transformers know what `deltasmith upscale` writes, if the folder holds that."""
    if read_json_object(folder / "config.json").get("model_type") == MODEL_TYPE:
        from deltasmith.upscaling.modelling import register

        register()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' log messages, warnings and progress bars off the terminal, and put back what was set."""
    import transformers

    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def memory_errors(batch: int) -> Iterator[None]:
    """Turn a full accelerator or machine into ResourceError."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as cause:
        # torch has no class of its own for a full machine, only for a full accelerator.
        if type(cause) is RuntimeError and _ALLOCATION not in str(cause):
            raise
        raise ResourceError(
            "the memory does not suffice for the model and its batch",
            fix=f"use --batch {max(1, batch // 2)} or less" if batch > 1 else "use a smaller model or device",
        ) from cause


def load_model(
    folder: Path,
    tensors: Mapping[str, Stored] | None,
    *,
    dtype: Any,
    device: str,
    where: str,
    auto: str = "AutoModelForCausalLM",
    attention: str | None = None,
) -> tuple[Any, tuple[str, ...]]:
    """Load a network, by default a causal language model, and return it with notes; `where` names it in errors.

    `auto` is the class of transformers that chooses by the config, `attention` the implementation that is asked for.

    Weights come from the folder's safetensors files, or from `tensors`; either way transformers applies its own
    conversions of names and layouts. Nothing is fetched, no code of the folder is run, and no pickle is read.

    Raises:
        DamagedInputError: the architecture is unknown, or weights are missing or of another shape.
    """
    import torch
    import transformers

    library: Any = transformers
    local = {"local_files_only": True, "trust_remote_code": False}
    weights: dict[str, Any] = {"pretrained_model_name_or_path": str(folder), "use_safetensors": True}
    if tensors is not None:
        weights = {"pretrained_model_name_or_path": None}
        weights["state_dict"] = {name: _tensor(stored) for name, stored in tensors.items()}
    register_mixtures(folder)
    with _damaged(where, "check config.json and the weights, or fetch the model again"):
        config = library.AutoConfig.from_pretrained(str(folder), **local)
        with torch.device("meta"):  # no weights yet: this only asks which class computes such a config
            kind = type(getattr(library, auto).from_config(config, trust_remote_code=False))
        model, report = kind.from_pretrained(
            config=config,
            dtype=dtype,
            ignore_mismatched_sizes=True,  # they are listed then, and refused below
            output_loading_info=True,
            local_files_only=True,
            **({} if attention is None else {"attn_implementation": attention}),
            **weights,
        )
        _refuse_incomplete(report, where)
        model = model.to(device).eval()
    unused = sorted(report["unexpected_keys"])
    return model, (f"the architecture has no use for {_listed(unused)}",) if unused else ()


def load_tokenizer(folder: Path, where: str) -> Any:
    """Load a folder's tokenizer; DamagedInputError where it has none that transformers can read."""
    import transformers

    library: Any = transformers
    register_mixtures(folder)
    with _damaged(where, "fetch the tokenizer files of the model"):
        return library.AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )


def longest_input(config: Any, tokenizer: Any) -> int | None:
    """Return the longest input that the config or else the tokenizer allows, None where neither bounds it."""
    for section in (getattr(config, "text_config", None), config):
        for name in _LENGTHS:
            if isinstance(value := getattr(section, name, None), int):
                return value
    length = tokenizer.model_max_length
    return int(length) if isinstance(length, int | float) and 0 < length < _UNSET else None


@contextmanager
def _damaged(where: str, fix: str) -> Iterator[None]:
    """Report whatever transformers raises about a file as one line."""
    import torch

    try:
        yield
    except (DeltasmithError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as cause:  # transformers raises all sorts of things over a damaged folder
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        raise DamagedInputError(
            f"transformers cannot load it ({printable(lines[0])})", where=where, fix=fix
        ) from cause


def _refuse_incomplete(report: Mapping[str, Any], where: str) -> None:
    shapes = {
        name: f"{name} ({list(stored)} in the file, {list(wanted)} by the config)"
        for name, stored, wanted in report["mismatched_keys"]
    }
    found = []
    if missing := sorted(set(report["missing_keys"]) - set(shapes)):
        found.append(f"the weights lack {_listed(missing)}")
    if shapes:
        found.append(f"shapes do not fit: {_listed(sorted(shapes.values()))}")
    found += [str(message) for message in report.get("error_msgs") or ()]
    if found:
        raise DamagedInputError(
            "; ".join(map(printable, found)), where=where, fix="take config and weights from the same model"
        )


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more


def _tensor(stored: Stored) -> Any:
    """View stored bytes as a torch tensor, without a copy where the bytes may be written to."""
    import torch

    kind = getattr(torch, stored.spec.dtype.name)
    if not stored.spec.size:
        return torch.empty(stored.spec.shape, dtype=kind)
    data = bytearray(stored.data) if stored.data.readonly else stored.data
    return torch.frombuffer(data, dtype=kind).reshape(stored.spec.shape)
