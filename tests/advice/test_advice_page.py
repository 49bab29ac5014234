"""The page is what its generator makes of the committed results, and these agree with the lab's other results."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltasmith.advice.experience import bundled
from deltasmith.advice.rules.catalogue import rules_of
from deltasmith.errors import DamagedInputError
from deltasmith.lab.advice.check import majority
from deltasmith.lab.advice.page import load_checked, sections, write_advice_page
from deltasmith.lab.rows import load_results

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "lab" / "results"
PAGE = ROOT / "docs" / "advise.md"


def test_the_page_equals_what_is_generated(tmp_path: Path) -> None:
    copy = tmp_path / "advise.md"
    copy.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    write_advice_page(RESULTS, copy)
    assert copy.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


def test_the_page_has_every_rule() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"| {rule.name} |" in text for rule in rules_of(bundled()))


def test_nothing_outside_the_marks_is_touched(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("above <!-- advice -->old<!-- /advice --> below", encoding="utf-8")
    write_advice_page(RESULTS / "advice.json", page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("above <!-- advice -->")
    assert text.endswith("<!-- /advice --> below")
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(DamagedInputError, match="put the marks back"):
        write_advice_page(RESULTS, page)
    with pytest.raises(DamagedInputError, match="no result of the check"):
        load_checked(RESULTS / "merges.json")


def test_all_cases_are_judged_by_what_the_lab_measured() -> None:
    checked = load_checked(RESULTS)
    assert len(checked.of("merge")) == 36
    assert len(checked.of("prune")) == 27
    lab = {(c.seed, c.regime, "+".join(c.models)): c for c in bundled().merges}
    for case in checked.of("merge"):
        known = lab[case["train_seed"], case["regime"], case["models"]]
        assert tuple(case["best"]) == known.best
        assert case["relative"] == known.relative
        assert max(case["means"], key=case["means"].get) in case["best"]


def test_the_majority_has_not_seen_the_seed_it_is_judged_on() -> None:
    for case in load_checked(RESULTS).of("merge"):
        others = bundled().without(case["train_seed"]).merges
        assert case["majority"] == majority(others, list(case["means"]))


def test_what_advice_learns_is_what_the_lab_measured() -> None:
    """Means and tuned settings of one case in three, from the rows themselves."""
    merges = load_results(RESULTS / "merges.json").where(setting="tuned", mask_seed=0, train_seed=1)
    for case in (c for c in bundled().merges if c.seed == 1):
        rows = merges.where(regime=case.regime, models="+".join(case.models)).rows
        assert {str(r.keys["method"]): r.keys["scale"] for r in rows} == dict(case.scales)
    curves = load_results(RESULTS / "curves.json").where(train_seed=1)
    for pruned in (c for c in bundled().prunings if c.seed == 1):
        kept = [
            r for r in curves.where(regime=pruned.regime, method="dp", rate=0.9).rows if r.task == pruned.task
        ]
        whole = [r for r in curves.where(regime=pruned.regime, method="expert").rows if r.task == pruned.task]
        assert pruned.kept["dp"] == pytest.approx(kept[0].accuracy / whole[0].accuracy, abs=1e-4)


def test_a_verdict_does_not_claim_what_is_not_shown() -> None:
    checked = load_checked(RESULTS)
    cases = [{**case, "advised": case["majority"]} for case in checked.cases]
    alike = sections(type(checked)(checked.settings, tuple(cases), checked.rows))
    assert alike.count("**advice did not beat the majority answer**") == 2
    always = [
        {**c, "advised": c["best"][0], "majority": next(m for m in c["means"] if m not in c["best"])}
        for c in checked.cases
        if set(c["means"]) - set(c["best"]) and c["goal"] == "prune"
    ]
    merges = [c for c in checked.cases if c["goal"] == "merge"]
    better = sections(type(checked)(checked.settings, (*merges, *always), checked.rows))
    assert "how to prune one expert at a rate of 0.9: **advice beat the majority answer**" in better
