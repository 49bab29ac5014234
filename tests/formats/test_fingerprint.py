import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from deltasmith.errors import DamagedInputError
from deltasmith.formats import fingerprint
from deltasmith.formats.fingerprint import HashCache, blob_sha256, cache_path, sha256_of

SHA256 = hashlib.sha256  # some tests count the calls of hashlib.sha256
LATER = time.time_ns() + 3600 * 10**9


def digest(content):
    return SHA256(content).hexdigest()


@pytest.fixture
def cache(tmp_path):
    return HashCache(tmp_path / "cache" / "sha256.json", clock=lambda: LATER)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def reads(monkeypatch):
    """Count how often a hash is begun."""
    begun = []
    monkeypatch.setattr(fingerprint.hashlib, "sha256", lambda: begun.append(1) or SHA256())
    return begun


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_the_hash_is_that_of_the_bytes(tmp_path, cache, size):
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "f").write_bytes(content)
    assert sha256_of(tmp_path / "f", cache=cache) == digest(content)


def test_a_file_that_did_not_change_is_hashed_once(file, cache, reads, tmp_path):
    first = sha256_of(file, cache=cache)
    assert sha256_of(str(file), cache=cache) == first == digest(b"weights")
    again = HashCache(tmp_path / "cache" / "sha256.json", clock=lambda: LATER)
    assert sha256_of(file, cache=again) == first
    assert len(reads) == 1


@pytest.mark.parametrize("change", ["size", "inode", "time", "back-dated"])
def test_fault_32_a_file_that_changed_is_hashed_again(file, cache, reads, change):
    sha256_of(file, cache=cache)
    status = file.stat()
    if change == "inode":
        (file.parent / "new").write_bytes(b"WEIGHTS")
        (file.parent / "new").replace(file)
    else:
        moved = 0 if change == "back-dated" else 1
        while file.stat().st_ctime_ns == status.st_ctime_ns:  # the clock of some file systems is coarse
            file.write_bytes(b"weights!" if change == "size" else b"WEIGHTS")
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + moved))
    assert sha256_of(file, cache=cache) == digest(file.read_bytes())
    assert len(reads) == 2


def test_a_young_file_is_not_remembered(file, tmp_path, reads):
    path = tmp_path / "cache" / "sha256.json"
    for _ in range(2):
        sha256_of(file, cache=HashCache(path))
    assert len(reads) == 2
    assert not path.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"a": 1}', "[" * 100_000, "\xff"])
def test_a_damaged_cache_is_forgotten(file, cache, tmp_path, content):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "sha256.json").write_text(content, encoding="latin-1")
    assert sha256_of(file, cache=cache) == digest(b"weights")
    assert len(json.loads((tmp_path / "cache" / "sha256.json").read_text())) == 1


def test_a_remembered_value_that_is_no_hash_is_not_used(file, cache, tmp_path):
    sha256_of(file, cache=cache)
    path = tmp_path / "cache" / "sha256.json"
    path.write_text(path.read_text().replace(digest(b"weights"), "deadbeef"))
    assert sha256_of(file, cache=cache) == digest(b"weights")


def test_a_huge_cache_is_not_read(file, cache, tmp_path, reads):
    sha256_of(file, cache=cache)
    with (tmp_path / "cache" / "sha256.json").open("ab") as grown:
        grown.truncate(1 << 30)
    sha256_of(file, cache=cache)
    assert len(reads) == 2


