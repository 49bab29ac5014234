"""What the committed results on features show, and that the page says what they hold."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deltasmith.lab.features.figures import MODES, Results, load_features
from deltasmith.lab.features.findings import findings, moves_back
from deltasmith.lab.features.page import write_features_page

ROOT = Path(__file__).parents[2]
FILE = ROOT / "lab" / "results" / "features.json"


@pytest.fixture(scope="module")
def results() -> Results:
    return load_features(FILE)


@pytest.fixture(scope="module")
def answers(results: Results) -> dict[str, str]:
    return {one.text: one.answer for one in findings(results.runs)}


def test_the_page_is_what_the_results_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltasmith.lab.features.page._draw", lambda *_: None)
    page = tmp_path / "features.md"
    shutil.copy(ROOT / "docs" / "features.md", page)
    write_features_page(FILE, page)
    text = page.read_text(encoding="utf-8")
    assert text == (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
    for part in text.split("](features/")[1:]:
        assert (ROOT / "docs" / "features" / part.partition(")")[0]).is_file()


WARM = "a warm restart on the same model keeps at least 99 % of the features"


def test_floors_are_near_what_the_part_had_to_show(results: Results, answers: dict[str, str]) -> None:
    kept = []
    for run in results.runs:
        again, seed = run.floor("warm", "again"), run.floor("independent", "seed")
        assert again is not None
        assert seed is not None
        assert again.value >= 0.99
        kept.append(again.value)
        assert run.null <= 0.001
        assert seed.high < 0.5  # dictionaries trained afresh share a third of their features
    assert (answers[WARM] == "holds") == (min(kept) >= 0.99)  # the page does not round it up


def test_dictionaries_are_usable(results: Results) -> None:
    for run in results.runs:
        for mode in ("warm", "independent"):
            for member in run.study(mode)["members"]:
                assert member["fvu"] < 0.2
                assert member["dead"] < 0.05
                assert member["loss_recovered"] > 0.8
                assert member["l0"] == pytest.approx(16, abs=0.1)


def test_fine_tunes_learnt_their_domain_and_the_merge_has_some_of_both(results: Results) -> None:
    for run in results.runs:
        scores = run.study("warm")["scores"]
        for domain in ("lua", "stories"):
            base, expert, merged = (scores[label][domain]["accuracy"] for label in ("base", domain, "merged"))
            assert expert > base + 0.2
            assert base < merged < expert


def test_the_order_of_modes_and_the_controls(results: Results, answers: dict[str, str]) -> None:
    for run in results.runs:
        for edge in run.edges:
            assert run.kept("warm", *edge).above(run.kept("independent", *edge))
        assert run.kept_in("control").high < run.kept("independent", "base", "merged").low
        assert run.kept("control-warm", "base", "random").value < 0.02
    assert answers["a warm start keeps more than dictionaries trained afresh, on every edge"] == "holds"


def test_merges_between_the_fine_tunes_move_back_towards_the_base(results: Results) -> None:
    assert all(moves_back(run)[0] == "holds" for run in results.runs)


def test_no_case_study_rests_on_a_feature_that_detects_nothing(
    results: Results, answers: dict[str, str]
) -> None:
    best = [
        next(m["detectors"][0]["marking"]["f1"] for m in pattern["members"] if m["label"] == "base")
        for run in results.runs
        for pattern in run.patterns()
        if pattern["name"] == "Python exceptions"
    ]
    if min(best) < 0.5:
        assert answers["the feature of Python's exceptions has no partner in Lua"] == "open"


def test_every_edge_has_its_weights_change_and_its_null(results: Results) -> None:
    for run in results.runs:
        for parent, child in run.edges:
            assert run.changes(parent, child)["all"] > 0
            for mode in MODES:
                assert run.edge(mode, parent, child)["null"] <= 0.001
