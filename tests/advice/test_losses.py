"""The boundary to the loss analysis: which candidates are asked for, and what becomes of the answer."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import deltasmith
from deltasmith.advice import run as advising
from deltasmith.advice.evidence import Rule
from deltasmith.advice.facts import Loss
from deltasmith.advice.losses import compared
from deltasmith.advice.rules.scores import RULES
from deltasmith.errors import DamagedInputError, MissingExtraError
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
        worse = (0.4, 0.39, 0.41)
        return tuple(
            Loss(n, 0.0, 0.1, 0.09, 0.11, worse)
            if n != "tsv"
            else Loss(n, 0.0, -0.3, -0.31, -0.29, (0.0, 0.0, 0.0))
            for n in asked
        )

    monkeypatch.setattr(advising, "loss_terms", fake)
    monkeypatch.setattr(advising, "refuse_unready", lambda data: None)
    found = deltasmith.advise(places / "base", [places / "m1", places / "m2"], data="text.jsonl", threads=1)
    assert "ta" in asked
    assert "dare" not in asked  # excluded by size: no network runs for it
    assert found.decision.method == "tsv"
    assert "our lab" in found.decision.overruled or "our lab" not in {
        line.rule for line in found.decision.evidence if line.effect == "narrows"
    }


def test_what_the_loss_kept_is_named_and_listed(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lab then leaves one of the two alone: the other is an alternative all the same."""

    def fake(candidates: Any, data: Any, **options: Any) -> tuple[Loss, ...]:
        above = {"tsv": (0.0, 0.0, 0.0), "average": (0.1, -0.1, 0.3)}
        names = [name for name, _ in candidates]
        return tuple(Loss(n, 0.0, n != "tsv", 0.0, 1.0, above.get(n, (0.4, 0.3, 0.5))) for n in names)

    monkeypatch.setattr(advising, "loss_terms", fake)
    monkeypatch.setattr(advising, "refuse_unready", lambda data: None)
    monkeypatch.setattr(advising, "rules_of", lambda lab: (*RULES, narrowing("tsv")))
    found = deltasmith.advise(places / "base", [places / "m1", places / "m2"], data="text.jsonl", threads=1)
    (line,) = [line for line in found.decision.evidence if line.effect == "keeps"]
    assert line.says == "least loss: tsv; not shown to be above it: average"
    assert found.recommended is not None
    assert found.recommended.name == "tsv"
    assert [option.name for option in found.alternatives] == ["average"]


def narrowing(method: str) -> Rule:
    """Make a rule that leaves one method."""
    return Rule(
        "lab",
        "asks",
        "bound",
        "source",
        lambda rule, facts: (rule.found("all", "1", "says", "narrows", (method,)),),
    )


def report(measured: float, changes: tuple[float, ...], weights: tuple[float, ...]) -> Any:
    prediction = SimpleNamespace(change=SimpleNamespace(value=0.25))
    change = SimpleNamespace(value=measured, low=min(changes), high=max(changes))
    return SimpleNamespace(
        measured=change, changes=changes, weights=weights, prediction=lambda rule: prediction
    )


def test_candidates_are_compared_chunk_by_chunk() -> None:
    """Their intervals overlap nearly everywhere; what one is above the other has the same sign in all chunks."""
    hard = np.linspace(-1.0, 1.0, 20)
    lower, upper, mixed = hard, hard + np.linspace(0.01, 0.03, 20), hard + np.linspace(-0.01, 0.02, 20)
    weights = np.arange(1.0, 21.0)
    reports = {
        name: report(float(weights @ changes / weights.sum()), tuple(changes), tuple(weights))
        for name, changes in (("upper", upper), ("lower", lower), ("mixed", mixed))
    }
    found = {loss.method: loss for loss in compared(reports)}
    value, low, high = found["upper"].above
    assert value == pytest.approx(found["upper"].measured - found["lower"].measured)
    assert 0.01 < low < value < high < 0.03
    assert found["lower"].above == (0.0, 0.0, 0.0)
    alone = compared({"a": report(0.0, (0.0,), (1.0,)), "b": report(0.5, (0.5,), (1.0,))})
    assert alone[1].above[0] == 0.5
    assert np.isnan(alone[1].above[1])
    assert compared({}) == ()


@pytest.mark.parametrize("lacking", [None, "data"])
def test_what_is_missing_is_said_before_the_survey(
    places: Path, monkeypatch: pytest.MonkeyPatch, lacking: str | None
) -> None:
    def never(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("the survey began")

    monkeypatch.setattr(advising, "survey", never)
    if lacking is None:
        monkeypatch.setitem(sys.modules, "torch", None)
        expected: tuple[type[Exception], str] = (MissingExtraError, r"deltasmith\[analysis\]")
    else:
        pytest.importorskip("transformers")
        expected = (DamagedInputError, "there is no such file in .*none.jsonl")
    with pytest.raises(expected[0], match=expected[1]):
        deltasmith.advise(places / "base", [places / "m1"], data=places / "none.jsonl")


def test_one_analysis_a_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = pytest.importorskip("deltasmith.analysis.run")
    from deltasmith.advice.losses import loss_terms

    calls: list[dict[str, Any]] = []

    def fake(recipe: Any, **options: Any) -> Any:
        calls.append({"recipe": recipe, **options})
        return report(0.2, (0.1, 0.3), (1.0, 1.0)) if len(calls) == 1 else report(0.1, (0.0, 0.2), (1.0, 1.0))

    monkeypatch.setattr(analysis, "loss", fake)
    found = loss_terms([("ta", {"merge": "sum"}), ("ties", {"merge": "elect"})], "d.jsonl", threads=1)
    assert [loss.method for loss in found] == ["ta", "ties"]
    assert found[0].above == pytest.approx((0.1, 0.1, 0.1))
    assert found[1].above == (0.0, 0.0, 0.0)
    assert (found[0].predicted, found[0].measured, found[0].low, found[0].high) == (0.25, 0.2, 0.1, 0.3)
    assert [call["recipe"]["merge"] for call in calls] == ["sum", "elect"]
    assert {call["rules"] for call in calls} == {("midpoint",)}
