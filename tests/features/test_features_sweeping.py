"""A sweep follows features along a parameter: what is shared along the way is known here."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from seen_models import FAMILY, TOKENS, FakeViewer, root_codes, scores_at, seen_study, slerp

from deltasmith.errors import (
    DamagedInputError,
    InterruptedRunError,
    MissingExtraError,
    RecipeError,
    RefusedError,
)
from deltasmith.features.codes import Codes
from deltasmith.features.comparing import Passages, compare
from deltasmith.features.matching.thresholds import Thresholds
from deltasmith.features.study import HeldOut, Score, Study
from deltasmith.features.sweep_measures import (
    experts_of,
    kept_of,
    mean_accuracy,
    origins_of,
    recovered_accuracy,
    recovered_loss,
    smallest,
)
from deltasmith.features.sweep_models import pieces_of
from deltasmith.features.sweep_records import read_sweep, write_sweep
from deltasmith.features.sweeping import sweep
from deltasmith.recipe.model import Recipe


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    return seen_study(tmp_path / "study", monkeypatch)


VARY = "t=0:1:0.25"


def test_features_are_followed_along_the_axis(study: Study) -> None:
    found = sweep(study, slerp(), vary=VARY, resamples=20)
    assert (found.axis, found.values, found.root) == ("t", (0.0, 0.25, 0.5, 0.75, 1.0), "base")
    # Called as in the study, by their fingerprints.
    assert [(p.label, p.in_study) for p in found.parents] == [("lua", True), ("stories", True)]
    first, second, middle, refused, last = found.points
    assert first.kept["lua"].rates["persisted"].value == 1.0
    assert last.kept["stories"].rates["persisted"].value == 1.0
    # The way leads back towards the root: at both ends it has lost what the middle has.
    persisted = [p.kept["base"].rates["persisted"].value for p in (first, second, middle, last)]
    assert persisted == pytest.approx([44 / 60, 50 / 60, 1.0, 50 / 60])
    assert first.kept["base"].counts["disappeared"] == 16
    assert middle.kept["base"].rates["persisted"].low is not None
    assert found.baselines["base"].kept is None
    assert found.baselines["lua"].kept is not None
    assert found.baselines["lua"].kept.rates["persisted"].value == pytest.approx(44 / 60)
    assert (middle.fvu, middle.l0) == (pytest.approx(0.15), pytest.approx(len(root_codes().latents) / TOKENS))
    # In the middle what one parent has changed or lost is there as the root has it.
    assert middle.origins is not None
    assert middle.origins.counts["recovered"] == 26
    assert middle.origins.counts["consensus"] == 34
    assert "it overflows" in refused.refused
    assert (refused.kept, refused.origins, refused.mean_accuracy) == ({}, None, None)
    assert "a note" in found.notes


def test_the_mean_and_the_worst_domain_prefer_other_values(study: Study) -> None:
    found = sweep(study, slerp(), vary="t=0:1:0.1", resamples=0)
    assert found.experts == {"english": "stories", "lua": "lua"}
    assert found.best_mean is not None
    assert found.best_smallest is not None
    assert found.best_mean.value == 0.2
    assert found.best_smallest.value == 0.6  # where t and 1 - t² meet: 0.618
    assert found.best_smallest.score == pytest.approx(0.6)
    assert found.points[2].smallest_recovered == pytest.approx(0.2)
    assert found.points[2].recovered == pytest.approx({"english": 0.2, "lua": 0.96})
    assert found.points[2].recovered_loss == pytest.approx({"english": 0.2, "lua": 0.64})


def test_the_same_bytes_and_everything_read_back(study: Study, tmp_path: Path) -> None:
    found = sweep(study, slerp(), vary=VARY, out=tmp_path / "a.json", resamples=20, threads=1)
    again = sweep(study, slerp(), vary=VARY, out=tmp_path / "b.json", resamples=20, threads=2)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert found == again == read_sweep(tmp_path / "a.json")
    write_sweep(tmp_path / "c.json", read_sweep(tmp_path / "a.json"))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "c.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json", "c.json", "study"]
    assert str(tmp_path) not in (tmp_path / "a.json").read_text()


def test_an_interrupted_sweep_goes_on(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "sweep.json"
    whole = sweep(study, slerp(), vary=VARY, resamples=10)
    monkeypatch.setattr(FakeViewer, "seen", [])
    monkeypatch.setattr(FakeViewer, "stop_after", 4)  # two parents, two values
    with pytest.raises(InterruptedRunError, match="run the same command again"):
        sweep(study, slerp(), vary=VARY, out=out, resamples=10)
    assert not out.exists()
    assert (tmp_path / "sweep.json.journal").is_file()
    monkeypatch.setattr(FakeViewer, "seen", [])
    monkeypatch.setattr(FakeViewer, "stop_after", 10**9)
    assert sweep(study, slerp(), vary=VARY, out=out, resamples=10) == whole
    merged = [source.merge.t for source in FakeViewer.seen if isinstance(source, Recipe)]
    assert merged == [0.25, 0.5, 0.75, 1.0]  # matching was stopped at the second value
    assert not (tmp_path / "sweep.json.journal").exists()


def test_points_of_other_settings_are_not_taken(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "sweep.json"
    monkeypatch.setattr(FakeViewer, "stop_after", 4)
    with pytest.raises(InterruptedRunError):
        sweep(study, slerp(), vary=VARY, out=out, resamples=10)
    monkeypatch.setattr(FakeViewer, "stop_after", 10**9)
    for changed in ({"strong": 0.9}, {"seed": 1}, {"overrides": ["space=weight", "dtype=float32"]}):
        monkeypatch.setattr(FakeViewer, "seen", [])
        sweep(study, slerp(), vary=VARY, out=out, **({"resamples": 10, "overwrite": True} | changed))
        assert len(FakeViewer.seen) == 7


def test_named_parents_must_be_the_studys(study: Study) -> None:
    math_, code = (f"{FAMILY}/small/{name}" for name in ("math", "code"))
    found = sweep(study, slerp(), vary="t=0|1", models=[f"lua={math_}"], resamples=0)
    assert [p.label for p in found.parents] == ["lua"]
    assert found.points[0].origins is None  # one parent is no merge
    with pytest.raises(RefusedError, match="is not the model that the study calls lua"):
        sweep(study, slerp(), vary="t=0|1", models=[f"lua={code}"], resamples=0)
    with pytest.raises(
        RecipeError, match="'nobody=x' names no model of the study; write LABEL=SOURCE, of base"
    ):
        sweep(study, slerp(), vary="t=0|1", models=["nobody=x"])
    with pytest.raises(RecipeError, match="'lua' is named twice"):
        sweep(study, slerp(), vary="t=0|1", models=[f"lua={math_}", f"lua={math_}"])


def test_models_that_are_not_the_studys_are_told(study: Study) -> None:
    document = {k: v for k, v in study.document.items() if k != "models"}
    found = sweep(replace(study, document=document), slerp(), vary="t=0|1", resamples=0)
    # The recipe's own labels; one that the study has already is no claim to be that model.
    assert [(p.label, p.in_study) for p in found.parents] == [("lua'", False), ("other", False)]
    assert "not in the study: lua', other" in found.notes


def test_the_root_may_be_a_parent(study: Study) -> None:
    models = [{"model": str(FAMILY / "base")}, {"model": str(FAMILY / "small" / "code")}]
    found = sweep(study, slerp(models=models), vary="t=0|1", resamples=0)
    assert [p.label for p in found.parents] == ["base", "stories"]
    assert list(found.baselines) == ["base", "stories"]
    assert found.points[1].origins is not None
    assert found.points[1].origins.counts["recovered"] == 0  # there is no base beside the parents


def test_the_root_is_read_again_where_its_text_cannot_be_rebuilt(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeViewer, "missing", 3)
    found = sweep(study, slerp(), vary="t=0|1", resamples=0)
    assert FakeViewer.seen[2] == str(FAMILY / "base")
    assert found.baselines["base"].fvu == 0.3
    assert found.baselines["base"].scores == scores_at(0.5)
    assert not any("begin" in note for note in found.notes)
    models = slerp()["models"]
    alone = {"models": models, "merge": {"slerp": {"t": 0.5}}}
    for recipe in (alone, slerp(base=models[0]["model"])):  # no base, and one that is not the root
        found = sweep(study, recipe, vary="t=0|1", resamples=0)
        assert found.baselines["base"].fvu == 0.17
        assert any("3 pieces of the held-out text begin otherwise" in note for note in found.notes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"vary": "t=0:1:0.5, seed=1|2"}, RecipeError, "2 parameters vary in --vary; give one"),
        ({"vary": "q=0:1:0.5"}, RecipeError, r'--vary q: the recipe has no "q" to sweep'),
        ({"vary": "t=0:1"}, RecipeError, "--vary t=0:1"),
        ({"resamples": -1}, RecipeError, "-1 resamples cannot be drawn"),
        ({"weak": 0.9}, RecipeError, "weak is 0.9 and strong 0.8"),
        ({"vary": "t=0.75|0.750001"}, None, ""),
    ],
)
def test_wrong_requests_are_refused(
    study: Study, changes: dict[str, Any], error: type[Exception] | None, message: str
) -> None:
    asked = {"vary": "t=0|1", "resamples": 0} | changes
    if error is None:
        assert len(sweep(study, slerp(), **asked).points) == 2
        return
    with pytest.raises(error, match=message):
        sweep(study, slerp(), **asked)
    assert not FakeViewer.seen


def test_what_is_no_recipe_or_fails_everywhere_is_refused(study: Study, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is a model, and has nothing to vary"):
        sweep(study, str(FAMILY / "base"), vary=VARY)
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(slerp()))
    with pytest.raises(RefusedError, match="the recipe can be computed at no value: it overflows"):
        sweep(study, tmp_path / "one.yaml", vary="t=0.75:0.76:1", resamples=0)


def test_only_an_earlier_sweep_is_replaced(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "sweep.json"
    sweep(study, slerp(), vary="t=0|1", out=out, resamples=0)
    with pytest.raises(RefusedError, match="the output exists"):
        sweep(study, slerp(), vary="t=0|1", out=out)
    sweep(study, slerp(), vary="t=0|1", out=out, overwrite=True, resamples=0)
    out.write_text("{}")
    with pytest.raises(RefusedError, match="the output to be replaced is no sweep of features"):
        sweep(study, slerp(), vary="t=0|1", out=out, overwrite=True)
    with pytest.raises(DamagedInputError, match="this is no sweep of features"):
        read_sweep(out)


def test_without_torch_the_extra_is_named(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"deltasmith\[features\]"):
        sweep(study, slerp(), vary="t=0|1")


def test_experts_are_better_by_more_than_chance() -> None:
    def scores(accuracy: float, tokens: int = 1000) -> dict[str, Score]:
        return {"d": Score(1.0, accuracy, tokens)}

    assert experts_of(scores(0.5), {"a": scores(0.53), "b": scores(0.52)}, ["d"]) == {"d": None}
    assert experts_of(scores(0.5, 10**5), {"a": scores(0.53, 10**5), "b": scores(0.52)}, ["d"]) == {"d": "a"}
    assert experts_of(scores(0.5), {"a": scores(0.6), "b": scores(0.6)}, ["d"]) == {"d": "a"}
    assert experts_of(scores(0.5), {}, ["d"]) == {"d": None}


def test_recovered_fractions() -> None:
    def scores(**figures: tuple[float, float]) -> dict[str, Score]:
        return {d: Score(loss, accuracy, 1000) for d, (loss, accuracy) in figures.items()}

    root, merge = scores(a=(3.0, 0.2), b=(3.0, 0.2)), scores(a=(2.5, 0.3), b=(3.5, 0.1))
    parents, experts = {"x": scores(a=(2.0, 0.6), b=(3.1, 0.3))}, {"a": "x", "b": "x", "c": None}
    accuracy = recovered_accuracy(merge, root, parents, experts)
    assert accuracy == {"a": pytest.approx(0.25), "b": pytest.approx(-1.0), "c": None}
    assert recovered_loss(merge, root, parents, experts) == {"a": pytest.approx(0.5), "b": None, "c": None}
    assert smallest(accuracy) == pytest.approx(-1.0)
    assert smallest({"c": None}) is None
    assert mean_accuracy(merge, {"a": "x", "b": None}) == 0.3
    assert mean_accuracy(merge, {"a": None, "b": None}) == pytest.approx(0.2)


def test_nothing_testable_has_no_rates() -> None:
    codes = Codes.of_dense(np.eye(50, 4, dtype=np.float32))
    found = compare(codes, codes, Passages.of(np.zeros(50, np.int32), 0, 10), Thresholds())
    assert (kept_of(found).testable, kept_of(found).rates) == (0, {})
    assert kept_of(found).counts["unexercised"] == 4
    origins = origins_of(
        ["a", "b"], "root", dict.fromkeys(("root", "a", "b"), found), {"a": found, "b": found}
    )
    assert origins is not None
    assert (origins.testable, origins.rates) == (0, {})
    assert origins_of(["a"], "root", {"root": found, "a": found}, {}) is None


def test_pieces_are_rebuilt_from_the_held_out_tokens() -> None:
    sequence = np.array([0, 0, 0, 4, 5, 5], np.int32)
    ids, passage = np.array([7, 8, 9, 3, 5, 6], np.int32), np.array([0, 0, 0, 1, 1, 1], np.int32)
    held_out = HeldOut(ids, sequence, passage, np.array([0, 0, 0, 0, 1, 1], np.int32))
    begun, none = pieces_of(held_out, 1)
    assert (begun.ids.tolist(), none) == ([[1, 7, 8, 9], [1, 3, 0, 0], [1, 5, 6, 0]], 0)
    assert begun.lengths.tolist() == [4, 2, 3]
    assert (begun.passage.tolist(), begun.domain.tolist()) == ([0, 1, 1], [0, 0, 1])
    again = begun.held_out()
    for name in ("ids", "passage", "domain"):
        assert np.array_equal(getattr(again, name), getattr(held_out, name))
    # Without such a token, the one before; where that is not known, one stands in.
    bare, stand_ins = pieces_of(held_out, None)
    assert (bare.ids.tolist(), stand_ins) == ([[7, 7, 8, 9], [3, 3, 0, 0], [3, 5, 6, 0]], 2)
