"""The page on features: what is said of results made up, and that answers follow the figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from features_rows import run_data, saved

from deltasmith.errors import DamagedInputError
from deltasmith.lab.features.figures import Run, Share, load_features
from deltasmith.lab.features.findings import findings, moves_back, order_of, recovered_choices
from deltasmith.lab.features.page import write_features_page
from deltasmith.lab.features.pooling import pooled, spread
from deltasmith.lab.features.run import _lines

WARM = "a warm restart on the same model keeps at least 99 % of the features"
NULL = "after a permutation of the tokens at most 0.1 % seem to be kept"
LEAK = "one seed for base and child lets matches share their index far more often"
CHANGED = "of the two fine-tunes, the one whose weights changed less keeps more"
CASE = "the feature of variable assignment is in all four models"
EVIDENCE = "warm, every edge keeps fewer features than its floor"


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltasmith.lab.features.page._draw", lambda *_: None)


def answers(*data: dict) -> dict[str, str]:
    return {one.text: one.answer for one in findings([Run(run) for run in data])}


def rate(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def test_the_page_is_written_between_its_marks_and_again(tmp_path: Path) -> None:
    results = saved(tmp_path / "features.json", run_data())
    page = tmp_path / "docs.md"
    page.write_text("before\n<!-- features -->\nstale lines\n<!-- /features -->\nafter\n", encoding="utf-8")
    assert write_features_page(results, page)[0] == page
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale lines" not in text
    for wanted in ("## Floors", "base → lua", "| t |", "variable assignment"):
        assert wanted in text
    write_features_page(tmp_path, page)
    assert page.read_text(encoding="utf-8") == text


def test_what_cannot_be_told_from_its_floor_is_said(tmp_path: Path) -> None:
    data = run_data()
    data["studies"]["warm"]["edges"][0]["verdict"] = "no evidence that features changed"
    page = tmp_path / "page.md"
    write_features_page(saved(tmp_path / "features.json", data), page)
    text = page.read_text(encoding="utf-8")
    assert "Mode warm: **no evidence that features changed** on base → lua (seed 0)." in text
    assert answers(data)[EVIDENCE] != "holds"


def test_results_that_are_none_and_pages_without_marks_are_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text('{"format": 1, "experiment": "loss"}', encoding="utf-8")
    with pytest.raises(DamagedInputError, match="no results on features"):
        load_features(bad)
    page = tmp_path / "page.md"
    page.write_text("<!-- features --> only", encoding="utf-8")
    with pytest.raises(DamagedInputError, match="put the marks back"):
        write_features_page(saved(tmp_path / "features.json", run_data()), page)


def test_answers_follow_the_figures() -> None:
    data = run_data()
    said = answers(data)
    assert said[NULL] == "holds"
    assert said[WARM] in ("holds", "fails")
    for edge in data["studies"]["warm"]["edges"]:
        for floor in edge["floors"]:
            if floor["role"] == "again":
                floor["persisted"] = rate(0.98, 0.97, 0.99)
    data["studies"]["shared"]["edges"][0]["null"] = 0.002
    said = answers(data)
    assert said[WARM] == "fails"
    assert said[NULL] == "fails"


def test_an_order_needs_intervals_that_lie_apart() -> None:
    data = run_data()
    edges = {edge["child"]: edge for edge in data["studies"]["warm"]["edges"] if edge["parent"] == "base"}
    changes = {c["child"]: c for c in data["studies"]["warm"]["weight_changes"] if c["parent"] == "base"}
    changes["lua"]["all"], changes["stories"]["all"] = 0.4, 0.3
    for low, high, wanted in ((0.55, 0.75, "open"), (0.61, 0.69, "holds")):
        edges["lua"]["rates"]["persisted"] = rate(0.5, 0.4, 0.6)
        edges["stories"]["rates"]["persisted"] = rate(0.65, low, high)
        assert answers(data)[CHANGED] == wanted
    changes["lua"]["all"] = 0.2
    assert answers(data)[CHANGED] == "fails"


def test_one_seed_for_all_shows_in_the_indices() -> None:
    data = run_data()
    for label, share in (("lua", 0.4), ("stories", 0.3), ("merged", 0.5)):
        data["studies"][f"same-{label}"]["same_index"] = share
    for edge in data["studies"]["independent"]["edges"]:
        edge["same_index"] = 0.001
    assert answers(data)[LEAK] == "holds"
    data["studies"]["same-lua"]["same_index"] = 0.0
    assert answers(data)[LEAK] == "fails"


def test_a_case_study_holds_only_where_all_models_have_the_feature() -> None:
    data = run_data()
    pattern = next(p for p in data["patterns"]["patterns"] if p["name"] == "variable assignment")
    best = next(m["detectors"] for m in pattern["members"] if m["label"] == "base")[0]
    best["marking"]["f1"] = 0.8
    for step in best["along"]:
        step["status"] = "persisted"
    assert answers(data)[CASE] == "holds"
    next(step for step in best["along"] if step["child"] == "stories")["status"] = "drifted"
    assert answers(data)[CASE] == "fails"
    best["marking"]["f1"] = 0.3  # it detects too little to stand for the pattern
    assert answers(data)[CASE] == "open"


def test_seeds_that_differ_leave_a_question_open() -> None:
    first, second = run_data(0), run_data(1)
    second["studies"]["warm"]["edges"][0]["null"] = 0.5
    assert answers(first)[NULL] == "holds"
    assert answers(second)[NULL] == "fails"
    assert answers(first, second)[NULL] == "open"


def test_the_sweep_is_read_as_it_is() -> None:
    run = Run(run_data())
    assert moves_back(run) == ("holds", "30 at 0.0, 90 at 0.5, 50 at 1.0")
    assert recovered_choices(run)[0] == "holds"
    data = run_data()
    data["sweep"]["points"][2]["kept"]["base"]["rates"]["persisted"] = rate(0.2, 0.1, 0.3)
    data["sweep"]["points"][3]["kept"]["base"]["rates"]["persisted"] = rate(0.51, 0.4, 0.6)
    data["sweep"]["points"][1]["kept"]["base"]["rates"]["persisted"] = rate(0.3, 0.2, 0.4)
    assert moves_back(Run(data))[0] == "open"


def test_several_seeds_are_pooled_with_every_seeds_interval(tmp_path: Path) -> None:
    assert pooled([Share(0.2, 0.1, 0.3), Share(0.4, 0.35, 0.5)]) == Share(pytest.approx(0.3), 0.1, 0.5)
    assert spread([0.1, 0.2]) == "0.150 (0.100–0.200)"
    page = tmp_path / "page.md"
    write_features_page(saved(tmp_path / "features.json", run_data(0), run_data(1)), page)
    text = page.read_text(encoding="utf-8")
    assert "Training seeds 0, 1" in text
    assert "| seed | pattern |" in text


def test_edges_are_ordered_by_what_they_keep() -> None:
    run = Run(run_data())
    kept = [run.kept("warm", *edge).value for edge in order_of(run, "warm")]
    assert kept == sorted(kept)


def test_results_are_laid_out_to_be_read_and_come_back_as_they_were() -> None:
    data = run_data()
    text = "".join(_lines(data, 0))
    assert json.loads(text) == data
    assert max(map(len, text.splitlines())) < 2_000


def test_pictures_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from deltasmith.lab.features.pictures import edges_picture, sweep_picture

    runs = [Run(run_data(0)), Run(run_data(1))]
    edges_picture(tmp_path / "edges.svg", runs)
    sweep_picture(tmp_path / "sweep.svg", runs)
    assert "floor: once more" in (tmp_path / "edges.svg").read_text(encoding="utf-8")
    assert "features of stories" in (tmp_path / "sweep.svg").read_text(encoding="utf-8")
