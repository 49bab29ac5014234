"""Where an output may lie, who else writes there, and what becomes of an old one."""

# ruff: noqa: PT012 - what fails is a block: the writer's own

import errno
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from toy_writer import (
    PARTIAL,
    PLAN,
    SIDE_FILES,
    SPECS,
    environment,
    failing,
    fill,
    layout,
    manifest,
    names,
    opened,
    produce,
    start,
    tree,
)

from deltasmith.errors import (
    RefusedError,
    ResourceError,
)
from deltasmith.formats import claim, staging
from deltasmith.formats import output as module
from deltasmith.formats.output import Output


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    produce(out)
    return tree(out)


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def model(tmp_path) -> Path:
    """An input whose weights lie elsewhere, as in a hub cache."""
    home = tmp_path / "cache"
    (home / "blobs").mkdir(parents=True)
    (home / "blobs" / "abc").write_bytes(b"weights")
    folder = home / "snapshots" / "main"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").symlink_to("../../blobs/abc")
    (folder / "config.json").write_bytes(b"{}")
    return folder


def test_fault_59_a_second_process_hears_who_is_writing(out, tmp_path, undisturbed):
    process = start(out, 1.0)
    process.stdout.readline()
    with pytest.raises(RefusedError) as caught:
        opened(out)
    assert caught.value.exit_code == 1
    assert f"another process (process {process.pid} on " in str(caught.value)
    with pytest.raises(RefusedError, match="is writing this output"):
        Output.open(out, layout(), "another plan for the same output")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert "out.partial.lock" in names(tmp_path)  # stale, and no obstacle
    produce(out)
    assert tree(out) == undisturbed
    assert names(tmp_path) == ["out"]


def test_fault_59_of_many_at_once_exactly_one_writes(out, tmp_path, undisturbed):
    outcomes = []

    def attempt():
        try:
            outcomes.append(produce(out, pause=0.002))
        except RefusedError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(len(SPECS)) == 1
    assert all("is writing this output" in o or "not empty" in o for o in outcomes if isinstance(o, str))
    assert tree(out) == undisturbed
    assert names(tmp_path) == ["out"]


def test_fault_59_a_lock_whose_file_was_removed_is_no_lock(out, monkeypatch):
    """The holder removes the file when it is done; who then locks the removed file must try again."""
    path = out.with_name("out.partial.lock")
    flock, calls = claim._flock, []

    def removed_meanwhile(fd, where, output):
        calls.append(fd)
        if len(calls) == 1:
            path.unlink()
        return flock(fd, where, output)

    monkeypatch.setattr(claim, "_flock", removed_meanwhile)
    lock = claim.take_lock(out)
    assert len(calls) == 2
    assert path.exists()
    lock.release()
    lock.release()
    assert not path.exists()


def test_fault_59_a_file_system_without_locks_is_used_without(out, monkeypatch):
    def no_locks(fd, operation):
        raise OSError(errno.ENOSYS, "no locks here")

    monkeypatch.setattr(claim.fcntl, "flock", no_locks)
    lock = claim.take_lock(out)
    assert not lock.held
    lock.release()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("where", "how"),
    [
        ("cache/snapshots/main", "is the input"),
        ("cache/snapshots/main/", "is the input"),
        ("cache/snapshots/main/merged", "lies inside the input"),
        ("cache/snapshots/main/new/deep", "lies inside the input"),
        ("cache/snapshots/../snapshots/main", "is the input"),
        ("cache/snapshots", "holds the input"),
        ("cache", "holds the input"),
        (".", "holds the input"),
        ("cache/blobs", "holds the input"),
        ("cache/blobs/abc", "is the input"),
        ("link", "is the input"),
        ("link/merged", "lies inside the input"),
    ],
)
def test_fault_60_an_input_is_never_written_into(tmp_path, model, where, how, overwrite):
    (tmp_path / "link").symlink_to(model)
    before = tree(tmp_path)
    with pytest.raises(RefusedError, match=how) as caught:
        opened(tmp_path / where, inputs=[model], overwrite=overwrite)
    assert caught.value.exit_code == 1
    assert tree(tmp_path) == before
    with pytest.raises(RefusedError):  # the input given by another name
        opened(tmp_path / where, inputs=[tmp_path / "link"], overwrite=overwrite)
    assert tree(tmp_path) == before


