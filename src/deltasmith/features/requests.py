"""The options of `features train`, checked before anything heavy is imported or read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from deltasmith.errors import RecipeError, RefusedError, printable
from deltasmith.features.site import Site
from deltasmith.features.study import Mode
from deltasmith.formats.claim import check_place, resolve_output

__all__ = [
    "DEFAULT_BUFFER",
    "Floors",
    "Kind",
    "Listener",
    "Request",
    "child_steps_of",
    "default_k",
    "default_latents",
    "silent",
]

Kind = Literal["topk", "batch-topk", "relu-l1"]
"""How a dictionary keeps its activations few: the k largest of a token, the k largest a token on average, an L1
penalty."""
Floors = Literal["root", "all", "none"]
Listener = Callable[[str, int, int, str], None]
"""`say(what, done, of, detail)`: hear how far a piece of work has come, and how it goes."""

DEFAULT_BUFFER = 1 << 30
CONTEXT = 256
"""Tokens of a piece, at most, unless asked for otherwise."""

_NAME = re.compile(r"\w[\w.+-]{0,59}")
_TIMES = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)x")
_COUNT = re.compile(r"\d{1,12}")
_MOST_LATENTS = 1 << 22
_K = (
    (768, 32),
    (256, 16),
    (0, 8),
)  # fewer active latents agree better between seeds, and small sites need fewer
_NARROW = 512
_LEAST = {
    "steps": 1,
    "child_steps": 1,
    "batch": 1,
    "context": 2,
    "held_out_tokens": 1,
    "train_tokens": 1,
    "k": 1,
}
_LEAST |= {"seeds": 0, "memory": 1 << 20, "threads": 1}
_MOST = {"seeds": 100, "batch": 1 << 20, "context": 1 << 20, "steps": 1 << 31, "child_steps": 1 << 31}
_HELD_OUT = ("study.json", "held_out.safetensors")


def silent(what: str, done: int, of: int, detail: str = "") -> None:
    """Hear nothing: a `Listener`."""


def default_k(width: int) -> int:
    """Return how many latents fire on a token: 32 from a width of 768, 16 from 256, else 8.

    >>> default_k(1024), default_k(256), default_k(64)
    (32, 16, 8)
    """
    return next(k for least, k in _K if width >= least)


def default_latents(width: int) -> int:
    """Return how many latents a dictionary has: 8 times the width, 4 times below a width of 512.

    >>> default_latents(1024), default_latents(256)
    (8192, 1024)
    """
    return width * (4 if width < _NARROW else 8)


def child_steps_of(steps: int) -> int:
    """Return a sixth of the steps, and at least one.

    Enough for a dictionary to follow its model, and few enough that one restarted on the same model stays what it was.
    """
    return max(1, steps // 6)


@dataclass(frozen=True)
class Request:
    """What is asked of a training. RecipeError, naming the option, for what makes no sense."""

    models: tuple[str, ...]
    site: str
    corpora: tuple[str, ...]
    """NAME=PATH each."""
    out: Path
    parents: tuple[str, ...] = ()
    mode: Mode = "warm"
    kind: Kind | None = None
    """Of the dictionaries that are trained; None: TopK, or whatever `root_dictionary` is."""
    latents: int | str | None = None
    """A count, or a multiple of the width, such as 8x."""
    k: int | None = None
    l1: float | None = None
    steps: int = 12_000
    child_steps: int | None = None
    """Of dictionaries that begin as another; a sixth of `steps` by default."""
    batch: int = 512
    """Activations in a step."""
    context: int | None = None
    held_out_tokens: int = 100_000
    train_tokens: int | None = None
    """Tokens to train on, from all corpora; None: all there are."""
    spare: float = 0.125
    """Fresh latents of a dictionary that begins as another, as a share of the root's."""
    seed: int = 0
    seeds: int = 1
    """Floors by other seeds."""
    floors: Floors = "root"
    root_dictionary: Path | None = None
    device: str = "cpu"
    dtype: str = "float32"
    memory: int = DEFAULT_BUFFER
    threads: int | None = None
    overwrite: bool = False
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        _known("mode", self.mode, get_args(Mode))
        _known("floors", self.floors, get_args(Floors))
        _known("element type", self.dtype, ("float32", "bfloat16"))
        if self.kind is not None:
            _known("kind of dictionary", self.kind, get_args(Kind))
        _check_bounds(self)
        _check_sparsity(self)
        _check_floors(self)
        Site.parse(self.site)
        _ = self.sources
        _check_latents(self.latents)

    @property
    def sources(self) -> tuple[tuple[str, Path], ...]:
        """Return name and place of every corpus; RecipeError where one cannot be read, RefusedError where it is not."""
        found: dict[str, Path] = {}
        for word in self.corpora:
            name, sign, path = word.partition("=")
            if not sign or not path or not _NAME.fullmatch(name):
                fix = "write NAME=PATH, as in python=./src; a name is letters, digits, and _ . + -"
                raise RecipeError(f"{printable(word)!r} is no corpus", fix=fix)
            if name in found:
                raise RecipeError(f"two corpora are called {name!r}", fix="give each its own name")
            found[name] = Path(path).expanduser()
        if not found:
            raise RecipeError("no text was given", fix="give --corpus NAME=PATH, one for each kind of text")
        for name, place in found.items():
            if not place.exists() and not set("*?[") & set(str(place)):
                raise RefusedError(
                    f"the corpus {name!r} does not exist", where=printable(str(place)), fix="check the path"
                )
        return tuple(found.items())

    @property
    def steps_of_children(self) -> int:
        """Return the steps of a dictionary that begins as another."""
        return self.child_steps if self.child_steps is not None else child_steps_of(self.steps)

    def latents_of(self, width: int) -> int:
        """Return the latents of the root's dictionary on a site of this width."""
        if self.latents is None:
            return default_latents(width)
        times = _TIMES.fullmatch(str(self.latents))
        count = int(float(times[1]) * width) if times else int(self.latents)
        if not 0 < count <= _MOST_LATENTS:
            told = f" ({printable(str(self.latents))} of a width of {width:,})" if times else ""
            raise RecipeError(
                f"{count:,} latents{told} make no dictionary",
                fix=f"give --latents from 1 to {_MOST_LATENTS:,}, or such as 8x",
            )
        return count

    def k_of(self, width: int) -> int:
        """Return how many latents fire on a token of a site of this width."""
        return self.k if self.k is not None else min(default_k(width), self.latents_of(width))

    def check_output(self, models: Sequence[Path]) -> None:
        """Refuse an output that may not be written, or with `overwrite` replaced because it is an older study."""
        out = resolve_output(self.out)
        kept = [self.root_dictionary] if self.root_dictionary is not None else []
        check_place(out, [*models, *(path for _, path in self.sources), *kept], overwrite=self.overwrite)
        if self.overwrite and out.is_dir() and any(out.iterdir()):
            missing = [name for name in _HELD_OUT if not (out / name).is_file()]
            if missing:
                raise RefusedError(
                    f"the output to be replaced is no study (it has no {missing[0]})",
                    where=printable(str(out)),
                    fix="choose another output, or move that folder away yourself",
                )

    def settings(self) -> dict[str, Any]:
        """Return every option that decides what a member becomes, besides the models: plain values."""
        apart = {
            "models",
            "parents",
            "corpora",
            "out",
            "memory",
            "threads",
            "overwrite",
            "checkpoint_seconds",
        }
        apart |= {
            "floors",
            "seeds",
            "root_dictionary",
            "train_tokens",
        }  # they choose members, or are hashed as files
        kept: Mapping[str, Any] = {n: v for n, v in vars(self).items() if n not in apart}
        return {**kept, "latents": None if self.latents is None else str(self.latents)}


