"""One study, matched once, for all tests of the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltasmith.features.following import match
from deltasmith.features.outcome import Outcome
from deltasmith.features.study import Study
from features.made_studies import made_study


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return made_study(tmp_path_factory.mktemp("page") / "study")


@pytest.fixture(scope="session")
def outcome(study: Study) -> Outcome:
    return match(study, resamples=20, threads=1)


@pytest.fixture(scope="session")
def matched(study: Study, outcome: Outcome) -> Path:
    """The folder of the study, in which its match lies."""
    assert (study.folder / "match" / "features.json").is_file()
    return study.folder
