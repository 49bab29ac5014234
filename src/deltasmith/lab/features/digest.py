"""What the page needs of a study and its match, as plain JSON values: shares and counts, no arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

import numpy as np

from deltasmith.errors import DamagedInputError
from deltasmith.features.comparing import Passages, compare
from deltasmith.features.matching.thresholds import Thresholds
from deltasmith.features.outcome import FATE, Fate, Outcome
from deltasmith.features.outcome_files import as_json
from deltasmith.features.rates import rate_of, share_of
from deltasmith.features.study import Study

__all__ = ["compared_roots", "digest_of", "rounded"]

_DIGITS = 5
_KEPT = FATE.index(Fate.PERSISTED)
_ARRAYS = frozenset(("parents", "children"))


def digest_of(study: Study, outcome: Outcome) -> dict[str, Any]:
    """Return dictionaries, scores, weight changes, edges, merges and the universal share of one study."""
    found = as_json(outcome)
    document = study.document
    edges = [{key: value for key, value in edge.items() if key not in _ARRAYS} for edge in found["edges"]]
    arrays = ("origin", "inherited_from")
    merges = [{key: value for key, value in merge.items() if key not in arrays} for merge in found["merges"]]
    universal = {**found["universal"], "features": len(found["universal"]["features"])}
    digest: dict[str, Any] = rounded(
        {
            "mode": study.mode,
            "dictionary": document["dictionary"],
            "steps": document.get("steps"),
            "corpora": [_corpus(corpus) for corpus in document["corpora"]],
            "members": [
                {
                    "name": member.name,
                    "label": member.label,
                    "role": member.role,
                    "start": member.start,
                    **asdict(member.quality),
                    "loss_recovered": member.quality.loss_recovered,
                }
                for member in study.members.values()
            ],
            "scores": {
                label: {domain: asdict(score) for domain, score in domains.items()}
                for label, domains in study.scores.items()
            },
            "weight_changes": document.get("weight_changes", []),
            "settings": found["settings"],
            "features": found["members"],
            "edges": edges,
            "merges": merges,
            "universal": universal,
            "returns": [
                _returns(outcome, merge["label"], merge["base"]) for merge in found["merges"] if merge["base"]
            ],
            "notes": [*document.get("notes", ()), *found["notes"]],
        }
    )
    return digest


def compared_roots(first: Study, second: Study, resamples: int) -> dict[str, Any]:
    """Compare the root's dictionary of one study with that of another on the same held-out text.

    Returns shares of the first root's testable features: `kept` (mutual best, r >= 0.8), `any`, and of those kept
    `same_index`, the share whose partner has the same number.
    """
    if not np.array_equal(first.held_out.ids, second.held_out.ids):
        raise DamagedInputError(
            "other held-out text", where=str(second.folder), fix="remove it and run again"
        )
    roots = [study.graph.root.label for study in (first, second)]
    passages = Passages.of(first.held_out.passage, 0, resamples)
    found = compare(first.codes(roots[0]), second.codes(roots[1]), passages, Thresholds())
    kept = np.flatnonzero(found.persisted[0])
    same = found.paired.mutual[kept] == kept
    result: dict[str, Any] = rounded(
        {
            "kept": asdict(rate_of(share_of(found.persisted, found.testable))),
            "any": asdict(rate_of(found.reach[:, -1])),
            "same_index": float(same.mean()) if len(kept) else None,
            "testable": int(found.testable[0].sum()),
            "fvu": second.members[roots[1]].quality.fvu,
        }
    )
    return result


def _returns(outcome: Outcome, merge: str, base: str) -> dict[str, Any]:
    """Count the base's testable features by the fine-tunes they persist in, and how many of each persist in the merge.

    This is looser than the origin `recovered`, which asks that a feature has no partner at all in a fine-tune.
    """
    into = outcome.edge(base, merge).parents.status
    parents = [edge.child for edge in outcome.edges if edge.parent == base and edge.child != merge]
    judged = into < FATE.index(Fate.UNEXERCISED)
    kept = {child: outcome.edge(base, child).parents.status == _KEPT for child in parents}
    rows = []
    for where in product((True, False), repeat=len(parents)):
        flags = judged.copy()
        for child, wanted in zip(parents, where, strict=True):
            flags &= kept[child] == wanted
        names = [child for child, wanted in zip(parents, where, strict=True) if wanted]
        rows.append(
            {"kept_in": names, "features": int(flags.sum()), "in_merge": int((flags & (into == _KEPT)).sum())}
        )
    return {"merge": merge, "base": base, "groups": rows}


def rounded(value: Any) -> Any:
    """Round every float to five digits after the point, so that results can be read and compared."""
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, Mapping):
        return {str(key): rounded(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [rounded(one) for one in value]
    return value


def _corpus(corpus: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: corpus[key]
        for key in ("name", "sha256", "documents", "tokens", "held_out_tokens")
        if key in corpus
    }