def _known(what: str, value: Any, among: Sequence[str]) -> None:
    if value not in among:
        words = f"{', '.join(among[:-1])} or {among[-1]}"
        raise RecipeError(f"there is no {what} {printable(str(value), 80)!r}", fix=f"use {words}")


def _check_latents(latents: int | str | None) -> None:
    """Refuse what is no count; a multiple is held against the bounds once the width is known."""
    if latents is None or _TIMES.fullmatch(str(latents)):
        return
    if not _COUNT.fullmatch(str(latents)):
        what = f"{printable(str(latents), 80)!r} is no count of latents"
        raise RecipeError(what, fix="give a number, or a multiple of the width, such as 8x")
    if not 0 < int(latents) <= _MOST_LATENTS:
        raise RecipeError(
            f"{int(latents):,} latents make no dictionary",
            fix=f"give --latents from 1 to {_MOST_LATENTS:,}, or such as 8x",
        )


def _check_bounds(request: Request) -> None:
    for name, least in _LEAST.items():
        value = getattr(request, name)
        if value is not None and value < least:
            raise RecipeError(f"{name.replace('_', ' ')} is {value}", fix=f"give {least} or more")
    for name, most in _MOST.items():
        value = getattr(request, name)
        if value is not None and value > most:
            raise RecipeError(f"{name.replace('_', ' ')} is {value}", fix=f"give {most} or fewer")
    if not 0 <= request.spare <= 1:
        raise RecipeError(f"spare is {request.spare:g}", fix="give a share of the latents, from 0 to 1")
    if not request.checkpoint_seconds >= 0:
        raise RecipeError("checkpoint_seconds is negative", fix="give 0 or more")


def _check_sparsity(request: Request) -> None:
    """Refuse a sparsity that the kind of dictionary does not have, and what a loaded one decides itself."""
    if request.kind == "relu-l1" and request.k is not None:
        raise RecipeError("k says nothing about relu-l1", fix="give --l1, or another --kind")
    if request.kind != "relu-l1" and request.l1 is not None:
        raise RecipeError("l1 is the penalty of relu-l1 alone", fix="give --kind relu-l1 with it, or --k")
    if request.kind == "relu-l1" and request.l1 is None:
        fix = "give --l1; activations have a root mean square of one, and 1 is worth a first try"
        raise RecipeError("relu-l1 needs a coefficient", fix=fix)
    if request.l1 is not None and not (math.isfinite(request.l1) and request.l1 > 0):
        raise RecipeError(f"l1 is {request.l1:g}", fix="give a coefficient above 0")
    if (
        request.k is not None
        and not isinstance(request.latents, str)
        and request.k > (request.latents or request.k)
    ):
        raise RecipeError(f"k is {request.k} of {request.latents} latents", fix="let fewer fire")
    if request.root_dictionary is not None:
        if request.latents is not None:
            fix = "leave --latents out, or train the root's dictionary too"
            raise RecipeError("the root's dictionary that was given has its own latents", fix=fix)
        if not request.root_dictionary.is_dir():
            raise RefusedError(
                "the root's dictionary is no folder",
                where=printable(str(request.root_dictionary)),
                fix="give a folder with cfg.json and sae_weights.safetensors",
            )


def _check_floors(request: Request) -> None:
    if request.mode == "shared" and request.floors == "all":
        raise RecipeError(
            "in the mode shared one dictionary serves all models", fix="use --floors root or none"
        )
    if request.mode != "shared" and request.floors == "none":
        fix = "use --floors root, or --mode shared"
        raise RecipeError("without a floor no rate could be read", fix=fix)
    if request.mode != "warm" and request.floors != "none" and not request.seeds:
        raise RecipeError(
            f"the mode {request.mode} has no floor but other seeds", fix="give --seeds 1 or more"
        )
