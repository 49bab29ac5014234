from __future__ import annotations

import pytest

from deltasmith.errors import RecipeError
from deltasmith.recipe.catalogue import DIALECTS, EDITS, MERGES
from deltasmith.recipe.checks import loads
from deltasmith.recipe.explain import explain, methods, render
from deltasmith.recipe.presets import PRESETS

ALL = sorted({*PRESETS, *EDITS, *MERGES})


def test_della_word_for_word():
    text = render(explain("della"))
    for line in (
        "della (preset)",
        "  density: number above 0 and at most 1, or a schedule, or per label, required",
        "  window: number at least 0 and below 1, or a schedule, or per label, default 0.14",
        "  zero: majority, positive or none, default none",
        "      - drop_by_rank: {window: 0.14, density: 0.7}",
        "      elect: {zero: none}",
        "Source: Deep et al. 2024, arXiv 2406.11617",
        "  paper: DropByRank, then Elect",
        "Space: delta",
        "Sameness: the same bytes whatever the threads, tiles, memory or resume, "
        "on machines of one CPU family",
    ):
        assert line in text.splitlines(), line
    assert "biased: at density 0.4 and epsilon 0.1" in " ".join(text.split())


def test_a_dialect_shows_its_own_defaults_and_fields():
    text = render(explain("ties", "mergekit"))
    assert "ties (preset, dialect mergekit)" in text
    assert "default 1.0" in text
    assert "zero: majority, positive or none, default positive" in text
    assert "epsilon" in [field.name for field in explain("della", "mergekit").fields]
    assert "density: 1.0, zero: positive by default." in " ".join(text.split())


@pytest.mark.parametrize("name", ALL)
def test_everything_is_explained(name):
    for dialect, words in explain(name).dialects:
        explanation = explain(name, dialect)
        assert explanation.summary
        assert explanation.formula
        assert words
        for field in explanation.fields:
            assert field.meaning, (name, field.name)
        text = render(explanation)
        assert all(line == line.rstrip() for line in text.splitlines()), name
        if name in PRESETS:
            assert loads(explanation.expansion)


@pytest.mark.parametrize("name", sorted({*EDITS, *MERGES} - {*PRESETS}))
def test_examples_of_operations_are_recipes(name):
    shown = explain(name).expansion
    if name in EDITS:
        edits = shown.removeprefix("edits:\n").replace("\n", "\n  ")
        text = f"base: b\nmodels:\n- model: m\n  edits:\n  {edits}"
    else:
        text = "base: b\nmodels: [{model: m, label: math}, {model: n, label: code}]\n" + shown
        if name == "fisher_added":
            text = text.replace("label: math", "label: math, statistics: m").replace(
                "label: code", "label: code, statistics: c"
            )
    assert loads(text)


def test_sameness_is_promised_only_where_it_holds():
    rows = {(row.name, row.kind): row.sameness for row in methods()}
    for name in ("tsv", "iso_c", "wudi", "twin", "regmean", "slerp", "nuslerp", "karcher", "pcb"):
        assert rows[name, "merge"] == "tolerance", name
    for name in ("sum", "elect", "linear", "cabs", "sce", "emr", "model_stock"):
        assert rows[name, "merge"] == "bytes", name
    assert rows["low_rank", "edit"] == "tolerance"
    assert rows["della", "preset"] == "bytes"


def test_methods_lists_everything_once():
    rows = methods()
    assert [row.name for row in rows] == [*sorted(PRESETS), *sorted(EDITS), *sorted(MERGES)]
    assert all(row.dialects[0] == "paper" and set(row.dialects) <= set(DIALECTS) for row in rows)


def test_unknown_names_and_dialects():
    with pytest.raises(RecipeError) as caught:
        explain("dela")
    assert str(caught.value) == 'there is no preset, edit, merge or codec "dela"; did you mean "della"?'
    with pytest.raises(RecipeError) as caught:
        explain("tsv", "mergekit")
    assert str(caught.value) == 'tsv has no dialect "mergekit"; it has paper and authors'


READ = {"fisher": "fisher", "fisher_added": "fisher", "regmean": "gram", "bias_by_gradient": "gradient"}


@pytest.mark.parametrize("name", ALL)
def test_who_reads_statistics_says_which_command_writes_them(name):
    explanation = explain(name)
    takes = any(field.name == "statistics" for field in explanation.fields)
    assert explanation.statistics == READ.get(name, "")
    assert not takes or explanation.statistics, "a merge that reads statistics needs their kind in FACTS"
    command = f"deltasmith loss ./math --from ./math --data FILE --save-{explanation.statistics} ./math."
    assert (command in render(explanation)) == bool(explanation.statistics)
