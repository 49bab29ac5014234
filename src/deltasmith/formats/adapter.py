"""LoRA adapters as PEFT writes them, read as the deltas they stand for: scaling · B @ A.

Kinds of adapter that mean something else (DoRA, replicated layers, trained token rows, initialisations that
change the base) are refused by name. Every tensor of the file is used, or the adapter is refused.
"""

from __future__ import annotations

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deltasmith.errors import DamagedInputError, RefusedError, printable
from deltasmith.formats.hf_folder import within
from deltasmith.formats.json_file import read_json_object
from deltasmith.formats.safetensors_reader import Identity, SafetensorsFile, refuse_changed
from deltasmith.kernels.decode import expand_low_rank
from deltasmith.table.checkpoint import Floats, SourceFile, Spec
from deltasmith.table.dtypes import DTYPES

__all__ = ["CONFIG", "WEIGHTS", "Adapter", "AdapterColumn", "Pair", "open_adapter", "refuse_foreign_lora"]

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_PAIR = re.compile(
    r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(?:\.default)?(?P<weight>\.weight)?"
)
_WRAPPERS = re.compile(r"\.(?:modules_to_save(?:\.default)?|base_layer)(?=\.)")
_NOT_FULL = re.compile(r"\.lora_|trainable_tokens|\.original_module\.")
_FOREIGN = re.compile(r"(\.lora_[AB]\b|lora_(up|down)\b|\.lora\.(up|down)\.|:(up|down)$|lora_linear_layer)")
_UNSUPPORTED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "lora_bias": "trained biases of the LoRA layers (lora_bias)",
    "layer_replication": "replicated layers (layer_replication)",
    "trainable_token_indices": "trained token rows (trainable_token_indices)",
    "target_parameters": "LoRA on bare parameters (target_parameters)",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens)",
    "arrow_config": "routed LoRA (arrow_config)",
}
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_UNBOUNDED = re.compile(r"(?<!\\)[*+]|\{\d*,\d*\}")
_KEPT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Pair:
    """Two factors of one module's delta; `a` is (r, in, …) and `b` is (out, r, …), as PEFT names them.

    Of an embedding, `a` is (r, rows) and `b` is (columns, r): its delta is the transpose of b @ a.
    """

    module: str
    a: Spec
    b: Spec
    scaling: float
    flipped: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the delta; (out, in, …), or the other way round for flipped pairs."""
        out, inner = self.b.shape[0], self.a.shape[1:]
        return (*inner, out) if self.flipped else (out, *inner)


@dataclass(frozen=True)
class Adapter:
    """An opened adapter: its configuration, its factor pairs, and the tensors it replaces as a whole.

    `full` maps names of the base model to names in the file. `base_name` is what it was trained on, as it
    says.
    """

    path: Path
    config: Mapping[str, Any]
    file: SafetensorsFile
    pairs: tuple[Pair, ...]
    full: Mapping[str, str]
    base_name: str | None
    config_path: str
    config_identity: Identity

    @property
    def sources(self) -> tuple[SourceFile, ...]:
        """List the weights and the configuration, which holds the scaling."""
        return (*self.file.sources, SourceFile(CONFIG, self.config_path, self.config_identity.nbytes))

    def check_unchanged(self) -> None:
        """Refuse if weights or configuration are no longer the ones that were opened.

        Raises:
            DamagedInputError: naming the file and what is different.
        """
        self.file.check_unchanged()
        refuse_changed(self.config_path, self.config_identity)

    def bind(self, base_specs: Mapping[str, Spec]) -> AdapterColumn:
        """Match the adapter with the base it changes, and return it as a column of the table.

        Base files may name tensors with one leading part more or less than the adapter (`transformer.`,
        `model.`); that is bridged only if every tensor is found that way.

        Raises:
            RefusedError: tensors that the base lacks (all listed), or deltas of another shape than the
            base's.
        """
        wanted = [*(f"{pair.module}.weight" for pair in self.pairs), *self.full]
        names = _match_names(wanted, base_specs, str(self.path))
        pairs = {names[f"{pair.module}.weight"]: pair for pair in self.pairs}
        full = {names[target]: source for target, source in self.full.items()}
        for target, pair in pairs.items():
            shape = self.file.specs[full[target]].shape if target in full else base_specs[target].shape
            if pair.shape != shape:
                raise RefusedError(
                    f'the adapter changes "{printable(target)}" by {list(pair.shape)}, '
                    f"the tensor has {list(shape)}",
                    where=str(self.path),
                    fix="use the base that the adapter was trained on",
                )
        return AdapterColumn(self, pairs, full)


class AdapterColumn:
    """A bound adapter as a checkpoint over the tensors it touches: deltas of pairs, full values otherwise."""

    def __init__(self, adapter: Adapter, pairs: Mapping[str, Pair], full: Mapping[str, str]) -> None:
        """Take names of the base as `Adapter.bind` matched them."""
        self._adapter = adapter
        self._pairs = pairs
        self._full = full
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[Floats, Floats]] = OrderedDict()
        stored = adapter.file.specs
        float32 = DTYPES["float32"]
        specs = {n: Spec(n, stored[s].shape, stored[s].dtype) for n, s in full.items()}
        specs |= {name: Spec(name, pair.shape, float32) for name, pair in pairs.items()}
        self.specs: Mapping[str, Spec] = dict(sorted(specs.items()))

    @property
    def sources(self) -> tuple[SourceFile, ...]:
        """List the adapter's files."""
        return self._adapter.sources

    @property
    def pairs(self) -> Mapping[str, Pair]:
        """Map the base's names to the factor pairs that change them."""
        return self._pairs

    def is_delta(self, name: str) -> bool:
        """Tell whether `read` yields a delta (LoRA pairs) or full weights (modules_to_save, biases).

        A tensor that has both, as PEFT writes trained embeddings, reads as full weights with the delta added.
        """
        return name in self._pairs and name not in self._full

    def read(self, name: str, start: int, out: Floats) -> None:
        """Write elements [start, start + out.size), row-major: scaling · B @ A, or the saved weights."""
        spec = self.specs[name]
        if not 0 <= start <= start + out.size <= spec.size:
            raise ValueError(f"elements from {start} to {start + out.size} are outside tensor {name}")
        if name in self._full:
            self._adapter.file.read(self._full[name], start, out)
        if name in self._pairs:
            left, right = self._factors(name)
            change = np.empty_like(out) if name in self._full else out
            expand_low_rank(left, right, self._pairs[name].scaling, start, change)
            if change is not out:
                out += change

    def raw(self, name: str, start: int, stop: int) -> bytes:
        """Return the stored bytes of a replaced tensor, and float32 bytes of what is computed."""
        if name not in self._pairs:
            return self._adapter.file.raw(self._full[name], start, stop)
        out = np.empty(stop - start, dtype=np.float32)
        self.read(name, start, out)
        return out.tobytes()

    def _factors(self, name: str) -> tuple[Floats, Floats]:
        """Return (rows, r) and (r, columns) of one delta, the last ones kept in memory."""
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        pair = self._pairs[name]
        a, b = self._whole(pair.a), self._whole(pair.b)
        rank = pair.a.shape[0]
        a, b = a.reshape(rank, -1), b.reshape(-1, rank)
        both = (np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)) if pair.flipped else (b, a)
        with self._lock:
            self._kept[name] = both
            while (
                len(self._kept) > 1 and sum(x.nbytes + y.nbytes for x, y in self._kept.values()) > _KEPT_BYTES
            ):
                self._kept.popitem(last=False)
        return both

    def _whole(self, spec: Spec) -> Floats:
        """Read one factor."""
        values = np.empty(spec.size, dtype=np.float32)
        self._adapter.file.read(spec.name, 0, values)
        return values