def test_fault_60_the_hub_name_is_compared_by_inode_not_by_spelling(tmp_path, monkeypatch):
    """A file system that ignores case, or a bind mount: two paths, one folder."""
    folder = tmp_path / "Model"
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    real = Path.stat

    def ignoring_case(self, **options):
        return real(Path(str(self).replace("/model", "/Model")), **options)

    monkeypatch.setattr(Path, "stat", ignoring_case)
    with pytest.raises(RefusedError, match="lies inside the input"):
        opened(tmp_path / "model" / "merged", inputs=[folder])


def test_fault_60_an_old_output_that_holds_an_input_by_a_hard_link_is_kept(tmp_path, out):
    out.mkdir()
    (out / "config.json").write_bytes(b"{}")
    (tmp_path / "input.safetensors").write_bytes(b"weights")
    (out / "model.safetensors").hardlink_to(tmp_path / "input.safetensors")
    with pytest.raises(RefusedError, match=r"the output holds the input .*input\.safetensors"):
        opened(out, overwrite=True, inputs=[tmp_path / "input.safetensors"])


def test_an_output_beside_an_input_is_fine(tmp_path, model):
    produce(model.parent / "merged", inputs=[model])
    (tmp_path / "single.safetensors").write_bytes(b"x")
    produce(tmp_path / "deep" / "er" / "out", inputs=[tmp_path / "single.safetensors"])
    assert names(tmp_path / "deep" / "er") == ["out"]


def test_fault_61_an_output_that_is_not_empty_is_refused(out, tmp_path):
    out.mkdir()
    (out / "config.json").write_bytes(b"old")
    with pytest.raises(RefusedError) as caught:
        opened(out)
    assert str(caught.value) == (
        f"the output exists and is not empty in {out}; choose another output, or replace it with --overwrite"
    )
    assert tree(tmp_path) == {"out/config.json": b"old"}


def test_an_empty_folder_or_a_link_to_one_is_taken(tmp_path, undisturbed):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    produce(tmp_path / "out")
    assert tree(tmp_path / "real") == undisturbed
    assert names(tmp_path) == ["out", "real"]


@pytest.mark.parametrize("kind", ["file", "notes", "repository", "mount"])
def test_what_is_no_model_is_not_replaced_even_when_asked(out, kind, monkeypatch):
    if kind == "file":
        out.write_bytes(b"precious")
    else:
        out.mkdir()
        (out / "notes.txt").write_bytes(b"precious")
    if kind == "repository":
        (out / ".git").mkdir()
        (out / "config.json").write_bytes(b"{}")
    if kind == "mount":
        monkeypatch.setattr(Path, "is_mount", lambda self: self == out)
    words = {"file": "is a file", "notes": "no model", "repository": "git", "mount": "mount point"}[kind]
    with pytest.raises(RefusedError, match=words):
        opened(out, overwrite=True)


@pytest.mark.parametrize("swap", ["exchange", "two renames"])
def test_fault_61_overwriting_swaps_at_the_end(out, tmp_path, monkeypatch, swap, undisturbed):
    if swap == "two renames":
        monkeypatch.setattr(staging, "exchange", lambda one, other: False)
    out.mkdir()
    (out / "manifest.json").write_bytes(b"old")
    (out / "folder").mkdir()
    with opened(out, overwrite=True) as output:
        fill(output)
        assert tree(out) == {"manifest.json": b"old"}
        output.publish(SIDE_FILES, manifest(output))
    assert tree(out) == undisturbed
    assert names(tmp_path) == ["out"]


def test_fault_61_a_failing_second_rename_puts_the_old_model_back(out, tmp_path, monkeypatch, undisturbed):
    monkeypatch.setattr(staging, "exchange", lambda one, other: False)
    out.mkdir()
    (out / "config.json").write_bytes(b"old")
    with monkeypatch.context() as patch, pytest.raises(ResourceError), opened(out, overwrite=True) as output:
        fill(output)
        rename = Path.rename

        def busy(self, target):
            if self == output.partial:
                raise OSError(errno.EBUSY, "busy")
            return rename(self, target)

        patch.setattr(Path, "rename", busy)
        output.publish(SIDE_FILES, manifest(output))
    assert tree(out) == {"config.json": b"old"}
    assert names(tmp_path) == ["out", PARTIAL]
    assert produce(out, overwrite=True) == 0  # and nothing has to be computed again
    assert tree(out) == undisturbed


