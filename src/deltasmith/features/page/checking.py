"""Files that do not fit together are found before anything is looked up in them by number."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deltasmith.errors import DamagedInputError, printable
from deltasmith.features.outcome import Links, Outcome
from deltasmith.features.pattern_records import Patterns
from deltasmith.features.study import Study

__all__ = ["check_detectors", "check_files", "check_links"]


def check_files(study: Study) -> None:
    """Raise DamagedInputError unless codes, effects, decoders and tokens of every model have sizes that fit."""
    tokens = len(study.held_out.ids)
    for label in study.graph.by_label:
        codes, effects, decoder = study.codes(label), study.effects(label), study.decoder(label)
        arrays = list(vars(effects).values())
        sound = codes.tokens == tokens and len(decoder) == codes.width and decoder.ndim == 2
        sound = sound and all(a.ndim == 2 and a.shape == (codes.width, arrays[0].shape[1]) for a in arrays)
        if not (sound and all(bool(np.isfinite(array).all()) for array in (decoder, *arrays))):
            raise DamagedInputError(
                f"the codes, effects, dictionary and tokens of {printable(label)} do not fit together",
                where=printable(str(study.folder)),
                fix="train the study again",
            )
    lengths = {len(array) for array in vars(study.held_out).values() if isinstance(array, np.ndarray)}
    if lengths != {tokens}:
        raise DamagedInputError(
            "the held-out arrays differ in length",
            where=printable(str(study.folder / "held_out.safetensors")),
            fix="train the study again",
        )


def check_links(study: Study, outcome: Outcome, place: Path) -> None:
    """Raise DamagedInputError unless every edge is one of the study and links features that there are."""
    sizes = {label: study.codes(label).width for label in study.graph.by_label}
    told = {(edge.parent, edge.child) for edge in outcome.edges}
    sound = told == {(edge.parent, edge.child) for edge in study.graph.edges} and all(
        _within(edge.parents, sizes[edge.parent], sizes[edge.child])
        and _within(edge.children, sizes[edge.child], sizes[edge.parent])
        for edge in outcome.edges
    )
    universal, merges = outcome.universal, outcome.merges
    sound = sound and all(label in sizes for label in universal.members)
    sound = sound and all(
        bool(((column >= 0) & (column < sizes[label])).all())
        for label, column in zip(universal.members, universal.features.T, strict=True)
    )
    sound = sound and all(
        (parent, merge.label) in told and merge.label in sizes for merge in merges for parent in merge.parents
    )
    if not (sound and all(len(m.origin) == len(m.inherited_from) == sizes[m.label] for m in merges)):
        raise DamagedInputError(
            "what was matched does not fit the study",
            where=printable(str(place)),
            fix="run `deltasmith features match` again",
        )


def check_detectors(patterns: Patterns, sizes: Mapping[str, int], place: Path) -> None:
    """Raise DamagedInputError where a pattern's feature is none of the model's. `sizes` counts each model's latents."""
    for member in (member for one in patterns.found for member in one.members if member.label in sizes):
        if not all(0 <= detector.latent < sizes[member.label] for detector in member.detectors):
            raise DamagedInputError(
                f"a pattern names a feature that {printable(member.label)} does not have",
                where=printable(str(place)),
                fix="run `deltasmith features match --find` again",
            )


def _within(links: Links, own: int, other: int) -> bool:
    return len(links.best) == own and all(
        bool(((places >= -1) & (places < other)).all()) for places in (links.best, links.second)
    )
