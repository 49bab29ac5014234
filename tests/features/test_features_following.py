"""A study followed: what was planted is found on every edge, beside floors and nulls that can be believed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from made_studies import PLANTED, events, made_study, sealed

from deltasmith.engine.workers import Stop
from deltasmith.errors import DamagedInputError, InterruptedRunError, RecipeError, RefusedError
from deltasmith.features.codes import Codes
from deltasmith.features.edges import null_of
from deltasmith.features.following import match
from deltasmith.features.matching.thresholds import Thresholds
from deltasmith.features.outcome import FATE, Outcome
from deltasmith.features.study import Study, written_codes


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return made_study(tmp_path_factory.mktemp("made") / "study")


@pytest.fixture(scope="module")
def outcome(study: Study) -> Outcome:
    return match(study, resamples=60)


def rewritten(study: Study, **changes: object) -> Study:
    """Change study.json, and let it list the files as they are."""
    path = study.folder / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return sealed(study.folder)


def without(study: Study, *members: str) -> Study:
    return rewritten(study, members=[m for m in study.document["members"] if m["name"] not in members])


def words(outcome: Outcome, parent: str, child: str, group: str) -> set[str]:
    status = outcome.edge(parent, child).parents.status
    return {FATE[status[at]].value for at in PLANTED[group][0]}


@pytest.mark.parametrize(
    ("group", "lua", "stories", "merged"),
    [
        ("universal", "persisted", "persisted", "persisted"),
        ("recovered", "disappeared", "persisted", "persisted"),
        ("gone", "disappeared", "disappeared", "disappeared"),
        ("lost in merge", "persisted", "persisted", "disappeared"),
        ("drifted", "persisted", "drifted", "persisted"),
        ("rare", "unexercised", "unexercised", "unexercised"),
        ("dead", "dead", "dead", "dead"),
    ],
)
def test_every_planted_group_has_its_fate(
    outcome: Outcome, group: str, lua: str, stories: str, merged: str
) -> None:
    for child, expected in (("lua", lua), ("stories", stories), ("merged", merged)):
        assert words(outcome, "base", child, group) == {expected}


def test_rates_are_of_the_features_that_can_be_told_of(outcome: Outcome) -> None:
    edge = outcome.edge("base", "lua")
    assert edge.testable == 58
    assert edge.rates["persisted"].value == pytest.approx(44 / 58)
    assert edge.rates["emerged"].value == pytest.approx(6 / 50)
    assert sum(rate.value for name, rate in edge.rates.items() if name != "emerged") == pytest.approx(1)
    assert edge.curve["0.8"] == edge.rates["persisted"]
    assert edge.any_match.value >= edge.rates["persisted"].value
    assert edge.same_index == 1
    assert edge.cosines.persisted_median == pytest.approx(0.99, abs=0.01)
    assert edge.weight_change == 0.1


def test_the_graph_is_told_of(outcome: Outcome) -> None:
    assert [(e.parent, e.child, e.kind) for e in outcome.edges] == [
        ("base", "lua", "parent"),
        ("base", "stories", "parent"),
        ("base", "merged", "base"),
        ("lua", "merged", "parent"),
        ("stories", "merged", "parent"),
    ]
    assert outcome.merges[0].counts["recovered"] == 8
    assert outcome.universal.features.tolist() == [[at] * 4 for at in range(30)]
    counted = {m.label: (m.latents, m.testable, m.unexercised, m.dead) for m in outcome.members}
    assert counted["base"] == (80, 58, 2, 20)


def test_floors_of_the_parent_decide_and_else_those_of_the_root(outcome: Outcome) -> None:
    again, seed = outcome.edge("base", "lua").floors
    assert (again.member, again.role, again.model, again.persisted.value) == (
        "base~again",
        "again",
        "base",
        1,
    )
    assert (seed.member, seed.role) == ("base~seed1", "seed")
    assert again.adjusted.value == pytest.approx(44 / 58)
    assert (again.fewer, again.more) == (14, 0)
    assert seed.persisted.value == pytest.approx(48 / 58)
    lua = outcome.edge("lua", "merged").floors[0]
    assert (lua.model, lua.p_value) == ("base", None)
    assert (
        "lua has no floor of its own: edges from it are compared with that of base, by shares alone"
        in outcome.notes
    )
    assert {edge.verdict for edge in outcome.edges} == {"fewer than the floor"}


def test_a_floor_of_the_parents_own_goes_before_the_roots(tmp_path: Path) -> None:
    study = made_study(tmp_path / "study", tokens=2000)
    (study.folder / "codes" / "lua~again.safetensors").write_bytes(
        (study.folder / "codes" / "lua.safetensors").read_bytes()
    )
    own = study.document["members"][1] | {"name": "lua~again", "role": "again"}
    found = match(rewritten(study, members=[*study.document["members"], own]), resamples=20)
    (floor,) = found.edge("lua", "merged").floors
    assert (floor.member, floor.model, floor.fewer, floor.more) == ("lua~again", "lua", 8, 0)
    assert floor.p_value == pytest.approx(2 / 2**8)
    assert [f.member for f in found.edge("stories", "merged").floors] == ["base~again", "base~seed1"]


def test_permuted_tokens_match_nothing(outcome: Outcome) -> None:
    for edge in outcome.edges:
        assert edge.null == 0
        assert 0 < edge.null_quantile < 0.3


def test_a_null_that_matches_is_told() -> None:
    """Dense features over few tokens: chance alone brings most of them above a low threshold, and none above a high."""
    codes = Codes.of_dense(events(40, 60, 0, rate=0.5).astype(np.float32))
    share, quantile = null_of(codes, codes, Thresholds(0.1, 0.1, 1), key=(0, "x"))
    assert share > 0.9
    assert 0.2 < quantile < 0.7  # the same features unpermuted: 1
    assert null_of(codes, codes, Thresholds(0.8, 0.5, 1), key=(0, "x")) == (0, quantile)
    assert null_of(codes, codes, Thresholds(0.8, 0.5, 1), key=(0, "y"))[1] != quantile
    assert null_of(codes, codes, Thresholds(min_fires=100), key=(0, "x")) == (0, 0)


def test_the_same_model_shows_no_evidence_of_change(tmp_path: Path) -> None:
    """The child is the parent once more: its rate is its floor, and nothing is said to have changed."""
    study = made_study(tmp_path / "study")
    again = (study.folder / "codes" / "base~again.safetensors").read_bytes()
    graph = [n for n in study.document["graph"] if n["label"] in ("base", "lua")]
    (study.folder / "codes" / "lua.safetensors").write_bytes(again)
    with pytest.raises(
        DamagedInputError, match=r"it is of shape \(96, 32\), and its codes are of 80 latents"
    ):
        match(sealed(study.folder), resamples=2)
    (study.folder / "saes" / "base~again" / "sae_weights.safetensors").replace(
        study.folder / "saes" / "lua" / "sae_weights.safetensors"
    )
    found = match(rewritten(study, graph=graph), resamples=60)
    assert found.edges[0].rates["persisted"].value == 1
    assert found.edges[0].verdict == "no evidence that features changed"
    assert not found.merges


def test_neither_threads_nor_a_second_run_change_a_byte(
    study: Study, outcome: Outcome, tmp_path: Path
) -> None:
    before = {p.name: p.read_bytes() for p in (study.folder / "match").iterdir()}
    assert set(before) == {"features.json", "rates.csv"}
    match(study, out=tmp_path / "again", resamples=60, threads=3)
    assert {p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()} == before
    assert "threads" not in outcome.settings


def test_another_seed_draws_other_intervals_and_the_same_rates(
    study: Study, outcome: Outcome, tmp_path: Path
) -> None:
    other = match(study, out=tmp_path / "other", resamples=60, seed=1)
    one, two = outcome.edge("base", "stories").curve["0.7"], other.edge("base", "stories").curve["0.7"]
    assert one.value == two.value
    drawn = [[edge.rates[n].low for n in edge.rates] for o in (outcome, other) for edge in o.edges]
    assert drawn[:5] != drawn[5:]


def test_without_resamples_there_are_no_intervals_and_no_change_is_claimed(
    study: Study, tmp_path: Path
) -> None:
    found = match(study, out=tmp_path / "out", resamples=0)
    assert found.edges[0].rates["persisted"].low is None
    assert {edge.verdict for edge in found.edges} == {"no evidence that features changed"}


def test_without_floors_there_is_no_verdict(tmp_path: Path) -> None:
    study = without(made_study(tmp_path / "study", tokens=1000), "base~again", "base~seed1")
    found = match(study, resamples=5)
    assert {edge.verdict for edge in found.edges} == {"no floor"}
    assert any("no dictionary was trained on from its own model's" in note for note in found.notes)


def test_independent_dictionaries_are_held_against_another_seed(tmp_path: Path) -> None:
    study = without(made_study(tmp_path / "study", mode="independent", tokens=2000), "base~again")
    found = match(study, resamples=40)
    edge = found.edge("base", "lua")
    assert [floor.role for floor in edge.floors] == ["seed"]
    assert edge.verdict == "no evidence that features changed"  # 44 of 58, where another seed keeps 48


def test_one_dictionary_for_all_has_no_floor_and_says_why(tmp_path: Path) -> None:
    found = match(made_study(tmp_path / "study", mode="shared", tokens=2000), resamples=20)
    assert {(edge.floors, edge.verdict) for edge in found.edges} == {((), "no floor")}
    assert all(edge.rates["persisted"].low is not None for edge in found.edges)
    (note,) = [note for note in found.notes if "floor" in note]
    assert note.startswith("one dictionary reads all models, so its floor is 100 % by construction")
    assert "intervals alone tell" in note
    assert not any("no floor of its own" in note for note in found.notes)


def test_a_merge_is_told_of_where_its_base_is_no_parent_of_its_parents(tmp_path: Path) -> None:
    """base -> between -> lua: what the base lost in lua is compared directly."""
    study = made_study(tmp_path / "study", tokens=2000)
    for kind in ("codes", "effects"):
        path = study.folder / kind / "base~again.safetensors"
        (study.folder / kind / "between.safetensors").write_bytes(path.read_bytes())
    (study.folder / "saes" / "base~again").rename(study.folder / "saes" / "between")
    node = {"label": "between", "model": "between", "parents": ["base"], "base": None, "method": None}
    graph = [*study.document["graph"]]
    graph[1] = graph[1] | {"parents": ["between"]}
    graph.insert(1, node)
    members = [m for m in study.document["members"] if m["name"] != "base~again"]
    members.append(members[0] | {"name": "between", "label": "between"})
    found = match(rewritten(study, graph=graph, members=members), resamples=5)
    assert ("base", "lua") not in [(edge.parent, edge.child) for edge in found.edges]
    assert found.merges[0].counts["recovered"] == 8
    assert found.universal.members == ("base", "between", "lua", "stories", "merged")


def test_without_scipy_the_check_is_left_out_and_said(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    found = match(study, out=tmp_path / "out", resamples=5)
    assert found.edges[0].hungarian is None
    assert "scipy is not installed: the shares were not checked by an assignment" in found.notes


def test_progress_is_told_and_a_stop_is_obeyed(study: Study, tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    stop = Stop()

    def say(what: str, done: int, of: int) -> None:
        heard.append((what, done, of))
        if done == 2:
            stop.ask()

    with pytest.raises(InterruptedRunError, match="matching was interrupted; run the same command again"):
        match(study, out=tmp_path / "out", resamples=5, say=say, stop=stop)
    assert heard == [("matching", 0, 7), ("matching", 1, 7), ("matching", 2, 7)]
    assert not (tmp_path / "out").exists()


def test_an_edge_on_which_nothing_can_be_tested_is_noted(study: Study, tmp_path: Path) -> None:
    found = match(study, out=tmp_path / "out", resamples=0, min_fires=10**6)
    notes = [note for note in found.notes if "is tested" in note]
    assert len(notes) == len(found.edges) == 5
    assert notes[0].startswith(
        "base > lua: no feature of base is tested, as none fires on 1,000,000 held-out"
    )
    assert notes[0].endswith("lower --min-fires, or train the study with more held-out text")


def test_numbers_that_make_no_sense_are_refused(study: Study) -> None:
    with pytest.raises(RecipeError, match="choose 0 < weak <= strong <= 1"):
        match(study, strong=0.4)
    with pytest.raises(RecipeError, match="-1 resamples cannot be drawn"):
        match(study, resamples=-1)


def test_no_result_is_replaced_unless_asked_for(study: Study, outcome: Outcome, tmp_path: Path) -> None:
    before = (study.folder / "match" / "features.json").read_bytes()
    heard: list[str] = []
    with pytest.raises(RefusedError, match=r"not empty in .*match; .*--overwrite"):
        match(study, resamples=2, say=lambda what, done, of: heard.append(what))
    assert not heard  # before anything is computed
    assert (study.folder / "match" / "features.json").read_bytes() == before
    match(study, resamples=60, overwrite=True)
    assert (study.folder / "match" / "features.json").read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(RefusedError, match=r"it holds notes\.txt"):
        match(study, out=tmp_path / "mine", overwrite=True)
    match(study, out=tmp_path / "new", resamples=2)
    with pytest.raises(RefusedError, match="--overwrite"):
        match(study, out=tmp_path / "new", resamples=2)


def test_a_damaged_study_is_told(tmp_path: Path) -> None:
    study = made_study(tmp_path / "study", tokens=500)
    (study.folder / "codes" / "lua.safetensors").write_bytes(
        written_codes(Codes.of_dense(np.eye(3, dtype=np.float32)))
    )
    with pytest.raises(
        DamagedInputError, match=r"not what study\.json says in .*codes/lua\.safetensors; train"
    ):
        match(study, resamples=2)
    with pytest.raises(DamagedInputError, match="the codes span 500 and 3 tokens"):
        match(sealed(study.folder), resamples=2)
    with pytest.raises(DamagedInputError, match="there is no dictionary of stories"):
        match(without(study, "stories"))
    assert not (study.folder / "match").exists()
