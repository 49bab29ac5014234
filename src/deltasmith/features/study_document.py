"""What study.json says: everything that decided the study, the graph, the members; no times, no absolute paths."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deltasmith import __version__
from deltasmith.features.graph import Graph
from deltasmith.features.members import Planned
from deltasmith.features.requests import Request
from deltasmith.features.study import FORMAT

__all__ = ["document_of", "member_json", "written_json"]


def document_of(
    request: Request,
    graph: Graph,
    *,
    corpora: Sequence[Mapping[str, Any]],
    training: Mapping[str, Any],
    members: Sequence[tuple[Planned, Mapping[str, Any]]],
    models: Mapping[str, Mapping[str, Any]],
    changes: Sequence[Mapping[str, Any]],
    files: Mapping[str, str],
    notes: Iterable[str],
) -> dict[str, Any]:
    """Put the document together.

    `members` are pairs of plan and record, the root's first; `models` scores by label; `files` the SHA-256 of every
    other file of the study, by its path in it.
    """
    root = members[0][1]
    return {
        "format": FORMAT,
        "deltasmith": __version__,
        "site": request.site,
        "mode": request.mode,
        "seed": request.seed,
        "dictionary": {
            **root["kind"],
            "latents": root["latents"],
            "width": root["width"],
            "scale": root["scale"],
            "spare": request.spare if request.mode == "warm" else 0.0,
        },
        **training,
        "corpora": [dict(record) for record in corpora],
        "graph": [node.as_json() for node in graph.nodes],
        "models": {
            label: {"name": found["name"], "fingerprint": found["fingerprint"]}
            for label, found in models.items()
        },
        "members": [member_json(plan, record) for plan, record in members],
        "scores": {label: found["scores"] for label, found in models.items()},
        "weight_changes": [dict(change) for change in changes],
        "files": dict(sorted(files.items())),
        "notes": list(dict.fromkeys(notes)),
    }


def member_json(plan: Planned, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what study.json says of one member."""
    return {
        "name": plan.name,
        "label": plan.label,
        "role": plan.role,
        "start": plan.start,
        "steps": plan.steps,
        "seed": plan.seed,
        "given": plan.given,
        "kind": record["kind"],
        "latents": record["latents"],
        "sha256": record["sha256"],
        "quality": record["quality"],
    }


def written_json(document: Mapping[str, Any]) -> bytes:
    """Return the bytes of a JSON file, the same for the same document."""
    return (json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")
