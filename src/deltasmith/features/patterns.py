"""Features found by what they fire on: a regular expression marks tokens, latents that follow the mark are ranked.

This is how the case studies of the paper, variable assignment and exceptions, are found. It reads a study alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from deltasmith.errors import InterruptedRunError, RecipeError, RefusedError, printable
from deltasmith.features.codes import Codes
from deltasmith.features.outcome import DESCENT, FATE, EdgeOutcome, Links, Outcome
from deltasmith.features.pattern_matches import SECONDS, check_expression, spans_of
from deltasmith.features.pattern_records import (
    FILE,
    Along,
    Detector,
    Found,
    Marking,
    MemberDetectors,
    Patterns,
    write_patterns,
)
from deltasmith.features.study import HeldOut, Study

__all__ = ["Marked", "Markings", "find", "find_all", "mark", "markings", "parse_patterns", "study_hash"]

Flags = npt.NDArray[np.bool_]
Doubles = npt.NDArray[np.float64]
_MOST = 100


def parse_patterns(words: Sequence[str]) -> dict[str, str]:
    r"""Read NAME=EXPRESSION words, in order; RecipeError for what is none, and for a name given twice.

    >>> parse_patterns([r"raise=^ *raise"])
    {'raise': '^ *raise'}
    """
    found: dict[str, str] = {}
    for word in words:
        name, sign, expression = word.partition("=")
        if not sign or not name.strip() or not expression:
            raise RecipeError(
                f"{printable(word, 80)!r} is no pattern", fix="write NAME=EXPRESSION, as in raise='^ *raise'"
            )
        if name.strip() in found:
            raise RecipeError(
                f"two patterns are called {printable(name.strip(), 60)!r}", fix="give each its own name"
            )
        check_expression(name.strip(), expression)
        found[name.strip()] = expression
    return found


@dataclass(frozen=True, eq=False)
class Marked:
    """The tokens that a pattern marks, (tokens,), and how many matches marked them."""

    flags: Flags
    matches: int


@dataclass(frozen=True, eq=False)
class Markings:
    """`Marking`s of all latents of a member: arrays of (latents,)."""

    r: Doubles
    fires: npt.NDArray[np.int64]
    hits: npt.NDArray[np.int64]
    marked: int

    def of(self, latent: int) -> Marking:
        """Return one latent's."""
        fires, hits = int(self.fires[latent]), int(self.hits[latent])
        precision, recall = hits / fires if fires else 0.0, hits / self.marked if self.marked else 0.0
        both = 2 * hits / (fires + self.marked) if fires + self.marked else 0.0
        return Marking(float(self.r[latent]), fires, hits, precision, recall, both)

    def best(self, top: int) -> list[int]:
        """Return the latents of the largest correlations above 0; ties go to the lower index."""
        order = np.argsort(-self.r, kind="stable")[:top]
        return [int(latent) for latent in order if self.r[latent] > 0]


def find(
    study: Study,
    patterns: Mapping[str, str],
    members: Sequence[str] | None = None,
    top: int = 3,
    *,
    outcome: Outcome | None = None,
    seconds: float = SECONDS,
    stopped: Callable[[], bool] = lambda: False,
) -> Patterns:
    """Correlate every feature's activations with the tokens that a pattern marks, and keep each model's `top` best.

    `patterns` maps names to regular expressions (Python's, `^` and `$` at line ends). The text of each held-out
    sequence is put together from its tokens; a token is marked if it overlaps group 1 of a match, or the whole match
    where there is no group. Sequences are matched apart, so that nothing is found across their borders. Characters
    that several tokens share appear as U+FFFD there and match nothing else. `members` are the models (or floors) to
    search, by default all models.

    With an `outcome` of the same study every detector is followed along all edges of its model: its status, the
    nearest partner on the other side, even below the thresholds, and how well that one finds the same text.

    Raises:
        RecipeError: an expression is none, a member is unknown, `top` is below 1. RefusedError: the outcome is of
        another study. ResourceError: an expression takes longer than `seconds`. InterruptedRunError: `stopped`.
    """
    if top < 1:
        raise RecipeError(f"top is {top}", fix="give 1 or more")
    if len(patterns) > _MOST:
        raise RecipeError(f"there are {len(patterns)} patterns", fix=f"give {_MOST} at most")
    digest = study_hash(study)
    if outcome is not None and outcome.study != digest:
        raise RefusedError("the outcome is that of another study", fix="match this one again")
    labels = _labels(study, members)
    marked = {name: mark(study, name, expression, seconds) for name, expression in patterns.items()}
    every = list(dict.fromkeys([*labels, *(node.label for node in study.graph.nodes)] if outcome else labels))
    found: dict[str, dict[str, Markings]] = {name: {} for name in patterns}
    for label in every:  # codes are large: those of one model at a time
        if stopped():
            raise InterruptedRunError("the search was interrupted", fix="run the same command again")
        codes = study.codes(label)
        _check(study, label, codes)
        for name in patterns:
            found[name][label] = markings(codes, marked[name].flags)
    ends = [] if outcome is None else list(_ends(outcome))
    return Patterns(
        digest,
        tuple(
            Found(
                name,
                expression,
                marked[name].matches,
                int(marked[name].flags.sum()),
                _by_domain(study, marked[name].flags),
                tuple(
                    MemberDetectors(label, tuple(_detectors(label, found[name], ends, top)))
                    for label in labels
                ),
            )
            for name, expression in patterns.items()
        ),
    )


