"""`deltasmith features sweep`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from models import check_refusal, run


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a study and a recipe; models are seen as `seen_models` makes them."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "features")
    import seen_models

    seen_models.seen_study(tmp_path / "study", monkeypatch)
    (tmp_path / "slerp.yaml").write_text(yaml.safe_dump(seen_models.slerp()))
    return tmp_path


def _sweep(place: Path, *options: Any) -> Any:
    return run("features", "sweep", place / "study", place / "slerp.yaml", *options)


def test_it_prints_what_the_merge_can_do_and_what_it_keeps(place: Path) -> None:
    out = place / "sweep.json"
    done = _sweep(place, "--vary", "t=0:1:0.25", "--out", out, "--resamples", 20)
    assert done.code == 0, done.err
    lines = [line.rstrip() for line in done.out.splitlines()]
    assert lines[0] == (
        "slerp.yaml, t at 5 values; parents lua, stories; features at model.layers.0.mlp.down_proj:in by the "
        "dictionary of base"
    )
    rows = [line.split() for line in lines]
    assert ["0.5", "2.750", "45.0%", "2.750", "52.5%", "50%", "75%"] in rows
    assert ["0.75", *["—"] * 6] in rows
    assert [row[:2] for row in rows if row[:1] == ["0"]] == [["0", "3.000"], ["0", "73.3%"]]
    assert "best mean accuracy (english, lua): t = 0.25, 50.3%" in lines
    assert "best of the worst domain: t = 0.5, where at least 50% is recovered" in lines
    assert "the best mean leaves 25% recovered in one domain" in lines
    assert "t = 0.75: it overflows" in lines
    assert "note: a note" in lines
    assert lines[-1].startswith(f"{out}: show it with `deltasmith features report")
    assert json.loads(out.read_text())["best_mean"] == {
        "value": 0.25,
        "at": 1,
        "score": pytest.approx(0.503125),
    }
    assert "values: 5 / 5" in done.err


def test_json_and_quiet(place: Path) -> None:
    out = place / "sweep.json"
    done = _sweep(place, "--vary", "t=0|1", "--resamples", 0, "--json")
    assert (done.code, done.err) == (0, "")
    assert [point["value"] for point in done.document["points"]] == [0, 1]
    quiet = _sweep(place, "--vary", "t=0|1", "--resamples", 0, "--quiet", "--out", out)
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    assert json.loads(out.read_text()) == done.document
    wrong = _sweep(place, "--vary", "q=0|1", "--resamples", 0, "--quiet", "--out", place / "other.json")
    assert (wrong.code, wrong.out, len(wrong.err.splitlines())) == (2, "", 1)
    assert _sweep(place, "--vary", "t=0|1", "--quiet").code == 2


def test_settings_and_named_parents(place: Path) -> None:
    recipe = yaml.safe_load((place / "slerp.yaml").read_text())
    math = recipe["models"][0]["model"]
    options = (
        "--vary",
        "dtype=float32|base",
        "--set",
        "merge.slerp.t=0.25",
        "--model",
        f"lua={math}",
        "--json",
    )
    done = _sweep(place, *options, "--resamples", 0)
    assert done.code == 0, done.err
    assert [parent["label"] for parent in done.document["parents"]] == ["lua"]
    assert done.document["points"][0] == {**done.document["points"][1], "value": "float32"}


def test_refusals(place: Path) -> None:
    check_refusal(
        _sweep(place, "--vary", "q=0:1:0.5", "--quiet", "--json"), 2, '--vary q: the recipe has no "q"'
    )
    (place / "sweep.json").write_text("{}")
    taken = _sweep(place, "--vary", "t=0|1", "--out", place / "sweep.json")
    check_refusal(taken, 1, "the output exists")
    assert _sweep(place).code == 2
    recipe = place / "slerp.yaml"
    check_refusal(run("features", "sweep", place / "none", recipe, "--vary", "t=0|1"), 3, "none")


def test_patterns_are_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from deltasmith.cli.features_patterns_text import show_patterns
    from deltasmith.features.pattern_records import Along, Detector, Found, Marking, MemberDetectors, Patterns

    marking, poor = Marking(0.9, 20, 15, 0.75, 0.6, 0.667), Marking(0.1, 9, 1, 0.11, 0.04, 0.06)
    edge: dict[str, Any] = {"parent": "base", "child": "lua", "kind": "parent", "second": -1, "second_r": 0.0}
    along = Along(**edge, side="parent", status="drifted", partner=7, r=0.61, cosine=0.9, marking=poor)
    gone = Along(**edge, side="parent", status="disappeared", partner=-1, r=0.0, cosine=None, marking=None)
    members = (
        MemberDetectors("base", (Detector(3, marking, (along, gone)),)),
        MemberDetectors("lua", ()),
    )
    found = Found("raise", "^ *raise", 12, 25, {"python": 25, "lua": 0}, members)
    show_patterns(Patterns("0" * 64, (found,)))
    assert capsys.readouterr().out.splitlines() == [
        "",
        "raise = ^ *raise: 12 matches mark 25 tokens (python 25)",
        "  base #3: r 0.90; 75% of its 20 firings are marked, which is 60% of what is marked",
        "    → lua: drifted; nearest #7 (r 0.61), whose r with the pattern is 0.10",
        "    → lua: disappeared; nothing fires together with it",
        "  lua: no feature follows it",
    ]
