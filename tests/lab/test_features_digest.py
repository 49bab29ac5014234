"""What the lab keeps of studies, and the order in which it makes them."""

from __future__ import annotations

import pickle
from concurrent.futures import Future
from pathlib import Path

import pytest

from deltasmith.errors import DamagedInputError, RefusedError
from deltasmith.features.following import match
from deltasmith.lab.features import experiment
from deltasmith.lab.features.digest import compared_roots, digest_of, rounded
from deltasmith.lab.features.plan import Sizes, Subjects, studies_of
from deltasmith.recipe.problems import Problem, RecipeProblems
from deltasmith.recipe.tree import Mark
from features.made_studies import BASE, made_study

SUBJECTS = Subjects(
    models={label: Path(label) for label in ("base", "lua", "stories", "merged")},
    corpora={"lua": Path("lua.jsonl")},
    parents=("lua=base", "stories=base"),
    control=Path("random"),
)


def test_a_digest_holds_shares_and_no_arrays(tmp_path: Path) -> None:
    study = made_study(tmp_path / "study")
    found = digest_of(study, match(study, resamples=10))
    assert [edge["child"] for edge in found["edges"]] == ["lua", "stories", "merged", "merged", "merged"]
    assert not {"parents", "children"} & set(found["edges"][0])
    assert "origin" not in found["merges"][0]
    assert isinstance(found["universal"]["features"], int)
    assert {member["name"] for member in found["members"]} >= {"base", "base~again", "base~seed1", "merged"}
    assert found["scores"]["lua"]["lua"]["accuracy"] > 0


def test_roots_are_compared_on_one_text_or_not_at_all(tmp_path: Path) -> None:
    study = made_study(tmp_path / "one")
    found = compared_roots(study, study, 10)
    assert found["kept"]["value"] == 1
    assert found["same_index"] == 1
    assert 0 < found["testable"] <= BASE
    with pytest.raises(DamagedInputError, match="other held-out text"):
        compared_roots(study, made_study(tmp_path / "two", seed=5), 10)


def test_floats_are_rounded_and_nothing_else() -> None:
    assert rounded({"a": [1.234567891, 2, None, "x"], 3: True}) == {"a": [1.23457, 2, None, "x"], "3": True}


def test_a_childs_dictionary_under_the_bases_seed_is_called_base() -> None:
    jobs = {job.name: job for job in studies_of(SUBJECTS)}
    assert list(jobs)[:3] == ["warm", "independent", "shared"]
    assert jobs["same-lua"].models == ("base=lua", "other=base")
    assert jobs["same-lua"].against == "warm"
    assert jobs["shared"].after == "warm"
    assert jobs["control"].models[0] == "random=random"
    without = Subjects(SUBJECTS.models, SUBJECTS.corpora)
    assert not [job for job in studies_of(without) if job.name.startswith("control")]


def test_a_study_waits_for_the_one_whose_dictionary_it_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    order: list[str] = []

    class Pool:
        def submit(self, work, job, *_):
            order.append(job.name)
            future: Future = Future()
            future.set_result({"seconds": 1.0})
            return future

    todo = tuple(reversed(studies_of(SUBJECTS)))
    found = experiment._studies(Pool(), todo, tmp_path, {}, Sizes(), lambda line: None)
    assert set(found) == set(order) == {job.name for job in todo}
    for job in todo:
        if job.waits_for is not None:
            assert order.index(job.waits_for) < order.index(job.name)


@pytest.mark.parametrize(
    "error",
    [
        RefusedError("what", where="where", fix="fix"),
        RecipeProblems([Problem(Mark("recipe.yaml", 1, 2), "wrong", "right")]),
    ],
)
def test_an_error_of_a_worker_arrives_as_it_was_raised(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again).keys() == vars(error).keys()
