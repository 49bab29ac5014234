"""Leading singular triplets: how near random projection comes to Eckart and Young, and how many are kept."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from deltasmith.errors import MissingExtraError
from deltasmith.kernels import randomised
from deltasmith.kernels.randomised import Target, decompose, normal_matrix, pays, randomised_svd


def spectrum_matrix(m, n, spectrum, seed=0):
    random = np.random.default_rng(seed)
    k = len(spectrum)
    u, v = (np.linalg.qr(random.normal(size=(side, k)))[0] for side in (m, n))
    return ((u * spectrum) @ v.T).astype(np.float32)


def missed(matrix, triplets):
    u, s, vt = (x.astype(np.float64) for x in triplets)
    return np.linalg.norm(matrix - (u * s) @ vt)


def tail(matrix, rank):
    spectrum = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    return np.sqrt((spectrum[rank:] ** 2).sum())


def test_the_test_matrix_is_normal_and_a_function_of_its_key():
    drawn = normal_matrix(5, 300, 200).astype(np.float64)
    assert drawn.dtype == np.float64
    assert abs(drawn.mean()) < 0.02
    assert abs(drawn.std() - 1) < 0.01
    assert abs((drawn**4).mean() - 3) < 0.15
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.2
    assert np.array_equal(normal_matrix(5, 4, 6).reshape(-1), normal_matrix(5, 8, 3).reshape(-1))
    assert not np.array_equal(normal_matrix(5, 4, 6), normal_matrix(6, 4, 6))


@pytest.mark.parametrize("rank", [4, 16, 64])
@pytest.mark.parametrize(("slope", "excess"), [(0.0, 0.01), (0.7, 0.004), (1.5, 0.001)])
def test_the_error_is_near_the_least_possible(rank, slope, excess):
    matrix = (
        np.random.default_rng(1).normal(size=(256, 320)).astype(np.float32)
        if slope == 0
        else spectrum_matrix(256, 320, np.arange(1, 257.0) ** -slope)
    )
    found = randomised_svd(matrix, rank, key=9)
    least = tail(matrix, rank)
    assert least * (1 - 1e-4) <= missed(matrix, found) <= least * (1 + excess)
    true = np.linalg.svd(matrix, compute_uv=False)[:rank]
    assert (found[1] <= true * (1 + 1e-5)).all()
    assert (np.diff(found[1]) <= 0).all()
    assert np.allclose(found[0].T @ found[0], np.eye(rank), atol=1e-4)
    assert np.allclose(found[2] @ found[2].T, np.eye(rank), atol=1e-4)


def test_power_iterations_are_what_makes_it_near():
    matrix = np.random.default_rng(1).normal(size=(256, 320)).astype(np.float32)
    once, more = (missed(matrix, randomised_svd(matrix, 64, 9, passes=p)) for p in (0, 4))
    assert once > 1.05 * more


def test_a_matrix_of_low_rank_comes_back():
    matrix = spectrum_matrix(300, 260, [5.0, 3.0, 1.0])
    assert missed(matrix, randomised_svd(matrix, 8, key=1)) < 1e-5 * np.linalg.norm(matrix)


def test_the_same_key_gives_the_same_bits():
    matrix = np.random.default_rng(1).normal(size=(64, 80)).astype(np.float32)
    one, again, other = (randomised_svd(matrix, 4, key) for key in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not np.array_equal(one[0], other[0])


def test_projection_is_for_few_triplets_of_large_matrices():
    assert pays(64, (256, 4096))
    assert not pays(65, (256, 4096))
    assert not pays(1, (255, 4096))


@pytest.mark.parametrize("shape", [(1, 40, 60), (3, 24, 16)])
def test_an_error_is_met_by_the_smallest_rank(shape):
    stack = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    stack[0, :, 4:] *= 0.1
    squares = np.square(np.linalg.svd(stack.astype(np.float64), compute_uv=False)).sum(axis=0)
    for error in (0.9, 0.5, 0.1, 1e-3):
        u, s, vt = decompose(stack, Target(error=error), key=0)
        rank = s.shape[1]
        assert u.shape == (*shape[:2], rank)
        assert vt.shape == (shape[0], rank, shape[2])
        total = squares.sum()
        assert squares[rank:].sum() <= error**2 * total * (1 + 1e-5)
        assert squares[rank - 1 :].sum() > error**2 * total * (1 - 1e-5)


def test_an_error_of_a_large_matrix_is_met_by_projection(monkeypatch):
    def refuse(matrix):
        raise AssertionError("the whole decomposition was computed")

    matrix = spectrum_matrix(512, 400, np.arange(1, 401.0) ** -1.2)
    squares = np.square(np.arange(1, 401.0) ** -1.2)
    least = int(np.argmax([squares[r:].sum() <= 0.04 * squares.sum() for r in range(80)]))
    whole = randomised.thin_svd
    monkeypatch.setattr(randomised, "thin_svd", lambda x: whole(x) if min(x.shape) < 200 else refuse(x))
    u, s, vt = decompose(matrix[None], Target(error=0.2), key=3)
    assert least <= s.shape[1] <= least + 1
    assert missed(matrix, (u[0], s[0], vt[0])) <= 0.2 * np.linalg.norm(matrix)


def test_what_limits_the_rank():
    matrix = spectrum_matrix(20, 30, [4.0, 2.0, 1.0, 0.5])[None]
    assert decompose(matrix, Target(rank=3), 0)[1].shape == (1, 3)
    assert decompose(matrix, Target(rank=99), 0)[1].shape == (1, 20)
    assert decompose(matrix, Target(error=0.01, max_rank=2), 0)[1].shape == (1, 2)
    assert decompose(matrix, Target(rank=9, floor=0.7), 0)[1].shape == (1, 3)
    for nothing in (
        np.zeros((1, 5, 4), np.float32),
        np.zeros((2, 0, 4), np.float32),
        np.zeros((0, 3, 4), np.float32),
    ):
        assert decompose(nothing, Target(rank=2), 0)[1].shape == (len(nothing), 0)


def test_values_that_are_not_finite():
    matrix = np.ones((1, 300, 300), np.float32)
    for rank, value in ((4, np.nan), (300, np.nan), (4, np.inf), (300, np.inf)):
        matrix[0, 7, 8] = value
        with pytest.raises(np.linalg.LinAlgError):
            decompose(matrix, Target(rank=rank), 0)


def test_a_gpu_needs_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"deltasmith\[torch\]"):
        randomised_svd(np.ones((4, 4), np.float32), 1, 0, device="cuda")


def test_a_gpu_that_is_not_there(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Exception, match="finds no GPU"):
        randomised_svd(np.ones((4, 4), np.float32), 1, 0, device="cuda")


def test_the_gpu_computes_the_same():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    matrix = np.random.default_rng(1).normal(size=(256, 320)).astype(np.float32)
    (u, s, vt), (gu, gs, gvt) = (randomised_svd(matrix, 16, 9, device=d) for d in ("cpu", "cuda"))
    assert np.allclose(s, gs, rtol=1e-3)
    assert np.allclose((u * s) @ vt, (gu * gs) @ gvt, atol=2e-2)
