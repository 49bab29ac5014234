import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import errors

from deltasmith.errors import DamagedInputError
from deltasmith.formats.hub import PATTERNS, Resolved, looks_like_id, resolve
from deltasmith.formats.opening import open_model
from formats.attacks import write_adapter, write_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ARRAYS = {"w": np.ones(2, np.float32)}


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Let every download succeed, with the same snapshot; record what was asked for."""
    snapshot = write_model(tmp_path / "hub" / "models--o--n" / "snapshots" / COMMIT, ARRAYS)
    asked = []

    def download(name, **options):
        asked.append((name, options))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return SimpleNamespace(snapshot=snapshot, asked=asked)


@pytest.fixture
def failing(monkeypatch):
    def with_error(error):
        def download(name, **options):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    return with_error


@pytest.mark.parametrize(
    "source", ["o/n", "o/n@main", "mistralai/Mistral-7B-v0.1", "o/n@refs/pr/3", f"o/n@{COMMIT}", "a.b/c_d"]
)
def test_ids(source):
    assert looks_like_id(source)


@pytest.mark.parametrize(
    "source",
    [
        "n",
        "./n",
        "/o/n",
        "o/n/x",
        "../n",
        "o/..",
        "o/n@",
        "o/n@a@b",
        "o n/x",
        "o/n\n",
        "~/n",
        "C:\\n",
        "",
        "o--x/n",
        "o/",
    ],
)
def test_no_ids(source):
    assert not looks_like_id(source)


def test_a_local_path_wins(tmp_path, cached):
    (tmp_path / "o" / "n").mkdir(parents=True)
    assert resolve("o/n", tmp_path) == Resolved(tmp_path / "o" / "n", "n", None)
    assert cached.asked == []


def test_a_fetched_model_is_pinned_to_its_commit(tmp_path, cached):
    assert resolve("o/n@main", tmp_path) == Resolved(cached.snapshot, "o/n", COMMIT)
    ((name, options),) = cached.asked
    assert name == "o/n"
    assert options["revision"] == "main"
    assert options["local_files_only"] is False
    opened = open_model("o/n", tmp_path)
    assert (opened.name, opened.revision, opened.source) == ("o/n", COMMIT, "o/n")


def test_a_folder_that_is_no_snapshot_has_no_revision(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(tmp_path / "local"))
    assert resolve("o/n", tmp_path).revision is None


def test_a_fetched_adapter_keeps_its_revision(tmp_path, monkeypatch):
    arrays = {"q.lora_A.weight": np.ones((2, 3), np.float32), "q.lora_B.weight": np.ones((4, 2), np.float32)}
    folder = write_adapter(tmp_path / COMMIT, arrays)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(folder))
    opened = open_model("o/n")
    assert (opened.name, opened.revision, opened.adapter is not None) == ("o/n", COMMIT, True)


def test_offline_asks_the_cache_only(cached):
    resolve("o/n", offline=True)
    assert cached.asked[0][1]["local_files_only"] is True


def test_no_pickles_and_no_code_are_fetched(cached):
    resolve("o/n")
    assert cached.asked[0][1]["allow_patterns"] == list(PATTERNS)

    def fetched(name):
        return any(fnmatch(name, pattern) for pattern in PATTERNS)

    wanted = (
        "model-00001-of-00002.safetensors",
        "config.json",
        "tokenizer.model",
        "chat_template.jinja",
        "merges.txt",
    )
    assert all(map(fetched, wanted))
    assert not any(map(fetched, ("pytorch_model.bin", "modeling_x.py", "model.pt", "model.gguf", "x.ckpt")))


def http(kind, status):
    response = SimpleNamespace(headers={}, request=None, status_code=status)
    return kind("a message\nof two lines", response=response)


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (http(errors.RepositoryNotFoundError, 404), "check the id, or set HF_TOKEN"),
        (http(errors.GatedRepoError, 403), "accept them there and set HF_TOKEN"),
        (http(errors.RevisionNotFoundError, 404), "no such revision"),
        (http(errors.HfHubHTTPError, 503), "the hub answered with 503"),
        (errors.LocalEntryNotFoundError("x"), "the hub cannot be reached"),
        (errors.OfflineModeIsEnabled("x"), "the hub cannot be reached"),
        (errors.HFValidationError("x"), "no id that the hub could have"),
        (ConnectionResetError("x"), "cannot be fetched (ConnectionResetError)"),
        (OSError(28, "No space left on device"), "cannot be fetched (OSError)"),
        (RuntimeError("x"), "cannot be fetched (RuntimeError)"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(tmp_path, failing, error, word):
    failing(error)
    with pytest.raises(DamagedInputError) as caught:
        open_model("o/n@v1", tmp_path)
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert word in message
    assert "o/n@v1" in message
    assert "there is no such local path" in message
    assert "\n" not in message
    assert caught.value.__cause__ is error


def test_offline_and_not_cached(failing):
    failing(errors.LocalEntryNotFoundError("x"))
    with pytest.raises(DamagedInputError, match="--offline forbids to fetch it"):
        resolve("o/n", offline=True)


def test_a_bug_is_not_taken_for_a_missing_model(failing):
    failing(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        resolve("o/n")


def test_the_hub_client_is_loaded_only_when_needed():
    code = "import sys, deltasmith.formats.opening; sys.exit('huggingface_hub' in sys.modules)"
    source = Path(sys.modules["deltasmith"].__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(source)}).returncode == 0
