"""Pictures of the loss analysis: drawn for every shape of result, the same bytes each time, refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from deltasmith.analysis.drawing import look_of
from deltasmith.analysis.line_search import Evaluation, LineSearch
from deltasmith.analysis.plots import heatmap, line_search_plot, path_plot, sweep_plot
from deltasmith.analysis.report import DataUsed, Estimate, LossReport, Prediction, Verdict
from deltasmith.analysis.rules import RULES, Grid, Rule
from deltasmith.analysis.sweep_axes import Axis
from deltasmith.analysis.sweep_records import Forecast, Sweep, SweepPoint
from deltasmith.analysis.verdict import verdict
from deltasmith.errors import RecipeError

DATA = DataUsed("data.jsonl", "0" * 64, 8, 8, 100, 4)
LLAMA = ("self_attn.q_proj", "mlp.down_proj", "input_layernorm")


def names_of(layers: int, *, stack: str = "model.layers", kinds: Sequence[str] = LLAMA) -> list[str]:
    inside = [f"{stack}.{i}.{kind}.weight" for i in range(layers) for kind in kinds]
    return ["model.embed_tokens.weight", *inside, "lm_head.weight"]


def report(
    names: Sequence[str] = (), *, base: float | None = 1.2, rules: Sequence[Rule] = RULES
) -> LossReport:
    contributions = {name: 0.01 * math.sin(i) for i, name in enumerate(names or names_of(4))}
    change = Estimate(0.02, 0.01, 0.03)
    predictions = tuple(
        Prediction(Grid(rule, 5), change, 0.001, "decreased", contributions) for rule in rules
    )
    return LossReport(
        start="math",
        end="a$_{2}$ & <b>",
        data=DATA,
        start_loss=Estimate(1.0, 0.9, 1.1),
        end_loss=Estimate(1.02, 0.9, 1.1),
        base_loss=base,
        measured=change,
        verdict="decreased",
        margin=0.01,
        margin_reason="as asked for",
        predictions=predictions,
        along=((0.0, 1.0), (0.5, 1.005), (1.0, 1.02)),
    )


def point(value: float, expected: float | None, refused: str, **values: Any) -> SweepPoint:
    change = Estimate(value, value - 0.002, value + 0.002)
    found: Verdict = verdict(change, 0.01)
    rules = () if refused else RULES
    forecasts = tuple(Forecast(Grid(rule, 5), change, 0.0, found) for rule in rules)
    return SweepPoint(values, 1 + value, change, found, forecasts, expected, None, refused)


def sweep(*axes: Axis, value: Callable[[int], float] = lambda i: 0.01 * i - 0.02, lost: int = -1) -> Sweep:
    points = []
    for at, values in enumerate(product(*(axis.values for axis in axes))):
        change = math.nan if at == lost else value(at)
        named = dict(zip([axis.name for axis in axes], values, strict=True))
        points.append(point(change, None if at % 2 else 0.01, "it overflows" if at == lost else "", **named))
    return Sweep(
        "math", "recipe", axes, DATA, Estimate(1.0, 0.9, 1.1), 1.5, 0.01, "as asked for", tuple(points)
    )


K = Axis("k", (-1.0, -0.5, 0.0, 0.5))
P = Axis("p", (0.1, 0.5, 0.9))
CODEC = Axis("codec", ("bitdelta", "claq:bits=2", "x" * 80))
SEARCH = LineSearch(
    -1.0,
    1.0,
    tuple(Evaluation(a, a - 0.3, (a - 0.3) ** 2, (a - 0.2) ** 2) for a in (0.0, 1.0, 0.5, 0.25)),
    0.3,
    "minimum",
    (0.1, 0.5),
    "resampling",
    -0.1,
    -0.09,
    (-0.12, -0.06),
)

DRAWINGS: dict[str, Callable[[Path], None]] = {
    "path": lambda file: path_plot(report(), file),
    "path without base": lambda file: path_plot(report(base=None), file),
    "path of one rule": lambda file: path_plot(report(rules=["left"]), file),
    "two layers": lambda file: heatmap(report(names_of(2)), "left", file),
    "eighty layers": lambda file: heatmap(report(names_of(80)), Grid("midpoint", 5), file),
    "experts": lambda file: heatmap(
        report(names_of(3, kinds=["mlp.experts.0.w1", "mlp.experts.1.w1"])), None, file
    ),
    "two stacks": lambda file: heatmap(
        report([*names_of(2), *names_of(5, stack="visual.blocks")[1:-1]]), None, file
    ),
    "no stack": lambda file: heatmap(report(["a.weight", "b"]), None, file),
    "nothing moves": lambda file: heatmap(report(["a.weight"]), None, file),
    "line": lambda file: sweep_plot(sweep(K), file),
    "line with a gap": lambda file: sweep_plot(sweep(K, lost=1), file),
    "interrupted line": lambda file: sweep_plot(replace(sweep(K), points=sweep(K).points[:2]), file),
    "interrupted surface": lambda file: sweep_plot(replace(sweep(K, P), points=sweep(K, P).points[:5]), file),
    "line of gaps": lambda file: sweep_plot(
        replace(sweep(K, lost=0), points=sweep(K, lost=0).points[:1]), file
    ),
    "long line": lambda file: sweep_plot(sweep(K, value=lambda i: 10.0**i), file),
    "words": lambda file: sweep_plot(sweep(CODEC), file),
    "surface": lambda file: sweep_plot(sweep(K, P), file),
    "surface with a gap": lambda file: sweep_plot(sweep(K, P, lost=5), file),
    "long surface": lambda file: sweep_plot(sweep(P, K, value=lambda i: 10.0 ** (i / 3 - 3)), file),
    "flat surface": lambda file: sweep_plot(sweep(P, K, value=lambda i: 0.0), file),
    "surface of a row": lambda file: sweep_plot(sweep(P, Axis("rank", (8,))), file),
    "wide surface": lambda file: sweep_plot(sweep(Axis("k", tuple(range(50))), P), file),
    "words in a surface": lambda file: sweep_plot(sweep(CODEC, P), file),
    "line search": lambda file: line_search_plot(SEARCH, file),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_picture_is_drawn_and_complete(name: str, tmp_path: Path) -> None:
    DRAWINGS[name](tmp_path / "one.svg")
    text = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert text.rstrip().endswith("</svg>")
    assert [path.name for path in tmp_path.iterdir()] == ["one.svg"]


@pytest.mark.parametrize(
    ("name", "kind"), [("path", "png"), ("two layers", "png"), ("surface", "svg"), ("line", "svg")]
)
def test_the_same_result_gives_the_same_bytes(name: str, kind: str, tmp_path: Path) -> None:
    for file in ("one", "two"):
        DRAWINGS[name](tmp_path / f"{file}.{kind}")
    assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()


def texts(name: str, folder: Path) -> str:
    DRAWINGS[name](folder / "one.svg")
    return (folder / "one.svg").read_text(encoding="utf-8")


def test_a_path_tells_its_ends_its_rules_and_the_base(tmp_path: Path) -> None:
    found = texts("path", tmp_path)
    for word in (
        "math → a$_{2}$ &amp; &lt;b&gt;: +0.02 [+0.01, +0.03], decreased",
        "left, 5 steps",
        "margin",
    ):
        assert word in found
    assert "the base's loss, 1.2, lies outside" in found
    path_plot(report(base=1.05), tmp_path / "near.svg")
    assert "loss of the base" in (tmp_path / "near.svg").read_text(encoding="utf-8")


def test_a_heatmap_names_projections_once_and_adds_experts_up(tmp_path: Path) -> None:
    assert texts("two layers", tmp_path).count(">self_attn.q_proj<") == 1
    found = texts("experts", tmp_path)
    assert "mlp.experts.*.w1" in found
    assert "experts.0" not in found
    assert "model.embed_tokens" in found


def test_eighty_layers_are_numbered_without_touching(tmp_path: Path) -> None:
    found = texts("eighty layers", tmp_path)
    assert [f">{n}<" in found for n in (0, 5, 75, 1, 79)] == [True, True, True, False, False]


def test_a_surface_tells_classes_and_numbers(tmp_path: Path) -> None:
    found = texts("surface", tmp_path)
    for word in ("▲", "▼", "=", "?", "+0.080", "-0.020", "undecided"):
        assert word in found
    assert "+0.080" not in texts("wide surface", tmp_path)
    assert "×" in texts("surface with a gap", tmp_path)


def test_three_axes_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"a sweep of 3 axes cannot be drawn; sweep one or two"):
        sweep_plot(sweep(K, P, Axis("seed", (1, 2))), tmp_path / "a.png")
    with pytest.raises(RecipeError, match=r"a picture cannot be written as a.pdf"):
        path_plot(report(), tmp_path / "a.pdf")
    assert list(tmp_path.iterdir()) == []


def test_a_table_and_json_hold_every_point() -> None:
    found = sweep(K, P, lost=2)
    assert found.table[0] == {
        "k": -1.0,
        "p": 0.1,
        "measured": -0.02,
        "low": -0.022,
        "high": pytest.approx(-0.018),
        "verdict": "improved",
        "left": -0.02,
        "midpoint": -0.02,
        "trapezoid": -0.02,
        "expected": 0.01,
    }
    assert found.table[2].keys() == found.table[0].keys()
    assert found.table[2]["measured"] is found.table[2]["left"] is None
    told = found.as_json()
    assert told["format"] == "deltasmith-sweep-1"
    assert told["axes"][1] == {"name": "p", "values": [0.1, 0.5, 0.9]}
    assert len(told["points"]) == 12
    assert told["points"][2]["refused"] == "it overflows"
    assert found.surface().shape == (4, 3)
    assert found.surface()[1, 0] == pytest.approx(0.01)


def test_every_rule_has_looks_of_its_own_and_an_unknown_one_has_some():
    assert len({look_of(rule) for rule in (*RULES, "simpson")}) == len(RULES) + 1
