"""What every edit and every merge must do, whatever else it does: one check per promise.

A test file parametrises over its examples and over `EDIT_CHECKS` or `MERGE_CHECKS`:

    @pytest.mark.parametrize("check", MERGE_CHECKS, ids=name_of)
    @pytest.mark.parametrize("merge", MERGE_EXAMPLES, ids=repr)
    def test_contract(merge, check):
        check(merge)                                  # or check(MergeCase(merge, models=2, ...))
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from deltasmith.edits.amplify import Amplify
from deltasmith.edits.amplify_partitions import AmplifyPartitions, AmplifyPartitionsEverywhere
from deltasmith.edits.drop import Drop, DropMatchL1, DropUnscaled
from deltasmith.edits.drop_biased import BiasByGradient, BiasBySign
from deltasmith.edits.drop_by_rank import DropByRank, DropByRankInclusive, DropByRankMatchL1
from deltasmith.edits.drop_partly import DropPartly
from deltasmith.edits.dynamic_prune import DynamicPrune, DynamicPruneAbove
from deltasmith.edits.keep_largest import KeepAtLeast, KeepLargest, KeepLargestInTensor
from deltasmith.edits.keep_middle import KeepMiddleOfRow, KeepMiddleOfTensor
from deltasmith.edits.quantise import Quantise
from deltasmith.operation.protocols import BLOCK, Edit, Found, Merge, Place, block_of
from deltasmith.operation.record import Record
from deltasmith.operation.reference import blocks, edit_table, merge_table, shaped
from deltasmith.operation.schedule import Choice, Curve, PerTensor

Floats = np.ndarray
Table = dict[str, Floats]
Shapes = Mapping[str, tuple[int, ...]]

EDIT_EXAMPLES: list[Edit] = [
    Amplify(factor=1.5),
    Amplify(factor=-0.25),
    Drop(density=0.3),
    Drop(density=1.0),
    DropUnscaled(density=0.5),
    DropMatchL1(density=0.4),
    DropPartly(density=0.3, k=0.5),
    DropPartly(density=0.6, k=-1.0),
    BiasBySign(density=0.5, k=0.7),
    BiasByGradient(density=0.5, k=0.7),
    DropByRank(density=0.5),
    DropByRank(density=0.7, window=0.14),
    DropByRankInclusive(density=0.4, window=0.2),
    DropByRankMatchL1(density=0.4, epsilon=0.1),
    KeepLargest(density=0.2),
    KeepAtLeast(density=0.2),
    KeepAtLeast(density=1.0),
    KeepLargestInTensor(density=0.35),
    KeepMiddleOfRow(density=0.5, gamma=0.1),
    KeepMiddleOfTensor(density=0.4, gamma=0.05),
    KeepMiddleOfTensor(density=1.0, gamma=0.05),
    DynamicPrune(density=0.2),
    DynamicPruneAbove(density=0.1, linears=("*.w?.weight",)),
    AmplifyPartitions(densities=(0.1, 0.2), factors=(1.8, 1.0)),
    AmplifyPartitions(densities=(0.05, 0.2, 0.5), factors=(1.0, 2.0, 0.5)),
    AmplifyPartitionsEverywhere(factors=(1.2, 1.4)),
    Quantise(codec="bitdelta:zero=zero"),
    Quantise(codec="bitdelta_random:zero=zero"),
    Quantise(codec="magnitude_blocks:blocks=5"),
    Quantise(codec="residual_bits:passes=2"),
    Quantise(codec="low_rank:rank=2"),
    Quantise(codec="sparse"),
    Quantise(codec="claq:bits=2"),
    Quantise(codec="zero"),
]

SIZES = (0, 1, 2, 63, 64, 65)

SHAPES: dict[str, tuple[int, ...]] = {
    "model.scalar": (),
    "model.embed.weight": (5, 7),
    "model.layers.0.self_attn.q_proj.weight": (16, 24),
    "model.layers.0.mlp.up_proj.weight": (24, 16),
    "model.layers.0.mlp.experts.w1.weight": (3, 4, 6),
    "model.layers.1.self_attn.q_proj.weight": (16, 24),
    "model.layers.1.mlp.w1.weight": (6, 4),
    "model.layers.1.conv.weight": (4, 3, 2, 2),
    "model.layers.1.cube.weight": (4, 3, 2),
    "model.layers.1.empty_proj.weight": (0, 3),
    "model.column.weight": (9, 1),
    **{f"model.vector{n}.weight": (n,) for n in SIZES},
}

# More than two survey blocks, as one row and as many rows that no block divides.
LONG: dict[str, tuple[int, ...]] = {
    "model.layers.0.mlp.down_proj.weight": (700, 257),
    "model.layers.1.mlp.down_proj.weight": (257, 300),
    "model.long.weight": (2 * BLOCK + 17,),
}


def drawn_table(seed: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES, coarse: bool = False) -> Table:
    """Draw a table of float32; `coarse` rounds to few values, so that there are many ties and zeros."""
    rng = np.random.default_rng(seed)
    table = {n: np.asarray(rng.standard_t(4, size=s) * 1e-2, np.float32) for n, s in shapes.items()}
    if coarse:
        table = {n: (np.round(a * 200) / 200).astype(np.float32) for n, a in table.items()}
    return table


def name_of(item: Any) -> str:
    """Name a check in a test id."""
    return item.__name__


def key_of(name: str) -> int:
    """Give each tensor a key of 64 bits."""
    return xxhash.xxh3_64_intdigest(name.encode())


def _same(got: Mapping[str, Floats], expected: Mapping[str, Floats]) -> None:
    assert set(got) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)


def _names_for(record: Record) -> dict[str, Any]:
    """Return the names that a record's repr may use: its own module's, and the schedules'."""
    module = importlib.import_module(type(record).__module__)
    return {**vars(module), "Choice": Choice, "Curve": Curve, "PerTensor": PerTensor}


