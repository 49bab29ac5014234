"""Mixtures, containers of several experts, and distillation as the lab runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deltasmith.lab import EXPERTS, family_folder
from deltasmith.lab.bench import Bench
from deltasmith.lab.packed import distilled, merges

FEW = {"test": 8, "validation": 4}


def test_containers_of_several_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merges, "_PACKED", ("bitdelta",))
    bench = Bench(family_folder(), 0, "small", EXPERTS, held_out=FEW)
    rows = list(merges._containers(bench))
    ratios = {str(row.keys["method"]): float(str(row.keys["ratio"])) for row in rows}
    assert [row.task for row in rows] == [*EXPERTS, *EXPERTS]
    assert ratios["emr_packed"] == pytest.approx((16 + 3) / 48, abs=2e-3)
    assert 0.06 < ratios["bitdelta"] < 0.09


def test_mixtures_are_asked_as_the_numpy_network_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    bench = Bench(family_folder(), 0, "small", ("code", "ins"), held_out=FEW)
    monkeypatch.setattr(merges, "SMILE", ((8, -1, 1),))
    monkeypatch.setattr(merges, "TWIN", (0.1,))
    found: dict[str, list[float]] = {}
    for row in merges._mixtures(bench):
        found.setdefault(str(row.keys["method"]), []).append(row.accuracy)
        if str(row.keys["method"]).startswith("smile"):
            assert float(str(row.keys["ratio"])) > 0.9
    assert set(found) == {merges.smile_name(8, -1, 1), "twin: density 0.1, gates", "twin: density 0.1, told"}
    assert found["twin: density 0.1, told"][0] == 1.0  # code
    with merges._mixture(bench, router_rank=1, expert_rank=1) as (network, ratio):
        assert 0 < ratio < 0.1
        assert merges._marks(bench, network, "code").size == 8


def test_documents_hold_no_test_item(tmp_path: Path) -> None:
    bench = Bench(family_folder(), 0, "small", EXPERTS)
    held_out = {item.prompt for task in EXPERTS for item in bench.items(task, "test")}
    for kind in distilled.DATA:
        path, again = tmp_path / kind, tmp_path / f"{kind}-again"
        distilled._write(path, bench, "math", kind)
        distilled._write(again, bench, "math", kind)
        assert path.read_bytes() == again.read_bytes()
        texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
        assert len(texts) == distilled.DOCUMENTS
        assert not {text.partition("\n")[0] + "\n" for text in texts} & held_out
