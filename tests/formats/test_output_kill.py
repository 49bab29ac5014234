"""kill -9 at random moments, and death before every single system call."""

import os
import random
import time
from contextlib import suppress
from pathlib import Path

import pytest
from toy_writer import PARTIAL, SPECS, names, produce, start, tree

from deltasmith.errors import RefusedError
from deltasmith.formats import output as module
from deltasmith.formats import staging


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    produce(out)
    return tree(out)


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


class Killed(BaseException):
    """Stands for the end of the process at one system call: nothing after it happens, no clean-up either."""


def steps_of(monkeypatch, act, at):
    """Run `act` and end it before the `at`-th call that changes a file; return the number of calls made."""
    count = 0
    dead = False

    def watched(function):
        def call(*arguments, **options):
            nonlocal count, dead
            if dead:
                raise Killed
            count += 1
            if count == at:
                dead = True
                raise Killed
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("pwrite", "fsync", "rename", "replace", "unlink", "mkdir", "rmdir", "ftruncate"):
            patch.setattr(os, name, watched(getattr(os, name)))
        for target, name in ((staging, "exchange"), (module, "allocate")):
            patch.setattr(target, name, watched(getattr(target, name)))
        with suppress(Killed):
            act()
    return count


def forget_locks():
    """Close what a dead process would no longer hold."""
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if ".partial" in target:
            os.close(int(entry.name))


SMALL = [SPECS[0], SPECS[-1]]


@pytest.mark.parametrize("round_", range(2))
def test_fault_51_killed_at_any_moment_and_run_again_the_output_is_the_same(tmp_path, undisturbed, round_):
    """Ten kills at random moments per output, some while it is resumed; then it may finish."""
    out = tmp_path / "out"
    chance = random.Random(round_)
    resumed, highest = [], 0
    for _ in range(10):
        process = start(out, 0.03)
        line = process.stdout.readline()
        if line:
            resumed.append(int(line.split()[-1]))
            highest = max(highest, resumed[-1])
        time.sleep(chance.uniform(0, 0.12))
        process.kill()
        process.communicate()
        if out.exists():
            break
        assert set(names(tmp_path)) <= {PARTIAL, "out.partial.lock"}
        if not (tmp_path / PARTIAL / "journal.jsonl").exists():
            resumed = [
                0
            ]  # killed before the journal began, or in the moment between its removal and the rename
    if not out.exists():
        done = start(out, 0)
        assert done.communicate()[1] == ""
        assert done.returncode == 0
    assert tree(out) == undisturbed
    with pytest.raises(RefusedError, match="not empty"):
        produce(out)
    assert names(tmp_path) == ["out"]  # with the lock file of a run killed after the rename
    assert resumed == sorted(resumed)  # what was finished stays finished
    assert highest > 0


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("before", ["absent", "old"])
def test_fault_51_and_61_death_before_every_single_system_call(tmp_path, monkeypatch, before):
    """Without exception: old or new, whole; and the next run completes with nothing left over."""

    def run(out):
        produce(out, specs=SMALL, overwrite=before == "old")

    run(tmp_path / "reference")
    expected = tree(tmp_path / "reference")
    old = {"config.json": b"old", "model.safetensors": b"old weights"}
    total = steps_of(monkeypatch, lambda: run(tmp_path / "counted"), 0) + (30 if before == "old" else 0)
    assert total > 20
    for at in range(1, total + 1):
        home = tmp_path / f"{at}"
        home.mkdir()
        out = home / "out"
        if before == "old":
            out.mkdir()
            for name, content in old.items():
                (out / name).write_bytes(content)
        steps_of(monkeypatch, lambda out=out: run(out), at)
        forget_locks()
        found = tree(out) if out.exists() else None
        assert found == expected or found == (old if before == "old" else None), f"call {at}"
        if found == expected and before == "absent":
            with pytest.raises(RefusedError, match="not empty"):
                run(out)
        else:
            run(out)
        assert tree(out) == expected, f"call {at}"
        assert names(home) == ["out"], f"call {at}"
