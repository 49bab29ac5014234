"""A PEFT adapter being written: tensor after tensor, and whole under its name or not there.

The folder holds adapter_config.json and adapter_model.safetensors as PEFT writes them, a manifest with the hash of
every tensor, a card, and the tokenizer files it is given. Factors are written such that the scaling is 1 (lora_alpha
is the rank, of each module).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from deltasmith.codecs.protocol import Array, Coded, Ending, Stream, numpy_type
from deltasmith.errors import RefusedError, printable
from deltasmith.formats.adapter import CONFIG, WEIGHTS
from deltasmith.formats.adapter_names import Arrangement, Modules, PairKind, task_type
from deltasmith.formats.array_file import ArrayFile, Entry, room_for
from deltasmith.formats.card import CARD_NAME
from deltasmith.formats.manifest import shown_source
from deltasmith.formats.staging import Staging, refuse_link
from deltasmith.formats.system import resource_error

__all__ = ["AdapterOutput", "Origin", "PairWritten", "lora_factors"]

_PREFIX = "base_model.model."
_JOURNAL = "journal.jsonl"
_SIDES: Mapping[PairKind, tuple[str, str]] = {
    "embedding": ("lora_embedding_A", "lora_embedding_B"),
    "linear": ("lora_A.weight", "lora_B.weight"),
    "flipped": ("lora_A.weight", "lora_B.weight"),
    "convolution": ("lora_A.weight", "lora_B.weight"),
}


@dataclass(frozen=True)
class Origin:
    """The model an adapter belongs to, as its configuration names it."""

    name: str
    revision: str | None = None


@dataclass(frozen=True)
class PairWritten:
    """What became of one tensor: its rank (0: it does not differ, and nothing was written), Σδ² and Σ(δ − δ̂)²."""

    kind: PairKind
    rank: int
    squared_norm: float
    squared_error: float


def lora_factors(left: Array, right: Array, kind: PairKind, shape: Sequence[int]) -> tuple[Array, Array]:
    """Turn left (m, r) and right (r, n) of a tensor's delta, left @ right, into PEFT's A and B.

    `shape` is the tensor's; n counts all axes but the first. linear: A = right (r, in), B = left (out, r). flipped
    and embedding, whose delta PEFT transposes: A = leftᵀ, B = rightᵀ. convolution: A (r, in, …) and B (out, r, 1, …).
    """
    if kind in ("flipped", "embedding"):
        return np.ascontiguousarray(left.T), np.ascontiguousarray(right.T)
    if kind == "linear":
        return right, left
    rank = left.shape[1]
    return right.reshape(rank, *shape[1:]), left.reshape(shape[0], rank, *(1 for _ in shape[2:]))


@dataclass
class AdapterOutput:
    """An adapter folder under construction; made by `open`, used in a `with` block, ended by `publish`.

    One thread at a time; tensors come one after the other, those of wider element types first, so that all are
    aligned. An interrupted run begins anew.
    """

    staging: Staging
    file: ArrayFile
    modules: Modules
    arrangement: Arrangement
    pairs: dict[str, PairWritten] = field(default_factory=dict)
    nbytes: int = 0
    _name: str = ""

    @classmethod
    def open(
        cls,
        out: Path,
        key: str,
        modules: Modules,
        arrangement: Arrangement,
        *,
        inputs: Sequence[Path] = (),
        overwrite: bool = False,
    ) -> AdapterOutput:
        """Claim the place and begin the file. Raises what `Staging.claim` raises, and ResourceError."""
        staging = Staging.claim(out, key, inputs, overwrite=overwrite)
        try:
            refuse_link(staging.partial)
            staging.partial.mkdir(exist_ok=True)
            longest = [
                f"{_PREFIX}{modules.lead}{name}.lora_embedding_A" for name in arrangement.pairs for _ in "AB"
            ]
            room = room_for([*longest, *(_PREFIX + modules.lead + name for name in arrangement.whole)])
            return cls(staging, ArrayFile(staging.partial / WEIGHTS, room), modules, arrangement)
        except OSError as cause:
            staging.discard()
            raise resource_error(cause, cause.filename or staging.partial) from cause
        except BaseException:
            staging.discard()
            raise

    def begin(self, name: str, streams: Iterable[Stream], suffix: str = "") -> None:
        """Begin a tensor of the base, by its name there. A whole tensor has one stream, a pair of factors none."""
        self._name = name
        stored = f"{_PREFIX}{self.modules.module(name)}.{name.rpartition('.')[2]}"
        self.file.begin((stored, s.dtype, s.shape) for s in streams)
        self._stored = stored

    _stored: str = ""

    def append(self, coded: Coded) -> None:
        """Add bytes to a whole tensor."""
        for data in coded.parts.values():
            self.file.append(self._stored, data)

    def end(self, ending: Ending, xxh3_128: str | None = None) -> None:
        """Finish the tensor at hand: a whole one, or a pair from the arrays `left` (m, r) and `right` (r, n)."""
        kind = self.arrangement.pairs.get(self._name)
        if kind is None:
            self.file.end({})
            return
        left, right = ending.arrays["left"], ending.arrays["right"]
        rank = left.shape[1]
        self.pairs[self._name] = PairWritten(kind, rank, ending.squared_norm, ending.squared_error)
        module = _PREFIX + self.modules.module(self._name)
        factors = lora_factors(left, right, kind, self.modules.specs[self._name].shape)
        names = (f"{module}.{side}" for side in _SIDES[kind])
        self.file.end(dict(zip(names, factors, strict=True)) if rank else {})

    def publish(
        self,
        origin: Origin,
        files: Mapping[str, bytes | Path],
        manifest: Callable[[Sequence[Entry]], bytes],
    ) -> tuple[str, ...]:
        """Write header, configuration, card and side files, and rename the folder to OUT; return warnings.

        `manifest` is asked last, for the bytes of manifest.json, given every tensor of the file.

        Raises:
            RefusedError: there is nothing to adapt. ResourceError: the files cannot be written.
        """
        if not self.file.entries:
            raise RefusedError(
                "the model does not differ from the base",
                where=printable(str(self.staging.out.name)),
                fix="check that base and model are the ones you mean",
            )
        idle = self._idle_pair()
        self._settle_names()
        config = (json.dumps(self.config(origin), indent=2, sort_keys=True) + "\n").encode()
        beside = {**files, CONFIG: config, CARD_NAME: _card(self.staging.out.name, origin)}
        self.staging.refuse_newcomers()
        try:
            self.nbytes = self.file.seal({"format": "pt"})
            for name, content in [*sorted(beside.items()), ("manifest.json", manifest(self.file.entries))]:
                self.staging.place(name, content)
            self.staging.publish(_JOURNAL)
        except OSError as cause:
            raise resource_error(cause, cause.filename or self.staging.partial) from cause
        return (*idle, *self.staging.tidy())

    def _idle_pair(self) -> tuple[str, ...]:
        """Add a pair of zeros where there is no pair at all: PEFT loads no adapter without one."""
        if any(pair.rank for pair in self.pairs.values()):
            return ()
        if not self.arrangement.pairs:
            raise RefusedError(
                "no tensor may become a pair of factors, and PEFT loads no adapter without one",
                where=printable(self.staging.out.name),
                fix="exclude less",
            )
        name = next(iter(self.arrangement.pairs))
        shape = self.modules.specs[name].shape
        kind = numpy_type("bfloat16")
        zeros = {"left": np.zeros((shape[0], 1), kind), "right": np.zeros((1, math.prod(shape[1:])), kind)}
        self.begin(name, ())
        self.end(Ending(zeros))
        return (
            f"no matrix has changed: a pair of zeros for {printable(name, 120)} lets PEFT load the adapter",
        )

    def _settle_names(self) -> None:
        """Call tensors within adapted modules what they are called there: PEFT has wrapped those modules by then."""
        renamed = {}
        for name in self.arrangement.placed:
            module, own = self.modules.module(name), name.rpartition(".")[2]
            weight = self.pairs.get(f"{name.removesuffix(own)}weight")
            if weight is not None and weight.rank:
                renamed[f"{_PREFIX}{module}.{own}"] = f"{_PREFIX}{module}.base_layer.{own}"
        self.file.entries = [replace(e, name=renamed.get(e.name, e.name)) for e in self.file.entries]

    def config(self, origin: Origin) -> dict[str, Any]:
        """Return adapter_config.json for what has been written so far."""
        ranks = {self.modules.module(n): p.rank for n, p in sorted(self.pairs.items()) if p.rank}
        common = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
        special = {_pattern(m): rank for m, rank in ranks.items() if rank != common}
        saved = self.modules.short(self.arrangement.saved, dotted=False)
        return {
            "alpha_pattern": special,
            "base_model_name_or_path": shown_source(origin.name),
            "bias": "all" if any(map(self.modules.is_linear_bias, self.arrangement.placed)) else "none",
            "fan_in_fan_out": any(p.kind == "flipped" and p.rank for p in self.pairs.values()),
            "inference_mode": True,
            "init_lora_weights": True,
            "lora_alpha": common,
            "lora_dropout": 0.0,
            "modules_to_save": saved or None,
            "peft_type": "LORA",
            "r": common,
            "rank_pattern": special,
            "revision": origin.revision,
            "target_modules": self.modules.short(ranks, dotted=True),
            "task_type": task_type(self.modules.config),
            "use_dora": False,
            "use_rslora": False,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what was not published."""
        self.file.close()
        self.staging.discard()


def _pattern(module: str) -> str:
    """Write a module's name as the regular expression PEFT takes it for; dots match dots."""
    return module if re.fullmatch(r"[\w.-]+", module) else re.escape(module)


def _card(name: str, origin: Origin) -> bytes:
    """Write README.md as the hub expects it of an adapter."""
    import yaml

    front: dict[str, Any] = {"library_name": "peft", "tags": ["lora", "deltasmith"]}
    source = shown_source(origin.name)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        front = {"base_model": source, **front}
    head = yaml.safe_dump(front, sort_keys=False)
    return (
        f"---\n{head}---\n\n# {printable(name, 120)}\n\nA LoRA adapter for {printable(source, 200)}, written by "
        "deltasmith. `manifest.json` holds the hash of every tensor; `deltasmith verify` checks them.\n"
    ).encode()
