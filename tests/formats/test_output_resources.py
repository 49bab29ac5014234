"""Full disks, limits, failing and short writes: exit 4, and the next run completes."""

# ruff: noqa: PT012, SIM117 - what fails is a block: the writer's own

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy_writer import (
    PARTIAL,
    SIDE_FILES,
    SPECS,
    environment,
    failing,
    fill,
    interrupted,
    manifest,
    names,
    opened,
    produce,
    tree,
    write_tensor,
)

from deltasmith.errors import (
    ResourceError,
)
from deltasmith.formats import output as module
from deltasmith.formats import system
from deltasmith.formats.verify import examine


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    produce(out)
    return tree(out)


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


SMALL = [SPECS[0], SPECS[-1]]


def test_fault_53_no_room_at_the_start(out, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "allocate", failing(module.allocate, 3, errno.ENOSPC))
    with pytest.raises(
        ResourceError, match=r"the disk is full in .*model-00003.*; free some space"
    ) as caught:
        opened(out)
    assert caught.value.exit_code == 4
    assert names(tmp_path) == []


def test_fault_53_no_room_at_the_start_of_a_resumed_run_loses_nothing(out, tmp_path, monkeypatch):
    interrupted(out, SPECS[:4])
    with monkeypatch.context() as patch:
        patch.setattr(module, "allocate", failing(module.allocate, 1, errno.ENOSPC))
        with pytest.raises(ResourceError):
            opened(out)
    assert names(tmp_path) == [PARTIAL]
    assert produce(out) == len(SPECS) - 4


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "may not grow so large"),
        (errno.EIO, "input/output error"),
        (errno.EROFS, "read-only"),
    ],
)
def test_fault_53_and_54_a_write_that_fails_later_can_be_resumed(
    out, tmp_path, monkeypatch, code, words, undisturbed
):
    with (
        monkeypatch.context() as patch,
        pytest.raises(ResourceError, match=words) as caught,
        opened(out) as output,
    ):
        fill(output, SPECS[:6])
        patch.setattr(os, "pwrite", failing(os.pwrite, 3, code))
        fill(output)
    assert caught.value.exit_code == 4
    assert f"{PARTIAL}/model-0000" in str(caught.value)
    assert names(tmp_path) == [PARTIAL]
    assert produce(out) == len(SPECS) - 6
    assert tree(out) == undisturbed


def test_fault_53_any_call_may_find_the_disk_full(tmp_path, monkeypatch, undisturbed):
    """The n-th call fails, for every n: one error of the right kind, no OUT, and the next run completes."""
    passed, number = False, 0
    while not passed:
        number += 1
        home = tmp_path / str(number)
        home.mkdir()
        out = home / "out"
        with monkeypatch.context() as patch:
            for name in ("pwrite", "fsync", "ftruncate"):
                patch.setattr(os, name, failing(getattr(os, name), number, errno.ENOSPC))
            words = ""
            try:
                produce(out, specs=SMALL)
                passed = True
            except ResourceError as error:
                words = str(error)
        assert passed or "the disk is full" in words
        if not passed:
            assert not out.exists() or "manifest.json" in names(out)
            assert names(home) in ([], ["out"], [PARTIAL])
            assert names(home) != [PARTIAL] or "journal.jsonl" in names(home / PARTIAL)
        if not out.exists():
            produce(out, specs=SMALL)
        assert examine(out).problems == ()
        assert names(home) == ["out"]
    assert number > 8


def test_fault_54_a_real_limit_on_file_size(tmp_path):
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "from toy_writer import produce\n"
        "from deltasmith.errors import ResourceError\n"
        "try:\n    produce(sys.argv[1])\n"
        "except ResourceError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "the file may not grow so large in" in done.stdout
    assert names(tmp_path) == []


def test_fault_55_a_failing_fsync_leaves_nothing_to_be_trusted(out, tmp_path, monkeypatch, undisturbed):
    interrupted(out)
    with monkeypatch.context() as patch:
        with pytest.raises(ResourceError, match="input/output error"), opened(out) as output:
            patch.setattr(os, "fsync", failing(os.fsync, 2, errno.EIO))
            output.publish(SIDE_FILES, manifest(output))
    assert names(tmp_path) == []
    assert produce(out) == len(SPECS)
    assert tree(out) == undisturbed


def test_fault_56_short_writes_are_continued(out, monkeypatch, undisturbed):
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, memoryview(data)[:1009], at))
    produce(out)
    assert tree(out) == undisturbed


def test_fault_56_a_write_of_nothing_does_not_loop_for_ever(out, monkeypatch):
    with pytest.raises(ResourceError), opened(out) as output:
        monkeypatch.setattr(os, "pwrite", lambda fd, data, at: 0)
        write_tensor(output, SPECS[0])


def test_a_file_system_without_allocation_gets_the_size_only_if_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr(system, "_libc", lambda: None)
    with (tmp_path / "file").open("wb") as file:
        system.allocate(file.fileno(), 12345)
        assert os.fstat(file.fileno()).st_size == 12345
        with pytest.raises(OSError) as caught:
            system.allocate(file.fileno(), 1 << 60)
        assert caught.value.errno == errno.ENOSPC
        system.start_writeback(file.fileno(), 0, 0)
    assert system.exchange(tmp_path, tmp_path) is False


def test_allocation_takes_real_blocks_and_cuts_longer_files(tmp_path):
    with (tmp_path / "file").open("wb") as file:
        for size in (300_000, 100_000, 0):
            system.allocate(file.fileno(), size)
            status = os.fstat(file.fileno())
            assert status.st_size == size
            assert status.st_blocks * 512 >= size


def test_writeback_starts_while_the_run_goes_on(out, monkeypatch):
    started = []
    monkeypatch.setattr(module, "_WRITEBACK", 20_000)
    monkeypatch.setattr(module, "start_writeback", lambda fd, start, size: started.append(fd))
    produce(out)
    assert len(started) > 5
