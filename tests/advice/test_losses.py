"""The boundary to the loss analysis: which candidates are asked for, and what becomes of the answer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import deltasmith
from deltasmith.advice import run as advising
from deltasmith.advice.facts import Loss
from models import draw, tuned, write_model


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("losses")
    base = draw(0)
    write_model(root / "base", base, "float32")
    for n in (1, 2):
        write_model(root / f"m{n}", tuned(base, n, 0.05), "float32")
    return root


def test_the_loss_decides_where_its_intervals_do(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fake(candidates: Any, data: Any, **options: Any) -> tuple[Loss, ...]:
        asked.extend(name for name, _ in candidates)
        return tuple(
            Loss(n, 0.0, 0.1, 0.09, 0.11) if n != "tsv" else Loss(n, 0.0, -0.3, -0.31, -0.29) for n in asked
        )

    monkeypatch.setattr(advising, "loss_terms", fake)
    found = deltasmith.advise(places / "base", [places / "m1", places / "m2"], data="text.jsonl", threads=1)
    assert "ta" in asked
    assert "dare" not in asked  # excluded by size: no network runs for it
    assert found.decision.method == "tsv"
    assert "our lab" in found.decision.overruled or "our lab" not in {
        line.rule for line in found.decision.evidence if line.effect == "narrows"
    }


def test_one_analysis_a_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = pytest.importorskip("deltasmith.analysis.run")
    from deltasmith.advice.losses import loss_terms

    calls: list[dict[str, Any]] = []

    def fake(recipe: Any, **options: Any) -> Any:
        calls.append({"recipe": recipe, **options})
        change = SimpleNamespace(value=0.2, low=0.1, high=0.3)
        prediction = SimpleNamespace(change=SimpleNamespace(value=0.25))
        return SimpleNamespace(measured=change, prediction=lambda rule: prediction)

    monkeypatch.setattr(analysis, "loss", fake)
    found = loss_terms([("ta", {"merge": "sum"}), ("ties", {"merge": "elect"})], "d.jsonl", threads=1)
    assert found == (Loss("ta", 0.25, 0.2, 0.1, 0.3), Loss("ties", 0.25, 0.2, 0.1, 0.3))
    assert [call["recipe"]["merge"] for call in calls] == ["sum", "elect"]
    assert {call["rules"] for call in calls} == {("midpoint",)}
