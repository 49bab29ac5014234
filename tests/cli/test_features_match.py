"""`deltasmith features match`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models import check_refusal, run


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent.parent / "features")
        from made_studies import made_study
    return made_study(tmp_path_factory.mktemp("made") / "study", tokens=2000).folder


def test_it_tells_in_order_whether_to_believe_it_and_then_what_it_found(study: Path) -> None:
    done = run("features", "match", study, "--resamples", "40")
    assert done.code == 0, done.err
    places = [
        done.out.index(word) for word in ("dictionary", "model ", "permuted", "base → lua", "merged from lua")
    ]
    assert places == sorted(places)
    lines = done.out.splitlines()
    at = lines.index("base → lua: fewer than the floor")
    assert lines[at + 1].startswith("  75.9% [75.9, 75.9] persisted of 58 features")
    assert lines[at + 2].startswith(
        "  deciding floor: 100.0% [100.0, 100.0] in the same model, trained on (base~again); "
        "adjusted 0.76 [0.76, 0.76], "
        "14 kept only there and 0 only here (p = 0.00012)"
    )
    assert lines[at + 3] == "  for comparison: afresh with another seed 82.8% (base~seed1)"
    assert (
        "  deciding floor: 100.0% [100.0, 100.0] in base, trained on (base~again); adjusted 0.84" in done.out
    )
    assert done.out.count("adjusted") == 5
    assert "base → merged, its base: fewer than the floor" in lines
    assert "universal: 51.7%" in done.out
    assert lines[-2] == f"{study / 'match'}: features.json, rates.csv"
    assert lines[-1] == f"next: deltasmith features report {study} --out report.html"
    assert sorted(path.name for path in (study / "match").iterdir()) == ["features.json", "rates.csv"]
    assert "matching: 7 / 7" in done.err
    check_refusal(run("features", "match", study), 1, "replace it with --overwrite")


def test_a_merge_is_told_of_with_what_it_recovered(study: Path) -> None:
    out = run("features", "match", study, "--resamples", "0", "--overwrite").out
    assert "merged, merged from lua and stories over base:" in out
    assert "  lost: 8 of lua's (16.0%)" in out
    assert "  lost everywhere: 6 of base's are gone in a parent and in the merge" in out
    assert "persisted of 58 features" in out
    assert "no evidence that features changed" in out


def test_every_rate_stands_beside_its_floor(study: Path) -> None:
    out = run("features", "match", study, "--resamples", "0", "--overwrite").out
    told = out[out.index("base → lua:") : out.index("base → stories:")]
    assert "drifted 0.0% (floor 0.0%)" in told
    assert "disappeared 24.1% (floor 0.0%)" in told


def test_patterns_are_searched_and_written_beside_the_match(study: Path, tmp_path: Path) -> None:
    done = run("features", "match", study, "--resamples", "0", "--out", tmp_path / "m", "--find", "ends=end")
    assert done.code == 0, done.err
    assert "ends = end: " in done.out
    assert json.loads((tmp_path / "m" / "patterns.json").read_text())["patterns"][0]["name"] == "ends"
    check_refusal(run("features", "match", study, "--find", "ends=("), 2, "ends")
    check_refusal(run("features", "match", study, "--find", "ends"), 2, "NAME=EXPRESSION")


def test_json_is_one_document_without_single_features(study: Path) -> None:
    done = run("features", "match", study, "--resamples", "3", "--json", "--overwrite")
    assert (done.code, done.err) == (0, "")
    assert done.document["edges"][0]["counts"]["persisted"] == 44
    assert "parents" not in done.document["edges"][0]
    assert done.document["settings"]["strong"] == 0.8


def test_options_reach_the_rules(study: Path, tmp_path: Path) -> None:
    done = run(
        "features", "match", study, "--out", tmp_path / "out", "--strong", "0.95", "--weak", "0.9", "--min-fires", "5",
        "--seed", "3", "--resamples", "2", "--threads", "2", "--quiet",
    )  # fmt: skip
    assert (done.code, done.out, done.err) == (0, "", "")
    settings = json.loads((tmp_path / "out" / "features.json").read_text())["settings"]
    assert {k: settings[k] for k in ("strong", "weak", "min_fires", "seed", "resamples")} == {
        "strong": 0.95,
        "weak": 0.9,
        "min_fires": 5,
        "seed": 3,
        "resamples": 2,
    }
    check_refusal(run("features", "match", study, "--out", tmp_path / "out"), 1, "--overwrite")
    assert run("features", "match", study, "--out", tmp_path / "out", "--overwrite", "--quiet").code == 0


def test_what_cannot_be_matched_is_refused(study: Path, tmp_path: Path) -> None:
    check_refusal(run("features", "match", tmp_path), 3, "there is no study.json")
    check_refusal(run("features", "match", tmp_path / "nowhere"), 3, "there is no such folder")
    check_refusal(run("features", "match", study, "--strong", "0.3"), 2, "choose 0 < weak <= strong <= 1")


def test_help_says_what_persists_and_against_what() -> None:
    done = run("features", "match", "--help")
    assert done.code == 0
    assert "--min-fires" in done.out


def test_quiet_is_silent_but_for_one_line_of_an_error(study: Path, tmp_path: Path) -> None:
    wanted = ("--resamples", "0", "--find", "ends=end", "--out", tmp_path / "out", "--quiet")
    done = run("features", "match", study, *wanted)
    assert (done.code, done.out, done.err) == (0, "", "")
    done = run("features", "match", study, *wanted)
    check_refusal(done, 1, "the output exists")
    assert (done.out, len(done.err.splitlines())) == ("", 1)
