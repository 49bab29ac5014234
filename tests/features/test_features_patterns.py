"""Patterns mark tokens by the text that they make up together, and the features that follow the mark are found."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_studies import made_study, sealed

from deltasmith.errors import DamagedInputError, RecipeError, RefusedError, ResourceError
from deltasmith.features.codes import Codes
from deltasmith.features.outcome import (
    Cosines,
    EdgeOutcome,
    Links,
    Outcome,
    Rate,
    Universal,
)
from deltasmith.features.pattern_matches import spans_of
from deltasmith.features.pattern_records import Marking, read_patterns, write_patterns
from deltasmith.features.patterns import find, find_all, mark, markings, parse_patterns, study_hash
from deltasmith.features.study import HeldOut, Study, written_codes, written_held_out

WORDS = ["x", " = ", "3", "\n", "raise", "", "é"]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Twelve tokens in two sequences: `x = 3`, line end, `raisex` | `x = `, `3` and so on."""
    made_study(tmp_path / "study", tokens=200, floors=())
    ids = np.array([0, 1, 2, 3, 4, 0, 0, 1, 5, 2, 3, 6], np.int32)
    sequence = np.array([0] * 6 + [1] * 6, np.int32)
    held_out = HeldOut(ids, sequence, sequence.copy(), sequence.copy())
    folder = tmp_path / "study"
    (folder / "held_out.safetensors").write_bytes(written_held_out(held_out))
    (folder / "tokens.json").write_text(json.dumps({str(at): word for at, word in enumerate(WORDS)}))
    for label in ("base", "lua", "stories", "merged"):
        (folder / "codes" / f"{label}.safetensors").write_bytes(written_codes(_codes(ids)))
    return sealed(folder)


def _codes(ids: np.ndarray) -> Codes:
    """Latent 0 fires everywhere, 1 on `x`, 2 on ` = `, 3 on the first ` = ` alone, 4 never."""
    dense = np.zeros((len(ids), 5), np.float32)
    dense[:, 0] = 1.0
    dense[:, 1] = np.where(ids == 0, 2.0, 0)
    dense[:, 2] = np.where(ids == 1, 3.0, 0)
    dense[1, 3] = 5.0
    return Codes.of_dense(dense)


@pytest.mark.parametrize(
    ("expression", "tokens", "matches"),
    [
        ("x = 3", [0, 1, 2, 6, 7, 9], 2),  # across tokens; the one without text between them is not marked
        (r"(\w+) = ", [0, 6], 2),  # a group alone
        ("= 3", [1, 2, 7, 9], 2),  # part of a token marks it
        ("x$", [5], 1),  # ends of lines
        ("^raise", [4], 1),
        ("(?i)RAISE", [4], 1),
        ("xx", [], 0),  # not across the border between sequences
        (r"(y)|x", [], 0),  # the group took no part
        ("é", [11], 1),
        ("q*", [], 0),  # empty matches
    ],
)
def test_a_pattern_marks_the_tokens_that_its_match_overlaps(
    study: Study, expression: str, tokens: list[int], matches: int
) -> None:
    marked = mark(study, "p", expression)
    assert np.flatnonzero(marked.flags).tolist() == tokens
    assert marked.matches == matches


def test_marks_are_those_of_a_walk_over_the_characters(tmp_path: Path) -> None:
    study = made_study(tmp_path / "study", tokens=400, floors=())
    rng = np.random.default_rng(3)
    words = ["ab", "a", "", "b\n", "aab", " "]
    (study.folder / "tokens.json").write_text(json.dumps({str(at): word for at, word in enumerate(words)}))
    held_out = HeldOut(
        rng.integers(0, len(words), 400).astype(np.int32),
        *(np.sort(rng.integers(0, 9, 400)).astype(np.int32) for _ in range(2)),
        np.zeros(400, np.int32),
    )
    (study.folder / "held_out.safetensors").write_bytes(written_held_out(held_out))
    study = sealed(study.folder)
    wanted = np.zeros(400, bool)
    for sequence in range(9):
        owners = [
            (at, c) for at in np.flatnonzero(held_out.sequence == sequence) for c in words[held_out.ids[at]]
        ]
        for match in re.finditer("a(b +a|ba)", "".join(c for _, c in owners)):
            for at, _ in owners[match.start(1) : match.end(1)]:
                wanted[at] = True
    assert wanted.any()
    assert np.array_equal(mark(study, "p", "a(b +a|ba)").flags, wanted)


