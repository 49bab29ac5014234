"""A small study on disk, made of planted features: what `features train` writes, without torch or a model.

The graph is base -> lua, base -> stories, merged from both. PLANTED names what happens to groups of the base's
features, and which features the others bring.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deltasmith.features.arrays import written_arrays
from deltasmith.features.codes import Codes
from deltasmith.features.graph import Graph, Node
from deltasmith.features.study import (
    FORMAT,
    Effects,
    HeldOut,
    Study,
    written_codes,
    written_effects,
    written_held_out,
)

WIDTH = 32
BASE = 80
SPARE = 16

GRAPH = Graph(
    (
        Node("base", None, "base"),
        Node("lua", None, "lua", ("base",)),
        Node("stories", None, "stories", ("base",)),
        Node("merged", None, "merged", ("lua", "stories"), "base", "slerp"),
    )
)

# Groups of the base's features by index, and the members that have them.
PLANTED = {
    "universal": (range(0, 30), ("base", "lua", "stories", "merged")),
    "recovered": (range(30, 38), ("base", "stories", "merged")),  # lost in lua, back in the merge
    "gone": (range(38, 44), ("base",)),
    "lost in merge": (range(44, 50), ("base", "lua", "stories")),
    "drifted": (range(50, 58), ("base", "lua", "stories", "merged")),  # half of the firings move in stories
    "rare": (range(76, 78), ("base", "lua", "stories", "merged")),
    "dead": (range(78, 80), ()),
}
# Spare latents 80.. of the children, and which members have them.
ADDED = {
    "of lua": (range(80, 84), ("lua", "merged")),
    "of stories": (range(84, 88), ("stories", "merged")),
    "only of lua": (range(88, 90), ("lua",)),
    "novel": (range(90, 93), ("merged",)),
}
WORDS = (
    "the",
    "cat",
    "sat",
    "=",
    "(",
    ")",
    "local",
    "x",
    "\n",
    "end",
    "once",
    "upon",
    "a",
    "time",
    "def",
    "return",
)
HOSTILE = (
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    "<!--",
    "\u202eevil",
    "\u2028",
    "\x00",
    '"quoted"',
    "'",
    "&amp;",
    "w" * 500,
    "\\u003c/script>",
)


def events(count: int, tokens: int, seed: int, rate: float = 0.03) -> np.ndarray:
    """Draw `count` sparse signals over tokens: each fires on a share `rate` of them, with positive values."""
    rng = np.random.default_rng(seed)
    return (rng.random((tokens, count)) < rate) * rng.gamma(4.0, 0.25, (tokens, count))


def made_study(
    folder: Path,
    *,
    tokens: int = 4000,
    seed: int = 0,
    mode: str = "warm",
    words: Sequence[str] = WORDS,
    floors: Sequence[str] = ("base~again", "base~seed1"),
) -> Study:
    """Write a study whose features are known, and open it."""
    rng = np.random.default_rng(seed)
    signals = events(BASE + SPARE, tokens, seed + 1)
    signals[:, 76:78] = events(2, tokens, seed + 2, rate=8 / tokens)
    moved = events(BASE + SPARE, tokens, seed + 3)
    codes = {label: _codes(label, signals, moved, rng) for label in ("base", "lua", "stories", "merged")}
    if "base~again" in floors:
        codes["base~again"] = _codes("base", signals, moved, rng)
    if "base~seed1" in floors:
        other = events(BASE, tokens, seed + 4)
        order = rng.permutation(BASE)
        other[:, order[:48]] = signals[:, :48]
        codes["base~seed1"] = Codes.of_dense(_noisy(other, rng).astype(np.float32))
    _write(folder, codes, mode, words, tokens, rng)
    return Study.open(folder)


def _codes(label: str, signals: np.ndarray, moved: np.ndarray, rng: np.random.Generator) -> Codes:
    found = np.zeros((len(signals), BASE if label == "base" else BASE + SPARE))
    for group, (places, members) in (PLANTED | ADDED).items():
        if label not in members:
            continue
        for at in places:
            found[:, at] = signals[:, at]
            if group == "drifted" and label == "stories":
                half = rng.random(len(signals)) < 0.65
                found[:, at] = np.where(half, signals[:, at], moved[:, at])
    return Codes.of_dense(_noisy(found, rng).astype(np.float32))


def _noisy(matrix: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return matrix * rng.uniform(0.9, 1.1, matrix.shape) * rng.uniform(0.5, 2.0, matrix.shape[1])


def _write(
    folder: Path,
    codes: dict[str, Codes],
    mode: str,
    words: Sequence[str],
    tokens: int,
    rng: np.random.Generator,
) -> None:
    for name in ("codes", "effects", "saes"):
        (folder / name).mkdir(parents=True)
    decoder = rng.normal(size=(BASE + SPARE, WIDTH)).astype(np.float32)
    for name, found in codes.items():
        (folder / "codes" / f"{name}.safetensors").write_bytes(written_codes(found))
        ids = rng.integers(0, len(words), (2, found.width, 10)).astype(np.int32)
        by = np.sort(rng.gamma(2.0, 1.0, (found.width, 10)).astype(np.float32))[:, ::-1]
        effects = Effects(ids[0], by, ids[1], -by)
        (folder / "effects" / f"{name}.safetensors").write_bytes(written_effects(effects))
        turned = decoder[: found.width] + 0.1 * rng.normal(size=(found.width, WIDTH)).astype(np.float32)
        turned /= np.linalg.norm(turned, axis=1, keepdims=True)
        (folder / "saes" / name).mkdir()
        weights = {"W_dec": turned.astype(np.float32), "W_enc": turned.T.astype(np.float32)}
        (folder / "saes" / name / "sae_weights.safetensors").write_bytes(written_arrays(weights))
        (folder / "saes" / name / "cfg.json").write_text("{}", encoding="utf-8")
    place = np.arange(tokens)
    held_out = HeldOut(
        rng.integers(0, len(words), tokens).astype(np.int32),
        (place // 50).astype(np.int32),
        (place // 100).astype(np.int32),
        (place * 2 // tokens).astype(np.int32),
    )
    (folder / "held_out.safetensors").write_bytes(written_held_out(held_out))
    texts = {str(at): f"{word} " if len(word) < 8 else word for at, word in enumerate(words)}
    (folder / "tokens.json").write_text(json.dumps(texts), encoding="utf-8")
    (folder / "study.json").write_text(json.dumps(_document(list(codes), mode), indent=1), encoding="utf-8")
    sealed(folder)


def sealed(folder: Path) -> Study:
    """List the study's files, as they are now, in its study.json: what was changed counts as part of it."""
    files = [folder / "held_out.safetensors", folder / "tokens.json"]
    files += sorted(
        p for part in ("codes", "effects", "saes") for p in (folder / part).rglob("*") if p.is_file()
    )
    document = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    document["files"] = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
    (folder / "study.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    return Study.open(folder)


def _document(members: list[str], mode: str) -> dict[str, Any]:
    quality = {"fvu": 0.17, "l0": 2.9, "dead": 0.02, "loss": 3.1, "loss_spliced": 3.3, "loss_zeroed": 4.0}
    labels = [node.label for node in GRAPH.nodes]
    return {
        "format": FORMAT,
        "deltasmith": "0.1.0",
        "site": "model.layers.0.mlp.down_proj:in",
        "mode": mode,
        "seed": 0,
        "dictionary": {"kind": "topk", "k": 3, "latents": BASE},
        "graph": [node.as_json() for node in GRAPH.nodes],
        "corpora": [
            {"name": name, "sha256": "0" * 64, "documents": 20, "tokens": 2000, "held_out_tokens": 2000}
            for name in ("english", "lua")
        ],
        "members": [
            {
                "name": name,
                "label": name.partition("~")[0],
                "role": "model" if "~" not in name else "again" if name.endswith("again") else "seed",
                "start": "base" if name in ("lua", "stories", "merged", "base~again") else None,
                "quality": quality,
            }
            for name in members
        ],
        "scores": {
            label: {
                "english": {"loss": 3.0 + at / 10, "accuracy": 0.42 - at / 50, "tokens": 2000},
                "lua": {"loss": 3.4 - at / 10, "accuracy": 0.30 + at / 20, "tokens": 2000},
            }
            for at, label in enumerate(labels)
        },
        "weight_changes": [
            {"parent": edge.parent, "child": edge.child, "all": 0.1 + at / 100, "groups": {"embeddings": 0.1}}
            for at, edge in enumerate(GRAPH.edges)
        ],
        "notes": [],
    }
