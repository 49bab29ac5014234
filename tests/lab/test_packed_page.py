"""The page of packed deltas, its claims, and the run that collects the rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from packed_rows import results, saved

from deltasmith.errors import DamagedInputError, MissingExtraError
from deltasmith.lab import family_folder
from deltasmith.lab import jobs as lab_jobs
from deltasmith.lab.packed import run as runs
from deltasmith.lab.packed.claims import judged_packed
from deltasmith.lab.packed.page import BUNDLED, SEEDS, write_packed_page
from deltasmith.lab.rows import Results, Row, load_results
from models import run


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltasmith.lab.summary.RESAMPLES", 50)
    monkeypatch.setattr("deltasmith.lab.summary.DRAWS", 2000)


def test_what_is_written_by_hand_stays(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "docs" / "packed.md"
    page.parent.mkdir()
    page.write_text("# Mine\n\nabove\n\n<!-- packed -->\nstale\n<!-- /packed -->\n\nbelow\n")
    files = write_packed_page(saved(tmp_path, BUNDLED), page)
    text = page.read_text()
    assert text.startswith("# Mine\n\nabove\n\n<!-- packed -->\n\nMade: the bundled family: today.\n")
    assert text.endswith("\n\n<!-- /packed -->\n\nbelow\n")
    assert "stale" not in text
    assert [f.name for f in files] == ["packed.md", "packed-large.svg", "packed-small.svg"]
    before = [f.read_bytes() for f in files]
    assert [f.read_bytes() for f in write_packed_page(tmp_path, page)] == before


def test_tables_hold_every_line(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    saved(tmp_path, SEEDS, regimes=("small", "medium", "large"), seeds=(0, 1))
    page = tmp_path / "packed.md"
    write_packed_page(saved(tmp_path, BUNDLED), page)
    text = page.read_text()
    assert text.startswith("# Packed deltas in the lab\n")
    lines = text.splitlines()
    (row,) = [line for line in lines if line.startswith("| CLAQ on deltas | 2.1 bits |")]
    assert row.count("|") == 1 + 2 + 2 * 3 + 3
    (row,) = [line for line in lines if line.startswith("| BitDelta, a scale per row | general text |")]
    assert "2 → 0.5, 1.50" in row
    assert row.count("|") == 1 + 2 + 2 + 2 + 3
    assert any(line.startswith("| smile: router 1, rank 16, top 1 |") for line in lines)
    (row,) = [line for line in lines if line.startswith("| BitDelta (arXiv 2402.10193) | two passes")]
    assert row.count(" p ") == 2 + 3


def test_claims_ask_in_the_right_direction() -> None:
    found = judged_packed(results())
    assert {claim.regime for claim in found} == {"small", "large"}
    assert len({claim.text for claim in found}) == len(found) / 2

    def all_right(row: Row) -> Row:
        group, method = row.keys.get("group"), row.keys.get("method")
        high = group == "expert" or method in ("emr", "experts") or row.keys.get("data") == "general"
        return Row(row.keys, row.task, row.right | high if high else row.right & (row.task == "none"))

    spoiled = results()
    judged = judged_packed(Results("packed", spoiled.settings, tuple(map(all_right, spoiled.rows))))
    verdicts = {claim.text: claim.verdict for claim in judged if claim.regime == "small"}
    assert verdicts["distilling the scales on general text adds to BitDelta"] == "reproduced"
    assert verdicts["EMR, told the task, is higher than TIES, tuned"] == "reproduced"
    assert verdicts["16 blocks of magnitude surpass the expert"] == "contradicted"
    assert verdicts["two passes keep more than one"] == "undecided"


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedInputError, match="holds no results"):
        write_packed_page(tmp_path, tmp_path / "packed.md")
    (tmp_path / "packed.md").write_text("<!-- packed --> and no end")
    with pytest.raises(DamagedInputError, match="put the marks back"):
        write_packed_page(saved(tmp_path, BUNDLED), tmp_path / "packed.md")
    assert (tmp_path / "packed.md").read_text() == "<!-- packed --> and no end"


def test_finished_jobs_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_jobs, "find_spec", lambda name: name)
    family, parts = family_folder(), tmp_path / "parts"
    for name in runs.EXPERIMENTS:
        job = runs._Job(name, family, 0, "small")
        rows = [r for r in results(regimes=("small",)).rows if r.keys["experiment"] == name]
        Results(name, {}, tuple(rows)).save(parts / job.part)
    said: list[str] = []
    out = tmp_path / "results" / BUNDLED
    found = runs.run_packed({0: family}, ["small"], out, parts, say=said.append)
    assert said == ["3 jobs, 3 of them done before"]
    assert [r.as_json() for r in load_results(out).rows] == [r.as_json() for r in found.rows]
    assert {row.keys["experiment"] for row in found.rows} == set(runs.EXPERIMENTS)
    assert found.settings["train_seeds"] == [0]


def test_other_models_are_other_jobs(tmp_path: Path) -> None:
    (tmp_path / "RECORD.json").write_text(json.dumps({"seed": 1}))
    first = runs._Job("curves", tmp_path, 0, "small").part
    (tmp_path / "RECORD.json").write_text(json.dumps({"seed": 2}))
    assert first != runs._Job("curves", tmp_path, 0, "small").part


def test_a_run_needs_the_extra_and_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_jobs, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="torch is not installed"):
        runs.run_packed({0: family_folder()}, ["small"], tmp_path / "a", tmp_path)
    monkeypatch.setattr(lab_jobs, "find_spec", lambda name: name)
    with pytest.raises(DamagedInputError, match="the family has no base/config"):
        runs.run_packed({0: tmp_path}, ["large"], tmp_path / "a", tmp_path)


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        runs, "run_packed", lambda *given, parts, jobs, **_: asked.append((*given, parts, jobs))
    )
    monkeypatch.chdir(tmp_path)
    assert run("lab", "packed").code == 0
    assert run("lab", "packed", "F", "--seed", 1, "--seed", 2, "--regime", "medium", "--jobs", 2).code == 0
    parts = Path("lab/work/packed")
    assert asked == [
        ({0: family_folder()}, ("small", "large"), Path("lab/results/packed.json"), parts, 1),
        (
            {1: Path("F/seed1"), 2: Path("F/seed2")},
            ("medium",),
            Path("lab/results/packed-seeds.json"),
            parts,
            2,
        ),
    ]
    done = run("lab", "packed-page", saved(tmp_path, BUNDLED), "--out", tmp_path / "packed.md")
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == str(tmp_path / "packed.md")
