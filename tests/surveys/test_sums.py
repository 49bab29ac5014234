from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from deltasmith.operation.protocols import Place
from deltasmith.surveys import select
from deltasmith.surveys.sums import Bounds, Counts, PerModel, Sums, Together, chain, per_model, together

A = [np.array([1.0, -4.0, 2.0], np.float32)]
B = [np.array([0.5], np.float32)]


def run(survey: Any, blocks: Sequence[tuple[str, int, list[Any]]], workers: int = 2) -> Any:
    accs = [survey.start() for _ in range(workers)]
    for n, (name, start, cells) in enumerate(blocks):
        survey.tally(accs[n % workers], cells, Place(name, (100,), start=start))
    return survey.conclude(accs)


def test_sums_do_not_depend_on_the_order_of_blocks() -> None:
    rng = np.random.default_rng(0)
    blocks = [(name, i * 10, [rng.normal(size=10).astype(np.float32)]) for name in "ba" for i in range(3)]
    survey = Sums(lambda cells, place: [cells[0].astype(np.float64).sum()])
    found = [run(survey, order, workers=3).whole for order in itertools.permutations(blocks)]
    assert len({x.tobytes() for x in found}) == 1
    in_order = sorted(blocks, key=lambda b: (b[0], b[1]))
    parts = [b[2][0].astype(np.float64).sum() for b in in_order]
    assert found[0][0] == (parts[0] + parts[1] + parts[2]) + (parts[3] + parts[4] + parts[5])


def test_sums_are_kept_per_tensor_and_empty_models_have_none() -> None:
    survey = Sums(lambda cells, place: [cells[0].sum(), cells[0].size])
    found = run(survey, [("b", 0, B), ("a", 0, A)])
    assert list(found.by_tensor) == ["a", "b"]
    assert found.by_tensor["a"].tolist() == [-1.0, 3.0]
    assert found.whole.tolist() == [-0.5, 4.0]
    assert run(survey, []).whole is None


def test_totals_do_not_share_memory_with_their_parts() -> None:
    found = run(Sums(lambda cells, place: [1.0]), [("a", 0, A)])
    found.whole[0] = 99
    assert found.by_tensor["a"][0] == 1.0


def test_counts_and_bounds() -> None:
    blocks = [("a", 0, A), ("b", 0, B)]
    assert run(Counts(lambda cells, place: int((cells[0] > 0).sum())), blocks) == 3
    bounds = Bounds(lambda cells, place: cells[0])
    assert run(bounds, blocks) == (-4.0, 2.0)
    assert run(bounds, []) == (0.0, 0.0)
    assert run(bounds, [("a", 0, [np.empty(0, np.float32)])]) == (0.0, 0.0)
    assert run(bounds, [("b", 0, B)]) == (0.5, 0.5)


def test_together_runs_every_part_on_every_block() -> None:
    parts = {
        "n": Counts(lambda cells, place: cells[0].size, scope="tensor"),
        "s": Sums(lambda cells, place: [cells[0].sum()], scope="tensor"),
    }
    survey = Together(parts)
    assert survey.scope == "tensor"
    assert survey.sample == 0
    found = run(survey, [("a", 0, A), ("a", 3, B)])
    assert found["n"] == 4
    assert found["s"].whole[0] == -0.5


def test_chains_advance_together_and_end_separately() -> None:
    def counted(rounds: int) -> Any:
        return lambda own: None if len(own) == rounds else Counts(lambda cells, place: len(own))

    chains = {"one": counted(1), "three": counted(3)}
    findings: list[Any] = []
    while survey := together(findings, chains):
        findings.append(run(survey, [("a", 0, A)]))
    assert [sorted(found) for found in findings] == [["one", "three"], ["three"], ["three"]]
    assert chain(findings, "three") == (0, 1, 2)
    assert together([], {}) is None


def test_sampling_chains_go_first_and_alone() -> None:
    chains = {
        "cut": lambda own: select.next_survey(own, scope="global", keep=lambda n: 2),
        "count": lambda own: None if own else Counts(lambda cells, place: 1),
    }
    first = together([], chains)
    assert isinstance(first, Together)
    assert list(first.parts) == ["cut"]
    assert first.sample > 0
    second = together([run(first, [("a", 0, A)], workers=1)], chains)
    assert isinstance(second, Together)
    assert second.sample == 0
    assert "count" in second.parts


def test_per_model_learns_the_number_of_models_from_the_first_pass() -> None:
    def step(i: int, own: Sequence[Any]) -> Any:
        return None if len(own) > i % 2 else Counts(lambda cells, place: int(cells[i].sum()) + len(own))

    cells = [np.array([10.0 * i], np.float32) for i in range(3)]
    findings: list[Any] = []
    while survey := per_model(findings, step):
        findings.append(run(survey, [("a", 0, cells), ("b", 0, cells)]))
    assert findings == [{0: 0, 1: 20, 2: 40}, {1: 22}]


def test_per_model_of_an_empty_table_ends() -> None:
    survey = per_model([], lambda i, own: Counts(lambda cells, place: 1))
    assert isinstance(survey, PerModel)
    assert survey.scope == "global"
    found = run(survey, [])
    assert found == {}
    assert per_model([found], lambda i, own: Counts(lambda cells, place: 1)) is None
