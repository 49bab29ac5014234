"""Packing and unpacking that are killed: OUT is whole or absent, and the next run completes it, byte for byte."""

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
import victim_of_packing

from containers import EVERY, packed
from models import family, neighbours, run, start, tree

FORKS = multiprocessing.get_context("forkserver")
SEED = 70


@pytest.fixture(scope="module", autouse=True)
def fork_server():
    """Start a fork server that has imported all that a run imports before it forks."""
    multiprocessing.forkserver._forkserver._stop()  # another test file's has other modules
    FORKS.set_forkserver_preload(["victim_of_packing"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *(p for p in sys.path if p)]))
        multiprocessing.forkserver.ensure_running()
    yield
    multiprocessing.forkserver._forkserver._stop()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = family(tmp_path_factory.mktemp("kill") / "models", experts=1, layers=4)
    packed(made.root, rules=EVERY)
    return made


def commands(models):
    rules = [text for glob, codec in EVERY for text in ("--rule", f"{glob}={codec}")]
    return {
        "pack": ["pack", models.root / "base", models.root / "m0", *rules, "--threads", "2", "--quiet"],
        "unpack": ["unpack", models.root / "packed", "--shard-size", "9K", "--threads", "2", "--quiet"],
    }


def arguments(models, which, out, *more):
    first, *rest = commands(models)[which]
    inputs = [str(a) for a in rest[: 2 if which == "pack" else 1]]
    return [first, *inputs, str(out), *map(str, rest[len(inputs) :]), *more]


def begin(models, which, out, number=0, report="", more=()):
    process = FORKS.Process(
        target=victim_of_packing.command,
        args=(arguments(models, which, out, *more), number, str(report)),
        daemon=True,
    )
    process.start()
    return process


def calls_of(models, which, place):
    process = begin(models, which, place / "counted", report=place / "calls")
    process.join()
    assert process.exitcode == 0
    return int((place / "calls").read_text()), tree(place / "counted")


def check(models, which, out, undisturbed):
    done = out.exists()
    assert not done or tree(out) == undisturbed
    result = run(*arguments(models, which, out))
    assert result.code == (1 if done else 0), result
    assert tree(out) == undisturbed
    assert neighbours(out) == []


def assert_survives_kills_before_calls(models, which, place, step):
    total, undisturbed = calls_of(models, which, place)
    assert total > 40
    for number in [
        *range(1, 12, 3),
        *range(12, total - 25, step),
        *range(total - 25, total + 1, max(1, step // 5)),
    ]:
        out = place / "run" / "out"
        out.parent.mkdir()
        process = begin(models, which, out, number)
        process.join()
        assert process.exitcode in (-9, 0)
        check(models, which, out, undisturbed)
        shutil.rmtree(out.parent)


@pytest.mark.parametrize("which", ["pack", "unpack"])
def test_killed_before_calls_that_write(models, tmp_path, which):
    assert_survives_kills_before_calls(models, which, tmp_path, 35)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["pack", "unpack"])
def test_killed_before_every_call_that_writes(models, tmp_path, which):
    assert_survives_kills_before_calls(models, which, tmp_path, 1)


@pytest.mark.parametrize("which", ["pack", "unpack"])
def test_killed_at_random_moments(models, tmp_path, which):
    _, undisturbed = calls_of(models, which, tmp_path)
    began = time.monotonic()
    begin(models, which, tmp_path / "timed").join()
    whole = time.monotonic() - began
    rng = random.Random(SEED)
    for i in range(6):
        out = tmp_path / f"run{i}" / "out"
        out.parent.mkdir()
        for _ in range(rng.choice((1, 2))):  # now and then the second run is killed too
            process = begin(models, which, out)
            time.sleep(rng.uniform(0.0, 1.05 * whole))
            process.kill()
            process.join()
        check(models, which, out, undisturbed)


def test_an_old_container_is_there_until_the_new_one_is(models, tmp_path):
    old = tmp_path / "old"
    assert run("pack", models.root / "base", models.root / "m0", old, "--codec", "dense", "--quiet").code == 0
    before = tree(old)
    shutil.copytree(old, tmp_path / "first")
    report = tmp_path / "calls"
    process = begin(models, "pack", tmp_path / "first", report=report, more=("--overwrite",))
    process.join()
    undisturbed, total = tree(tmp_path / "first"), int(report.read_text())
    for number in range(total - 24, total + 1, 3):
        out = tmp_path / "run" / "out"
        shutil.copytree(old, out)
        begin(models, "pack", out, number, more=("--overwrite",)).join()
        assert tree(out) in (before, undisturbed)
        assert run(*arguments(models, "pack", out, "--overwrite")).code == 0
        assert tree(out) == undisturbed
        assert neighbours(out) == []
        shutil.rmtree(out.parent)


def test_resumed_and_not_begun_again(models, tmp_path):
    total, undisturbed = calls_of(models, "pack", tmp_path)
    out = tmp_path / "out"
    begin(models, "pack", out, total - 30).join()
    assert not out.exists()
    process = begin(models, "pack", out, report=tmp_path / "calls")
    process.join()
    assert int((tmp_path / "calls").read_text()) < 0.7 * total
    assert tree(out) == undisturbed


def test_two_processes_at_once(models, tmp_path):
    """One of them writes, the other is told so; or they come one after the other, and the second finds OUT there."""
    out = tmp_path / "out"
    both = [start(*arguments(models, "pack", out)) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes == [0, 1], said
    assert any("is writing this output" in text or "exists and is not empty" in text for text in said)
    assert run("verify", out).code == 0
    assert neighbours(out) == []
