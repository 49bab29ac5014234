"""What was found can be looked up, and what the package offers be listed."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_studies import made_study

import deltasmith
from deltasmith import features
from deltasmith.errors import RecipeError


def test_an_edge_that_there_is_not_is_refused_with_those_there_are(tmp_path: Path) -> None:
    found = features.match(made_study(tmp_path / "study", tokens=2000), resamples=0, threads=1)
    assert found.edge("base", "lua").testable == 58
    with pytest.raises(RecipeError, match=r"no edge from 'lua' to 'base'; there are base → lua, "):
        found.edge("lua", "base")


def test_what_is_imported_on_first_use_is_listed() -> None:
    assert set(features.__all__) <= set(dir(features))
    assert set(deltasmith.__all__) <= set(dir(deltasmith))
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = features.absent