def test_markings_are_correlation_precision_and_recall() -> None:
    rng = np.random.default_rng(0)
    dense = ((rng.random((300, 7)) < 0.3) * rng.gamma(2.0, 1.0, (300, 7))).astype(np.float32)
    dense[:, 5], dense[:, 6] = 0.0, 1.0
    flags = rng.random(300) < 0.2
    dense[:, 0] = flags * rng.uniform(1, 2, 300)
    found = markings(Codes.of_dense(dense), flags)
    for latent in range(5):
        assert found.r[latent] == pytest.approx(np.corrcoef(dense[:, latent], flags)[0, 1])
    assert found.r[5] == found.r[6] == 0  # never, and always the same
    fires = dense[:, 1] > 0
    hits = int((fires & flags).sum())
    precision, recall = hits / fires.sum(), hits / flags.sum()
    assert found.of(1) == Marking(
        float(found.r[1]),
        int(fires.sum()),
        hits,
        pytest.approx(precision),
        pytest.approx(recall),
        pytest.approx(2 * precision * recall / (precision + recall)),
    )
    assert found.of(5) == Marking(0.0, 0, 0, 0.0, 0.0, 0.0)
    assert found.best(2)[0] == 0


def test_nothing_marked_is_nothing_found() -> None:
    codes = Codes.of_dense(np.eye(4, dtype=np.float32))
    for flags in (np.zeros(4, bool), np.ones(4, bool)):
        found = markings(codes, flags)
        assert not found.r.any()
        assert found.best(3) == []


def test_the_best_features_of_every_model_are_found(study: Study) -> None:
    found = find(study, {"equals": "=", "names": r"(\w+) ="}, top=2)
    assert [f.name for f in found.found] == ["equals", "names"]
    equals = found.found[0]
    assert (equals.matches, equals.tokens, dict(equals.by_domain)) == (2, 2, {"english": 1, "lua": 1})
    assert [m.label for m in equals.members] == ["base", "lua", "stories", "merged"]
    first, second = equals.members[0].detectors
    assert (first.latent, first.marking.f1, first.marking.r) == (2, 1.0, pytest.approx(1.0))
    assert (second.latent, second.marking.precision, second.marking.recall) == (3, 1.0, 0.5)
    assert first.along == ()
    assert found.found[1].members[0].detectors[0].latent == 1
    assert [m.label for m in find(study, {"p": "="}, ["lua"]).found[0].members] == ["lua"]


def _outcome(study: Study) -> Outcome:
    """One edge: latent 2 of the base drifted to latent 3 of lua, and lua's latent 2 emerged."""

    def links(status: list[int], best: list[int], r: list[float]) -> Links:
        places = np.array(best, np.int32)
        return Links(
            np.array(status, np.int8),
            places,
            np.array(r, np.float32),
            np.full(5, -1, np.int32),
            np.zeros(5, np.float32),
            np.where(places < 0, np.nan, 0.5).astype(np.float32),
        )

    nothing = {key: {} for key in ("counts", "child_counts", "rates", "curve")}
    edge = EdgeOutcome(
        "base", "lua", "parent", 5, floors=(), null=0.0, null_quantile=0.0, any_match=Rate(1.0),
        firing_weighted=Rate(1.0), hungarian=None, pw_mcc=1.0, same_index=None, cosines=Cosines(None, None, None),
        weight_change=None, verdict="no floor", parents=links([0, 0, 1, 0, 6], [0, 1, 3, 2, -1], [1, 1, 0.7, 0.6, 0]),
        children=links([0, 0, 4, 0, 6], [0, 1, 3, 2, -1], [1, 1, 0.4, 0.7, 0]), **nothing,
    )  # fmt: skip
    universal = Universal(Rate(0.0), (), np.zeros((0, 0), np.int32))
    return Outcome({}, study_hash(study), (), (edge,), (), universal)


