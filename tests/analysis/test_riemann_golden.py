"""Riemann sums of independent code, per tensor, for three rules and several numbers of steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from deltasmith.analysis.path import walk  # noqa: E402
from deltasmith.analysis.rules import Grid, Rule  # noqa: E402
from deltasmith.analysis.torch_objective import TorchObjective  # noqa: E402
from golden_cases import Case, assert_close, cases  # noqa: E402

CASES = cases("riemann")
RULE_NAMES: dict[str, Rule] = {"left": "left", "mid": "midpoint", "trap": "trapezoid"}


def wide(values: Any) -> Any:
    return torch.tensor(values, dtype=torch.float64)


def objective(case: Case) -> TorchObjective:
    arrays = case.arrays
    names = case.params["order"]
    network = torch.nn.Module()
    for name in names:
        network.register_parameter(name, torch.nn.Parameter(wide(arrays[name])))
    loss: Callable[[Any, Any], Any]
    if names == ["w"]:
        hessian, linear = wide(arrays["H"]), wide(arrays["b"])
        steps = {"w": wide(arrays["edit"])}

        def loss(net: Any, chunk: None) -> Any:
            return 0.5 * net.w @ hessian @ net.w + linear @ net.w
    else:
        inputs, labels = wide(arrays["X"]), torch.tensor(arrays["y"]).long()
        steps = {name: wide(arrays[f"edit_{name}"]) for name in names}

        def loss(net: Any, chunk: None) -> Any:
            logits = torch.tanh(inputs @ net.W1.T + net.b1) @ net.W2.T + net.b2
            return torch.nn.functional.cross_entropy(logits, labels)

    return TorchObjective(network, steps, [None], [1.0], loss)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_golden_riemann_sums(case: Case) -> None:
    arrays = case.arrays
    strict = replace(
        case, tolerance={"rtol": 1e-10, "atol": 1e-10}
    )  # what the MLP's own file does not ask for
    grids = {(r, c): Grid(RULE_NAMES[r], c) for r in RULE_NAMES for c in case.params["Cs"]}
    path = walk(objective(case), grids.values())
    assert abs(path.measured - float(arrays["expected_exact"])) <= 1e-10
    for (rule, steps), grid in grids.items():
        got = np.array(list(path.contributions(grid).values()))
        expected = np.asarray(arrays[f"expected_{rule}_C{steps}"]).reshape(-1)
        assert_close(got, expected, case)
        assert_close(got, expected, strict)


def test_all_four_cases_are_here() -> None:
    assert sorted(case.id for case in CASES) == [
        f"riemann_{n}_{i}" for n in ("mlp", "quadratic") for i in (0, 1)
    ]