def check_repr_builds_the_record(case: Edit | Merge | MergeCase) -> None:
    record = _record(case)
    assert eval(repr(record), _names_for(record)) == record


def check_json_round_trip(case: Edit | Merge | MergeCase) -> None:
    record = _record(case)
    assert type(record).model_validate_json(record.model_dump_json()) == record


def check_documented(case: Edit | Merge | MergeCase) -> None:
    """Every record has its own docstring, and every field a description."""
    record = type(_record(case))
    assert len(inspect.cleandoc(record.__doc__ or "").split("\n\n")) >= 2, "one sentence is not enough"
    for name, field in record.model_fields.items():
        assert field.description, f"{record.__name__}.{name} has no description"


RECORD_CHECKS = [check_repr_builds_the_record, check_json_round_trip, check_documented]


def _surveyed_by_two(
    operation: Edit | Merge, rows: Mapping[str, Sequence[Floats]], place: Callable[[str, int, int], Place]
) -> dict[str, Found]:
    """Survey with two workers that take blocks in turn, backwards: no conclusion may notice."""

    def run(names: Sequence[str], found: Found) -> Any:
        survey = operation.survey(found)
        assert survey is not None
        accs = [survey.start(), survey.start()]
        pieces = [(n, b) for n in names for b in blocks(operation.reach, n, rows[n][0].shape)]
        for turn, (name, (start, stop)) in enumerate(reversed(pieces)):
            cells = [cell.reshape(-1)[start:stop] for cell in rows[name]]
            survey.tally(accs[turn % 2], cells, place(name, start, stop))
        return survey.conclude(accs)

    names, shared = sorted(rows), Found()
    while (asked := operation.survey(shared)) is not None and asked.scope == "global":
        shared = Found((*shared.shared, run(names, shared)))
    found = dict.fromkeys(names, shared)
    for name in names:
        while operation.survey(found[name]) is not None:
            found[name] = Found(shared.shared, (*found[name].local, run([name], found[name])))
    return found


def edit_by_tiles(edit: Edit, table: Table) -> Table:
    """Run an edit as the engine does: surveys by two workers, `apply` on one block at a time."""

    read = statistics_for(edit, table)

    def place(name: str, start: int = 0, stop: int = 0) -> Place:
        shape = table[name].shape

        def statistics(i: int, suffix: str) -> Floats:
            assert (i, suffix) == (0, "")
            assert read is not None
            return read[name] if edit.reach == "tensor" else read[name].reshape(-1)[start:stop]

        block, lookup = block_of(edit.reach, name, shape), statistics if read else None
        return Place(name, shape, start, block=block, key=key_of(name), statistics=lookup)

    found = _surveyed_by_two(edit, {n: [d] for n, d in table.items()}, place)
    out = {}
    for name, delta in table.items():
        flat, edited = delta.reshape(-1), np.empty(delta.size, np.float32)
        for start, stop in blocks(edit.reach, name, delta.shape):
            tile = shaped(edit.reach, name, delta.shape, flat[start:stop])
            edited[start:stop] = edit.apply(tile, place(name, start, stop), found[name]).reshape(-1)
        out[name] = edited.reshape(delta.shape)
    return out


