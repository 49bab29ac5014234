"""features.json and rates.csv: written whole, the same each time, and read back."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_studies import made_study

from deltasmith.errors import DamagedInputError, RefusedError
from deltasmith.features.following import match
from deltasmith.features.outcome import Outcome, Rate
from deltasmith.features.outcome_files import (
    as_json,
    features_json,
    rates_csv,
    read_outcome,
    summary_json,
    write_outcome,
)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    study = made_study(tmp_path_factory.mktemp("made") / "study", tokens=2000)
    return match(study, resamples=20)


def test_what_is_read_back_is_what_was_written(outcome: Outcome, tmp_path: Path) -> None:
    write_outcome(outcome, tmp_path / "out")
    found = read_outcome(tmp_path / "out")
    assert features_json(found) == (tmp_path / "out" / "features.json").read_bytes()
    for edge, read in zip(outcome.edges, found.edges, strict=True):
        for side in ("parents", "children"):
            links, again = getattr(edge, side), getattr(read, side)
            for name, array in vars(links).items():
                other = getattr(again, name)
                assert other.dtype == array.dtype
                np.testing.assert_allclose(other, array, atol=5.1e-5 if array.dtype.kind == "f" else 0)
        assert read.counts == edge.counts
        assert read.floors[0].member == "base~again"
        assert read.rates["persisted"].value == pytest.approx(edge.rates["persisted"].value, abs=1e-6)
    np.testing.assert_array_equal(found.merges[0].origin, outcome.merges[0].origin)
    np.testing.assert_array_equal(found.merges[0].inherited_from, outcome.merges[0].inherited_from)
    np.testing.assert_array_equal(found.universal.features, outcome.universal.features)
    assert (found.study, found.notes, found.members) == (outcome.study, outcome.notes, outcome.members)


def test_the_file_says_what_its_numbers_stand_for(outcome: Outcome) -> None:
    document = json.loads(features_json(outcome))
    assert document == as_json(outcome)
    assert list(document) == [
        "format", "deltasmith", "study", "settings", "statuses", "members", "edges", "merges", "universal", "notes",
    ]  # fmt: skip
    edge = document["edges"][0]
    fates = document["statuses"]["fate"]
    counted = {fate: edge["parents"]["status"].count(at) for at, fate in enumerate(fates)}
    assert counted == edge["counts"]
    assert None in edge["parents"]["cosine"]  # the dead have no partner
    assert all(len(str(r)) <= 7 for r in edge["parents"]["r"])


def test_arrays_take_a_line_each(outcome: Outcome) -> None:
    text = features_json(outcome).decode()
    assert sum(line.lstrip().startswith('"r": [') for line in text.splitlines()) == 2 * len(outcome.edges)


def test_a_summary_tells_of_no_single_feature(outcome: Outcome) -> None:
    document = summary_json(outcome)
    assert "parents" not in document["edges"][0]
    assert document["merges"][0]["parents"] == ["lua", "stories"]
    assert len(json.dumps(document)) < 50_000


def test_the_table_has_a_row_for_each_edge_and_rate(outcome: Outcome) -> None:
    rows = list(csv.DictReader(rates_csv(outcome).decode().splitlines()))
    lua = [row for row in rows if (row["parent"], row["child"]) == ("base", "lua")]
    assert [row["rate"] for row in lua] == [
        "persisted", "drifted", "split", "fused", "disappeared", "emerged", "mutual_0.5", "mutual_0.7", "mutual_0.8",
        "mutual_0.9", "any_match", "firing_weighted",
    ]  # fmt: skip
    edge = outcome.edge("base", "lua")
    assert float(lua[0]["value"]) == pytest.approx(edge.rates["persisted"].value, abs=1e-6)
    assert lua[0]["floor_member"] == "base~again"
    assert float(lua[0]["adjusted"]) == pytest.approx(edge.floors[0].adjusted.value, abs=1e-6)
    assert float(lua[0]["null"]) == 0
    assert lua[1]["adjusted"] == lua[1]["null"] == ""
    for row in lua:
        assert float(row["floor"]) == pytest.approx(edge.floors[0].rates[row["rate"]].value, abs=1e-6)
    merges = {row["rate"]: row for row in rows if row["kind"] == "merge"}
    assert {"recovered", "inherited:lua", "lost:stories"} <= set(merges)
    assert merges["recovered"]["child"] == "merged"
    assert rows[-1]["rate"] == "universal"


def test_what_is_no_number_is_empty_and_null(outcome: Outcome, tmp_path: Path) -> None:
    nothing = dataclasses.replace(outcome.edges[0], rates={"persisted": Rate(math.nan)})
    odd = dataclasses.replace(outcome, edges=(nothing,))
    assert b"NaN" not in features_json(odd)
    assert rates_csv(odd).decode().splitlines()[1].startswith("base,lua,parent,persisted,,,,base~again")
    write_outcome(odd, tmp_path / "out")
    assert math.isnan(read_outcome(tmp_path / "out").edges[0].rates["persisted"].value)


def test_only_what_is_ours_is_replaced(outcome: Outcome, tmp_path: Path) -> None:
    write_outcome(outcome, tmp_path / "out")
    with pytest.raises(RefusedError, match=r"the output exists and is not empty .*--overwrite"):
        write_outcome(outcome, tmp_path / "out")
    write_outcome(outcome, tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(RefusedError, match=r"no folder of `features match` \(it holds thesis.tex\)"):
        write_outcome(outcome, tmp_path / "out", overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RefusedError, match="the output exists and is a file"):
        write_outcome(outcome, tmp_path / "file", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


def broken(document: dict[str, Any], how: str) -> dict[str, Any]:
    edge = document["edges"][0]
    if how == "format":
        document["format"] = 9
    elif how == "status":
        edge["parents"]["status"][0] = 7
    elif how == "length":
        edge["children"]["r"].pop()
    elif how == "missing":
        del edge["verdict"]
    elif how == "type":
        document["merges"] = 3
    elif how == "huge":
        edge["parents"]["best"][0] = 1 << 40
    return document


@pytest.mark.parametrize("how", ["format", "status", "length", "missing", "type", "huge"])
def test_damage_is_told(outcome: Outcome, tmp_path: Path, how: str) -> None:
    (tmp_path / "features.json").write_text(json.dumps(broken(json.loads(features_json(outcome)), how)))
    with pytest.raises(DamagedInputError, match="run `deltasmith features match` again"):
        read_outcome(tmp_path)


def test_a_folder_without_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        DamagedInputError, match=r"there is no features\.json .*run `deltasmith features match` first"
    ):
        read_outcome(tmp_path)
