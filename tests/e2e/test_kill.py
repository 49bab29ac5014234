"""Merges that are killed: the output is whole or absent, and the next run completes it, byte for byte the same."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import random
import shutil
import sys
import time
from pathlib import Path

import pytest

from e2e import victim
from models import Family, family, hashes, neighbours, run, tree

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["e2e.victim"])
SEED = 20240607


@pytest.fixture(scope="module", autouse=True)
def fork_server():
    """Start the fork server where it finds the modules that it imports before it forks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
        multiprocessing.forkserver.ensure_running()


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Family:
    return family(tmp_path_factory.mktemp("kill") / "models", layers=6)


@pytest.fixture(scope="module")
def recipe(models):
    return models.recipe(preset="ties")


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert run("merge", recipe, out, *OPTIONS).code == 0
    return tree(out)


OPTIONS = ("--quiet", "--shard-size", "9K", "--threads", "2")


def start(recipe, out, *options, number=0, report=""):
    arguments = ["merge", str(recipe), str(out), *OPTIONS, *options]
    process = FORKS.Process(target=victim.merge, args=(arguments, number, str(report)), daemon=True)
    process.start()
    return process


def calls_of(recipe, out, report, *options) -> int:
    """Count the traced calls of a run that nobody disturbs."""
    process = start(recipe, out, *options, report=report)
    process.join()
    assert process.exitcode == 0
    return int(Path(report).read_text())


def check_after_kill(recipe, out, undisturbed, *, visible=()):
    """OUT is absent, or one of the models it may be; then the run is repeated and completes."""
    allowed = [undisturbed, *visible]
    if out.exists() and any(out.iterdir()):
        assert tree(out) in allowed
    else:
        assert not visible or neighbours(out)  # an old model may be on its way back, never gone
    done = out.exists() and tree(out) == undisturbed
    result = run("merge", recipe, out, *OPTIONS, *(("--overwrite",) if visible else ()))
    assert result.code == (1 if done and not visible else 0), result
    assert tree(out) == undisturbed
    assert neighbours(out) == []


def assert_survives_random_kills(recipe, undisturbed, place, times):
    rng = random.Random(SEED)
    start(recipe, place / "warm").join()
    began = time.monotonic()
    start(recipe, place / "out").join()
    whole = time.monotonic() - began
    shutil.rmtree(place / "out")
    for _ in range(times):
        for _ in range(rng.choice((1, 1, 2))):  # now and then the second run is killed too
            process = start(recipe, place / "out")
            time.sleep(rng.uniform(0.0, 1.05 * whole))
            process.kill()
            process.join()
        check_after_kill(recipe, place / "out", undisturbed)
        shutil.rmtree(place / "out")


def test_fault_51_killed_at_random_moments(recipe, undisturbed, tmp_path):
    assert_survives_random_kills(recipe, undisturbed, tmp_path, 40)


@pytest.mark.slow
def test_fault_51_killed_at_many_random_moments(recipe, undisturbed, tmp_path):
    assert_survives_random_kills(recipe, undisturbed, tmp_path, 200)


def assert_survives_kills_before_calls(recipe, undisturbed, place, step):
    total = calls_of(recipe, place / "first" / "out", place / "calls")
    assert total > 100
    for number in [
        *range(1, 12),
        *range(12, total - 45, step),
        *range(total - 45, total + 1, max(1, step // 4)),
    ]:
        out = place / "run" / "out"
        process = start(recipe, out, number=number)
        process.join()
        assert process.exitcode in (-9, 0)
        check_after_kill(recipe, out, undisturbed)
        shutil.rmtree(out.parent)


def test_fault_51_killed_before_calls_that_write(recipe, undisturbed, tmp_path):
    assert_survives_kills_before_calls(recipe, undisturbed, tmp_path, 23)


@pytest.mark.slow
def test_fault_51_killed_before_every_call_that_writes(recipe, undisturbed, tmp_path):
    assert_survives_kills_before_calls(recipe, undisturbed, tmp_path, 1)


def assert_overwrites_survive_kills(recipe, undisturbed, place, step):
    old = place / "old" / "out"
    assert run("merge", recipe, old, *OPTIONS, "--set", "scale=0.5").code == 0
    before = tree(old)
    shutil.copytree(old, place / "first" / "out")
    total = calls_of(recipe, place / "first" / "out", place / "calls", "--overwrite")
    for number in [*range(1, total - 60, 4 * step), *range(total - 60, total + 1, step)]:
        out = place / "run" / "out"
        shutil.copytree(old, out)
        process = start(recipe, out, "--overwrite", number=number)
        process.join()
        assert process.exitcode in (-9, 0)
        check_after_kill(recipe, out, undisturbed, visible=(before,))
        shutil.rmtree(out.parent)


def test_fault_61_overwrites_killed_before_calls_that_write(recipe, undisturbed, tmp_path):
    assert_overwrites_survive_kills(recipe, undisturbed, tmp_path, 7)


@pytest.mark.slow
def test_fault_61_overwrites_killed_before_every_call_that_writes(recipe, undisturbed, tmp_path):
    assert_overwrites_survive_kills(recipe, undisturbed, tmp_path, 1)


def test_a_killed_run_is_resumed_and_not_begun_again(recipe, undisturbed, tmp_path):
    out = tmp_path / "out"
    total = calls_of(recipe, tmp_path / "first", tmp_path / "calls")
    process = start(recipe, out, number=total - 50)
    process.join()
    assert process.exitcode == -9
    rest = calls_of(recipe, out, tmp_path / "calls")
    assert rest < 0.7 * total
    assert tree(out) == undisturbed


@pytest.mark.parametrize("change", ["recipe", "input", "shard size"])
def test_what_a_killed_run_left_is_not_used_for_another(models, recipe, tmp_path, change):
    out = tmp_path / "out"
    total = calls_of(recipe, tmp_path / "first", tmp_path / "calls")
    start(recipe, out, number=total - 60).join()
    assert neighbours(out)
    options, copy = list(OPTIONS), recipe
    if change == "recipe":
        options += ["--set", "scale=0.5"]
    elif change == "input":
        other = family(tmp_path / "models", layers=6)
        copy = other.recipe(preset="ties")
        weights = other.root / "m1" / "model.safetensors"
        weights.write_bytes((other.root / "m2" / "model.safetensors").read_bytes())
    else:
        options[2] = "20K"
    fresh = tmp_path / "fresh" / "out"
    assert run("merge", copy, fresh, *options).code == 0
    assert run("merge", copy, out, *options).code == 0
    assert tree(out) == tree(fresh)
    assert hashes(out)
