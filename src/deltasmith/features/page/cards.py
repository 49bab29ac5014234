"""The records behind the feature cards, small enough for a page: texts and models are numbers into tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deltasmith.features.outcome import DESCENT, FATE, EdgeOutcome, Outcome
from deltasmith.features.page.escaping import visible
from deltasmith.features.page.evidence import Activity, Text, Window, activities, correlation, windows
from deltasmith.features.page.tracing import Anchor, Trace, trace
from deltasmith.features.pattern_records import Patterns
from deltasmith.features.study import Effects, Study

__all__ = ["Words", "cards"]

_LEVELS = 99  # an activation is shown as so many parts of its latent's maximum
_TYPES = 4  # of the tokens a feature fires on most
_REDACTED = 12  # longer tokens are shown as this long

Vectors = npt.NDArray[np.float32]


class Words:
    """The texts on the page, each once; the number of a text is its place. Redacted, a text is as many dots."""

    def __init__(self, texts: Mapping[int, str], *, redact: bool) -> None:
        """Take the texts of the token ids."""
        self._texts, self._redact = texts, redact
        self._places: dict[str, int] = {}

    def of_corpus(self, token: int) -> int:
        """Return the number of a token of the corpus."""
        raw = self._texts.get(token, f"⟨{token}⟩")
        return self._number("•" * max(1, min(len(raw.strip()), _REDACTED)) if self._redact else visible(raw))

    def of_vocabulary(self, token: int) -> int:
        """Return the number of a token that stands in no corpus: the model's own vocabulary."""
        return self._number(visible(self._texts.get(token, f"⟨{token}⟩")))

    def listed(self) -> list[str]:
        """Return all texts in the order of their numbers."""
        return list(self._places)

    def _number(self, shown: str) -> int:
        return self._places.setdefault(shown, len(self._places))


def cards(
    study: Study,
    outcome: Outcome,
    anchors: Sequence[Anchor],
    words: Words,
    weak: float,
    patterns: Sequence[Patterns] = (),
) -> list[dict[str, Any]]:
    """Gather all that is shown of each anchored feature, in the order given."""
    detected = _detected(patterns)
    traces = [trace(outcome, anchor, weak) for anchor in anchors]
    labels = [node.label for node in study.graph.nodes]
    wanted = {label: sorted({t.features[label] for t in traces if label in t.features}) for label in labels}
    found = activities(study, wanted)
    effects = {label: study.effects(label) for label in labels if wanted[label]}
    decoders = {label: _unit_rows(study.decoder(label), wanted[label]) for label in labels if wanted[label]}
    text = Text(study.held_out)
    return [
        _card(one, labels, outcome.edges, found, effects, decoders, windows(one, found, text), text, words)
        | {"patterns": [told for at, label in enumerate(labels) for told in detected(at, label, one)]}
        for one in traces
    ]


def _card(
    one: Trace,
    labels: Sequence[str],
    edges: Sequence[EdgeOutcome],
    found: Mapping[tuple[str, int], Activity],
    effects: Mapping[str, Effects],
    decoders: Mapping[str, Mapping[int, Vectors]],
    shown: Sequence[Window],
    text: Text,
    words: Words,
) -> dict[str, Any]:
    ids, domains = text.held_out.ids, text.held_out.domain
    columns = [
        _column(found[label, one.features[label]], effects[label], shown, words, label in one.linked)
        if label in one.features
        else None
        for label in labels
    ]
    return {
        "model": labels.index(one.anchor.member),
        "feature": one.anchor.feature,
        "types": _types(found[one.anchor.member, one.anchor.feature], ids, words),
        "windows": [
            {
                "group": w.group,
                "domain": int(domains[w.peak]),
                "peak": w.peak - w.start,
                "tokens": [words.of_corpus(int(token)) for token in ids[w.start : w.stop]],
            }
            for w in shown
        ],
        "columns": columns,
        "edges": list(_links(one, edges, found, decoders, len(ids))),
    }