def statistics_for(edit: Edit, table: Table) -> Table | None:
    """Draw a gradient for every tensor, where the edit reads one."""
    if not edit.statistics:
        return None
    return drawn_table(99, {name: delta.shape for name, delta in table.items()})


def _edit(edit: Edit, table: Table) -> Table:
    return edit_table(edit, table, key=key_of, statistics=statistics_for(edit, table))


def check_edit_leaves_its_input_alone(edit: Edit) -> None:
    table = drawn_table(1)
    before = {n: d.copy() for n, d in table.items()}
    after = _edit(edit, table)
    _same(table, before)
    assert not any(np.shares_memory(after[n], table[n]) for n in table), "the result is a view of the input"


def check_edit_keeps_shapes_and_dtype(edit: Edit) -> None:
    table = drawn_table(2)
    edited = _edit(edit, table)
    assert {n: a.shape for n, a in edited.items()} == {n: a.shape for n, a in table.items()}
    assert {a.dtype.name for a in edited.values()} == {"float32"}
    assert all(np.isfinite(a).all() for a in edited.values())


def check_edit_is_repeatable(edit: Edit) -> None:
    table = drawn_table(3)
    _same(_edit(edit, table), _edit(edit, table))


def check_edit_maps_zero_to_zero(edit: Edit) -> None:
    zeros = {n: np.zeros_like(a) for n, a in drawn_table(4).items()}
    assert not any(a.any() for a in _edit(edit, zeros).values())


def check_edit_of_a_single_tensor(edit: Edit) -> None:
    for name, delta in drawn_table(5).items():
        edited = _edit(edit, {name: delta})[name]
        assert edited.shape == delta.shape
        assert np.isfinite(edited).all()


def check_edit_of_strided_input(edit: Edit) -> None:
    table = {n: a for n, a in drawn_table(6).items() if a.ndim >= 1}
    strided = {n: np.repeat(a, 2, axis=-1)[..., ::2] for n, a in table.items()}
    assert any(not a.flags.c_contiguous for a in strided.values())
    _same(_edit(edit, strided), _edit(edit, table))


def check_edit_by_tiles_is_the_whole(edit: Edit) -> None:
    for coarse in (False, True):
        table = drawn_table(7, {**SHAPES, **LONG}, coarse)
        _same(edit_by_tiles(edit, table), _edit(edit, table))


EDIT_CHECKS: list[Callable[[Any], None]] = [
    check_edit_leaves_its_input_alone,
    check_edit_keeps_shapes_and_dtype,
    check_edit_is_repeatable,
    check_edit_maps_zero_to_zero,
    check_edit_of_a_single_tensor,
    check_edit_of_strided_input,
    check_edit_by_tiles_is_the_whole,
    *RECORD_CHECKS,
]


