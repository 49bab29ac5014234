from __future__ import annotations

import numpy as np
import pytest

from deltasmith.errors import RecipeError
from deltasmith.merges.passthrough import Passthrough, column_of
from deltasmith.operation.protocols import Found, Place

PLACE = Place("w", (2,), weights=(3.0, 0.0), labels=("math", "code"))
CELLS = np.array([[1.0, -0.0], [3.0, 4.0]], np.float32)


def test_copies_one_model_bit_for_bit_whatever_its_weight() -> None:
    for model, cell in zip(("math", "code"), CELLS, strict=True):
        assert Passthrough(model=model).apply(CELLS, PLACE, Found()).tobytes() == cell.tobytes()


def test_the_result_is_a_copy() -> None:
    cells = CELLS.copy()
    Passthrough(model="math").apply(cells, PLACE, Found())[:] = 7
    assert np.array_equal(cells, CELLS)


def test_unknown_labels_are_refused_with_a_suggestion() -> None:
    with pytest.raises(RecipeError) as error:
        column_of(PLACE, "maths")
    assert str(error.value) == "no model is labelled 'maths' in the merge; did you mean 'math'?"
    with pytest.raises(RecipeError) as error:
        Passthrough(model="xyz").apply(CELLS, PLACE, Found())
    assert str(error.value) == "no model is labelled 'xyz' in the merge; the labels are math, code"
