"""DELLA's table: an equal budget for every line, and a choice that is the best of what was tried."""

from __future__ import annotations

import pytest
from bench_tools import bundled

from deltasmith.lab.experiments import merges
from deltasmith.lab.experiments.merges import BUDGET, LINES, SCALES


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.name)
def test_every_line_may_try_equally_many_recipes(line: merges.Line) -> None:
    assert len(line.trials) == BUDGET
    assert len({str(trial) for trial in line.trials}) == BUDGET
    scales = [trial["scale"] for trial in line.trials]
    assert (min(scales), max(scales)) == (SCALES[0], SCALES[-1])
    assert line.default["scale"] == 1.0


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.name)
def test_every_line_merges(line: merges.Line) -> None:
    bench = bundled(test=2)
    rows = list(merges._rows(bench, line, ("math", "code"), "default", line.default, {}))
    assert len(rows) == 2 * (merges.MASK_SEEDS if line.random else 1)
    assert {row.keys["models"] for row in rows} == {"math+code"}


def test_the_best_on_validation_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merges, "FINE", (0.06, 0.3, 0.7, 1.2, 2.0))
    line = merges.Line("ta", ({"merge": "sum"},))
    bench = bundled(validation=6)
    best = merges.tune(bench, line, ("math", "code"))
    tried = {
        fields["scale"]: bench.mean(
            merges._model(bench, ("math", "code"), fields, 0), ("math", "code"), "validation"
        )
        for fields in line.trials
    }
    assert best.value == max(tried.values()) == tried[best.fields["scale"]]
    assert not best.at_edge


def test_an_optimum_at_the_end_of_the_grid_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merges, "FINE", (0.06, 1.0))
    nothing = merges.Line("none", ({"merge": "sum", "edit": {"amplify": {"factor": 0}}},))
    # Without any delta all trials are the base and tie, and the first wins, which is an end.
    assert merges.tune(bundled(validation=1), nothing, ("code",)).at_edge
