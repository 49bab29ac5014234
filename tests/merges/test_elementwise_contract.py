"""The shared promises of every merge, for those that work element by element."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from contracts import MERGE_CHECKS, MergeCase, name_of
from merges.examples import FISHER_EXAMPLES, MERGE_EXAMPLES


def squares(columns: Sequence[Any]) -> list[Any]:
    return [{name: np.square(cell) for name, cell in column.items()} for column in columns]


CASES = [MergeCase(merge) for merge in MERGE_EXAMPLES] + [
    MergeCase(merge.model_copy(update={"statistics": {f"m{i}": "a" for i in range(3)}}), statistics=squares)
    for merge in FISHER_EXAMPLES
]


def name_of_case(case: MergeCase) -> str:
    return repr(case.merge)


@pytest.mark.parametrize("check", MERGE_CHECKS, ids=name_of)
@pytest.mark.parametrize("case", CASES, ids=name_of_case)
def test_contract(case: MergeCase, check: Callable[[Any], None]) -> None:
    check(case)
