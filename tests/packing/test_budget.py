from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltasmith.codecs.claq import Claq
from deltasmith.codecs.protocol import Cell
from deltasmith.engine.coding import CodingTask
from deltasmith.errors import RefusedError
from deltasmith.packing import budget
from deltasmith.packing.budget import Choice, Option, choose, frontier, hull
from deltasmith.packing.candidates import CANDIDATES, candidates, measure
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES

MARKS = [Claq(bits=bits) for bits in range(1, 9)]


def listed(*pairs: tuple[int, float]) -> list[Option]:
    return [Option(MARKS[i], nbytes, error) for i, (nbytes, error) in enumerate(pairs)]


def best_of(options: Any, room: int) -> float:
    """Try every combination."""
    return min(
        (
            sum(o.squared_error for o in picked)
            for picked in itertools.product(*options.values())
            if sum(o.nbytes for o in picked) <= room
        ),
        default=np.inf,
    )


def checked(options: Any, room: int) -> Choice:
    choice = choose(options, room)
    assert choice.nbytes <= room
    assert set(choice.options) == set(options)
    assert all(choice.options[name] in options[name] for name in options)
    assert np.isclose(choice.squared_error, sum(o.squared_error for o in choice.options.values()))
    assert 0 <= choice.gap <= 1
    return choice


instances = st.dictionaries(
    st.sampled_from("abcd"),
    st.lists(st.tuples(st.integers(1, 60), st.floats(0, 100)), min_size=1, max_size=4).map(
        lambda p: listed(*p)
    ),
    min_size=1,
)


@settings(max_examples=150, deadline=None)
@given(options=instances, room=st.integers(1, 200))
def test_exact_on_small_instances(options: Any, room: int) -> None:
    best = best_of(options, room)
    if best == np.inf:
        with pytest.raises(RefusedError):
            choose(options, room)
        return
    choice = checked(options, room)
    assert np.isclose(choice.squared_error, best, atol=1e-9)
    assert choice.bound <= best + 1e-9


@settings(max_examples=100, deadline=None)
@given(options=instances, room=st.integers(60 * 4, 300))
def test_without_the_grid_the_best_choice_lies_within_the_gap(options: Any, room: int) -> None:
    few = budget._FEW
    budget._FEW = 0
    try:
        choice = checked(options, room)
    finally:
        budget._FEW = few
    best = best_of(options, room)
    assert choice.squared_error * (1 - choice.gap) - 1e-9 <= best <= choice.squared_error + 1e-9


def realistic(tensors: int, seed: int) -> dict[str, list[Option]]:
    random = np.random.default_rng(seed)
    options = {}
    for t in range(tensors):
        size = int(random.choice([4096, 16384, 65536]))
        norm = size * float(np.exp(random.normal()))
        rates = [1, 2, 3, 4, 4.2, 5]
        options[f"t{t}"] = listed(
            *(
                (int(size * b / 8) + 60, norm * float(np.exp(-1.2 * b * random.uniform(0.9, 1.1))))
                for b in rates
            )
        )
    return options


def test_the_gap_closes_with_the_number_of_tensors() -> None:
    gaps = []
    for tensors in (10, 100, 600):
        options = realistic(tensors, tensors)
        low = sum(o[0].nbytes for o in options.values())
        gaps.append(checked(options, int(1.7 * low)).gap)
    assert gaps[0] < 0.1
    assert gaps[1] < 0.002
    assert gaps[2] < 0.0002


