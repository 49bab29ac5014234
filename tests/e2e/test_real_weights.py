"""Trained weights: a network and four fine-tunes of it (see tests/data/README.md), compared with float64 arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deltasmith import api
from models import hashes, read_model, run, write_recipe

DATA = Path(__file__).parent.parent / "data" / "upconv7"
TASKS = ("noise0", "noise1", "noise2", "noise3")


def load(name):
    with np.load(DATA / f"{name}.npz") as file:
        return {n: file[n] for n in sorted(file.files)}


def flat(arrays):
    return np.concatenate([np.asarray(arrays[n], np.float64).reshape(-1) for n in sorted(arrays)])


BASE = load("base")
DELTAS = {t: flat({n: a - BASE[n] for n, a in load(t).items()}) for t in TASKS}  # subtracted in float32


def recipe(**fields):
    entries = [{"model": str(DATA / f"{t}.npz"), "label": t} for t in TASKS]
    return {"base": str(DATA / "base.npz"), "models": entries} | fields


def merged(out, **fields):
    """Merge, verify, and return the merged delta as one float64 vector."""
    api.merge(recipe(**fields), out)
    assert api.verify(out).ok
    values = read_model(out)
    assert {n: a.shape for n, a in values.items()} == {n: a.shape for n, a in BASE.items()}
    assert all(a.dtype == np.float32 for a in values.values())
    return flat(values) - flat(BASE)


def trimmed(delta, density):
    """Keep the int(density n) largest magnitudes; equal ones in order."""
    kept = np.argsort(-np.abs(delta), kind="stable")[: int(density * delta.size)]
    out = np.zeros_like(delta)
    out[kept] = delta[kept]
    return out


@pytest.mark.parametrize("scale", [0.3, 0.4, 1.0])
def test_task_arithmetic_equals_float64(tmp_path, scale):
    got = merged(tmp_path / "out", preset="task_arithmetic", scale=scale)
    np.testing.assert_allclose(got, scale * sum(DELTAS.values()), atol=2e-6, rtol=0)


def test_ties_equals_float64(tmp_path):
    kept = np.stack([trimmed(DELTAS[t], 0.2) for t in TASKS])
    sign = np.sign(kept.sum(axis=0))
    sign = np.where(sign == 0, np.sign(sign.sum()), sign)
    agree = (np.sign(kept) == sign) & (kept != 0)
    wanted = np.where(agree, kept, 0).sum(axis=0) / np.maximum(agree.sum(axis=0), 1)
    got = merged(tmp_path / "out", preset="ties", density=0.2)
    np.testing.assert_allclose(got, wanted, atol=2e-6, rtol=0)
    assert np.count_nonzero(got) == np.count_nonzero(wanted)


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("task", TASKS[:2])
def test_trimming_keeps_the_exact_count(tmp_path, task, density):
    models = [
        {"model": str(DATA / f"{task}.npz"), "label": task, "edits": [{"keep_largest": {"density": density}}]}
    ]
    got = merged(tmp_path / "out", models=models)
    np.testing.assert_array_equal(got != 0, trimmed(DELTAS[task], density) != 0)
    if density < 1:
        assert np.count_nonzero(got) == int(density * got.size)


@pytest.mark.parametrize("density", [0.3, 0.7])
def test_magprune_keeps_the_share_and_the_mean(tmp_path, density):
    models = [{"model": str(DATA / "noise0.npz"), "label": "noise0"}]
    got = merged(tmp_path / "out", preset="magprune", density=density, window=0.2, models=models)
    delta = DELTAS["noise0"]
    share = np.count_nonzero(got) / np.count_nonzero(delta)
    assert abs(share - density) < 5 * np.sqrt(density * (1 - density) / delta.size)
    kept = got != 0
    ratio = got[kept] / delta[kept]
    assert ratio.min() > 1 / (density + 0.11)
    assert ratio.max() < 1 / (density - 0.11)
    large = np.abs(delta) > np.quantile(np.abs(delta), 0.9)
    assert np.mean(kept[large]) > np.mean(kept[~large])
    noise = np.sqrt(np.sum(delta**2 * (1 / (density - 0.1) - 1)))
    assert abs(got.sum() - delta.sum()) < 5 * noise


def test_della_elects_from_what_is_kept(tmp_path):
    got = merged(tmp_path / "out", preset="della", density=0.7, window=0.2)
    low = np.min(list(DELTAS.values()), axis=0) / 0.6
    high = np.max(list(DELTAS.values()), axis=0) / 0.6
    assert np.all(got <= np.maximum(high, 0) + 1e-6)
    assert np.all(got >= np.minimum(low, 0) - 1e-6)
    assert np.count_nonzero(got) / got.size > 1 - 0.5**4
    assert hashes(tmp_path / "out") != {}


def test_emr_unified_vector(tmp_path):
    deltas = np.stack(list(DELTAS.values()))
    sign = np.where(deltas.sum(axis=0) > 0, 1.0, -1.0)
    wanted = sign * np.max(np.where(np.sign(deltas) == sign, np.abs(deltas), 0), axis=0)
    got = merged(tmp_path / "out", preset="emr")
    np.testing.assert_allclose(got, wanted, atol=2e-6, rtol=0)


@pytest.mark.parametrize("task", TASKS)
def test_emr_task_models_have_the_masks_and_sizes_of_their_tasks(tmp_path, task):
    unified = merged(tmp_path / "unified", preset="emr")
    got = merged(tmp_path / "out", preset="emr", task=task)
    delta = DELTAS[task]
    mask = unified * delta > 0
    np.testing.assert_array_equal(got[~mask], 0)
    ratio = np.abs(delta).sum() / np.abs(unified[mask]).sum()
    np.testing.assert_allclose(got[mask], ratio * unified[mask], atol=2e-6)
    plain = merged(tmp_path / "plain", preset="task_arithmetic", scale=0.4)
    assert np.linalg.norm(got - delta) < np.linalg.norm(plain - delta)


def test_the_command_line_gives_the_same(tmp_path):
    path = write_recipe(tmp_path / "r.yaml", recipe(preset="ties"))
    assert run("merge", path, tmp_path / "cli", "--quiet").code == 0
    api.merge(recipe(preset="ties"), tmp_path / "api")
    assert hashes(tmp_path / "cli") == hashes(tmp_path / "api")


def test_diff_measures_the_changes(tmp_path):
    done = run("diff", DATA / "base.npz", *(DATA / f"{t}.npz" for t in TASKS), "--json")
    whole = done.document["model"][0]
    for task, delta in DELTAS.items():
        figures = whole["models"][f"{task}.npz"]
        np.testing.assert_allclose(
            figures["relative_norm"], np.linalg.norm(delta) / np.linalg.norm(flat(BASE)), rtol=1e-6
        )
        np.testing.assert_allclose(figures["mean_abs"], np.abs(delta).mean(), rtol=1e-6)
        np.testing.assert_allclose(figures["max_abs"], np.abs(delta).max(), rtol=1e-6)
