"""The streaming engine equals the plain definition, whatever the threads, tiles and budgets."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from deltasmith.edits.amplify import Amplify
from deltasmith.edits.drop import Drop
from deltasmith.edits.drop_by_rank import DropByRank
from deltasmith.edits.keep_largest import KeepLargest, KeepLargestInTensor
from deltasmith.edits.low_rank import LowRank
from deltasmith.engine.evaluator import Evaluator
from deltasmith.engine.memory import budget
from deltasmith.engine.progress import Silent
from deltasmith.engine.run import execute
from deltasmith.engine.workers import Stop
from deltasmith.errors import InterruptedRunError, RefusedError, ResourceError
from deltasmith.merges.elect import Elect
from deltasmith.merges.linear import Linear
from deltasmith.merges.slerp import Slerp
from deltasmith.merges.sum import Sum
from deltasmith.operation.protocols import Edit, Merge
from deltasmith.operation.randomness import cell_key
from deltasmith.operation.reference import edit_table, merge_table
from deltasmith.planning.align import Wishes, align
from deltasmith.planning.plan import Column, EditRule
from deltasmith.table.checkpoint import DictCheckpoint
from tables import SHAPES, MemorySink, family, make_plan, run, table

PIPELINES: list[tuple[tuple[Edit, ...], Merge]] = [
    ((), Sum()),
    ((Drop(density=0.4),), Sum()),
    ((KeepLargest(density=0.2),), Elect(zero="majority")),
    ((KeepLargestInTensor(density=0.3),), Elect(zero="positive")),
    ((DropByRank(density=0.6, window=0.2),), Elect()),
    ((Amplify(factor=2.0), KeepLargest(density=0.5), Drop(density=0.5)), Sum()),
    ((LowRank(density=0.5), KeepLargest(density=0.5)), Sum()),
    ((Drop(density=0.5), KeepLargestInTensor(density=0.4), DropByRank(density=0.9, window=0.1)), Sum()),
]


def expected(base: dict, tunes: list[dict], edits: tuple[Edit, ...], merge: Merge) -> dict:
    """Apply the reference runner edit by edit."""
    columns = []
    for i, tune in enumerate(tunes):
        delta = {n: np.asarray(tune[n] - base[n]) for n in base}
        for position, edit in enumerate(edits):
            delta = edit_table(edit, delta, key=lambda n, i=i, p=position: cell_key(0, f"m{i}", n, stream=p))
        columns.append(delta)
    merged = merge_table(merge, columns)
    return {n: base[n] + merged[n] for n in base}


@pytest.mark.parametrize("tied", [False, True], ids=["continuous", "tied"])
@pytest.mark.parametrize(("edits", "merge"), PIPELINES, ids=lambda x: repr(x)[:60])
def test_engine_equals_reference(edits: tuple[Edit, ...], merge: Merge, tied: bool) -> None:
    base, tunes = family(tied=tied)
    got = run(make_plan(base, tunes, merge, edits)).arrays()
    want = expected(base, tunes, edits, merge)
    for name in SHAPES:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


@pytest.mark.parametrize(("edits", "merge"), PIPELINES, ids=lambda x: repr(x)[:60])
def test_same_bytes_for_any_threads_tiles_and_budget(edits: tuple[Edit, ...], merge: Merge) -> None:
    base, tunes = family(tied=True)
    plan = make_plan(base, tunes, merge, edits)
    first = run(plan)
    for threads, tile, memory in [(2, None, 512 << 20), (16, 1 << 16, 300 << 20), (3, 1 << 19, 2 << 30)]:
        assert run(plan, threads, tile, memory).data == first.data


def test_weight_space_needs_no_base() -> None:
    _, tunes = family(2)
    got = run(make_plan(None, tunes, Linear(), space="weight", weights=(1.0, 3.0))).arrays()
    for name in SHAPES:
        want = (tunes[0][name].astype(np.float64) + 3 * tunes[1][name]) / 4
        np.testing.assert_allclose(got[name], want, rtol=1e-6, atol=1e-7)


def test_edits_in_weight_space_act_on_the_delta() -> None:
    base, tunes = family(1)
    got = run(make_plan(base, tunes, Linear(), (Amplify(factor=0.5),), space="weight")).arrays()
    for name in SHAPES:
        np.testing.assert_allclose(got[name], base[name] + 0.5 * (tunes[0][name] - base[name]), atol=1e-6)


def test_slerp_surveys_each_tensor() -> None:
    _, tunes = family(2)
    got = run(make_plan(None, tunes, Slerp(t=0.3), space="weight"), threads=2).arrays()
    want = merge_table(Slerp(t=0.3), tunes)
    for name in SHAPES:
        np.testing.assert_array_equal(got[name], want[name])


def test_a_plan_is_a_checkpoint() -> None:
    base, tunes = family(3)
    inner = make_plan(base, tunes[:2], Elect(zero="majority"), (KeepLargest(density=0.3),))
    outer_columns = (Column("inner", Evaluator(inner)), Column("m2", DictCheckpoint(tunes[2])))
    outer = align(DictCheckpoint(base), outer_columns, Wishes(Sum(), "delta", scale=0.5))
    in_two_steps = make_plan(base, [run(inner).arrays(), tunes[2]], Sum(), scale=0.5)
    nested, stepped = run(outer, threads=2).arrays(), run(in_two_steps).arrays()
    for name in SHAPES:
        np.testing.assert_array_equal(nested[name], stepped[name])


def test_a_nested_plan_with_surveys_per_tensor_and_whole_matrices() -> None:
    base, tunes = family(2)
    for edit in (KeepLargestInTensor(density=0.3), LowRank(density=0.4)):
        inner = make_plan(base, tunes[:1], Sum(), (edit,))
        outer = align(DictCheckpoint(base), (Column("inner", Evaluator(inner)),), Wishes(Sum(), "delta"))
        stepped = make_plan(base, [run(inner).arrays()], Sum())
        for name, values in run(outer, threads=2).arrays().items():
            np.testing.assert_array_equal(values, run(stepped).arrays()[name])


def test_integers_are_copied_and_other_tensors_cast() -> None:
    base = {
        "a.weight": np.ones((2, 2), np.float32),
        "ids": np.arange(5),
        "b.bias": np.full(3, 2.0, np.float32),
    }
    tune = {
        "a.weight": np.full((2, 2), 3, np.float32),
        "ids": np.zeros(5, np.int64),
        "b.bias": np.zeros(3, np.float32),
    }
    plan = make_plan(base, [tune], Sum(), where="a.*", dtype="float16")
    actions = {row.name: (row.action, row.spec.dtype.name) for row in plan.rows}
    assert actions == {
        "a.weight": ("merge", "float16"),
        "ids": ("copy", "int64"),
        "b.bias": ("cast", "float16"),
    }
    sink = run(plan)
    assert np.frombuffer(sink.data["ids"], np.int64).tolist() == [0, 1, 2, 3, 4]
    assert np.frombuffer(sink.data["b.bias"], np.float16).tolist() == [2, 2, 2]
    assert np.frombuffer(sink.data["a.weight"], np.float16).tolist() == [3, 3, 3, 3]


def test_fault_45_a_nan_is_refused_by_name() -> None:
    base, tunes = family(2)
    tunes[1]["model.layers.1.norm.weight"][7] = np.nan
    with pytest.raises(RefusedError, match=r"element 7 in model\.layers\.1\.norm\.weight of m1") as caught:
        run(make_plan(base, tunes, Sum()))
    assert caught.value.exit_code == 1
    zeroed = run(make_plan(base, tunes, Sum(), nonfinite="zero")).arrays()
    assert np.isfinite(zeroed["model.layers.1.norm.weight"]).all()
    kept = run(make_plan(base, tunes, Sum(), nonfinite="keep")).arrays()
    assert np.isnan(kept["model.layers.1.norm.weight"][7])


def test_fault_46_overflow_on_the_last_cast_is_refused_by_name() -> None:
    base, tunes = family(1)
    tunes[0]["model.one"][0] = 1e5
    with pytest.raises(RefusedError, match=r"do not fit float16.* in model\.one.*bfloat16"):
        run(make_plan(base, tunes, Sum(), dtype="float16"))


def test_fault_58_a_matrix_beyond_the_budget_is_refused_in_the_plan() -> None:
    shapes = {"layers.0.big.weight": (4096, 4096)}
    base = table(0, shapes=shapes)
    plan = make_plan(base, [base], Sum(), (LowRank(density=0.5),))
    with pytest.raises(ResourceError, match=r"layers\.0\.big\.weight; give --memory \d+M") as caught:
        budget(plan, 512 << 20, 2)
    assert caught.value.exit_code == 4
    needed = int(str(caught.value).split("--memory ")[1].split("M")[0]) << 20
    assert budget(plan, needed, 2).matrices == 1


def test_resuming_skips_finished_tensors() -> None:
    base, tunes = family(2)
    plan = make_plan(base, tunes, Sum())
    whole = run(plan)
    sink = MemorySink(plan)
    sink.finished = {"model.one": whole.finished["model.one"]}
    sink.data["model.one"][:] = whole.data["model.one"]
    order = [row.name for row in plan.rows]
    execute(Evaluator(plan), sink, order, budget(plan, 512 << 20, 2), Stop(), Silent())
    assert sink.data == whole.data


def test_a_stop_ends_the_run_between_jobs() -> None:
    base, tunes = family(2)
    plan, stop = make_plan(base, tunes, Sum()), Stop()
    stop.ask()
    with pytest.raises(InterruptedRunError, match="resume") as caught:
        execute(Evaluator(plan), MemorySink(plan), [], budget(plan, 512 << 20, 2), stop, Silent())
    assert caught.value.exit_code == 5


def test_schedules_give_each_group_its_own_threshold() -> None:
    base, tunes = family(1)
    lines = [{"where": "*q_proj*", "value": 0.5}, {"where": "*", "value": 0.1}]
    plan = make_plan(base, tunes, Sum(), (KeepLargest(density=lines),))
    got = run(plan).arrays()
    groups = [[n for n in SHAPES if "q_proj" in n], [n for n in SHAPES if "q_proj" not in n]]
    for names, density in zip(groups, (0.5, 0.1), strict=True):
        part = {n: tunes[0][n] - base[n] for n in names}
        want = edit_table(KeepLargest(density=density), part)
        for n in names:
            np.testing.assert_array_equal(got[n], base[n] + want[n])


def test_an_edit_leaves_tensors_outside_its_glob_dense() -> None:
    base, tunes = family(1)
    rules = (EditRule(Amplify(factor=0.0), "*norm*"),)
    columns = (Column("m0", DictCheckpoint(tunes[0]), 1.0, rules),)
    got = run(align(DictCheckpoint(base), columns, Wishes(Sum(), "delta"))).arrays()
    np.testing.assert_array_equal(got["model.layers.1.norm.weight"], base["model.layers.1.norm.weight"])
    np.testing.assert_allclose(got["model.one"], tunes[0]["model.one"], rtol=1e-6)


class _Loud(Merge):
    """A merge whose failure must reach the caller from any thread."""

    spaces: ClassVar = ("delta",)

    def apply(self, cells, place, found):  # type: ignore[no-untyped-def]
        raise ZeroDivisionError(place.name)


@pytest.mark.parametrize("threads", [1, 4])
def test_an_error_in_a_worker_reaches_the_caller(threads: int) -> None:
    base, tunes = family(1)
    with pytest.raises(ZeroDivisionError, match="model"):
        run(make_plan(base, tunes, _Loud()), threads)


def test_the_budget_counts_what_surveys_count_with() -> None:
    base, tunes = family(3)
    surveyed = make_plan(base, tunes, Sum(), (KeepLargest(density=0.2),))
    plain = make_plan(base, tunes, Sum())
    assert budget(surveyed, 512 << 20, 64).threads < budget(plain, 512 << 20, 64).threads == 64
    assert budget(surveyed, 4 << 30, 64).threads == 64
