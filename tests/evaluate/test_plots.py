"""Pictures: same bytes again, small, readable by parsers, and indifferent to hostile names."""

from __future__ import annotations

import math
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from deltasmith.errors import DeltasmithError, MissingExtraError, RecipeError
from deltasmith.evaluate import plots
from deltasmith.evaluate.compare import compare
from evaluations import answered, evaluation, right

HOSTILE = [
    "\x1b[31mred",
    "_hidden",
    r"$\frac{1}{$",
    "</script><script>",
    "a\nb",
    "[red]x[/red]",
    "日本語",
    "n" * 500,
]
XS = [0.1 * n for n in range(1, 11)]


def series(names):
    return [
        (name, XS, [50 - n + x for x in XS], [45 - n + x for x in XS], [55 - n + x for x in XS])
        for n, name in enumerate(names)
    ]


def drawn(path, names=("a", "b")):
    plots.curves(path, series(names), x_label="rate", y_label="per cent", title="t")
    return path.read_bytes()


def texts(path):
    return [e.text for e in ElementTree.parse(path).iter() if e.tag.endswith("}text")]


def test_the_same_bytes_again(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    first = drawn(tmp_path / "a.svg")
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert drawn(tmp_path / "b.svg") == first
        assert matplotlib.rcParams["font.size"] == 20  # what the user has set stays set
    assert b"<dc:date>" not in first
    assert drawn(tmp_path / "a.png") == drawn(tmp_path / "b.png")


def test_eight_series_are_small_and_told_apart(tmp_path):
    pytest.importorskip("matplotlib")
    assert len(drawn(tmp_path / "a.svg", [f"s{n}" for n in range(8)])) < 60_000
    looks = [plots._look(n) for n in range(16)]
    assert len({one["marker"] for one in looks[:8]}) == 8
    assert len({str(line) for line in plots._LINES}) == 8
    assert len({tuple(sorted(one.items())) for one in looks}) == 16


def test_hostile_names_stay_text(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "a.svg"
    plots.curves(path, series(HOSTILE), x_label="$x$", y_label="\x1b", title=r"$\frac{$")
    found = texts(path)
    for text in (
        r"\x1b[31mred",
        "_hidden",
        r"$\frac{1}{$",
        "</script><script>",
        r"a\nb",
        "[red]x[/red]",
        "$x$",
        "日本語",
    ):
        assert text in found
    assert max(len(text) for text in found) < 100
    raw = path.read_bytes()
    assert b"\x1b" not in raw
    assert b"<script" not in raw
    plots.dots(
        tmp_path / "b.svg", HOSTILE, [(n, [1.0] * 8, [0.0] * 8, [2.0] * 8) for n in HOSTILE], x_label="$"
    )
    assert texts(tmp_path / "b.svg").count("_hidden") == 2  # a row and an entry of the legend


def test_what_is_not_known_is_left_out(tmp_path):
    pytest.importorskip("matplotlib")
    hole = [("a", XS, [math.nan] * 10, [math.nan] * 10, [math.nan] * 10)]
    plots.curves(tmp_path / "a.svg", hole, x_label="x", y_label="y")
    plots.dots(tmp_path / "b.svg", ["r"], [("a", [math.nan], [math.nan], [math.nan])], x_label="x")
    plots.dots(tmp_path / "c.svg", ["r"], [("a", [1.0], [math.nan], [math.nan])], x_label="x")
    assert len(list(tmp_path.iterdir())) == 3


def test_a_comparison_has_a_scale_for_shares_and_one_for_each_other_task(tmp_path):
    pytest.importorskip("matplotlib")
    models = [
        evaluation(
            name, {"t": right(n), "u": right(n + 5), "text": answered([1.0, 2.0 + n], average="perplexity")}
        )
        for n, name in enumerate(("a", "b"), 10)
    ]
    plots.comparison(tmp_path / "a.svg", compare(models, resamples=200))
    found = texts(tmp_path / "a.svg")
    assert [found.count(text) for text in ("t", "u", "average", "text", "a", "b")] == [1] * 6
    assert "perplexity, lower is better" in found
    only = [evaluation("a", {"text": answered([1.0, 2.0], average="perplexity")})]
    plots.comparison(tmp_path / "b.svg", compare(only, resamples=200))
    assert "per cent" not in texts(tmp_path / "b.svg")


def test_dots_lie_where_the_scores_are(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    part = plots.Panel(["r", "s"], [("a", [1.0, 2.0], [0.5, 1.5], [1.5, 2.5])], "x")
    handle = plots._dot_panel(axes, part, ["a"])["a"]
    assert (list(handle.get_xdata()), list(handle.get_ydata())) == ([1.0, 2.0], [0.0, 1.0])
    assert list(axes.lines[0].get_xdata())[:2] == [0.5, 1.5]
    assert axes.get_ylim() == (1.5, -0.5)  # the first row on top


def test_other_files_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"cannot be written as a\.pdf"):
        drawn(tmp_path / "a.pdf")


def test_nothing_is_left_after_an_error(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError):
        plots.curves(tmp_path / "a.svg", [("a", [1.0], [1.0, 2.0], [1.0], [1.0])], x_label="", y_label="")
    (tmp_path / "file").write_text("")
    with pytest.raises(DeltasmithError):
        drawn(tmp_path / "file" / "a.svg")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r'pip install "deltasmith\[plot\]"'):
        drawn(tmp_path / "a.svg")
