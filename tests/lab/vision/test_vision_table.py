"""The table asks every model the right pictures, gives every line the same budget, and refuses other data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from deltasmith.errors import DamagedInputError, RefusedError
from deltasmith.lab.rows import Results, Row, load_results
from deltasmith.lab.vision import TASKS

torch = pytest.importorskip("torch")

from deltasmith.lab.vision import bench as benches  # noqa: E402
from deltasmith.lab.vision import table  # noqa: E402
from deltasmith.lab.vision.bench import VisionBench  # noqa: E402
from deltasmith.lab.vision.vit import features  # noqa: E402

ONE_DARE = next(
    dataclasses.replace(line, settings=line.settings[:1]) for line in table.LINES if line.name == "dare"
)


@pytest.fixture
def bench(tiny_family: Path, data_folder: Path) -> VisionBench:
    return benches.open_bench(tiny_family, data_folder)


def test_every_line_may_try_the_same_number_of_settings() -> None:
    for line in table.LINES:
        assert len({repr(trial) for trial in line.trials}) == table.BUDGET, line.name


def test_lines_without_a_scale_have_no_papers_column() -> None:
    fixed = {line.name: line.fixed for line in table.LINES}
    assert set(fixed["regmean"]) == {"default"}
    assert {name: fields["scale"] for name, fields in fixed["ties"].items()} == {
        "default": 1.0,
        "papers": 0.3,
    }
    assert fixed["ties"]["default"]["density"] == 0.2


def test_task_arithmetic_is_base_plus_scaled_deltas(bench: VisionBench) -> None:
    merged = table._model(bench, {"preset": "task_arithmetic", "scale": 0.3}, {}, 0)
    base = bench.tensors("base")
    assert merged.keys() == base.keys()
    for name in base:
        deltas = sum(bench.tensors("experts", task)[name] - base[name] for task in TASKS)
        np.testing.assert_allclose(merged[name], base[name] + 0.3 * deltas, rtol=1e-4, atol=1e-6)


def test_mask_seeds_drop_other_elements(bench: VisionBench) -> None:
    first, again, other = (table._model(bench, ONE_DARE.fixed["default"], {}, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)


def test_a_recipe_gives_every_model_the_edit(bench: VisionBench) -> None:
    edit = {"keep_largest": {"density": 0.2}}
    recipe = bench.recipe(edit=edit, merge="elect_sum", scale=0.3)
    assert [model["label"] for model in recipe["models"]] == list(TASKS)
    assert all(model["edits"] == [edit] for model in recipe["models"])
    assert "edit" not in recipe


def test_grams_are_mean_products_of_the_inputs(bench: VisionBench, tmp_path: Path) -> None:
    from safetensors import safe_open

    path = benches.write_grams(bench, "greek", tmp_path / "greek.safetensors")
    rows: dict = {}
    params = {name: torch.from_numpy(array) for name, array in bench.tensors("experts", "greek").items()}
    # 36 training pictures are fewer than 256, so all of them count, in their own order.
    images = torch.from_numpy(bench.pictures["greek"].train.images)
    features(params, bench.shape, images, lambda name, x: rows.update({name: x.numpy()}))
    with safe_open(path, "np") as file:
        assert file.metadata() == {"format": "deltasmith-stats-1", "kind": "gram", "examples": "36"}
        assert set(file.keys()) == {f"{name}::gram" for name in rows}
        for name, x in rows.items():
            np.testing.assert_allclose(
                file.get_tensor(f"{name}::gram"), x.T @ x / len(x), rtol=1e-3, atol=1e-5
            )


def test_regmean_reads_the_grams_of_its_own_task(bench: VisionBench) -> None:
    with TemporaryDirectory() as folder:
        grams = {t: str(benches.write_grams(bench, t, Path(folder, f"{t}.safetensors"))) for t in TASKS}
        fields = {"merge": {"regmean": {"off_diagonal": 0.9, "damping": 1e-3}}}
        merged = table._model(bench, fields, grams, 0)
        swapped = table._model(bench, fields, {**grams, "digits": grams["mnist_inverted"]}, 0)
    average = bench.merged(bench.recipe(preset="average"))
    query, bias = (f"encoder.layer.0.attention.attention.query.{kind}" for kind in ("weight", "bias"))
    assert not np.allclose(merged[query], average[query], rtol=1e-6, atol=1e-9)
    assert not np.array_equal(merged[query], swapped[query])
    np.testing.assert_allclose(merged[bias], average[bias], atol=1e-7)


@pytest.fixture(scope="module")
def written(tiny_family: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    out = tmp_path_factory.mktemp("results") / "vision.json"
    return table.run(data_folder, [tiny_family], out, str, [ONE_DARE]), out


@pytest.fixture(scope="module")
def results(written: tuple) -> Results:
    return written[0]


def test_rows(written: tuple, bench: VisionBench) -> None:
    results, out = written
    assert [row.as_json() for row in load_results(out).rows] == [row.as_json() for row in results.rows]
    counts: dict = {}
    for row in results.rows:
        key = (row.keys["method"], row.keys["setting"])
        counts.setdefault(key, []).append((row.keys["mask_seed"], row.task))
        assert row.right.size == len(bench.pictures[row.task].test)
        assert row.keys["train_seed"] == 0
    once = [(0, task) for task in TASKS]
    for method in ("base", "experts", "average", "emr"):
        assert counts.pop((method, "default")) == once
    for setting in ("tuned", "default", "papers"):
        assert counts.pop(("dare", setting)) == [(seed, task) for seed in range(5) for task in TASKS]
    assert not counts


def test_every_model_is_shown_its_own_pictures(results: Results, bench: VisionBench) -> None:
    for task in TASKS:
        (row,) = [r for r in results.rows if r.keys["method"] == "experts" and r.task == task]
        own = bench.marks(bench.tensors("experts", task), (task,), "test")[task]
        np.testing.assert_array_equal(row.right, own)
        (row,) = [r for r in results.rows if r.keys["method"] == "emr" and r.task == task]
        merged = bench.merged(bench.recipe(preset="emr", task=task))
        np.testing.assert_array_equal(row.right, bench.marks(merged, (task,), "test")[task])


def test_the_tuned_row_is_the_best_on_validation_pictures(results: Results, bench: VisionBench) -> None:
    tuned = next(row for row in results.rows if row.keys["setting"] == "tuned")
    trials = ONE_DARE.trials
    values = [bench.mean(table._model(bench, trial, {}, 0), "validation") for trial in trials]
    assert tuned.keys["validation"] == round(max(values), 4)
    assert tuned.keys["scale"] == trials[int(np.argmax(values))]["scale"]
    assert tuned.keys["trials"] == table.BUDGET
    assert tuned.keys["fields"] == "density=0.5"


def test_the_printed_table_has_means_and_the_papers() -> None:
    rows = tuple(
        Row(
            {"train_seed": seed, "mask_seed": 0, "method": "ta", "setting": "papers"},
            task,
            np.arange(4) < 2 + seed,
        )
        for seed in (0, 1)
        for task in TASKS
    )
    head, line = table.render(Results("vision", {}, rows)).splitlines()
    assert all(task in head for task in TASKS)
    assert line.split()[:11] == ["ta", "papers", *["62.5"] * 9]
    assert "68.0 (FusionBench)" in line


def test_other_pictures_are_refused(tiny_family: Path, data_folder: Path, tmp_path: Path) -> None:
    import gzip
    import shutil

    shutil.copytree(data_folder, tmp_path / "other")
    labels = tmp_path / "other" / "mnist" / "t10k-labels-idx1-ubyte.gz"
    raw = bytearray(gzip.decompress(labels.read_bytes()))
    raw[-1] = (raw[-1] + 1) % 10
    labels.write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(RefusedError, match="not the pictures the family was trained on"):
        benches.open_bench(tiny_family, tmp_path / "other")


def test_a_folder_without_a_family_is_refused(data_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DamagedInputError, match="no vision family"):
        benches.open_bench(tmp_path, data_folder)
