"""`deltasmith advise`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from evaluations import evaluation, right
from models import Family, check_refusal, draw, family, run, write_adapter, write_model

SPREAD = 0.1  # of the bases: a delta of 0.005 is half of one lab case's relative size


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Family:
    return family(tmp_path_factory.mktemp("advise") / "models")


def moved(base: dict, size: float, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {n: (a + rng.choice([-size, size], a.shape)).astype(np.float32) for n, a in base.items()}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A base; `a`, `b` as small as the lab's smallest deltas, `large` as its largest, `other` another model."""
    root = tmp_path_factory.mktemp("places")
    base = draw(0, SPREAD)
    made = {
        "base": base,
        "a": moved(base, 0.005, 1),
        "b": moved(base, 0.005, 2),
        "large": moved(base, 0.04, 3),
        "large2": moved(base, 0.04, 4),
        "tiny": moved(base, 0.0005, 5),
        "tiny2": moved(base, 0.0005, 6),
        "other": draw(7, SPREAD),
    }
    for name, arrays in made.items():
        write_model(root / name, arrays, "float32")
    return root


def advised(*arguments: object):
    done = run("advise", *arguments, "--json")
    assert (done.code, done.err) == (0, "")
    return done.document


def test_small_deltas_get_a_recipe_that_loads(places, tmp_path):
    out = tmp_path / "recipe.yaml"
    done = run("advise", places / "base", places / "a", places / "b", "--out", out)
    assert done.code == 0
    assert "RECOMMENDS" in done.out
    assert f"written to {out}" in done.out
    recipe = yaml.safe_load(out.read_text())
    assert [model["label"] for model in recipe["models"]] == ["a", "b"]
    assert run("plan", out).code == 0
    told = advised(places / "base", places / "a", places / "b")
    assert told["verdict"] == "recommends"
    assert told["recommended"]["recipe"]["merge"] == recipe["merge"]
    assert told["recommended"]["recipe"]["scale"] == recipe["scale"]
    for option in told["alternatives"]:
        written = tmp_path / f"{option['method']}.yaml"
        written.write_text(json.dumps(option["recipe"]))
        assert run("plan", written).code == 0, option


def test_every_line_of_evidence_has_its_number_bound_and_source(places):
    told = advised(places / "base", places / "a", places / "b")
    assert told["goal"] == "merge"
    lines = {line["rule"]: line for line in told["evidence"]}
    assert {"size", "relative size", "direction", "sign conflict", "subspaces", "our lab"} <= set(lines)
    assert all(line["bound"] and line["source"] for line in told["evidence"])
    assert "arXiv 2311.03099" in lines["size"]["source"]
    assert {"model", "layer", "projection"} == set(told["figures"])
    found = told["figures"]["model"][0]["models"]["a"]
    assert found["quantiles"]["0.9"] == pytest.approx(0.005, rel=0.01)
    assert found["above"] == pytest.approx({"0.002": 1.0, "0.005": 0.5, "0.01": 0.0, "0.03": 0.0}, abs=0.5)


def test_large_deltas_exclude_dropping(places):
    told = advised(places / "base", places / "large", places / "large2")
    left = {o["method"] for o in [told["recommended"], *told["alternatives"]] if o}
    assert not left & {"dare", "dare_ties", "della", "della_noelect"}
    alone = advised(places / "base", places / "large")
    assert alone["goal"] == "prune"
    assert not {o["method"] for o in [alone["recommended"], *alone["alternatives"]] if o} & {
        "dare",
        "magprune",
    }


def test_beyond_the_lab_it_abstains_and_writes_nothing(places, tmp_path):
    out = tmp_path / "recipe.yaml"
    done = run("advise", places / "base", places / "tiny", places / "tiny2", "--out", out)
    assert done.code == 0
    assert "ABSTAINS" in done.out
    assert "nothing is written" in done.out
    assert "deltasmith evaluate CANDIDATE.yaml" in done.out
    assert not out.exists()


def test_another_models_base_stops_it(places):
    told = advised(places / "base", places / "a", places / "other")
    assert told["verdict"] == "stops"
    assert told["recommended"] is None
    assert told["alternatives"] == []
    assert "RECOMMENDS NOTHING" in run("advise", places / "base", places / "other").out


def test_scores_decide_between_dare_and_dp(places, tmp_path):
    for name, count in (("e", 80), ("good", 79), ("bad", 50)):
        result = evaluation(name, {"t": right(count)}).as_json()
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    found = {}
    for name in ("good", "bad"):
        pair = f"{tmp_path}/e.json,{tmp_path}/{name}.json"
        found[name] = advised(places / "base", places / "tiny", "--scores", pair)
    assert found["bad"]["recommended"]["method"] == "dp"
    assert found["bad"]["recommended"]["recipe"]["models"][0]["edits"] == [
        {"dynamic_prune": {"density": 0.1}}
    ]
    assert "dp" not in {o["method"] for o in found["good"]["alternatives"]}


def test_one_model_abstaining_names_the_commands_that_would_tell(places):
    told = advised(places / "base", places / "tiny")
    assert told["verdict"] == "abstains"
    assert any(c.endswith("--scores expert.json,dare.json") for c in told["commands"])
    (echo,) = [c for c in told["commands"] if c.startswith("echo ")]
    assert "'" in echo
    assert json.loads(echo.split("'")[1])["models"][0]["edits"] == [{"drop": {"density": 0.1}}]


def test_adapters_and_packed_deltas_are_models(models, tmp_path):
    base = models.root / "base"
    write_adapter(tmp_path / "adapter", models.base, 3)
    assert run("pack", base, models.root / models.labels[0], tmp_path / "packed", "--quiet").code == 0
    told = advised(base, tmp_path / "adapter", tmp_path / "packed")
    assert {m for group in told["figures"]["model"] for m in group["models"]} == {"adapter", "packed"}


def test_an_existing_file_stays(places, tmp_path):
    out = tmp_path / "mine.yaml"
    out.write_text("mine")
    check_refusal(
        run("advise", places / "base", places / "a", places / "b", "--out", out), 1, "is there already"
    )
    assert out.read_text() == "mine"
    done = run("advise", places / "base", places / "a", places / "b", "--out", out, "--overwrite", "--quiet")
    assert (done.code, done.out) == (0, "")
    assert out.read_text().startswith("# deltasmith advise")


def test_what_plan_refuses_is_refused(places, tmp_path):
    check_refusal(run("advise", places / "base", tmp_path / "none"), 3, "none")
    wrong = draw(0, hidden=20)
    write_model(tmp_path / "wide", wrong, "float32")
    check_refusal(run("advise", places / "base", tmp_path / "wide"), 1, "wide")
    check_refusal(run("advise", places / "base", places / "a", "--memory", "1M"), 4, "--memory")
    check_refusal(run("advise", places / "base", places / "a", "--scores", "x"), 2, "--scores")


def test_the_python_call(places):
    import deltasmith

    found = deltasmith.advise(places / "base", [places / "a", places / "b"], threads=1)
    assert not found.abstains
    assert found.text is not None
    assert found.text.startswith("# deltasmith advise")
    assert found.as_json()["evidence"] == advised(places / "base", places / "a", places / "b")["evidence"]
