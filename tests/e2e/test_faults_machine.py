"""Faults of the machine and of the place to write: full disks, locks, outputs that are inputs, odd surroundings."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import stat
from pathlib import Path

import pytest

from deltasmith import api
from deltasmith.errors import RefusedError
from deltasmith.formats.claim import LOCK_SUFFIX
from models import Family, check_refusal, family, hashes, neighbours, run, spawn, tree


@pytest.fixture
def models(tmp_path) -> Family:
    return family(tmp_path / "models")


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


@pytest.fixture
def recipe(models):
    return models.recipe(preset="ties")


def failing(function, number, code, *, once=False):
    """Fail from the n-th call on, or at the n-th alone."""
    calls = 0

    def call(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == number or (calls > number and not once):
            raise OSError(code, os.strerror(code))
        return function(*arguments, **options)

    return call


# 53 and 54: no room


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_fault_53_no_room_at_the_start(recipe, place, models, monkeypatch, code):
    before = tree(models.root)

    def refuse(fd, nbytes):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("deltasmith.formats.output.allocate", refuse)
    check_refusal(run("merge", recipe, place / "out", "--quiet"), 4, "model.safetensors")
    assert list(place.iterdir()) == []
    assert tree(models.root) == before


@pytest.mark.parametrize("number", [1, 3, 6, 12, 24, 40])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_fault_53_the_disk_fills_up_later(recipe, place, models, monkeypatch, number, code):
    before, undisturbed = tree(models.root), models.root.parent / "undisturbed" / "out"
    assert run("merge", recipe, undisturbed, "--quiet").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing(os.pwrite, number, code))
        result = run("merge", recipe, place / "out", "--quiet", "--threads", "1", "--shard-size", "1G")
    check_refusal(result, 4, "out.partial")
    assert not (place / "out").exists()
    assert all(".partial" in name for name in neighbours(place / "out"))
    assert run("merge", recipe, place / "out", "--quiet").code == 0
    assert neighbours(place / "out") == []
    assert tree(place / "out") == tree(undisturbed)
    assert tree(models.root) == before


def test_fault_53_a_real_limit_of_file_sizes(recipe, place, models):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    result = spawn("merge", recipe, place / "out", "--quiet", prefix=limit, PYTHONDONTWRITEBYTECODE="1")
    check_refusal(result, 4, "model.safetensors", "ulimit")
    assert list(place.iterdir()) == []


def test_fault_53_a_folder_that_cannot_be_made(recipe, place):
    (place / "file").write_text("x")
    check_refusal(run("merge", recipe, place / "file" / "out", "--quiet"), 4, "file")
    assert [p.name for p in place.iterdir()] == ["file"]


@pytest.mark.parametrize("number", range(1, 9))
def test_fault_55_a_failing_flush_is_never_trusted(recipe, place, monkeypatch, number):
    out = place / "out"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(os.fsync, number, errno.EIO))
        result = run("merge", recipe, out, "--quiet", "--shard-size", "8K")
    check_refusal(result, 4)
    if out.exists():  # all but the name itself was on the disk
        assert run("verify", out).code == 0
        return
    assert run("merge", recipe, out, "--quiet", "--shard-size", "8K").code == 0
    assert run("verify", out).code == 0


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_fault_57_everything_is_flushed_before_it_is_renamed(recipe, place, monkeypatch):
    flushed = []
    fsync = os.fsync

    def record(fd):
        flushed.append(Path(f"/proc/self/fd/{fd}").readlink().name.removesuffix(".tmp"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", record)
    assert run("merge", recipe, place / "out", "--quiet", "--shard-size", "8K").code == 0
    written = {path.name for path in (place / "out").iterdir()}
    assert len([name for name in written if name.endswith(".safetensors")]) == 2
    assert written <= set(flushed)
    assert flushed[-2:] == ["out", "place"]
    assert any(name.startswith("out.partial") for name in flushed)


def test_fault_56_short_reads_and_writes_are_continued(recipe, place, monkeypatch):
    assert run("merge", recipe, place / "undisturbed", "--quiet").code == 0
    pwrite, preadv, pread = os.pwrite, os.preadv, os.pread
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, memoryview(data)[:7], at))
    monkeypatch.setattr(
        os, "preadv", lambda fd, rooms, at, *rest: preadv(fd, [memoryview(rooms[0])[:13]], at, *rest)
    )
    monkeypatch.setattr(os, "pread", lambda fd, count, at: pread(fd, min(count, 11), at))
    result = run("merge", recipe, place / "out", "--quiet")
    assert result.code == 0, result
    assert hashes(place / "out") == hashes(place / "undisturbed")
    assert run("verify", place / "out").code == 0


# 59: two at once


class Meanwhile:
    """A listener that does something once, in the middle of a merge."""

    def __init__(self, act):
        self.act, self.result = act, None

    def phase(self, name, total):
        if name == "merging" and self.result is None:
            self.result = self.act()

    def advance(self, nbytes):
        pass


@pytest.mark.parametrize("options", [(), ("--set", "scale=0.5"), ("--overwrite",)])
def test_fault_59_a_second_process_is_told_who_writes(recipe, place, options):
    second = Meanwhile(lambda: spawn("merge", recipe, place / "out", "--quiet", *options))
    api.merge(recipe, place / "out", progress=second)
    check_refusal(second.result, 1, f"process {os.getpid()}", "out")
    assert run("verify", place / "out").code == 0
    assert neighbours(place / "out") == []


def test_fault_59_a_stale_lock_does_not_block(recipe, place):
    (place / f"out{LOCK_SUFFIX}").write_text('{"host": "gone", "pid": 1}\n')
    assert run("merge", recipe, place / "out", "--quiet").code == 0
    assert neighbours(place / "out") == []


# 60: the output is an input


@pytest.mark.parametrize(
    "out",
    ["base", "m1", "m1/sub", "m1/deep/er", "../models/m1", "m0/../m1", "link", "link/sub", "."],
)
@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_fault_60_the_output_is_or_holds_an_input(models, recipe, out, overwrite):
    (models.root / "link").symlink_to("m1")
    before = tree(models.root)
    result = run("merge", recipe, models.root / out, "--quiet", *overwrite)
    check_refusal(result, 1, "output")
    assert tree(models.root) == before
    assert sorted(p.name for p in models.root.parent.iterdir()) == ["models"]


def test_fault_60_hard_links_of_a_folder_s_files(models, recipe, place):
    out = place / "out"
    out.mkdir()
    (out / "config.json").write_text("{}")
    os.link(models.root / "m1" / "model.safetensors", out / "model.safetensors")
    before = tree(models.root)
    assert run("merge", recipe, out, "--quiet", "--overwrite").code in (0, 1)
    assert tree(models.root) == before


@pytest.mark.parametrize("target", ["snapshot", "inside the snapshot", "blobs", "repository"])
def test_fault_60_a_cached_snapshot(models, target):
    repository = models.root.parent / "hub" / "models--some--model"
    snapshot, blobs = repository / "snapshots" / ("a" * 40), repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in (models.root / "m1").iterdir():
        shutil.move(path, blobs / f"blob-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob-{path.name}")
    models.recipe(models=[{"model": str(snapshot)}])
    out = {
        "snapshot": snapshot,
        "inside the snapshot": snapshot / "x",
        "blobs": blobs,
        "repository": repository,
    }
    before = tree(models.root.parent)
    for overwrite in ((), ("--overwrite",)):
        result = run("merge", models.root / "recipe.yaml", out[target], "--quiet", *overwrite)
        check_refusal(result, 1, "output")
        assert tree(models.root.parent) == before


def test_fault_60_a_single_file_is_an_input_too(models, place):
    file = models.root / "m1" / "model.safetensors"
    before = tree(models.root)
    models.recipe(models=[{"model": str(file)}], where="*")
    for out in (file, models.root / "m1"):
        check_refusal(run("merge", models.root / "recipe.yaml", out, "--quiet", "--overwrite"), 1, "output")
    assert {k: v for k, v in tree(models.root).items() if k != "recipe.yaml"} == before


# 61: the output is not empty


@pytest.mark.parametrize("content", ["model", "notes", "file"])
def test_fault_61_an_output_that_is_not_empty(recipe, place, content):
    out = place / "out"
    if content == "model":
        assert run("merge", recipe, out, "--quiet").code == 0
    elif content == "notes":
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    else:
        out.write_text("mine")
    before = tree(place)
    result = run("merge", recipe, out, "--quiet")
    check_refusal(result, 1, "out")
    assert ("--overwrite" in result.err) == (content != "file")
    assert tree(place) == before


def test_fault_61_an_empty_output_is_welcome(recipe, place):
    (place / "out").mkdir()
    assert run("merge", recipe, place / "out", "--quiet").code == 0


@pytest.mark.parametrize("content", ["notes.txt", ".git"])
def test_fault_61_overwrite_replaces_models_only(recipe, place, content):
    out = place / "out"
    out.mkdir()
    (out / content).write_text("mine")
    check_refusal(run("merge", recipe, out, "--quiet", "--overwrite"), 1, "out")
    assert (out / content).read_text() == "mine"


def test_fault_61_overwrite_replaces_everything(recipe, place):
    out = place / "out"
    assert run("merge", recipe, out, "--quiet", "--shard-size", "4K").code == 0
    assert len(list(out.glob("*.safetensors"))) > 2
    assert run("merge", recipe, out, "--quiet", "--overwrite", "--set", "scale=0.5").code == 0
    assert [p.name for p in out.glob("*.safetensors")] == ["model.safetensors"]
    assert neighbours(out) == []
    assert run("verify", out).code == 0


def test_fault_61_a_failing_overwrite_keeps_the_old_model(models, recipe, place):
    out = place / "out"
    assert run("merge", recipe, out, "--quiet").code == 0
    before = tree(out)
    with (models.root / "m1" / "model.safetensors").open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\xff\x7f")  # not a number
    check_refusal(run("merge", recipe, out, "--quiet", "--overwrite"), 1, "m1")
    assert tree(out) == before
    assert neighbours(out) == []


def test_fault_61_someone_fills_the_output_meanwhile(recipe, place):
    out = place / "out"

    def fill():
        out.mkdir()
        (out / "mine.txt").write_text("mine")
        return True

    with pytest.raises(Exception, match="appeared in the output") as caught:
        api.merge(recipe, out, progress=Meanwhile(fill))
    assert not isinstance(caught.value, RefusedError)
    assert (out / "mine.txt").read_text() == "mine"
    assert [p.name for p in out.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("mask", [0o077, 0o022])
def test_fault_62_modes_follow_the_mask(recipe, place, mask):
    before = os.umask(mask)
    try:
        assert run("merge", recipe, place / "out", "--quiet").code == 0
    finally:
        os.umask(before)
    for path in (place / "out").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((place / "out").stat().st_mode) & 0o777 == 0o777 & ~mask


# resources that the plan knows


def test_a_budget_that_does_not_suffice_is_refused_by_the_plan(tmp_path, place):
    models = family(tmp_path / "wide", hidden=512, inter=512, layers=1)
    recipe = models.recipe(preset="tsv")
    for arguments in (("merge", recipe, place / "out"), ("plan", recipe)):
        check_refusal(run(*arguments, "--memory", "200M", "--quiet"), 4, ".weight", "--memory")
    assert list(place.iterdir()) == []
    needed = run("plan", recipe, "--memory", "200M").err.split("--memory ")[1].split()[0]
    assert run("merge", recipe, place / "out", "--quiet", "--memory", needed).code == 0
