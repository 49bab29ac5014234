"""A sweep without networks: a study, and a viewer that sees models as they are made to be. What is shared is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_studies import BASE, events, made_study, sealed

from deltasmith.engine.workers import Stop
from deltasmith.errors import RefusedError
from deltasmith.features import sweeping
from deltasmith.features.codes import Codes
from deltasmith.features.study import Score, Study, written_codes
from deltasmith.features.sweep_models import Seen
from deltasmith.recipe.model import Recipe

FAMILY = Path(sweeping.__file__).parents[1] / "family"
TOKENS = 3000
DOMAINS = ("english", "lua")
OF_LUA, OF_STORIES, LOST_IN_LUA = range(30, 40), range(40, 50), range(50, 56)


def _dense(seed: int = 5) -> np.ndarray:
    return events(BASE, TOKENS, seed).astype(np.float32)


def codes_at(t: float) -> Codes:
    """Return what fires between lua (t = 0) and stories (t = 1).

    Latents below 30 are the root's everywhere; 30 to 39 fire otherwise in stories, 40 to 49 otherwise in lua, where 50
    to 55 do not fire at all. On the way each end's pattern holds up to the middle.
    """
    shared, own = _dense(), _dense(9)
    found = shared.copy()
    found[:, 60:] = 0
    found[:, OF_LUA] = own[:, OF_LUA] if t < 0.5 else found[:, OF_LUA]
    found[:, OF_STORIES] = own[:, OF_STORIES] if t > 0.5 else found[:, OF_STORIES]
    if t < 0.25:
        found[:, LOST_IN_LUA] = 0
    return Codes.of_dense(found)


def root_codes() -> Codes:
    dense = _dense()
    dense[:, 60:] = 0
    return Codes.of_dense(dense)


def scores_at(t: float) -> dict[str, Score]:
    """Lua gains more than stories ("english") does: the mean prefers it, the worst domain does not."""
    return {
        "english": Score(3.0 - 0.5 * t, 0.40 + 0.10 * t, 2000),
        "lua": Score(3.0 - (1 - t) ** 2, 0.30 + 0.30 * (1 - t**2), 2000),
    }


class FakeViewer:
    """Sees what the two ends and the values between them are made to be; counts how often."""

    seen: list[Any]
    stop_after = 10**9
    missing = 0

    def __init__(
        self, study: Study, device: str, dtype: str, memory: int, threads: int | None, stop: Stop
    ) -> None:
        self.stop = stop
        self.stand_ins = type(self).missing

    def look(self, source: Any) -> Seen:
        type(self).seen.append(source)
        if len(type(self).seen) >= type(self).stop_after:
            self.stop.ask()
        if isinstance(source, Recipe):
            t = float(source.merge.t)
            if t == 0.75:
                raise RefusedError("it overflows")
            return Seen(
                "recipe", f"merge {t}", codes_at(t), scores_at(t), 0.1 + t / 10, ("a note", f"note of {t}")
            )
        label = {"math": "lua", "code": "stories", "base": "base"}[Path(source).name]
        if label == "base":
            return Seen(label, f"print of {label}", codes_at(0.5), scores_at(0.5), 0.3, ())
        t = 0.0 if label == "lua" else 1.0
        return Seen(label, f"print of {label}", codes_at(t), scores_at(t), 0.2, ())


def seen_study(folder: Path, patch: pytest.MonkeyPatch) -> Study:
    """Write a study of the family's models, and let sweeps see them as they are made to be here."""
    made = made_study(folder, tokens=TOKENS, floors=())
    (made.folder / "codes" / "base.safetensors").write_bytes(written_codes(root_codes()))
    document = dict(made.document)
    document["models"] = {
        label: {"name": label, "fingerprint": f"print of {label}"} for label in ("base", "lua", "stories")
    }
    root = {
        d: {"loss": 3.0, "accuracy": a, "tokens": 2000} for d, a in zip(DOMAINS, (0.40, 0.30), strict=True)
    }
    document["scores"] = {**document["scores"], "base": root}
    (made.folder / "study.json").write_text(json.dumps(document))
    sealed(made.folder)
    patch.setattr(sweeping, "Viewer", FakeViewer)
    patch.setattr(sweeping, "_require_extra", lambda device: None)
    patch.setattr(FakeViewer, "seen", [], raising=False)
    patch.setattr(FakeViewer, "stop_after", 10**9)
    return Study.open(made.folder)


def slerp(**changes: Any) -> dict[str, Any]:
    small = FAMILY / "small"
    models = [
        {"model": str(small / "math"), "label": "lua"},
        {"model": str(small / "code"), "label": "other"},
    ]
    return {
        "base": str(FAMILY / "base"),
        "models": models,
        "space": "weight",
        "merge": {"slerp": {"t": 0.5}},
    } | changes
