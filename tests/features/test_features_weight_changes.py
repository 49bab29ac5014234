"""How far children's weights lie from their parents': against float64 by hand; what does not line up is noted."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from deltasmith.engine.workers import Stop
from deltasmith.errors import InterruptedRunError
from deltasmith.features.graph import Graph, Node
from deltasmith.features.weight_changes import weight_changes
from models import config, draw, tuned, write_model


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, np.ndarray]]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = draw(1, layers=1)
    arrays = {"base": base, "lua": tuned(base, 1), "stories": tuned(base, 2, spread=0.03)}
    for name, weights in arrays.items():
        write_model(
            tmp_path / name, weights, "float32", settings=config(num_hidden_layers=1, torch_dtype="float32")
        )
    return arrays


def graph(folder: Path, *nodes: tuple[str, tuple[str, ...], str | None]) -> Graph:
    return Graph(
        tuple(Node(label, str(folder / label), label, parents, base) for label, parents, base in nodes)
    )


def expected(parent: dict[str, np.ndarray], child: dict[str, np.ndarray], *words: str) -> float:
    names = [n for n in parent if any(word in n for word in words)]
    moved = sum(np.square(child[n].astype(np.float64) - parent[n]).sum() for n in names)
    return math.sqrt(moved / sum(np.square(parent[n].astype(np.float64)).sum() for n in names))


def test_every_edge_and_group_is_measured(tmp_path: Path, family: dict[str, dict[str, np.ndarray]]) -> None:
    found, notes = weight_changes(
        graph(tmp_path, ("base", (), None), ("lua", ("base",), None), ("stories", ("base",), None)),
        threads=1,
        stop=Stop(),
    )
    assert notes == ()
    assert [(c.parent, c.child) for c in found] == [("base", "lua"), ("base", "stories")]
    for change in found:
        ours = (family["base"], family[change.child])
        assert change.all == pytest.approx(expected(*ours, ""), rel=1e-5)
        assert change.groups == {
            "embeddings": pytest.approx(expected(*ours, "embed"), rel=1e-5),
            "block": pytest.approx(expected(*ours, "layers"), rel=1e-5),
            "head": pytest.approx(expected(*ours, "model.norm", "lm_head"), rel=1e-5),
        }


def test_a_recipe_is_measured_without_being_written(
    tmp_path: Path, family: dict[str, dict[str, np.ndarray]]
) -> None:
    entries = [{"model": "lua", "label": "lua"}, {"model": "stories", "label": "stories"}]
    recipe = {"base": "base", "models": entries, "merge": "mean"}
    (tmp_path / "merged.yaml").write_text(yaml.safe_dump(recipe))
    made = graph(tmp_path, ("base", (), None), ("lua", ("base",), None), ("stories", ("base",), None))
    merged = Node("merged", str(tmp_path / "merged.yaml"), "merged", ("lua", "stories"), "base")
    found, notes = weight_changes(Graph((*made.nodes, merged)), threads=1, stop=Stop())
    assert notes == ()
    middle = {n: (family["lua"][n] + family["stories"][n]) / 2 for n in family["lua"]}
    for change in found[2:]:
        assert change.child == "merged"
        assert change.all == pytest.approx(expected(family[change.parent], middle, ""), rel=1e-3)
    assert [c.parent for c in found[2:]] == ["base", "lua", "stories"]


def test_what_does_not_line_up_is_noted_and_the_others_are_measured(
    tmp_path: Path, family: dict[str, dict[str, np.ndarray]]
) -> None:
    other = {
        name.replace("model.", "other."): weights for name, weights in draw(3, layers=1, hidden=8).items()
    }
    write_model(tmp_path / "odd", other, "float32", settings=config(num_hidden_layers=1, hidden_size=8))
    made = graph(tmp_path, ("base", (), None), ("lua", ("base",), None), ("odd", ("base",), None))
    found, notes = weight_changes(made, threads=1, stop=Stop())
    assert found[0].all is not None
    assert found[1].all is None
    assert found[1].as_json() == {
        "parent": "base",
        "child": "odd",
        "all": None,
        "groups": {"embeddings": None, "block": None, "head": None},
    }
    assert len(notes) == 1
    assert notes[0].startswith("the weights of odd could not be compared with those of base: ")


def test_stop_is_heard(tmp_path: Path, family: dict[str, dict[str, np.ndarray]]) -> None:
    stop = Stop()
    stop.ask()
    with pytest.raises(InterruptedRunError):
        weight_changes(graph(tmp_path, ("base", (), None), ("lua", ("base",), None)), threads=1, stop=stop)
