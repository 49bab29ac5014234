import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltasmith.kernels.gram import combine, combine_rows, dots, gram, row_grams
from deltasmith.operation.protocols import Place
from deltasmith.surveys.gram import GramSurvey


def drawn(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2, 15, 16, 17, 31, 32, 33, 1000]))
def test_dots_are_the_float64_dots(seed, n):
    a, b = drawn(seed, 2, n)
    x, y = a.astype(np.float64), b.astype(np.float64)
    assert np.allclose(dots(a, b), (x @ x, x @ y, y @ y), rtol=1e-13, atol=1e-13 * max(n, 1))


def test_dots_do_not_lose_what_float32_loses():
    # 2^24 + 1 ones: a float32 sum would stop at 2^24.
    ones = np.ones(2**24 + 1, np.float32)
    assert dots(ones, ones) == (2**24 + 1,) * 3


@pytest.mark.parametrize("models", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(0,), (1,), (3, 7), ()])
def test_gram_is_symmetric_and_complete(models, shape):
    cells = [drawn(i, *shape) for i in range(models)]
    flat = np.array([c.reshape(-1) for c in cells], dtype=np.float64)
    found = gram([np.asarray(c) for c in cells])
    assert found.shape == (models, models)
    assert (found == found.T).all()
    assert np.allclose(found, flat @ flat.T, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("models", [1, 2, 3])
def test_row_grams_are_the_grams_of_the_rows(models):
    cells = drawn(1, models, 4, 37)
    found = row_grams(cells)
    for row in range(4):
        assert (found[row] == gram(list(cells[:, row]))).all()


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_combine_is_the_weighted_sum(seed, models):
    cells, coefficients = drawn(seed, models, 50), drawn(seed + 1, models).astype(np.float64)
    wanted = coefficients @ cells.astype(np.float64)
    assert np.allclose(combine(cells, coefficients), wanted, atol=3e-6)
    rows = combine_rows(cells.reshape(models, 5, 10), np.tile(coefficients, (5, 1)))
    assert (rows.reshape(-1) == combine(cells, coefficients)).all()


def test_combine_keeps_identical_cells_and_lone_coefficients_exactly():
    cell = drawn(3, 1000)
    thirds = np.array([0.2, 0.3, 0.5])
    assert (combine(np.stack([cell] * 3), thirds) == cell).all()
    others = drawn(4, 3, 1000)
    assert (combine(others, np.array([0.0, 1.0, 0.0])) == others[1]).all()


def test_combine_takes_other_memory_layouts_and_no_elements():
    cells = drawn(5, 2, 40)[:, ::2]
    assert np.allclose(combine(cells, np.array([1.0, 2.0])), cells[0] + 2 * cells[1], atol=1e-6)
    assert combine(np.zeros((2, 0), np.float32), np.zeros(0)).shape == (0,)
    assert combine_rows(np.zeros((2, 0, 1), np.float32), np.zeros((0, 2))).shape == (0, 1)


def test_blocks_may_come_in_any_order_and_from_any_worker():
    cells = drawn(6, 2, 3 * 65536)
    survey = GramSurvey(lambda products, weights, name: products)

    def run(groups):
        accs = []
        for group in groups:
            accs.append(survey.start())
            for block in group:
                at = slice(block * 65536, (block + 1) * 65536)
                survey.tally(
                    accs[-1], [cells[0, at], cells[1, at]], Place("w", cells[0].shape, block * 65536)
                )
        return survey.conclude(accs)

    assert (run([[0, 1, 2]]) == run([[2], [], [1, 0]])).all()
    assert np.allclose(run([[0, 1, 2]]), gram(list(cells)))


def test_the_survey_hands_over_products_weights_and_name():
    seen = []
    survey = GramSurvey(lambda *found: seen.append(found) or np.zeros(1))
    acc = survey.start()
    survey.tally(acc, [np.ones(3, np.float32)] * 2, Place("w", (3,), weights=(0.5, 2.0)))
    survey.conclude([acc])
    products, weights, name = seen[0]
    assert products.tolist() == [[3, 3], [3, 3]]
    assert weights.tolist() == [0.5, 2.0]
    assert name == "w"
    assert survey.conclude([survey.start()]).size == 0
