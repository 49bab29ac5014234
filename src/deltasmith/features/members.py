"""Which dictionaries a study needs: one for each model, and floors; in the order in which they can be trained."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from deltasmith.features.graph import Graph
from deltasmith.features.requests import Request
from deltasmith.features.study import Role

__all__ = ["Planned", "of_label", "plan_members", "seed_of"]


@dataclass(frozen=True)
class Planned:
    """One dictionary on one model: `start` names the member it begins as, `steps` is 0 where that is all it does.

    `given` says that the user gave it: nothing is trained. `spare` is the share of fresh latents it adds.
    """

    name: str
    label: str
    role: Role
    start: str | None
    steps: int
    spare: float
    seed: int
    given: bool = False

    @property
    def trained(self) -> bool:
        """Tell whether anything is learnt."""
        return self.steps > 0


def seed_of(seed: int, name: str) -> int:
    """Return the seed of one member, in [0, 2^63): a hash of the study's and its name.

    So a member does not depend on which others there are, and no two share their first latents or their order of
    the text, which would look like agreement.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") >> 1


def plan_members(graph: Graph, request: Request) -> tuple[Planned, ...]:
    """List the members, model by model in the graph's order: a model's own first, its floors after it.

    Warm: a model begins as `Graph.start_of` says, with the children's steps and spare latents; `~again` begins as its
    own model's. Independent: all afresh. Shared: the root's dictionary serves all. `~seedN` are always afresh.
    """
    return tuple(member for node in graph.nodes for member in _members(graph, request, node.label))


def of_label(members: tuple[Planned, ...], label: str) -> tuple[Planned, ...]:
    """Return the members of one model."""
    return tuple(member for member in members if member.label == label)


def _members(graph: Graph, request: Request, label: str) -> Iterator[Planned]:
    is_root = label == graph.root.label

    def made(name: str, role: Role, start: str | None) -> Planned:
        given = role == "model" and is_root and request.root_dictionary is not None
        if given or (request.mode == "shared" and start is not None):
            return Planned(name, label, role, start, 0, 0.0, seed_of(request.seed, name), given)
        grown = start is not None
        steps = request.steps_of_children if grown else request.steps
        return Planned(
            name, label, role, start, steps, request.spare if grown else 0.0, seed_of(request.seed, name)
        )

    starts = {
        "warm": graph.start_of(label),
        "independent": None,
        "shared": None if is_root else graph.root.label,
    }
    yield made(label, "model", starts[request.mode])
    if request.floors == "none" or not (is_root or request.floors == "all"):
        return
    if request.mode == "warm":
        yield made(f"{label}~again", "again", label)
    for number in range(1, request.seeds + 1):
        yield made(f"{label}~seed{number}", "seed", None)