def open_adapter(folder: str | Path) -> Adapter:
    """Open a PEFT adapter folder: check its configuration and pair up its factors, without reading values.

    Raises:
        DamagedInputError: configuration or weights missing or damaged, factors without a partner.
        RefusedError: a kind of adapter that is not plain LoRA, named; rank 0; tensors that nothing explains.
    """
    root = Path(folder)
    config_path = within(root, CONFIG)
    config = read_json_object(config_path)
    identity = Identity.of(Path(config_path).stat())
    _refuse_unsupported(config, str(root))
    weights = root / WEIGHTS
    if not weights.exists() and (root / "adapter_model.bin").exists():
        raise DamagedInputError(
            "the adapter is pickled, and pickles can run code",
            where=str(root),
            fix="run deltasmith convert on it",
        )
    file = SafetensorsFile(within(root, WEIGHTS), name=WEIGHTS)
    sides, full = _sort_tensors(file.specs, str(root))
    pairs = tuple(_pair(module, two, config, str(root)) for module, two in sorted(sides.items()))
    if not pairs and not full:
        raise DamagedInputError("the adapter has no tensors", where=file.path, fix="save it again")
    base = config.get("base_model_name_or_path")
    base = base if isinstance(base, str) and base else None
    return Adapter(root, config, file, pairs, full, base, config_path, identity)


