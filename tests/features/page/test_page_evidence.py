"""The sentences shown: every model's strongest token, then the quartiles, none twice; and exact correlations."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from deltasmith.features.outcome import Outcome
from deltasmith.features.page.evidence import (
    GROUPS,
    Activity,
    Text,
    Window,
    activities,
    correlation,
    windows,
)
from deltasmith.features.page.tracing import Anchor, Trace, trace
from deltasmith.features.study import HeldOut, Study


@pytest.fixture(scope="module")
def found(study: Study) -> dict[tuple[str, int], Activity]:
    return activities(study, {label: [0, 3, 31] for label in study.graph.by_label})


def test_activities_are_the_columns_of_the_codes(study: Study, found: dict) -> None:
    dense = study.codes("lua").dense()
    one = found["lua", 3]
    assert np.array_equal(one.tokens, np.flatnonzero(dense[:, 3]))
    assert np.array_equal(one.values, dense[one.tokens, 3])
    assert one.maximum == dense[:, 3].max()
    assert sum(one.histogram) == len(one.tokens)
    assert one.histogram[-1] >= 1
    assert found["lua", 31].histogram == [0] * 16  # lost in lua: it never fires there


def test_the_correlation_is_pearsons_over_all_tokens(study: Study, found: dict) -> None:
    base, stories = study.codes("base").dense().astype(float), study.codes("stories").dense().astype(float)
    for one, other in ((3, 3), (3, 0), (31, 31)):
        exact = np.corrcoef(base[:, one], stories[:, other])[0, 1]
        assert correlation(found["base", one], found["stories", other], len(base)) == pytest.approx(
            exact, abs=1e-12
        )
    assert correlation(found["base", 3], found["lua", 31], len(base)) == 0.0


def text_of(sequence: list[int], ids: list[int] | None = None) -> Text:
    count = len(sequence)
    zeros = np.zeros(count, np.int32)
    named = np.arange(count, dtype=np.int32) if ids is None else np.array(ids, np.int32)
    return Text(HeldOut(named, np.array(sequence, np.int32), zeros, zeros))


def test_a_window_stays_within_what_the_model_read_at_once() -> None:
    text = text_of([7] * 30 + [2] * 5)
    assert text.around(0, 0) == Window(0, 9, 0, 0)
    assert text.around(25, 1) == Window(7, 30, 25, 1)
    assert text.around(32, 0) == Window(30, 35, 32, 0)


def activity(tokens: list[int], values: list[float]) -> Activity:
    return Activity(0, np.array(tokens, np.int32), np.array(values, np.float32))


def test_the_strongest_token_of_every_linked_model_is_shown() -> None:
    found = {
        ("a", 0): activity([10, 100, 200], [9.0, 1.0, 1.0]),
        ("b", 0): activity([100, 300], [0.1, 0.4]),
        ("c", 0): activity([500], [1.0]),
    }
    one = Trace(Anchor("a", 0), {"a": 0, "b": 0, "c": 0}, frozenset("ab"))
    shown = windows(one, found, text_of([0] * 600))
    assert [w.peak for w in shown[:2]] == [10, 300]
    assert 500 not in [w.peak for w in shown]


def test_windows_do_not_overlap_and_come_from_every_quartile(
    outcome: Outcome, study: Study, found: dict
) -> None:
    one = trace(outcome, Anchor("base", 3), 0.5)
    shown = windows(one, found, Text(study.held_out))
    spans = sorted((w.start, w.stop) for w in shown)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    assert [w.group for w in shown] == [0] * 5 + [1] * 2 + [2] * 2 + [3] * 2
    assert len(GROUPS) == 4
    strength = {w.peak: max(_relative(found[label, 3], w.peak) for label in one.linked) for w in shown}
    means = [np.mean([strength[w.peak] for w in shown if w.group == group]) for group in range(4)]
    assert means == sorted(means, reverse=True)


def _relative(one: Activity, token: int) -> float:
    at = np.searchsorted(one.tokens, token)
    return float(one.values[at] / one.maximum) if at < len(one.tokens) and one.tokens[at] == token else 0.0


def test_the_same_text_is_shown_once() -> None:
    one = Trace(Anchor("a", 0), {"a": 0}, frozenset("a"))
    copies = activity([10, 50, 90, 130], [4.0, 3.0, 2.0, 1.0])
    ids = [1] * 140
    ids[120:140] = range(20)
    shown = windows(one, {("a", 0): copies}, text_of([0] * 140, ids))
    assert [w.peak for w in shown] == [10, 130]
