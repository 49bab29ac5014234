"""A model seen through one dictionary: its codes on the held-out text of a study, and how well it does there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deltasmith.engine.memory import DEFAULT_MEMORY
from deltasmith.engine.workers import Stop
from deltasmith.errors import InterruptedRunError, RefusedError, printable
from deltasmith.features.codes import Codes, joined
from deltasmith.features.study import HeldOut, Study
from deltasmith.features.sweep_measures import Scores
from deltasmith.features.threads import computing_with

if TYPE_CHECKING:
    from deltasmith.analysis.tokenizing import TextTokenizer
    from deltasmith.features.dictionaries.dictionary import Dictionary
    from deltasmith.features.models import Opened
    from deltasmith.features.pieces import Pieces

__all__ = ["Seen", "Viewer", "pieces_of"]


@dataclass(frozen=True, eq=False)
class Seen:
    """What was found of one model: `codes` of the dictionary on all held-out tokens, in order, and `scores`.

    `fvu` is the share of the activations' variance that the dictionary leaves unexplained; None where they do not vary.
    """

    name: str
    fingerprint: str
    codes: Codes
    scores: Scores
    fvu: float | None
    notes: tuple[str, ...] = ()


def pieces_of(held_out: HeldOut, start: int | None) -> tuple[Pieces, int]:
    """Put the held-out tokens back into the pieces that a model reads; return how many begin with a stand-in.

    A sequence becomes a row: the token that is read and not analysed, then its own. So the analysed tokens of all
    pieces, in order, are `held_out`'s. That first token is `start`. Where a tokenizer has none, it is the token before
    the sequence, which is known where the sequence before is of the same passage; elsewhere the sequence's own first
    token stands in for it.
    """
    from deltasmith.features.pieces import FIRST, Pieces

    edges = np.flatnonzero(np.diff(held_out.sequence, prepend=-1, append=-1))
    firsts, counts = edges[:-1], np.diff(edges)
    ids = np.zeros((len(firsts), int(counts.max(initial=0)) + FIRST), np.int32)
    passage = held_out.passage[firsts]
    stand_ins = 0
    for row, (first, count) in enumerate(zip(firsts, counts, strict=True)):
        follows = row > 0 and passage[row] == passage[row - 1]
        stand_ins += start is None and not follows
        ids[row, 0] = start if start is not None else held_out.ids[first - follows]
        ids[row, FIRST : FIRST + count] = held_out.ids[first : first + count]
    numbers = np.arange(len(firsts), dtype=np.int32)
    lengths = (counts + FIRST).astype(np.int32)
    return Pieces(ids, lengths, held_out.domain[firsts], numbers, passage, numbers), stand_ins


@dataclass
class Viewer:
    """Opens one model after another; the dictionary and the text are read once."""

    study: Study
    device: str = "cpu"
    dtype: str = "float32"
    memory: int = DEFAULT_MEMORY
    threads: int | None = None
    stop: Stop = field(default_factory=Stop)
    _dictionary: Dictionary | None = None
    _pieces: Pieces | None = None
    stand_ins: int = 0
    """Pieces that begin with a stand-in for the token before them, once a model was seen."""

    def look(self, source: Any) -> Seen:
        """See a model: one pass for its activations, one for its losses.

        Raises:
            RefusedError: it numbers texts otherwise than the study's models, or its site has another width.
            InterruptedRunError: asked to stop. What `open_network` raises.
        """
        from deltasmith.features.models import open_network
        from deltasmith.features.quality import scores

        options: dict[str, Any] = {"memory": self.memory, "threads": self.threads, "stop": self.stop}
        with (
            computing_with(self.threads),
            open_network(source, device=self.device, dtype=self.dtype, **options) as opened,
        ):
            self._check_texts(opened)
            pieces = self._text(opened.tokenizer)
            codes, fvu = self._codes(opened, pieces)
            self._check_stop()
            found = scores(opened.network, pieces, self.study.domains)
            return Seen(opened.name, opened.fingerprint, codes, found, fvu, tuple(opened.notes))

    def dictionary(self) -> Dictionary:
        """Read the root's dictionary."""
        from deltasmith.features.dictionaries.storage import load

        if self._dictionary is None:
            folder: Path = self.study.dictionary(self.study.graph.root.label)
            self._dictionary = load(folder, self.device)
        return self._dictionary

    def _codes(self, opened: Opened, pieces: Pieces) -> tuple[Codes, float | None]:
        """Encode the activations group by group; sums are taken in float64, around the output bias."""
        from deltasmith.features.recorder import Recorder, group_of
        from deltasmith.features.site import Site

        dictionary = self.dictionary()
        recorder = Recorder(opened.network, Site.parse(self.study.site), self.device, stop=self.stop)
        middle = dictionary.output_bias.double()
        parts, left, squares, sums = [], 0.0, 0.0, middle * 0
        size = group_of(pieces.context)  # as when the study was made: groups reach the last bits
        for first in range(0, len(pieces.lengths), size):
            rows = np.arange(first, min(first + size, len(pieces.lengths)))
            raw = recorder.activations(pieces, rows)
            parts.append(dictionary.encode(raw))
            wide = raw.double()
            left += float((wide - dictionary.decode(parts[-1]).double()).square().sum())
            wide -= middle
            squares += float(wide.square().sum())
            sums += wide.sum(0)
        spread = squares - float(sums.square().sum()) / max(pieces.tokens, 1)
        return joined(parts), left / spread if spread > 0 else None

    def _text(self, tokenizer: TextTokenizer) -> Pieces:
        if self._pieces is None:
            self._pieces, self.stand_ins = pieces_of(self.study.held_out, tokenizer.start)
        return self._pieces

    def _check_texts(self, opened: Opened) -> None:
        """Refuse a model whose tokens stand for other texts than the study's."""
        known = self.study.texts
        ids = sorted(known)
        theirs = opened.texts(ids) if not ids or ids[-1] < opened.tokenizer.vocabulary else []
        if theirs != [known[token] for token in ids]:
            raise RefusedError(
                "it numbers texts otherwise than the models of the study",
                where=printable(opened.name),
                fix="merge models of the study's family",
            )

    def _check_stop(self) -> None:
        if self.stop.asked:
            raise InterruptedRunError("the sweep was interrupted", fix="run the same command again")