def test_detectors_are_followed_along_the_edges(study: Study) -> None:
    found = find(study, {"equals": "="}, ["base", "lua", "merged"], top=1, outcome=_outcome(study))
    base, lua, merged = (member.detectors[0] for member in found.found[0].members)
    (down,), (up,) = base.along, lua.along
    assert (down.side, down.status, down.partner, down.r) == ("parent", "drifted", 3, pytest.approx(0.7))
    assert down.marking is not None
    assert (down.marking.precision, down.marking.recall) == (1.0, 0.5)  # of latent 3, in lua
    assert (up.side, up.status, up.partner, up.cosine) == ("child", "emerged", 3, 0.5)
    assert merged.along == ()


def test_an_outcome_of_another_study_is_refused(study: Study) -> None:
    with pytest.raises(RefusedError, match="the outcome is that of another study; match this one again"):
        find(study, {"p": "="}, outcome=replace(_outcome(study), study="0" * 64))


def test_found_patterns_are_read_back_and_written_alike(study: Study, tmp_path: Path) -> None:
    found = find(study, {"equals": "="}, outcome=_outcome(study))
    write_patterns(tmp_path / "a.json", found)
    write_patterns(tmp_path / "b.json", read_patterns(tmp_path / "a.json"))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert read_patterns(tmp_path / "a.json") == found
    for text in ("{}", '{"format": 2}', '{"format": 1, "study": "", "patterns": [{"name": 1}]}'):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(DamagedInputError, match="these are no found patterns"):
            read_patterns(tmp_path / "a.json")


def test_what_is_found_lies_beside_the_match(study: Study, tmp_path: Path) -> None:
    found = find_all(study, ["equals=="], outcome=_outcome(study), out=tmp_path / "match", top=1)
    assert read_patterns(tmp_path / "match" / "patterns.json") == found
    assert found == find(study, {"equals": "="}, top=1, outcome=_outcome(study))


def test_words_are_read_as_patterns() -> None:
    assert parse_patterns(["a= x=1", "b=^y"]) == {"a": " x=1", "b": "^y"}
    for words, message in (
        (["a"], "'a' is no pattern"),
        (["=a"], "'=a' is no pattern"),
        (["a=x", "a=y"], "two patterns are called 'a'"),
        (["a=(x"], r"'\(x' is no regular expression \(missing \), unterminated subpattern at character 1\)"),
    ):
        with pytest.raises(RecipeError, match=message):
            parse_patterns(words)


def test_a_pattern_that_would_never_end_is_ended() -> None:
    with pytest.raises(ResourceError, match=r"'\(a\+\)\+\$' has not finished after 0.5 s in the pattern 'p'"):
        spans_of("p", "(a+)+$", ["a" * 60 + "b"], seconds=0.5)


def test_hostile_text_goes_through_the_other_process_unchanged() -> None:
    texts = ["\x00\ud800\u2028", "€=\n=€", '"\\']
    assert spans_of("p", "=", texts) == [[], [(1, 2), (3, 4)], []]
    assert spans_of("p", "\u2028", texts)[0] == [(2, 3)]


def test_unknown_members_are_refused(study: Study) -> None:
    with pytest.raises(RecipeError, match="the study has no member 'nobody'; its members are base, lua"):
        find(study, {"p": "="}, ["nobody"])
    with pytest.raises(RecipeError, match="top is 0; give 1 or more"):
        find(study, {"p": "="}, top=0)
