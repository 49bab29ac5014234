"""The papers' numbers agree with themselves; where a paper's own average is wrong, that is on record."""

from __future__ import annotations

import pytest

from deltasmith.errors import RecipeError
from deltasmith.lab import published
from deltasmith.lab.published import CLAIMS, DELLA_ELECT, TABLES, Published

IDS = [f"{table.paper.split(',')[-1].strip()}: {table.title}" for table in TABLES]


def digits(table: Published, column: str) -> int:
    """Count the decimals a column is printed with."""
    at = table.columns.index(column)
    texts = [repr(row.values[at]) for row in table.rows if row.values[at] is not None]
    return max(len(text.partition(".")[2]) for text in texts)


@pytest.mark.parametrize("table", TABLES, ids=IDS)
def test_rows_are_as_wide_as_the_header_and_come_once(table: Published) -> None:
    assert {len(row.values) for row in table.rows} == {len(table.columns)}
    keys = [(row.models, row.method) for row in table.rows]
    assert len(set(keys)) == len(keys)
    cells = [value for row in table.rows for value in row.values if value is not None]
    assert all(isinstance(value, float) and 0.0 <= value <= 100.0 for value in cells)


@pytest.mark.parametrize("table", TABLES, ids=IDS)
def test_averages_are_means_of_their_rows_but_for_the_recorded_misprints(table: Published) -> None:
    found = []
    for row, printed, mean in table.means():
        # Every cell and the average itself were rounded: half a unit each.
        rounding = 10.0 ** -digits(table, table.average or "")
        if abs(printed - mean) > rounding + 1e-9:
            found.append((row.models, row.method, round(mean, 2)))
    assert found == list(table.misprints)


def test_averages_are_checked_at_all() -> None:
    assert sum(len(list(table.means())) for table in TABLES) == 16 + 16 + 2 + 8 + 1 + 3 + 11


@pytest.mark.parametrize("rival", ["TIES", "DARE", "TA"])
def test_the_abstract_of_della_is_the_mean_of_its_table(rival: str) -> None:
    (claim,) = [c for c in CLAIMS if c.text.startswith(f"mean gain of DELLA over {rival},")]
    gains = []
    for models in ("LM+Math", "LM+Code", "Math+Code", "LM+Math+Code"):
        ours, theirs = (DELLA_ELECT.value(models, method, "Avg") for method in ("DELLA", rival))
        assert ours is not None
        assert theirs is not None
        gains.append(ours - theirs)
    assert abs(sum(gains) / 4 - float(claim.value)) <= 0.05 + 1e-9


def test_two_copies_of_one_number_agree() -> None:
    (paper,) = published.EMR_TASKS.rows
    log = published.EMR_LOGS.row(paper.models, "EMR")
    assert all(abs(a - b) <= 0.05 + 1e-9 for a, b in zip(paper.values, log.values, strict=True) if a and b)
    for method in ("TA", "TIES", "AdaMerging++"):
        whole = published.EMR_AVERAGES.value(paper.models, method, "Average")
        assert whole == published.EMR_ABLATION.value(paper.models, method, "Average")
    full = published.EMR_ABLATION.value(paper.models, "elect+mask+rescale", "Average")
    assert full == published.EMR_AVERAGES.value(paper.models, "EMR", "Average") == paper.values[-1]


def test_a_cell_is_found_by_name_and_an_unknown_one_refused() -> None:
    assert DELLA_ELECT.value("LM+Code", "TA", "MBPP") == 0.0
    assert DELLA_ELECT.value("LM+Code", "TA", "GSM8K") is None
    with pytest.raises(RecipeError, match="no column 'MATH'"):
        DELLA_ELECT.value("LM+Code", "TA", "MATH")
    with pytest.raises(RecipeError, match=r"no row LM/TA in .*LM\+Math/TA"):
        DELLA_ELECT.row("LM", "TA")


def test_every_table_says_where_it_comes_from() -> None:
    assert len({table.citation + table.title for table in TABLES}) == len(TABLES)
    for table in TABLES:
        assert table.seen != "paper" or table.arxiv
        assert table.citation.startswith(table.paper)
    assert not [table for table in TABLES if "DPPA" in table.paper], "its tables were never obtained"


def test_every_table_is_listed() -> None:
    tables = {name for name, value in vars(published).items() if isinstance(value, Published)}
    assert {id(table) for table in TABLES} == {id(getattr(published, name)) for name in tables}
    assert tables < set(published.__all__)
