"""`deltasmith features train` as a command."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deltasmith.lab import family_folder
from models import check_refusal, run

FAMILY = family_folder()
SITE = "model.layers.1.mlp.down_proj:in"


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return a command that trains two small dictionaries in a second."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lines = (FAMILY / "items/validation_math.jsonl").read_text().splitlines()[:60]
    items = [json.loads(line) for line in lines]
    (tmp_path / "math.jsonl").write_text(
        "\n".join(json.dumps({"text": i["prompt"] + i["answer"]}) for i in items)
    )
    models = [f"base={FAMILY / 'base'}", f"math={FAMILY / 'small/math'}", "--parent", "math=base"]
    sizes = ["--latents", 32, "--k", 3, "--steps", 6, "--batch", 64, "--held-out", 300, "--threads", 1]
    where = ["--site", SITE, "--corpus", f"math={tmp_path / 'math.jsonl'}", "--out", tmp_path / "study"]
    return ["features", "train", *models, *where, *sizes, "--mode", "shared"]


def needs_extra() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")


def test_it_trains_and_says_what_came_of_it_and_what_to_do_next(words: list[object], tmp_path: Path) -> None:
    needs_extra()
    done = run(*words)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split() == ["dictionary", "begins", "as", "FVU", "L0", "dead", "loss", "recovered"]
    assert [line.split()[:2] for line in lines[1:4]] == [
        ["base", "fresh"],
        ["base~seed1", "fresh"],
        ["math", "base"],
    ]
    assert lines[-1] == f"next: deltasmith features match {tmp_path / 'study'}"
    assert "training base: 6 / 6: FVU 0." in done.err
    check_refusal(run(*words), 1, "the output exists and is not empty")
    matched = run("features", "match", tmp_path / "study", "--resamples", 20, "--json")
    assert matched.code == 0, matched.err


def test_json_is_the_study_and_quiet_is_quiet(words: list[object], tmp_path: Path) -> None:
    needs_extra()
    done = run(*words, "--floors", "none", "--json")
    assert done.code == 0, done.err
    assert done.err == ""
    assert done.document == {
        "out": str(tmp_path / "study"),
        **json.loads((tmp_path / "study/study.json").read_text()),
    }
    done = run(*words, "--floors", "none", "--quiet", "--overwrite")
    assert (done.code, done.out, done.err) == (0, "", "")
    done = run(*words, "--floors", "none", "--quiet")
    assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1)


def test_a_file_of_models_serves_as_well(words: list[object], tmp_path: Path) -> None:
    needs_extra()
    family = {
        "base": {"model": str(FAMILY / "base")},
        "math": {"model": str(FAMILY / "small/math"), "from": "base"},
    }
    (tmp_path / "lineage.yaml").write_text(yaml.safe_dump(family))
    rest = words[words.index("--site") :]
    done = run("features", "train", tmp_path / "lineage.yaml", *rest, "--floors", "none", "--json")
    assert done.code == 0, done.err
    assert [node["parents"] for node in done.document["graph"]] == [[], ["base"]]


def test_interrupted_it_ends_with_five_and_goes_on(
    words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_extra()
    from deltasmith.features.dictionaries.trainer import Trainer

    inner, calls = Trainer.step, [0]

    def step(self: Any, raw: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return inner(self, raw)

    monkeypatch.setattr(Trainer, "step", step)
    done = run(*words)
    assert done.code == 5
    assert done.errors == ["error: interrupted while training base; run the same command to go on"]
    assert not (tmp_path / "study").exists()
    done = run(*words)
    assert done.code == 0, done.err
    assert calls[0] == 12  # six steps of the root's, six of the floor's, none twice


def test_without_torch_it_names_the_extra(words: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    check_refusal(run(*words), 2, 'pip install "deltasmith[features]"')


def test_usage(words: list[object], tmp_path: Path) -> None:
    for more in (
        ["--steps", 0],
        ["--mode", "cold"],
        ["--kind", "gated"],
        ["--spare", 2],
        ["--memory", "much"],
    ):
        assert run(*words, *more).code == 2
    assert run("features", "train").code == 2
    assert run("features", "train", "a=b", "--out", tmp_path / "x").code == 2
    check_refusal(run(*words, "--latents", "many"), 2, "'many' is no count of latents")
    check_refusal(run(*words, "--floors", "all"), 2, "in the mode shared one dictionary serves all models")
    check_refusal(run(*words, "--corpus", "x=nowhere"), 1, "the corpus 'x' does not exist")
    check_refusal(
        run(*words, "--root-dictionary", tmp_path), 2, "the root's dictionary that was given has its own"
    )


def test_help_needs_nothing_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    done = run("features", "train", "--help")
    assert done.code == 0
    assert "Needs the extra [features]" in " ".join(done.out.split())
    example = "\n".join(line.strip() for line in done.out.splitlines() if ": " in line and "{model:" in line)
    assert list(yaml.safe_load(example)) == ["base", "lua", "stories", "merged"]
