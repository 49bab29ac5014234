"""Comparisons: pairing, verdicts, Holm over the table, averages, forgetting, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from deltasmith.errors import DamagedInputError, RecipeError, RefusedError
from deltasmith.evaluate.compare import compare
from deltasmith.evaluate.statistics import Difference, holm, paired_difference
from deltasmith.evaluate.verdicts import judge
from evaluations import answered, evaluation, right

FAST = {"resamples": 1000}


def three(a, b, c, of=100):
    return {"math": right(a, of), "code": right(b, of), "ins": right(c, of)}


def verdicts(found, model):
    rows = [*found.rows, *([found.average] if found.average else [])]
    return {row.name: row.versus[model] and row.versus[model].verdict for row in rows}


def test_scores_differences_and_verdicts():
    found = compare([evaluation("a", three(50, 80, 20)), evaluation("b", three(70, 80, 22))], **FAST)
    assert [row.name for row in found.rows] == ["math", "code", "ins"]
    math_row = found.rows[0]
    assert [score.value for score in math_row.scores] == [0.5, 0.7]
    assert math_row.versus[0] is None
    assert math_row.versus[1].estimate == pytest.approx(0.2)
    assert math_row.versus[1].p_value == pytest.approx(2**-19)  # twenty questions, all one way
    assert verdicts(found, 1) == {"math": "better", "code": "tie", "ins": "tie", "average": "better"}
    assert found.average.scores[1].value == pytest.approx((0.7 + 0.8 + 0.22) / 3)
    assert found.worst == (("ins", 0.2), ("ins", 0.22))


def test_the_reference_is_what_the_others_are_compared_with():
    pair = [evaluation("a", three(50, 80, 20)), evaluation("b", three(70, 80, 22))]
    found = compare(pair, reference=1, **FAST)
    assert found.rows[0].versus[1] is None
    assert verdicts(found, 0) == {"math": "worse", "code": "tie", "ins": "tie", "average": "worse"}


def test_holm_spans_the_whole_table():
    models = [evaluation("a", three(50, 80, 20)), evaluation("b", three(56, 60, 20))]
    models += [evaluation("c", three(60, 81, 33))]
    found = compare(models, **FAST)
    table = [v for row in (*found.rows, found.average) for v in row.versus if v is not None]
    assert len(table) == 8
    assert [v.adjusted for v in table] == holm([v.p_value for v in table])
    # Six questions, all one way: p = 1/32 alone, which does not survive the others.
    assert found.rows[0].versus[1].p_value == pytest.approx(2**-5)
    assert found.rows[0].versus[1].interval[0] > 0
    assert found.rows[0].versus[1].verdict == "tie"


@pytest.mark.parametrize(
    ("interval", "p", "up", "verdict"),
    [
        ((0.01, 0.2), 0.01, True, "better"),
        ((0.01, 0.2), 0.01, False, "worse"),
        ((-0.2, -0.01), 0.01, True, "worse"),
        ((-0.2, -0.01), 0.01, False, "better"),
        ((0.0, 0.2), 0.01, True, "tie"),
        ((-0.01, 0.2), 0.01, True, "tie"),
        ((0.01, 0.2), 0.05, True, "tie"),
        ((0.01, 0.2), 0.0499, True, "better"),
        ((math.nan, math.nan), 0.01, True, "tie"),
    ],
)
def test_a_verdict_needs_interval_and_p(interval, p, up, verdict):
    (((versus),),) = judge([[Difference(0.1, interval, p)]], [up], 0.95)
    assert versus.verdict == verdict


def test_items_are_paired_by_id_not_by_place():
    ids = [f"q{n}" for n in range(100)]
    one = right(50)
    other = answered([0.0] * 50 + [1.0] * 50, ids=ids[::-1])  # the same questions right
    row = compare([evaluation("a", {"t": one}), evaluation("b", {"t": other})], **FAST).rows[0]
    assert row.versus[1].p_value == 1.0
    assert row.versus[1].interval[1] < 0.05  # paired by place, a hundred questions would differ


def test_perplexities_stand_apart_and_lower_is_better():
    losses = [1.0 + 0.01 * n for n in range(60)]
    text = answered(losses, average="perplexity")
    lower = answered([x - 0.2 - 0.001 * (n % 7) for n, x in enumerate(losses)], average="perplexity")
    found = compare(
        [evaluation("a", {"t": right(50), "text": text}), evaluation("b", {"t": right(50), "text": lower})],
        **FAST,
    )
    assert found.average is None
    assert found.averaged == ("t",)
    assert verdicts(found, 1) == {"t": "tie", "text": "better"}
    assert found.rows[1].scores[0].value == pytest.approx(math.exp(sum(losses) / 60))


def test_forgetting_is_a_difference_or_a_ratio():
    losses = [1.0 + 0.01 * n for n in range(60)]
    worse = [x + 0.1 + 0.001 * (n % 7) for n, x in enumerate(losses)]
    base = evaluation(
        "base", {"t": right(60), "u": right(10), "text": answered(losses, average="perplexity")}
    )
    model = {"t": right(30), "u": right(60), "text": answered(worse, average="perplexity")}
    found = compare([evaluation("m", model), base], base, **FAST)
    t, u, text = found.forgetting
    assert (t.kind, t.base, t.versus[0].estimate) == ("difference", 0.6, pytest.approx(-0.3))
    assert [one.versus[0].verdict for one in (t, u, text)] == ["worse", "better", "worse"]
    assert text.kind == "ratio"
    ratio = math.exp(sum(b - a for a, b in zip(losses, worse, strict=True)) / 60)
    assert text.versus[0].estimate == pytest.approx(ratio)
    assert text.versus[0].interval[0] < ratio < text.versus[0].interval[1]
    assert all(one.versus[1] is None for one in found.forgetting)  # the base itself
    raw = paired_difference([1.0] * 30 + [0.0] * 70, [1.0] * 60 + [0.0] * 40, [1.0] * 100, "mean", **FAST)
    assert t.versus[0].p_value == raw.p_value


def test_normalised_by_experts():
    experts = {"math": evaluation("em", {"math": right(80)}), "code": evaluation("ec", {"code": right(90)})}
    found = compare([evaluation("a", three(40, 45, 20))], experts=experts, **FAST)
    assert found.normalised[0].shares == {"math": 0.5, "code": 0.5}
    assert found.normalised[0].mean == 0.5
    assert any("leaves out ins" in note for note in found.notes)
    nothing = compare([evaluation("a", {"t": right(4)})], experts={"t": evaluation("e", {"t": right(0)})})
    assert math.isnan(nothing.normalised[0].mean)
    with pytest.raises(RefusedError, match="no expert's score can be used for poems"):
        compare([evaluation("a", three(1, 2, 3))], experts={"poems": evaluation("e", {})})


def test_one_evaluation_is_enough():
    found = compare([evaluation("a", three(1, 2, 3))], **FAST)
    assert found.rows[0].versus == (None,)
    assert found.notes == ()


# ---- what cannot be compared


def test_everything_that_differs_is_refused_at_once():
    a = {"x": right(1), "y": right(1), "z": right(1), "w": right(1)}
    b = {
        "x": right(1, digest="other"),
        "y": answered([1.0] * 100, ids=[f"r{n}" for n in range(100)]),
        "z": answered([0.5] * 100, average="perplexity"),
        "w": answered([1.0] * 100, weights=[2.0] * 100),
    }
    with pytest.raises(RefusedError) as caught:
        compare([evaluation("a", a), evaluation("b", b)])
    text = str(caught.value)
    for task, words in {
        "x": "digests differ",
        "y": "different questions",
        "z": "scored differently",
        "w": "tokenizers",
    }.items():
        assert f"task {task}: b and a" in text
        assert words in text


def test_incomplete_results_need_partial():
    whole, part = right(50), right(30, of=60, asked=100)
    pair = [evaluation("a", {"t": whole}), evaluation("b", {"t": part})]
    with pytest.raises(RefusedError, match=r"t of b is incomplete.*--partial"):
        compare(pair)
    found = compare(pair, partial=True, **FAST)
    assert (found.rows[0].items, found.rows[0].asked) == (60, 100)
    assert found.rows[0].scores[0].value == pytest.approx(50 / 60)
    assert any("60 of 100 questions" in note for note in found.notes)
    apart = answered([1.0] * 3, ids=["x", "y", "z"], asked=100)
    with pytest.raises(RefusedError, match="no question that all have answered"):
        compare([evaluation("a", {"t": whole}), evaluation("b", {"t": apart})], partial=True)


def test_tasks_are_left_out_aloud():
    pair = [evaluation("a", {"t": right(5), "u": right(5)}), evaluation("b", {"t": right(5), "v": right(5)})]
    found = compare(pair, evaluation("base", {"v": right(1)}), **FAST)
    assert [row.name for row in found.rows] == ["t"]
    assert any("u is left out: there is no result of b" in note for note in found.notes)
    assert any("v is left out: there is no result of a" in note for note in found.notes)
    assert any("forgetting is not known for t" in note for note in found.notes)
    with pytest.raises(RefusedError, match="no task is in all 2 results"):
        compare([pair[0], evaluation("c", {"w": right(1)})])


@pytest.mark.parametrize(
    "task",
    [
        answered([math.nan, 1.0]),
        answered([1.0, 1.0], weights=[1.0, -1.0]),
        answered([1.0, 1.0], weights=[0.0, 0.0]),
        answered([800.0, 1.0], average="perplexity"),
    ],
)
def test_numbers_that_are_none_are_damage(task):
    with pytest.raises(DamagedInputError, match="not finite"):
        compare([evaluation("a", {"t": task})])


def test_bad_requests():
    one = [evaluation("a", {"t": right(5)})]
    for options in ({"reference": 1}, {"reference": -1}, {"level": 1.0}, {"resamples": 0}):
        with pytest.raises(RecipeError):
            compare(one, **options)
    with pytest.raises(RecipeError, match="nothing to compare"):
        compare([])


# ---- what is noted, and what is written


def test_a_reader_is_warned():
    a = evaluation("a", {"t": answered([2.0], average="perplexity")})
    b = dataclasses.replace(a, model="b", runtime="torch")
    found = compare([a, b], **FAST)
    text = " ".join(found.notes)
    assert "run by different means: numpy; torch" in text
    assert "b and a are the same model" in text
    assert "no interval" in text
    assert found.rows[0].versus[1].verdict == "tie"
    few = compare([evaluation("a", three(5, 5, 5)), evaluation("b", three(9, 5, 5))], resamples=100)
    assert any("100 resamples are too few" in note for note in few.notes)


def test_names_are_told_apart():
    same = [evaluation("m", {"t": right(n)}, fingerprint=str(n)) for n in (1, 2, 3)]
    assert compare(same, **FAST).models == ("m", "m (2)", "m (3)")
    assert compare(same, names=["x", "y", "z"], **FAST).models == ("x", "y", "z")


def test_json_is_plain_and_the_same_again():
    pair = [
        evaluation("a", {"t": answered([0.5]), "u": right(3)}),
        evaluation("b", {"t": answered([0.5]), "u": right(9)}),
    ]

    def document():
        found = compare(pair, pair[0], experts={"u": pair[1]}, **FAST)
        return json.dumps(found.as_json(), allow_nan=False)

    told = json.loads(document())
    assert document() == json.dumps(told)
    assert told["tasks"]["t"]["models"]["a"]["interval"] is None
    assert told["tasks"]["u"]["models"]["b"]["difference"]["verdict"] in ("tie", "better")
    assert told["reference"] == "a"
    assert told["average"]["tasks"] == ["t", "u"]
    assert told["forgetting"]["u"]["models"] == {"a": None, "b": told["forgetting"]["u"]["models"]["b"]}
    assert told["normalised"]["a"]["mean"] == pytest.approx(1 / 3)
