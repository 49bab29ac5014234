from __future__ import annotations

import numpy as np
import pytest

from deltasmith.kernels.codebook import look_up, look_up_reference, pack_rows
from deltasmith.kernels.gptq import damped, feedback, spread, upper_inverse


def test_factor_is_that_of_the_inverse() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((300, 150)).astype(np.float32)
    gram = x.T @ x
    u = feedback(gram, 0.01)
    assert (np.tril(u, -1) == 0).all()
    inverse = np.linalg.inv(damped(gram, 0.01))
    np.testing.assert_allclose(u.T.astype(np.float64) @ u, inverse, atol=1e-6 * np.abs(inverse).max())


def test_feedback_is_the_least_squares_answer_of_the_columns_that_are_left() -> None:
    """After column 0 moved by e, the best of the others is −H_rr⁻¹ H_r0 e: U's first row says the same."""
    random = np.random.default_rng(1)
    x = random.standard_normal((40, 7))
    gram = (x.T @ x).astype(np.float32)
    u, h = feedback(gram, 0.01).astype(np.float64), damped(gram, 0.01)
    np.testing.assert_allclose(
        u[0, 1:] / u[0, 0], -np.linalg.solve(h[1:, 1:], h[1:, 0]), rtol=1e-5, atol=1e-7
    )


def test_damping_is_in_units_of_the_mean_diagonal() -> None:
    gram = np.float32([[2, 1], [1, 4]])
    np.testing.assert_allclose(damped(gram, 0.1), [[2.3, 1], [1, 4.3]])
    np.testing.assert_allclose(feedback(1000 * gram, 0.1) * np.sqrt(1000), feedback(gram, 0.1), rtol=1e-5)


def test_an_input_that_no_example_had_takes_no_part() -> None:
    gram = np.float32([[2, 0, 1], [0, 0, 0], [1, 0, 4]])
    u = feedback(gram, 0.01)
    assert u[0, 1] == 0
    assert u[1, 2] == 0
    np.testing.assert_allclose(np.delete(np.delete(u, 1, 0), 1, 1), feedback(gram[::2, ::2], 0.01))
    np.testing.assert_allclose(damped(np.zeros((2, 2), np.float32), 0.5), 1.5 * np.eye(2))


def test_a_matrix_that_is_no_gram_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="not positive definite"):
        feedback(np.float32([[1, 5], [5, 1]]), 0.01)


def test_upper_inverse_by_halves() -> None:
    random = np.random.default_rng(2)
    matrix = np.triu(random.standard_normal((201, 201)) * 0.05) + 2 * np.eye(201)
    np.testing.assert_allclose(upper_inverse(matrix) @ matrix, np.eye(201), atol=1e-10)


def test_spread_subtracts_the_outer_product() -> None:
    random = np.random.default_rng(3)
    error, factors, columns = (
        random.standard_normal(shape).astype(np.float32) for shape in ((9,), (4,), (4, 9))
    )
    wanted = columns - np.outer(factors, error)
    spread(error, factors, columns)
    np.testing.assert_allclose(columns, wanted, rtol=1e-6, atol=1e-7)


def test_codes_of_mixed_widths_are_packed_row_by_row() -> None:
    random = np.random.default_rng(4)
    widths = random.integers(1, 9, (2, 23)).astype(np.uint8)
    widths[1] = random.permutation(widths[0])  # rows of equal length
    sizes = np.int64(1) << widths.astype(np.int64)
    offsets = np.cumsum(widths, axis=1, dtype=np.int64) - widths
    books = (np.cumsum(sizes.ravel()) - sizes.ravel()).reshape(sizes.shape)
    codebook = random.standard_normal(sizes.sum()).astype(np.float32)
    stride = -(-int(widths[0].sum()) // 8)
    packed, wanted = np.zeros((2, 10, stride), np.uint8), []
    for e in range(2):
        codes = np.stack([random.integers(0, size, 10) for size in sizes[e]]).astype(np.uint8)
        pack_rows(codes, offsets[e], packed[e])
        wanted.append(codebook[books[e][:, None] + codes].T)
        assert (look_up_reference(packed[e], widths[e], offsets[e], books[e], codebook) == wanted[e]).all()
    flat = np.concatenate(wanted).ravel()
    for start, stop in [(0, 460), (0, 1), (22, 24), (45, 300), (459, 460)]:
        first, out = start // 23, np.empty(stop - start, np.float32)
        rows = packed.reshape(20, stride)[first : -(-stop // 23)].ravel()
        look_up(rows, first, 10, stride, widths, offsets, books, codebook, start, out)
        assert (out == flat[start:stop]).all()