def test_more_room_is_never_worse() -> None:
    options = realistic(12, 1)
    low = sum(o[0].nbytes for o in options.values())
    errors = [checked(options, low + extra).squared_error for extra in range(0, 4 * low, low // 3)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == sum(o[0].squared_error for o in options.values())
    assert choose(options, 10**9).squared_error == sum(
        min(p.squared_error for p in o) for o in options.values()
    )
    assert choose(options, 10**9).gap == 0


def test_by_hand() -> None:
    """6 spare bytes: both middle steps (save 5 and 4 for 3 each), or one large one (saves 8 for 6)."""
    options = {"a": listed((1, 10), (4, 5), (7, 2)), "b": listed((1, 8), (4, 4))}
    choice = checked(options, 8)
    assert {name: o.nbytes for name, o in choice.options.items()} == {"a": 4, "b": 4}
    assert choice.bound == choice.squared_error == 9
    assert checked(options, 7).bound == 9 + 4 / 3  # one byte short of b's step
    assert checked(options, 7).squared_error == 13


def test_an_option_inside_the_hull_is_found_when_the_corners_do_not_fit() -> None:
    options = {"a": listed((1, 10), (3, 9), (10, 0)), "b": listed((1, 1))}
    assert checked(options, 5).options["a"].nbytes == 3


@pytest.mark.parametrize("few", [0, 500])
def test_options_on_a_line_are_all_as_good(few: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(budget, "_FEW", few)
    random = np.random.default_rng(2)
    for _ in range(50):
        sizes = np.sort(random.choice(10_000, 6, replace=False)) + 1
        options = {"a": listed(*((int(n), float(0.1 * (10_001 - n))) for n in sizes)), "b": listed((5, 3))}
        for room in (sizes + 5).tolist():
            choice = checked(options, room)
            assert choice.nbytes == room
            assert choice.gap < 1e-12


def test_parts_are_rounded_up() -> None:
    """60,001 bytes to spare are counted in fours: two steps of 30,001 are 15,000.5 of them, and do not fit."""
    options = {name: listed((1, 1), (30_002, 0)) for name in "ab"}
    assert checked(options, 60_003).nbytes == 30_003
    assert checked(options, 60_004).nbytes == 60_004


@pytest.mark.parametrize("few", [0, 500])
def test_never_over_the_budget(few: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(budget, "_FEW", few)
    for seed in range(10):
        options = realistic(6, seed)
        low = sum(o[0].nbytes for o in options.values())
        for room in range(low, 3 * low, low // 7 + 1):
            checked(options, room)


def test_importance_decides_between_equal_errors() -> None:
    options = {"a": listed((1, 10), (2, 0)), "b": listed((1, 10), (2, 0))}
    assert choose(options, 3).options["a"].nbytes == 2
    choice = choose(options, 3, {"a": 0.1})
    assert choice.options["b"].nbytes == 2
    assert choice.options["b"] is options["b"][1]
    assert np.isclose(choice.squared_error, 1)


def test_what_no_other_option_beats() -> None:
    options = listed((5, 1), (3, 4), (4, 4), (3, 4), (9, 1), (1, 20), (4, 3.5))
    front = frontier(options)
    assert [(o.nbytes, o.squared_error) for o in front] == [(1, 20), (3, 4), (4, 3.5), (5, 1)]
    assert front[1].codec == MARKS[1]
    assert hull(front) == [0, 1, 3]


def test_a_budget_too_small_names_the_smallest() -> None:
    options = {"a": listed((1000, 1)), "b": listed((2345, 1), (9999, 0))}
    with pytest.raises(RefusedError) as caught:
        choose(options, 3344)
    assert str(caught.value) == (
        "the budget of 3,344 bytes cannot be met in pack; the smallest possible is 3,345 bytes"
    )
    assert caught.value.exit_code == 1
    assert choose(options, 3345).nbytes == 3345
    assert choose({}, 0).nbytes == 0


def test_measured_is_what_would_be_stored() -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal((64, 48)).astype(np.float32)
    cell = Cell(Spec("w", (64, 48), DTYPES["float32"]), Spec("w", (64, 48), DTYPES["float32"]))
    flat = values.reshape(-1)

    class Values:
        def __init__(self, domain: str) -> None:
            self.stored = domain == "stored"

        def read(self, start: int, stop: int) -> Any:
            if self.stored:
                return flat[start:stop].view(np.uint32), np.zeros(stop - start, np.uint32)
            return flat[start:stop], None

    for codec in candidates(cell, ["claq:bits=3", "bitdelta", "sparse", "lossless", "claq:of=weight"]):
        option = measure(CodingTask(cell, codec, Values(codec.domain)))
        predicted = np.zeros(flat.size, np.uint32)
        stored = values.view(np.uint32) if codec.domain == "stored" else values
        arrays = codec.encode(stored, cell, predicted)
        exact = sum(a.nbytes for a in arrays.values())
        assert exact < option.nbytes < exact + 1200
        again = codec.decode(arrays, cell, predicted)
        if codec.domain == "stored":
            assert option.squared_error == 0
        else:
            assert np.isclose(
                option.squared_error, np.square(again.astype(np.float64) - values).sum(), rtol=1e-4
            )


def test_candidates_are_codecs_that_can_code_the_tensor() -> None:
    matrix = Spec("model.layers.0.q_proj.weight", (64, 48), DTYPES["bfloat16"])
    assert len(candidates(Cell(matrix, matrix))) == len(CANDIDATES)
    without = candidates(Cell(matrix))
    assert without
    assert all(codec.domain != "delta" for codec in without)
    vector = Spec("norm.weight", (64,), DTYPES["bfloat16"])
    assert not any(isinstance(codec, Claq) for codec in candidates(Cell(vector, vector)))
    numbers = Spec("position_ids", (64,), DTYPES["int64"])
    assert all(codec.bound == 0 for codec in candidates(Cell(numbers, numbers)))
