"""The page says what the result files say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deltasmith.errors import DamagedInputError
from deltasmith.lab import claims, summary
from deltasmith.lab.page import load_all, write_page
from deltasmith.lab.page_tables import emr_section
from deltasmith.lab.page_text import controls_section, family_section, table
from deltasmith.lab.rows import Results, Row
from deltasmith.lab.vision.page import vision_section

ROOT = Path(__file__).parents[2]
SECTIONS = {
    "family": family_section,
    "emr": emr_section,
    "controls": controls_section,
    "vision": vision_section,
}


@pytest.fixture(scope="module")
def committed() -> dict[str, Results]:
    return load_all(ROOT / "lab" / "results")


@pytest.mark.parametrize("name", SECTIONS)
def test_the_committed_page_holds_what_the_committed_results_give(
    name: str, committed: dict[str, Results], tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "lab.md").read_text(encoding="utf-8").splitlines()
    section = SECTIONS[name](committed[name], tmp_path)
    missing = [line for line in section if line not in page]
    assert not missing, "run `make lab-page`"


def test_every_plot_of_the_pages_is_there() -> None:
    pages = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("lab.md", "packed.md")]
    shown = {part.split(")")[0] for page in pages for part in page.split("](")[1:]}
    assert {f"lab/{path.name}" for path in (ROOT / "docs" / "lab").iterdir()} == {
        name for name in shown if name.endswith(".svg")
    }


def test_a_page_of_few_results_is_written_twice_alike(
    committed: dict[str, Results], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(summary, "DRAWS", 200)
    monkeypatch.setattr(summary, "RESAMPLES", 100)
    few = {name: committed[name] for name in ("curves", "emr")}
    written = write_page(few, tmp_path / "lab.md")
    before = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in write_page(few, tmp_path / "lab.md")] == before
    text = (tmp_path / "lab.md").read_text(encoding="utf-8")
    assert len(claims.judged(few)) == 3 * (6 + 4)
    assert text.count("![") == len(written) - 1 == 3


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedInputError, match="holds no results"):
        load_all(tmp_path)


def test_bars_in_cells_do_not_break_the_table() -> None:
    assert list(table(("a", "b"), [("x|y", 1)]))[-1] == "| x\\|y | 1 |"


def test_marks_of_a_row_are_never_mixed_between_seeds() -> None:
    rows = [Row({"train_seed": s, "mask_seed": 0}, "math", np.ones(4, bool) * (s == 1)) for s in (1, 0)]
    assert summary.figure(rows).value == 50.0
