"""Building a family: finished models stay, another family is refused, and the record tells it all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deltasmith.errors import RecipeError, RefusedError
from deltasmith.evaluate.llama import read_tensors
from deltasmith.lab.network import SIZES, shape_of

torch = pytest.importorskip("torch")

from deltasmith.lab.family import Wanted, build_family  # noqa: E402

TINY = Wanted(size="XS", regimes=("small",), base_steps=3)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("family") / "seed0"
    build_family(out, TINY, say=lambda line: None)
    return out


def test_base_and_experts_are_there_with_their_record(built: Path) -> None:
    record = json.loads((built / "RECORD.json").read_text())
    assert set(record["accuracy"]) == {"base", "small/math", "small/code", "small/ins"}
    assert set(record["deltas"]) == {"small/math", "small/code", "small/ins"}
    assert all(delta["norm_ratio"] > 0 for delta in record["deltas"].values())
    assert not list(built.rglob("*.partial"))


def test_a_second_build_trains_nothing_and_a_lost_expert_comes_back(built: Path) -> None:
    said: list[str] = []
    build_family(built, TINY, say=said.append)
    assert said == []
    record = json.loads((built / "RECORD.json").read_text())
    del record["accuracy"]["small/code"]
    (built / "RECORD.json").write_text(json.dumps(record))
    before = read_tensors(built / "small/code")
    build_family(built, TINY, say=said.append)
    assert len(said) == 1
    after = read_tensors(built / "small/code")
    different = sum(int((after[name] != before[name]).sum()) for name in before)
    # Last bits may differ: torch's sums depend on how memory is aligned.
    assert different < 0.05 * sum(value.size for value in before.values())


def test_another_seed_does_not_go_into_the_same_folder(built: Path) -> None:
    with pytest.raises(RefusedError, match="another seed"):
        build_family(built, Wanted(seed=1, size="XS", regimes=("small",), base_steps=3))


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RefusedError, match="holds no family"):
        build_family(tmp_path, TINY)


def test_sizes_by_name_and_by_numbers() -> None:
    assert shape_of("S") is SIZES["S"]
    shape = shape_of("512x8")
    assert (shape.hidden, shape.layers, shape.heads, shape.kv_heads) == (512, 8, 16, 8)
    for wrong in ("s", "100x2", "512", "512x0", "x8"):
        with pytest.raises(RecipeError, match="is no size"):
            shape_of(wrong)