def test_the_cache_forgets_the_oldest(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(fingerprint, "_MOST", 3)
    for i in range(5):
        (tmp_path / f"f{i}").write_bytes(bytes([i]))
        sha256_of(tmp_path / f"f{i}", cache=cache)
    kept = json.loads((tmp_path / "cache" / "sha256.json").read_text())
    assert list(kept.values()) == [digest(bytes([i])) for i in (2, 3, 4)]


def test_fault_65_a_cache_directory_that_cannot_be_used(file, tmp_path):
    (tmp_path / "blocked").write_text("a file where a folder should be")
    cache = HashCache(tmp_path / "blocked" / "sha256.json", clock=lambda: LATER)
    assert sha256_of(file, cache=cache) == digest(b"weights")
    assert sha256_of(file, cache=HashCache(None)) == digest(b"weights")


def test_a_write_that_fails_leaves_the_old_cache_and_no_litter(file, cache, tmp_path, monkeypatch):
    sha256_of(file, cache=cache)
    before = (tmp_path / "cache" / "sha256.json").read_bytes()
    other = tmp_path / "other"
    other.write_bytes(b"x")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fingerprint.json, "dump", fail)
    assert sha256_of(other, cache=cache) == digest(b"x")
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["sha256.json"]
    assert (tmp_path / "cache" / "sha256.json").read_bytes() == before


def test_where_hashes_are_remembered(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_path() == tmp_path / "deltasmith" / "sha256.json"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_path() is None
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_path() == tmp_path / ".cache" / "deltasmith" / "sha256.json"

    def homeless():
        raise RuntimeError

    monkeypatch.setattr(Path, "home", homeless)
    assert cache_path() is None


def test_fault_33_a_file_that_changes_while_it_is_hashed(file, monkeypatch):

    def sha256():
        file.write_bytes(b"changed!")
        return SHA256()

    monkeypatch.setattr(fingerprint.hashlib, "sha256", sha256)
    with pytest.raises(DamagedInputError, match="changed while it was hashed") as caught:
        sha256_of(file, cache=HashCache(None))
    assert caught.value.exit_code == 3
    assert "model.safetensors" in str(caught.value)


def test_fault_37_a_pipe_is_not_hashed(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DamagedInputError, match="named pipe"):
        sha256_of(tmp_path / "pipe", cache=HashCache(None))


# Blobs of the hub's cache are named by their hash.

NAME = "a1" * 32


def blob(tmp_path, where=f"hub/models--o--n/blobs/{NAME}"):
    path = tmp_path / where
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    return path


def test_a_blob_is_taken_at_its_word_only_if_the_size_fits(tmp_path, reads):
    path = blob(tmp_path)
    assert blob_sha256(path, 7) == NAME
    assert blob_sha256(path, 8) is None
    assert sha256_of(path, 7) == NAME
    assert reads == []
    assert sha256_of(path, 8, HashCache(None)) == digest(b"weights")
    assert sha256_of(path, cache=HashCache(None)) == digest(b"weights")


def test_a_link_to_a_blob(tmp_path, monkeypatch):
    blob(tmp_path)
    link = tmp_path / "hub" / "models--o--n" / "snapshots" / "c" / "model.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(f"../../blobs/{NAME}")
    assert blob_sha256(link, 7) == NAME
    monkeypatch.chdir(link.parent)
    assert blob_sha256("model.safetensors", 7) == NAME


def test_a_blob_in_the_shared_store_has_another_kind_of_name(tmp_path):
    other = "bb" * 32
    shared = blob(tmp_path, f"hub/blobs/bb/{other}")
    link = tmp_path / "hub" / "models--o--n" / "blobs" / NAME
    link.parent.mkdir(parents=True)
    link.symlink_to(f"../../blobs/bb/{other}")
    assert blob_sha256(shared, 7) is None
    assert blob_sha256(link, 7) == NAME


@pytest.mark.parametrize(
    "where",
    [
        f"hub/models--o--n/blobs/{'a' * 40}",
        f"models--o--n/{NAME}",
        f"models--o--n/refs/{NAME}",
        f"x/blobs/{NAME}",
        f"models--o--n/blobs/{NAME.upper()}",
    ],
)
def test_other_files_are_not_taken_at_their_word(tmp_path, where):
    assert blob_sha256(blob(tmp_path, where), 7) is None


def test_a_missing_blob(tmp_path):
    assert blob_sha256(tmp_path / "models--o--n" / "blobs" / NAME, 7) is None
    with pytest.raises(DamagedInputError, match="no such file"):
        sha256_of(tmp_path / "models--o--n" / "blobs" / NAME, 7)