def find_all(study: Study, words: Sequence[str], *, outcome: Outcome, out: Path, top: int = 3) -> Patterns:
    """Search for NAME=EXPRESSION words, follow what is found, and write it beside a match: `out`/patterns.json.

    Read the words with `parse_patterns` before matching, so that a wrong one is refused early. Raises what `find`
    raises, and ResourceError.
    """
    found = find(study, parse_patterns(words), top=top, outcome=outcome)
    write_patterns(out / FILE, found)
    return found


def study_hash(study: Study) -> str:
    """Return the sha256 of a study's study.json, by which what was found in it is told to belong to it."""
    return hashlib.sha256((study.folder / "study.json").read_bytes()).hexdigest()


def mark(study: Study, name: str, expression: str, seconds: float = SECONDS) -> Marked:
    """Mark the held-out tokens that overlap a match of the expression in the text of their sequence.

    A token without text is never marked.
    """
    held_out = study.held_out
    texts = [study.texts.get(int(token), "") for token in held_out.ids]
    lengths = np.array([len(text) for text in texts], np.int64)
    flags, matches = np.zeros(len(texts), np.bool_), 0
    bounds = _sequences(held_out)
    whole = ["".join(texts[first:last]) for first, last in bounds]
    for (first, last), spans in zip(bounds, spans_of(name, expression, whole, seconds), strict=True):
        ends = np.cumsum(lengths[first:last])
        for begin, end in spans:
            # From the first token that ends after the match begins, to the last that begins before it ends.
            low = int(np.searchsorted(ends, begin, side="right"))
            high = int(np.searchsorted(ends - lengths[first:last], end, side="left"))
            flags[first + low : first + high] = True
        matches += len(spans)
    return Marked(flags & (lengths > 0), matches)


def markings(codes: Codes, flags: Flags) -> Markings:
    """Correlate every latent's activations with a mark, zeros included, in float64; 0 where one does not vary.

    `flags` (tokens,); `hits` counts the marked tokens that a latent fires on.
    """
    tokens, marked = codes.tokens, int(flags.sum())
    values = codes.values.astype(np.float64)
    on_mark = flags[codes.rows]

    def total(of: npt.NDArray[Any]) -> Doubles:
        return np.bincount(codes.latents, weights=of, minlength=codes.width).astype(np.float64)

    share = marked / tokens if tokens else 0.0
    mean = total(values) / max(tokens, 1)
    # Around the mean, latent by latent: Σa² - (Σa)²/n loses what a nearly constant latent varies by.
    squares = total((values - mean[codes.latents]) ** 2) + (tokens - codes.fires) * mean**2
    spread = np.sqrt(np.maximum(squares, 0.0) * marked * (1 - share))
    together = total(values * on_mark) - mean * marked
    r = np.divide(together, spread, out=np.zeros(codes.width), where=spread > 0)
    hits = np.bincount(codes.latents[on_mark], minlength=codes.width)
    return Markings(np.clip(r, -1, 1), codes.fires, hits.astype(np.int64), marked)


def _labels(study: Study, members: Sequence[str] | None) -> list[str]:
    if members is None:
        return [node.label for node in study.graph.nodes]
    for name in members:
        if name not in study.members:
            raise RecipeError(
                f"the study has no member {printable(name, 60)!r}",
                fix=f"its members are {', '.join(map(printable, study.members))}",
            )
    return list(dict.fromkeys(members))


def _check(study: Study, label: str, codes: Codes) -> None:
    if codes.tokens != len(study.held_out.ids):
        raise RefusedError(
            f"the codes of {printable(label)} span {codes.tokens} tokens, the held-out text "
            f"{len(study.held_out.ids)}",
            where=printable(str(study.folder)),
            fix="train the study again",
        )


def _sequences(held_out: HeldOut) -> list[tuple[int, int]]:
    """Return the (first, last + 1) of every run of tokens of one sequence."""
    cuts = np.flatnonzero(np.diff(held_out.sequence)) + 1
    edges = [0, *cuts.tolist(), len(held_out.sequence)]
    return [(a, b) for a, b in pairwise(edges) if a < b]


def _by_domain(study: Study, flags: Flags) -> dict[str, int]:
    counts = np.bincount(study.held_out.domain[flags], minlength=len(study.domains))
    return {name: int(count) for name, count in zip(study.domains, counts, strict=True)}


@dataclass(frozen=True, eq=False)
class _End:
    """One end of an edge, with how its features are linked to the other end."""

    of: str
    other: str
    edge: EdgeOutcome
    side: Literal["parent", "child"]
    links: Links
    statuses: Sequence[str]

    def along(self, latent: int, others: Markings) -> Along:
        """Tell what became of a feature here; `others` are the markings at the other end."""
        links = self.links
        partner, cosine = int(links.best[latent]), float(links.cosine[latent])
        return Along(
            parent=self.edge.parent,
            child=self.edge.child,
            kind=self.edge.kind,
            side=self.side,
            status=str(self.statuses[links.status[latent]]),
            partner=partner,
            r=float(links.r[latent]),
            second=int(links.second[latent]),
            second_r=float(links.second_r[latent]),
            cosine=None if math.isnan(cosine) else cosine,
            marking=None if partner < 0 else others.of(partner),
        )


def _ends(outcome: Outcome) -> Iterator[_End]:
    for edge in outcome.edges:
        yield _End(edge.parent, edge.child, edge, "parent", edge.parents, FATE)
        yield _End(edge.child, edge.parent, edge, "child", edge.children, DESCENT)


def _detectors(
    label: str, found: Mapping[str, Markings], ends: Sequence[_End], top: int
) -> Iterator[Detector]:
    for latent in found[label].best(top):
        along = (end.along(latent, found[end.other]) for end in ends if end.of == label)
        yield Detector(latent, found[label].of(latent), tuple(along))
