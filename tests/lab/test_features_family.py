"""Building the experiment's family: what it writes, what it goes on from, what it refuses."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from deltasmith.errors import RefusedError  # noqa: E402
from deltasmith.features.lineage import resolve  # noqa: E402
from deltasmith.lab.features import family  # noqa: E402
from deltasmith.lab.features.corpora import DOMAINS  # noqa: E402
from deltasmith.lab.features.family import FamilyWanted, build_models  # noqa: E402
from deltasmith.lab.features.language_models import read_params  # noqa: E402

WANTED = FamilyWanted(vocab=320, shorten=600, threads=1)


class Inline:
    """A pool that works at once, in this process: starting others would take most of the test's time."""

    def __init__(self, **_: object) -> None: ...

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, work, *arguments) -> Future:
        future: Future = Future()
        future.set_result(work(*arguments))
        return future


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("family") / "seed0"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family, "ProcessPoolExecutor", Inline)
        patch.setattr("deltasmith.lab.features.corpora._LIMITS", dict.fromkeys(DOMAINS, 40_000))
        patch.setattr(torch, "set_num_threads", lambda count: None)
        build_models(folder, WANTED, lambda line: None)
    return folder


def test_every_model_is_there_and_the_branches_moved(built: Path) -> None:
    params = {label: read_params(built / label) for label in ("base", "lua", "stories", "merged", "random")}
    names = params["base"].keys()
    assert all(found.keys() == names for found in params.values())
    matrix = "model.layers.0.mlp.down_proj.weight"
    base, lua, stories, merged = (params[label][matrix] for label in ("base", "lua", "stories", "merged"))
    assert not torch.equal(base, lua)
    assert not torch.equal(lua, stories)
    middle = (lua + stories) / 2
    assert (merged - middle).norm() < 0.1 * (lua - stories).norm()
    record = json.loads((built / "RECORD.json").read_text(encoding="utf-8"))
    assert set(record["losses"]) == {"base", "lua", "stories"}
    assert record["texts"].keys() == set(DOMAINS)


def test_the_merge_tells_its_parents(built: Path) -> None:
    words = [f"{label}={built / label}" for label in ("base", "lua", "stories", "merged")]
    graph = resolve(words, ("lua=base", "stories=base"))
    assert graph.by_label["merged"].parents == ("lua", "stories")
    assert graph.start_of("merged") == "base"


def test_what_is_there_is_not_trained_again(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(family, "_base", never)
    monkeypatch.setattr(family, "_branch", never)
    monkeypatch.setattr(family, "ProcessPoolExecutor", Inline)
    assert build_models(built, WANTED, lambda line: None)["seed"] == 0
    with pytest.raises(RefusedError, match="models with another seed"):
        build_models(built, FamilyWanted(seed=1, vocab=320, shorten=600), lambda line: None)


def test_models_without_a_record_are_refused(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    with pytest.raises(RefusedError, match="without a record"):
        build_models(tmp_path, WANTED, lambda line: None)