def _column(
    activity: Activity, effects: Effects, shown: Sequence[Window], words: Words, linked: bool
) -> dict[str, Any]:
    at, top = activity.feature, activity.maximum or 1.0
    levels = []
    for window in shown:
        places, values = activity.within(window.start, window.stop)
        parts = np.maximum(1, np.round(values / top * _LEVELS)).astype(int)
        levels.append([int(number) for pair in zip(places, parts, strict=True) for number in pair])
    return {
        "feature": at,
        "linked": linked,
        "fires": len(activity.tokens),
        "maximum": _short(activity.maximum),
        "histogram": activity.histogram,
        "raised": _effect(effects.raised, effects.raised_by, at, words),
        "lowered": _effect(effects.lowered, effects.lowered_by, at, words),
        "levels": levels,
    }


def _detected(patterns: Sequence[Patterns]) -> Callable[[int, str, Trace], list[dict[str, Any]]]:
    """Return what tells of a trace's feature in one model which patterns it was found by, and how well."""
    known = {
        (member.label, detector.latent, one.name): detector.marking
        for each in patterns
        for one in each.found
        for member in one.members
        for detector in member.detectors
    }

    def of(at: int, label: str, one: Trace) -> list[dict[str, Any]]:
        return [
            {
                "pattern": visible(name),
                "model": at,
                "precision": round(marking.precision, 3),
                "recall": round(marking.recall, 3),
                "r": round(marking.r, 3),
            }
            for (member, latent, name), marking in known.items()
            if member == label and one.features.get(label) == latent
        ]

    return of


def _effect(tokens: npt.NDArray[np.int32], by: Vectors, at: int, words: Words) -> list[list[float]]:
    if not tokens.shape[1]:  # not defined at this site
        return []
    return [
        [words.of_vocabulary(int(token)), _short(float(value))]
        for token, value in zip(tokens[at], by[at], strict=True)
    ]


def _types(activity: Activity, ids: npt.NDArray[np.int32], words: Words) -> list[list[float]]:
    """Return the token types with the largest share of a feature's activation."""
    kinds, places = np.unique(ids[activity.tokens], return_inverse=True)
    share = np.bincount(places, activity.values, len(kinds)) / max(float(activity.values.sum()), 1e-30)
    return [
        [words.of_corpus(int(kinds[at])), round(float(share[at]), 3)]
        for at in np.argsort(-share, kind="stable")[:_TYPES]
    ]


def _links(
    one: Trace,
    edges: Sequence[EdgeOutcome],
    found: Mapping[tuple[str, int], Activity],
    decoders: Mapping[str, Mapping[int, Vectors]],
    tokens: int,
) -> Iterable[dict[str, Any]]:
    """Say of every edge how alike the two partners are, what became of the feature there, and who comes next.

    It is told from the end where the feature is, from the parent if it is at both. Edges between two models that have
    merely something near it are left out.
    """
    for number, edge in enumerate(edges):
        ends = edge.parent, edge.child
        if not set(ends) <= one.features.keys() or not one.linked & set(ends):
            continue
        above, below = (one.features[label] for label in ends)
        fate, descent = str(FATE[edge.parents.status[above]]), str(DESCENT[edge.children.status[below]])
        downwards = edge.parent in one.linked
        links, here, there = (edge.parents, above, below) if downwards else (edge.children, below, above)
        first = int(links.best[here]) == there
        following = (links.second, links.second_r) if first else (links.best, links.r)
        cosine = float(decoders[edge.parent][above] @ decoders[edge.child][below])
        yield {
            "edge": number,
            "r": round(correlation(found[edge.parent, above], found[edge.child, below], tokens), 3),
            "cosine": round(cosine, 3),
            "fate": fate,
            "descent": descent,
            "status": fate if downwards else descent,
            "best": first,
            "next": int(following[0][here]),
            "next_r": round(float(following[1][here]), 3),
        }


def _unit_rows(decoder: Vectors, wanted: Sequence[int]) -> dict[int, Vectors]:
    rows = decoder[list(wanted)]
    return dict(
        zip(wanted, rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30), strict=True)
    )


def _short(value: float) -> float:
    """Return three significant digits, which are enough to be read."""
    return float(f"{value:.3g}")
