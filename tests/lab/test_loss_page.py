"""The page of predicted and measured losses, its claims, and the run that collects the rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from loss_rows import GAIN, TASKS, results, saved

from deltasmith.errors import DamagedInputError, MissingExtraError
from deltasmith.lab import family_folder
from deltasmith.lab import jobs as lab_jobs
from deltasmith.lab.loss import run as runs
from deltasmith.lab.loss.agreement import Pairs, estimate, median_error, signs, spearman
from deltasmith.lab.loss.claims import claims, excess_ratio, quarter
from deltasmith.lab.loss.example import EXAMPLE
from deltasmith.lab.loss.figures import Regime, mean_over, ratio_of
from deltasmith.lab.loss.page import BUNDLED, PICTURED, write_loss_page
from deltasmith.lab.rows import Results, Row, load_results
from models import run


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltasmith.lab.loss.agreement.RESAMPLES", 40)
    monkeypatch.setattr("deltasmith.lab.loss.figures.RESAMPLES", 40)


def test_what_is_written_by_hand_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltasmith.lab.loss.page._draw", lambda *_: None)
    page = tmp_path / "docs" / "loss.md"
    page.parent.mkdir()
    page.write_text("# Mine\n\nabove\n\n<!-- loss -->\nstale\n<!-- /loss -->\n\nbelow\n")
    write_loss_page(saved(tmp_path), page)
    text = page.read_text()
    assert text.startswith("# Mine\n\nabove\n\n<!-- loss -->\n\nMade today.\n")
    assert text.endswith("\n\n<!-- /loss -->\n\nbelow\n")
    assert "stale" not in text
    write_loss_page(tmp_path, page)
    assert page.read_text() == text


def test_tables_hold_every_regime(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    saved(tmp_path, PICTURED, regimes=("vision",), tasks=("mnist", "greek"))
    files = write_loss_page(saved(tmp_path), tmp_path / "loss.md")
    names = ["k-dare", "predicted-large", "predicted-small", "predicted-vision"]
    assert [file.name for file in files] == ["loss.md", *(f"{name}.png" for name in names)]
    text = (tmp_path / "loss.md").read_text()
    assert text.startswith("# What an edit does to the loss\n")
    for file in files[1:]:
        assert f"(loss/{file.name})" in text
    start = "| second order (ours) | k = 0.5 has a quarter of DARE's excess at p = 0.5"
    (row,) = [line for line in text.splitlines() if line.startswith(start)]
    assert row.count("3 of 3; 0.25, 0.25, 0.25") == 2
    assert row.count("2 of 2; 0.25, 0.25 |") == 1
    assert "| vision | greek | 0.6000 | 0.1000 | 0.0100 | 90.0 |" in text


def test_claims_ask_in_the_right_direction() -> None:
    found = {one.text: one for one in claims(Regime(results(), "small"))}
    outcomes = {text: one.outcome for text, one in found.items()}
    assert outcomes["DARE at p = 0.1 is competitive"] == "reproduced"
    assert outcomes["k-DARE, k = −1, at p = 0.9 is competitive"] == "not"
    assert outcomes["BitDelta decreases"] == "reproduced"
    assert found["BitDelta decreases"].figures.startswith("3 of 3; mean +")
    assert outcomes["ExPO improves for some α (the best in hindsight, interval below 0)"] == "reproduced"
    gradient = "bias by ΔW·∇L (other items) destroys: 20 points lost or more at p = 0.5, k"
    assert (outcomes[f"{gradient} < 1"], outcomes[f"{gradient} > 1"]) == ("reproduced", "not")
    assert outcomes["k = 0.5 has a quarter of DARE's excess at p = 0.9 (between 0.2 and 0.3)"] == "reproduced"
    foretold = "foretells DARE's mean excess at p = 0.9 within a factor of 2 (measured / expected)"
    assert outcomes[f"the Hessian {foretold}"] == "reproduced"
    assert outcomes[f"Fisher's diagonal {foretold}"] == "not"
    worst = "the left rule, C = 1 (the gradient alone), has that sign (in 90 % of edits)"
    assert outcomes[worst] == "not"


def test_one_expert_that_differs_leaves_a_claim_undecided() -> None:
    def spoil(row: Row) -> Row:
        hit = row.task == TASKS[0] and row.keys.get("group") == "bitdelta"
        return (
            Row({**row.keys, "measured": 0.0, "low": -0.001, "high": 0.001}, row.task, row.right)
            if hit
            else row
        )

    whole = results()
    regime = Regime(Results("loss", whole.settings, tuple(map(spoil, whole.rows))), "small")
    (found,) = [one for one in claims(regime) if one.text == "BitDelta decreases"]
    assert (found.outcome, found.figures[:6]) == ("undecided", "2 of 3")


def test_margins_verdicts_and_excess() -> None:
    regime = Regime(results(), "small")
    assert regime.margins == pytest.approx(dict.fromkeys(TASKS, 0.02 * GAIN))
    row = regime.of("second_order", k=-1.0, rate=0.9)[0]
    assert regime.verdict(row) == "decreased"
    assert [mask.change.value for mask in regime.masks(row)] == pytest.approx([0.0324, 0.0416])
    assert regime.excess(row) == pytest.approx([0.0324, 0.0396])
    found = excess_ratio(regime, row, "hessian")
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 0.9, 1.1))
    assert excess_ratio(regime, row, "fisher").value == pytest.approx(1 / 3)
    assert quarter(regime, "math", 0.9).value == pytest.approx(0.25)
    assert regime.lost(regime.of("biased", kind="gradient, other items", k=0.5)[0]) == pytest.approx(70.0)


def test_agreement_by_hand() -> None:
    predicted, measured = np.array([1.0, -2.0, 3.0, 0.0]), np.array([2.0, 2.0, 4.0, 1.0])
    once, twice = np.ones((1, 4)), np.array([[2.0, 0.0, 1.0, 1.0]])
    assert signs(predicted, measured, once).tolist() == [0.5]
    assert signs(predicted, measured, twice).tolist() == [0.75]
    assert median_error(predicted, measured, once).tolist() == [0.5]
    # Ranks 3, 1, 4, 2 against 2.5, 2.5, 4, 1.
    assert spearman(predicted, measured, once) == pytest.approx([3 / np.sqrt(5 * 4.5)])
    repeated = [0, 0, 2, 3]
    assert spearman(predicted, measured, twice) == pytest.approx(
        spearman(predicted[repeated], measured[repeated], once)
    )


def test_intervals_cover_and_clusters_are_wider() -> None:
    measured = np.arange(1.0, 61.0)
    wrong = np.repeat([True, False, False], 20)
    pairs = Pairs(np.where(wrong, -measured, measured), measured, np.repeat(["a", "b", "c"], 20).tolist())
    by_edit, by_expert = estimate(pairs, signs), estimate(pairs, signs, "experts")
    assert by_edit.value == by_expert.value == pytest.approx(2 / 3)
    assert (by_edit.low, by_edit.high) == pytest.approx((2 / 3, 2 / 3))
    assert by_expert.low < 0.5 < 0.9 < by_expert.high
    assert np.isnan(estimate(pairs.where(np.zeros(60, np.bool_)), signs).value)


def test_means_over_experts() -> None:
    found = mean_over([[1.0, 3.0], [10.0]])
    assert found.value == 6.0
    assert found.low <= 2.0 < 10.0 <= found.high
    both = np.array([2.0, 4.0])
    assert (ratio_of(both, both / 2).low, ratio_of(both, both / 2).high) == (2.0, 2.0)
    assert (ratio_of(both, 2.0).low, ratio_of(both, 2.0).value) == (1.0, 1.5)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedInputError, match="holds no results"):
        write_loss_page(tmp_path, tmp_path / "loss.md")
    (tmp_path / "loss.md").write_text("<!-- loss --> and no end")
    with pytest.raises(DamagedInputError, match="put the marks back"):
        write_loss_page(saved(tmp_path), tmp_path / "loss.md")
    assert (tmp_path / "loss.md").read_text() == "<!-- loss --> and no end"


def test_finished_jobs_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_jobs, "find_spec", lambda name: name)
    family, parts = family_folder(), tmp_path / "parts"
    for name in runs.EXPERIMENTS:
        for regime in ("small", "large"):
            for task in TASKS:
                rows = [r for r in results().where(experiment=name, regime=regime).rows if r.task == task]
                Results(name, {}, tuple(rows)).save(parts / runs._Job(name, family, 0, regime, task).part)
    said: list[str] = []
    out = tmp_path / "results" / BUNDLED
    found = runs.run_loss(family, out, parts, say=said.append)
    assert said == ["24 jobs, 24 of them done before"]
    assert [r.as_json() for r in load_results(out).rows] == [r.as_json() for r in found.rows]
    assert {row.keys["experiment"] for row in found.rows} == set(runs.EXPERIMENTS)


def test_other_models_are_other_jobs(tmp_path: Path) -> None:
    (tmp_path / "RECORD.json").write_text(json.dumps({"seed": 1}))
    first = runs._Job("biased", tmp_path, 0, "small", "math").part
    (tmp_path / "RECORD.json").write_text(json.dumps({"seed": 2}))
    assert first != runs._Job("biased", tmp_path, 0, "small", "math").part


def test_a_run_needs_the_extra_and_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_jobs, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="torch is not installed"):
        runs.run_loss(family_folder(), tmp_path / "a", tmp_path)
    monkeypatch.setattr(lab_jobs, "find_spec", lambda name: name)
    with pytest.raises(DamagedInputError, match="the family has no base/config"):
        runs.run_vision(tmp_path, tmp_path, tmp_path / "a", tmp_path)


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    asked: list[tuple[object, ...]] = []
    for name in ("run_loss", "run_vision"):
        monkeypatch.setattr(runs, name, lambda *given, jobs, say: asked.append((*given, jobs)))
    monkeypatch.setattr("deltasmith.lab.loss.example.run_example", lambda *given: asked.append(given))
    monkeypatch.setattr("deltasmith.lab.loss.page._draw", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    assert run("lab", "loss", "--jobs", 2).code == 0
    assert run("lab", "loss", "--vision", "F", "--pictures", "D", "--out", "R").code == 0
    assert run("lab", "loss", "--vision", "F").code == 2
    out, parts = Path("lab/results"), Path("lab/work/loss")
    assert asked == [
        (family_folder(), out / BUNDLED, parts, 2),
        (out / EXAMPLE,),
        (Path("F"), Path("D"), Path("R") / PICTURED, parts, 1),
    ]
    done = run("lab", "loss-page", saved(tmp_path), "--out", tmp_path / "loss.md")
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == str(tmp_path / "loss.md")