def refuse_foreign_lora(names: Iterable[str], where: str) -> None:
    """Refuse a file of LoRA factors that is not a PEFT adapter folder: diffusers, kohya, or an older layout.

    Raises:
        RefusedError: naming the first such tensor.
    """
    found = [name for name in names if _FOREIGN.search(name)]
    if found:
        raise RefusedError(
            f'{len(found)} tensors are LoRA factors (first "{printable(found[0], 80)}"), not a model,',
            where=where,
            fix=f"name a folder with {CONFIG} and {WEIGHTS}, as PEFT saves adapters",
        )


def _refuse_unsupported(config: Mapping[str, Any], where: str) -> None:
    """Refuse what this configuration asks for and plain LoRA does not have."""
    kind = config.get("peft_type")
    asked = [text for key, text in _UNSUPPORTED.items() if config.get(key)]
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        asked.append(f"the initialisation {printable(start, 40)}, which changes the base's own weights")
    if kind != "LORA":
        asked.insert(0, f"peft_type {printable(str(kind), 40)}")
    if asked:
        raise RefusedError(
            f"the adapter uses {', '.join(asked)}, and only plain LoRA is read,",
            where=where,
            fix="merge it into its base with PEFT, and use the merged model",
        )


def _sort_tensors(specs: Mapping[str, Spec], where: str) -> tuple[dict[str, dict[str, Spec]], dict[str, str]]:
    """Sort tensors into factors by module ({module: {side: spec}}) and replaced tensors by base name."""
    sides: dict[str, dict[str, Spec]] = {}
    full: dict[str, str] = {}
    unknown = []
    for name, spec in specs.items():
        inner = name.removeprefix(_PREFIX)
        found = _PAIR.fullmatch(inner)
        if inner == name or not spec.dtype.floating:
            unknown.append(name)
        elif found and bool(found["weight"]) != bool(found["kind"]):
            sides.setdefault(found["module"], {})[f"{found['kind'] or ''}{found['side']}"] = spec
        elif _NOT_FULL.search(inner) or _WRAPPERS.sub("", inner) in full:
            unknown.append(name)
        else:
            full[_WRAPPERS.sub("", inner)] = name
    if unknown:
        raise RefusedError(
            f"{len(unknown)} tensors are not of the LoRA layout that PEFT writes: "
            f"{printable(', '.join(unknown[:5]), 400)}",
            where=where,
            fix="save the adapter again with PEFT, or merge it into its base with PEFT",
        )
    return sides, full


