"""The papers' rows are found under our names, and their averages are the means of their tasks."""

from __future__ import annotations

import pytest

from deltasmith.lab.vision import published


@pytest.mark.parametrize("source", published.METHODS)
def test_every_named_row_is_found(source: str) -> None:
    assert set(published.papers_vision(source)) == set(published.METHODS[source])


def test_averages_are_means_of_the_tasks() -> None:
    for source in published.METHODS:
        for cells in published.papers_vision(source).values():
            tasks = [value for column, value in cells.items() if column != "Average"]
            if tasks:
                assert len(tasks) == 8
                assert cells["Average"] == pytest.approx(sum(tasks) / 8, abs=0.11)


def test_some_cells_by_hand() -> None:
    assert published.papers_vision("FusionBench")["ta"]["MNIST"] == 96.1
    assert published.AVERAGES["average"] == {"FusionBench": 66.5, "EMR paper": 65.8}
    assert published.AVERAGES["ties"] == {"EMR paper": 73.6}
    assert published.AVERAGES["ties_sum"] == {"FusionBench": 72.2}
    assert published.papers_vision("EMR paper")["emr"]["SUN397"] == 75.2
