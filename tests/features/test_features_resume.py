"""A training that was killed or interrupted goes on, and its study is that of one that was not, byte for byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import small_studies
from small_studies import FAMILY, light_options

from deltasmith.engine.workers import Stop
from deltasmith.errors import InterruptedRunError, RefusedError
from deltasmith.features.training import train
from models import environment, tree


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hash the files of a study that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train(**light_options(folder))
    return tree(folder / "study")


def partials(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("study"))


def test_killed_again_and_again_it_becomes_the_same_study(tmp_path: Path, whole: dict[str, str]) -> None:
    given = light_options(tmp_path, checkpoint_seconds=0)
    # In the root's training; while the root's files are placed; in another's, two later; while the last file is.
    # Every process counts from its own beginning.
    moments = [("step", 5), ("place", 4), ("step", 9), ("place", 12)]
    (tmp_path / "told.json").write_text(json.dumps({"options": given, "moments": moments}))
    script = [sys.executable, small_studies.__file__, str(tmp_path / "told.json")]
    env = environment(XDG_CACHE_HOME=str(tmp_path / "cache"), PYTHONWARNINGS="ignore")
    done = subprocess.run(script, capture_output=True, text=True, env=env, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["-9"] * len(moments), done.stdout
    assert not (tmp_path / "study").exists()
    assert (tmp_path / partials(tmp_path)[0] / "study.json.tmp").read_bytes() == b"half"
    train(**given)
    assert tree(tmp_path / "study") == whole
    assert partials(tmp_path) == ["study"]


def test_asked_to_stop_it_saves_and_goes_on_there(tmp_path: Path, whole: dict[str, str]) -> None:
    given, stop, heard = light_options(tmp_path), Stop(), []

    def say(what: str, done: int, of: int, detail: str = "") -> None:
        heard.append((what, done))
        if what == "training base~again" and done == 0:
            stop.ask()

    with pytest.raises(
        InterruptedRunError, match="interrupted while training base~again; run the same command"
    ):
        train(**given, say=say, stop=stop)
    assert (tmp_path / partials(tmp_path)[0] / "checkpoint.safetensors").is_file()
    heard.clear()
    train(**given, say=say, stop=Stop())
    assert ("base is finished already", 0) in heard
    assert ("training base~again", 1) in heard
    assert tree(tmp_path / "study") == whole


def test_finished_members_serve_a_study_with_other_models(tmp_path: Path, whole: dict[str, str]) -> None:
    given = light_options(tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    more = given | {"models": [*given["models"], f"odd={broken}"], "parents": ["math=base", "odd=base"]}
    copy_of(given["models"][1].partition("=")[2], broken, width=8)
    with pytest.raises(
        RefusedError, match="the site has a width of 8 there, and the root's dictionary one of 320"
    ):
        train(**more)
    assert len(partials(tmp_path)) == 1

    def finished(**changes: Any) -> list[str]:
        heard, stop = [], Stop()

        def say(what: str, done: int, of: int, detail: str = "") -> None:
            heard.append(what)
            if what == "scoring math" and changes:
                stop.ask()

        if changes:
            with pytest.raises(InterruptedRunError):
                train(**given | changes, say=say, stop=stop)
        else:
            train(**given, say=say)
        return [what.removesuffix(" is finished already") for what in heard if what.endswith("already")]

    other = [given["models"][0], f"math={FAMILY / 'small/code'}"]
    assert finished(models=other) == ["base", "base~again", "base~seed1"]  # another model of the same label
    assert finished() == ["base", "base~again", "base~seed1"]
    assert tree(tmp_path / "study") == whole


def test_other_settings_begin_afresh(tmp_path: Path) -> None:
    given, stop = light_options(tmp_path), Stop()
    stop.ask()
    for seed in (0, 1):
        with pytest.raises(InterruptedRunError):
            train(**given | {"seed": seed}, stop=stop)


def copy_of(source: str, folder: Path, width: int) -> None:
    """Copy a model and cut its MLP to another width."""
    import shutil

    from safetensors.numpy import load_file, save_file

    shutil.copytree(source, folder, dirs_exist_ok=True)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": width}))
    arrays = load_file(folder / "model.safetensors")
    for name, array in arrays.items():
        if "gate_proj" in name or "up_proj" in name:
            arrays[name] = array[:width].copy()
        elif "down_proj" in name:
            arrays[name] = array[:, :width].copy()
    save_file(arrays, folder / "model.safetensors")