def _pair(module: str, sides: Mapping[str, Spec], config: Mapping[str, Any], where: str) -> Pair:
    """Pair two factors and compute their scaling."""
    embedding = "embedding_A" in sides
    a, b = (sides.get(f"{'embedding_' if embedding else ''}{side}") for side in "AB")
    if a is None or b is None or len(sides) != 2:
        raise DamagedInputError(
            f'module "{printable(module)}" has {" and ".join(sorted(sides))} of the two factors A and B',
            where=where,
            fix="save the adapter again",
        )
    rank = int(_setting(config, "rank_pattern", "r", module, where))
    alpha = _setting(config, "alpha_pattern", "lora_alpha", module, where)
    if rank < 1:
        raise RefusedError(
            f'the rank of module "{printable(module)}" is {rank}',
            where=where,
            fix="use an adapter of rank ≥ 1",
        )
    flat = len(a.shape) >= 2 and len(b.shape) >= 2 and math.prod(b.shape[2:]) == 1
    if not flat or a.shape[0] != rank or b.shape[1] != rank:
        raise RefusedError(
            f'the factors of module "{printable(module)}" have the shapes {list(a.shape)} and '
            f"{list(b.shape)}, but the rank is {rank}",
            where=where,
            fix=f"check r and rank_pattern in {CONFIG}",
        )
    flipped = embedding or (bool(config.get("fan_in_fan_out")) and len(a.shape) == 2)
    scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return Pair(module, a, b, scaling, flipped)


def _setting(config: Mapping[str, Any], patterns_key: str, key: str, module: str, where: str) -> float:
    """Look a number up for one module: by the first pattern that matches, or the common value.

    PEFT's rule: a pattern is a regular expression for the whole name, or for what follows a dot in it.
    """
    patterns = config.get(patterns_key) or {}
    value = config.get(key)
    if not isinstance(patterns, dict):
        raise DamagedInputError(
            f"{patterns_key} is not a map", where=f"{where}/{CONFIG}", fix="save the adapter again with PEFT"
        )
    for pattern, special in patterns.items():
        if _compiled(pattern, patterns_key, where).match(module):
            value = special
            break
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DamagedInputError(
            f"{key} is {printable(repr(value), 40)} instead of a number",
            where=f"{where}/{CONFIG}",
            fix="save the adapter again with PEFT",
        )
    return value


def _compiled(pattern: str, key: str, where: str) -> re.Pattern[str]:
    """Compile one pattern, refusing those that could take for ever: the file may come from anyone."""
    repeated_group = re.search(r"\)[*+{?]", pattern)
    if len(pattern) > 1000 or repeated_group or len(_UNBOUNDED.findall(pattern)) > 2:
        raise RefusedError(
            f'{key} has the pattern "{printable(pattern, 80)}", which is too involved to be searched for',
            where=f"{where}/{CONFIG}",
            fix="spell the module names out",
        )
    try:
        return re.compile(rf"(?:.*\.)?(?:{pattern})$")
    except (re.error, RecursionError, OverflowError) as cause:
        raise DamagedInputError(
            f'{key} has the pattern "{printable(pattern, 80)}", which is no regular expression',
            where=f"{where}/{CONFIG}",
            fix="save the adapter again with PEFT",
        ) from cause


def _match_names(wanted: list[str], base: Mapping[str, Spec], where: str) -> dict[str, str]:
    """Map the adapter's names to the base's: as they are, or all with one leading part less, or more."""
    if len(set(wanted) & base.keys()) == 0 and wanted:
        shorter = {name: name.partition(".")[2] for name in wanted}
        if all(name in base for name in shorter.values()):
            return shorter
        ends = [name.removesuffix(wanted[0]) for name in base if name.endswith(f".{wanted[0]}")]
        for lead in ends if len(ends) == 1 else []:
            longer = {name: lead + name for name in wanted}
            if all(name in base for name in longer.values()):
                return longer
    if missing := [name for name in wanted if name not in base]:
        shown = printable(", ".join(missing[:20]), 1500) + (", …" if len(missing) > 20 else "")
        raise RefusedError(
            f"the base lacks {len(missing)} of {len(set(wanted))} tensors that the adapter changes ({shown})",
            where=where,
            fix="use the base that the adapter was trained on",
        )
    return {name: name for name in wanted}
