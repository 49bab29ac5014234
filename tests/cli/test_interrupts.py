"""Signals and closed pipes: a merge stops cleanly, says how to go on, and goes on."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from models import COMMAND, Family, environment, family, neighbours, run, spawn, start, tree


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Family:
    """Return models that take a few seconds to merge: many tensors, and a method that iterates on each."""
    return family(tmp_path_factory.mktemp("slow") / "models", experts=2, layers=10)


@pytest.fixture(scope="module")
def recipe(models):
    return models.recipe(preset="wudi", steps=150, where="*.layers.*_proj.weight")


def wait_for(process, words):
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"{words!r} was never said")


def finished(out):
    partial = next(out.parent.glob(f"{out.name}.partial-*"))
    return len((partial / "journal.jsonl").read_bytes().splitlines()) - 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_fault_52_one_signal_stops_a_merge_that_resumes(recipe, tmp_path, number):
    out = tmp_path / "out"
    process = start("merge", recipe, out)
    wait_for(process, "merging")
    while not (list(tmp_path.glob("out.partial-*/journal.jsonl")) and finished(out) > 3):
        assert process.poll() is None
    process.send_signal(number)
    said, error = process.communicate(timeout=60)
    assert process.returncode == 5
    assert said == ""
    assert "Traceback" not in error
    assert [line for line in error.splitlines() if line.startswith("error: ")] == [
        "error: interrupted; run the same command again to resume"
    ]
    assert not out.exists()
    before = finished(out)
    assert before > 3
    assert run("merge", recipe, out, "--quiet").code == 0
    assert neighbours(out) == []
    undisturbed = tmp_path / "undisturbed" / "out"
    assert run("merge", recipe, undisturbed, "--quiet", "--threads", "1").code == 0
    assert tree(out) == tree(undisturbed)


def test_fault_52_the_second_signal_stops_at_once(tmp_path):
    models = family(tmp_path / "models", experts=2, layers=1, hidden=384, inter=384)
    recipe = models.recipe(preset="wudi", steps=100_000, where="*q_proj.weight")
    process = start("merge", recipe, tmp_path / "out", "--threads", "1")
    wait_for(process, "merging")
    process.send_signal(signal.SIGINT)
    wait_for(process, "stopping")
    assert process.poll() is None  # one tile takes minutes
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 5
    assert not (tmp_path / "out").exists()
    process.communicate()


@pytest.mark.parametrize("command", [("diff",), ("verify",)])
def test_other_commands_stop_too(models, command, tmp_path):
    arguments = [models.root / "base", models.root / "m0"] if command == ("diff",) else [models.root / "base"]
    process = start(*command, *arguments)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode in (0, 1, 5, -2)
    if process.returncode == 5:
        assert error.splitlines()[-1].startswith("error: interrupted")


@pytest.mark.parametrize(
    "arguments", [("methods",), ("methods", "--json"), ("schema",), ("explain", "ties"), ("--help",)]
)
def test_fault_52_nobody_reads_the_output(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*COMMAND, *arguments],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_fault_52_a_full_disk_behind_the_output_is_no_bug():
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = subprocess.run(
            [*COMMAND, "schema"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            check=False,
        )
    assert done.returncode == 4
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_progress_lines_go_to_standard_error(models, tmp_path):
    result = spawn("merge", models.recipe(preset="ties"), tmp_path / "out")
    assert result.code == 0
    assert "merging" in result.err
    assert "merging" not in result.out
    assert "\x1b" not in result.err + result.out