@dataclass(frozen=True)
class MergeCase:
    """A merge and what it needs to run: how many models, and statistics if it reads any.

    `statistics(columns)` returns one table per model. `tolerance` relaxes tiles-equal-whole (reach `tensor`).
    """

    merge: Merge
    models: int = 3
    weights: tuple[float, ...] = ()
    statistics: Callable[[Sequence[Table]], Sequence[Table]] | None = None
    tolerance: float = 0.0

    @property
    def weighted(self) -> tuple[float, ...]:
        return self.weights or tuple(1.0 / (1 + i) for i in range(self.models))

    def columns(
        self, seed: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES, coarse: bool = False
    ) -> list[Table]:
        return [drawn_table(100 * seed + i, shapes, coarse) for i in range(self.models)]

    def run(self, columns: Sequence[Table]) -> Table:
        statistics = self.statistics(columns) if self.statistics else None
        return merge_table(self.merge, columns, weights=self.weighted, statistics=statistics)

    def run_by_tiles(self, columns: Sequence[Table]) -> Table:
        """Run as the engine does: surveys by two workers, `apply` on one block at a time."""
        labels = tuple(f"m{i}" for i in range(self.models))
        tables = self.statistics(columns) if self.statistics else None
        reach = self.merge.reach

        def place(name: str, start: int = 0, stop: int | None = None) -> Place:
            shape = columns[0][name].shape

            def statistics(i: int, suffix: str) -> Floats:
                assert tables is not None
                whole = tables[i][name + suffix]
                return (
                    whole if reach == "tensor" else shaped(reach, name, shape, whole.reshape(-1)[start:stop])
                )

            lookup = statistics if tables is not None else None
            block = block_of(reach, name, shape)
            return Place(name, shape, start, block, 0, self.weighted, labels, lookup)

        found = _surveyed_by_two(self.merge, {n: [c[n] for c in columns] for n in columns[0]}, place)
        out = {}
        for name, first in columns[0].items():
            merged = np.empty(first.size, np.float32)
            for start, stop in blocks(reach, name, first.shape):
                cells = [shaped(reach, name, first.shape, c[name].reshape(-1)[start:stop]) for c in columns]
                tile = self.merge.apply(np.stack(cells), place(name, start, stop), found[name])
                merged[start:stop] = tile.reshape(-1)
            out[name] = merged.reshape(first.shape)
        return out


def _case(item: Merge | MergeCase) -> MergeCase:
    return item if isinstance(item, MergeCase) else MergeCase(item)


def _record(item: Edit | Merge | MergeCase) -> Record:
    return item.merge if isinstance(item, MergeCase) else item


def check_merge_leaves_its_input_alone(item: Merge | MergeCase) -> None:
    case = _case(item)
    columns = case.columns(1)
    before = [{n: a.copy() for n, a in c.items()} for c in columns]
    case.run(columns)
    for column, copy in zip(columns, before, strict=True):
        _same(column, copy)


def check_merge_keeps_shapes_and_dtype(item: Merge | MergeCase) -> None:
    case = _case(item)
    columns = case.columns(2)
    merged = case.run(columns)
    assert {n: a.shape for n, a in merged.items()} == {n: a.shape for n, a in columns[0].items()}
    assert {a.dtype.name for a in merged.values()} == {"float32"}
    assert all(np.isfinite(a).all() for a in merged.values())


def check_merge_is_repeatable(item: Merge | MergeCase) -> None:
    case = _case(item)
    columns = case.columns(3)
    _same(case.run(columns), case.run(columns))


def check_merge_maps_zero_to_zero(item: Merge | MergeCase) -> None:
    case = _case(item)
    columns = [{n: np.zeros_like(a) for n, a in c.items()} for c in case.columns(4)]
    assert not any(a.any() for a in case.run(columns).values())


def check_merge_of_a_single_tensor(item: Merge | MergeCase) -> None:
    case = _case(item)
    for name, shape in SHAPES.items():
        merged = case.run(case.columns(5, {name: shape}))[name]
        assert merged.shape == shape, name
        assert np.isfinite(merged).all(), name


def check_merge_of_strided_input(item: Merge | MergeCase) -> None:
    case = _case(item)
    columns = [{n: a for n, a in c.items() if a.ndim >= 1} for c in case.columns(6)]
    strided = [{n: np.repeat(a, 2, axis=-1)[..., ::2] for n, a in c.items()} for c in columns]
    _same(case.run(strided), case.run(columns))


def check_merge_by_tiles_is_the_whole(item: Merge | MergeCase) -> None:
    case = _case(item)
    for coarse in (False, True):
        columns = case.columns(7, {**SHAPES, **LONG}, coarse)
        tiles, whole = case.run_by_tiles(columns), case.run(columns)
        for name in whole:
            np.testing.assert_allclose(
                tiles[name], whole[name], rtol=case.tolerance, atol=case.tolerance, err_msg=name
            )


MERGE_CHECKS: list[Callable[[Any], None]] = [
    check_merge_leaves_its_input_alone,
    check_merge_keeps_shapes_and_dtype,
    check_merge_is_repeatable,
    check_merge_maps_zero_to_zero,
    check_merge_of_a_single_tensor,
    check_merge_of_strided_input,
    check_merge_by_tiles_is_the_whole,
    *RECORD_CHECKS,
]
