"""What each tensor of a checkpoint is the weight of: found from the architecture, built without its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from deltasmith.errors import DamagedInputError, printable
from deltasmith.formats.layout import natural_key
from deltasmith.table.checkpoint import Spec
from deltasmith.table.names import layer_of

__all__ = ["Kind", "Place", "built", "find_places", "kind_of", "tied_head"]

Kind = Literal["linear", "embedding", "norm"]
_WEIGHT = ".weight"


@dataclass(frozen=True, slots=True)
class Place:
    """A module that can become a mixture: its name, the name before `.weight` in the files, and how it lies there.

    `rows` and `columns` are out and in of a linear (`transposed`: the files hold (in, out), as GPT-2's do), the
    vocabulary and width of an embedding, and 1 and the width of a norm. `layered` places lie under a layer number.
    """

    kind: Kind
    module: str
    stored: str
    rows: int
    columns: int
    bias: bool
    transposed: bool
    layered: bool

    @property
    def weight(self) -> str:
        """Return the name of the weight in the files."""
        return f"{self.stored}.weight"

    @property
    def bias_name(self) -> str:
        """Return the name of the bias in the files."""
        return f"{self.stored}.bias"


def find_places(folder: Path, specs: Mapping[str, Spec]) -> tuple[Place, ...]:
    """List the linears, embeddings and norms whose weights are floating tensors of the files.

    Names of files and of modules are matched as transformers does when it loads them. What it converts beyond
    renaming (joined experts), quantises, ties to the embeddings or applies in another way is left out.

    Raises:
        DamagedInputError: transformers does not know the architecture, or config and tensors do not fit.
    """
    model = built(folder)
    modules = dict(model.named_modules())
    tied = tied_head(model)
    found = []
    for stored, name in _module_names(model, specs).items():
        module: Any = modules.get(name.removesuffix(_WEIGHT))
        kind = kind_of(module)
        if kind is None or module is tied or not specs[stored].dtype.floating:
            continue
        spec = specs[stored]
        _check_shape(spec, tuple(module.weight.shape), folder)
        transposed = isinstance(module, Conv1D)
        rows, columns = spec.shape[::-1] if transposed else (*(1,), *spec.shape)[-2:]
        bias = getattr(module, "bias", None) is not None
        names = name.removesuffix(_WEIGHT), stored.removesuffix(_WEIGHT)
        found.append(Place(kind, *names, rows, columns, bias, transposed, layer_of(name) is not None))
    return tuple(found)


def tied_head(model: Any) -> Any:
    """Return the output head whose weight is the embeddings' by the config, or None."""
    config = model.config.get_text_config()
    return model.get_output_embeddings() if getattr(config, "tie_word_embeddings", False) else None


def kind_of(module: Any) -> Kind | None:
    """Tell what a module is, by what it does with its weight; None for what no mixture can stand for."""
    if type(module) is nn.Linear or isinstance(module, Conv1D):
        return "linear"
    if type(module) is nn.Embedding and module.max_norm is None:
        return "embedding"
    flat = all(p.dim() == 1 for p in module.parameters()) if isinstance(module, nn.Module) else False
    own = {name for name, _ in module.named_parameters()} if flat else set()
    return "norm" if own in ({"weight"}, {"weight", "bias"}) and "Norm" in type(module).__name__ else None


def built(folder: Path) -> Any:
    """Build the architecture that the config names, without memory for its weights.

    Raises:
        DamagedInputError: transformers does not know it.
    """
    library: Any = transformers
    try:
        config = library.AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        named = [getattr(library, name, None) for name in config.architectures or ()]
        kind = next((k for k in named if isinstance(k, type) and hasattr(k, "_from_config")), None)
        with torch.device("meta"):
            if kind is not None:
                return kind._from_config(config)
            return library.AutoModel.from_config(config, trust_remote_code=False)
    except Exception as cause:  # transformers raises all sorts of things over a config
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        raise DamagedInputError(
            f"transformers cannot build its architecture ({printable(lines[0])})",
            where=printable(str(folder)),
            fix="use an architecture that transformers has, with its config.json",
        ) from cause


def _module_names(model: Any, specs: Mapping[str, Spec]) -> dict[str, str]:
    """Map names of weights in the files to names in the model, leaving out what is converted beyond renaming.

    What will be written beside a weight must be renamed along with it, so it is tried, too.
    """
    wanted = dict(model.state_dict())
    wanted |= {_beside(name): value for name, value in wanted.items() if name.endswith(_WEIGHT)}
    rename = _renaming(model, wanted)
    found = {}
    for stored in sorted(specs, key=natural_key):  # in this order transformers renames
        name = rename(stored)
        both = name in wanted and name.endswith(_WEIGHT) and stored.endswith(_WEIGHT)
        if both and rename(_beside(stored)) == _beside(name):
            found[stored] = name
    return found


def _beside(weight: str) -> str:
    return f"{weight.removesuffix(_WEIGHT)}.smile_u"


def _renaming(model: Any, wanted: dict[str, Any]) -> Callable[[str], str]:
    """Return the function from a name in the files to the name in the model, "" where there is none."""
    prefix = f"{model.base_model_prefix}."

    def by_prefix(name: str) -> str:
        return next((n for n in (name, name.removeprefix(prefix), prefix + name) if n in wanted), "")

    try:
        from transformers import conversion_mapping, core_model_loading
    except ImportError:  # transformers 4 renames by the body's prefix alone
        return by_prefix
    transforms = conversion_mapping.get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, core_model_loading.WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, core_model_loading.WeightConverter)]

    def rename(name: str) -> str:
        renamed, converter = core_model_loading.rename_source_key(
            name, renamings, converters, model.base_model_prefix, wanted
        )
        if renamed not in wanted:
            return by_prefix(name) if name in wanted else ""
        return "" if converter is not None else str(renamed)

    return rename


def _check_shape(spec: Spec, wanted: tuple[int, ...], folder: Path) -> None:
    if spec.shape != wanted:
        raise DamagedInputError(
            f"{printable(spec.name)} is {list(spec.shape)} in the files and {list(wanted)} by config.json",
            where=printable(str(folder)),
            fix="take config and weights from the same model",
        )