def test_fault_61_death_between_the_two_renames_is_mended(out, tmp_path, undisturbed):
    replaced = tmp_path / f"out.replaced-{PLAN[:8]}"
    replaced.mkdir()
    (replaced / "config.json").write_bytes(b"old")
    with pytest.raises(RefusedError, match="not empty"):
        produce(out)
    assert tree(out) == {"config.json": b"old"}
    produce(out, overwrite=True)
    assert tree(out) == undisturbed
    assert names(tmp_path) == ["out"]


def test_files_that_appear_in_the_output_meanwhile_are_not_lost(out, tmp_path, undisturbed):
    with pytest.raises(ResourceError, match="have appeared in the output"), opened(out) as output:
        fill(output)
        out.mkdir()
        (out / "mine").write_bytes(b"mine")
        output.publish(SIDE_FILES, manifest(output))
    assert tree(out) == {"mine": b"mine"}
    (out / "mine").unlink()
    assert produce(out) == 0
    assert tree(out) == undisturbed


def test_an_old_output_that_cannot_be_removed_is_a_warning(out, monkeypatch, undisturbed):
    out.mkdir()
    (out / "config.json").write_bytes(b"old")
    with opened(out, overwrite=True) as output:
        fill(output)
        with monkeypatch.context() as patch:
            patch.setattr(module.shutil, "rmtree", failing(None, 1, errno.EACCES))
            (warning,) = output.publish(SIDE_FILES, manifest(output))
    assert warning.startswith("the old output could not be removed")
    assert tree(out) == undisturbed


def test_what_a_run_with_other_settings_has_left_is_named_and_stays(out, tmp_path):
    left = tmp_path / "out.partial-00000000"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    (tmp_path / "other.partial-00000000").mkdir()
    (tmp_path / "out.partial-link").symlink_to(left)
    (tmp_path / "out.partial-file").write_bytes(b"")
    with opened(out) as output:
        fill(output)
        warnings = output.publish(SIDE_FILES, manifest(output))
    assert warnings == (
        "out.partial-00000000 is left from an interrupted run with other settings; remove it if it is not wanted",
    )
    assert (left / "model.safetensors").read_bytes() == b"half"


def test_a_partial_folder_that_is_a_link_is_refused(out, tmp_path):
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "file").write_bytes(b"precious")
    (tmp_path / PARTIAL).symlink_to("victim")
    with pytest.raises(RefusedError, match="is a link"):
        opened(out)
    assert tree(tmp_path / "victim") == {"file": b"precious"}


@pytest.mark.parametrize(
    ("mask", "file_mode", "folder_mode"), [(0o077, 0o600, 0o700), (0o022, 0o644, 0o755), (0, 0o666, 0o777)]
)
def test_fault_62_modes_honour_the_umask(tmp_path, mask, file_mode, folder_mode):
    code = f"import os, sys; os.umask({mask}); from toy_writer import produce; produce(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        env=environment(),
        check=True,
        capture_output=True,
    )
    for path in [tmp_path / "out", *(tmp_path / "out").rglob("*")]:
        assert path.stat().st_mode & 0o777 == (folder_mode if path.is_dir() else file_mode), path


def test_fault_62_a_setgid_folder_passes_its_group_on(tmp_path):
    home = tmp_path / "shared"
    home.mkdir()
    home.chmod(0o2775)
    produce(home / "out")
    assert (home / "out").stat().st_mode & 0o2000
    assert (home / "out").stat().st_gid == home.stat().st_gid


@pytest.mark.parametrize(
    "extra",
    [
        {"LANG": "tr_TR.UTF-8", "LC_ALL": "tr_TR.UTF-8", "PYTHONHASHSEED": "1"},
        {"LANG": "C", "LC_ALL": "C", "PYTHONHASHSEED": "2", "TZ": "Pacific/Kiritimati"},
        {"PYTHONIOENCODING": "latin-1", "PYTHONHASHSEED": "3", "PYTHONUTF8": "0"},
    ],
)
def test_fault_63_locale_time_zone_and_hash_seed_do_not_change_a_byte(tmp_path, extra, undisturbed):
    process = start(tmp_path / "out", 0, **extra)
    assert process.communicate()[1] == ""
    assert process.returncode == 0
    assert tree(tmp_path / "out") == undisturbed
