from __future__ import annotations

from typing import Any

import numpy as np
import pydantic
import pytest

from deltasmith.codecs.catalogue import codec_from
from deltasmith.codecs.claq import Claq
from deltasmith.codecs.claq_columns import bits_of_columns, kept_in, outlier_counts, tails_of_columns
from deltasmith.codecs.claq_matrix import MatrixCoder, code_with_feedback
from deltasmith.codecs.protocol import Cell, Held
from deltasmith.errors import RefusedError
from deltasmith.kernels.gptq import feedback
from deltasmith.kernels.kmeans import centroids, inertia
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES
from golden_cases import Case, cases


def cell_of(shape: tuple[int, ...], gram: Any = None, name: str = "model.layers.0.q_proj.weight") -> Cell:
    return Cell(Spec(name, shape, DTYPES["float32"]), gram=None if gram is None else lambda: gram)


def through(codec: Claq, values: Any, gram: Any = None) -> Any:
    cell = cell_of(values.shape, gram)
    return codec.decode(codec.encode(values, cell), cell)


def drawn(shape: tuple[int, ...], seed: int = 0) -> Any:
    return (np.random.default_rng(seed).standard_t(3, shape) * 1e-3).astype(np.float32)


@pytest.mark.parametrize("case", cases("claq_kmeans"), ids=str)
def test_golden_error_of_each_column(case: Case) -> None:
    arrays = case.arrays
    again = through(Claq(bits=case.params["bits"], dtype="float32"), arrays["W"])
    errors = ((again.astype(np.float64) - arrays["W"]) ** 2).sum(axis=0)
    assert (errors <= arrays["expected_inertia"] * (1 + 1e-6)).all()
    np.testing.assert_allclose(errors, arrays["expected_optimal_inertia"], rtol=1e-6)


@pytest.mark.parametrize("case", cases("claq_outlier_order"), ids=str)
def test_golden_outlier_order(case: Case) -> None:
    arrays = case.arrays
    counts = outlier_counts(arrays["W"], case.params["t"])
    assert (counts == arrays["expected_R"]).all()
    bits = bits_of_columns(counts, case.params["target_bits"], 4)
    wanted = arrays["expected_bits"]
    assert (bits == 4).sum() == (wanted == 4).sum()
    cut = counts[wanted == 4].min()
    assert (bits == wanted)[counts != cut].all()
    stored = Claq(bits=case.params["target_bits"]).encode(arrays["W"], cell_of(arrays["W"].shape))["bits"]
    assert (stored[0] == bits).all()


@pytest.mark.parametrize("case", cases("claq_reserve"), ids=str)
def test_golden_reservation(case: Case) -> None:
    arrays = case.arrays
    matrix, params = arrays["W"], case.params
    counts = outlier_counts(matrix, 13)
    assert (counts == arrays["expected_R"]).all()
    reserve = 2 * (params["par"] * params["tail_high"] + (1 - params["par"]) * params["tail_low"])
    tails = tails_of_columns(counts, reserve, params["par"], params["tail_high"] / params["tail_low"])
    np.testing.assert_allclose(tails, arrays["expected_tail"], rtol=1e-6)

    kept = np.stack([kept_in(c, t) for c, t in zip(matrix.T, tails, strict=True)], axis=1)
    codec = Claq(reserve=reserve, dtype="float32")
    again = through(codec, matrix)
    assert (again[kept] == matrix[kept]).all()
    # Where theirs is exact beyond the tails, a centroid stands alone with its value; there, so may one of ours.
    theirs = arrays["expected_reserved"].astype(bool)
    assert (theirs | ~kept).all()
    alone = theirs & ~kept
    assert alone.sum() <= 1
    near = np.abs(again - matrix)[~kept]
    assert np.square(near, dtype=np.float64).sum() <= 1.0001 * float(
        np.square((arrays["expected_Q"] - matrix)[~kept], dtype=np.float64).sum()
    )


@pytest.mark.parametrize("case", cases("claq_gptq"), ids=str)
def test_golden_error_feedback(case: Case) -> None:
    arrays, params = case.arrays, case.params
    x, matrix = arrays["X"].astype(np.float64), arrays["W"]
    codec = Claq(
        bits=params["bits"],
        of="weight",
        dtype="float32",
        damping=params["percdamp"],
        order="activations" if params["actorder"] else "columns",
    )
    again = through(codec, matrix, (x.T @ x).astype(np.float32))
    error = float(np.square((matrix - again) @ x.T).sum())
    plain = float(np.square((matrix - through(codec, matrix)) @ x.T).sum())
    assert error <= 1.1 * arrays["expected_output_sse"]
    assert error < plain


def test_feedback_equals_gptq_by_hand() -> None:
    """Against the textbook loop: invert what is left of H before every column, one update at a time."""
    random = np.random.default_rng(1)
    x = random.standard_normal((500, 140)) @ random.standard_normal((140, 140))
    matrix, gram = drawn((12, 140), 2), (x.T @ x).astype(np.float32)
    again = through(Claq(dtype="float32"), matrix, gram)
    h = gram.astype(np.float64)
    h += 0.01 * np.diagonal(h).mean() * np.eye(140)
    left, wanted = matrix.astype(np.float64), np.empty((12, 140))
    for j in range(140):
        inverse = np.linalg.inv(h[j:, j:])
        centres = centroids(left[:, j].astype(np.float32), 4)
        wanted[:, j] = centres[np.abs(left[:, j, None] - centres).argmin(axis=1)]
        error = (left[:, j] - wanted[:, j]) / inverse[0, 0]
        left[:, j:] -= np.outer(error, inverse[0])
    np.testing.assert_allclose(again, wanted, atol=2e-5)


def test_every_block_of_128_columns_has_its_own_reservations() -> None:
    """The released code reads them at the position within the block: column 130 would have column 2's."""
    matrix = drawn((500, 300))
    matrix[:200, 130] *= 1000
    codec = Claq(reserve=0.01, reserve_columns=1 / 300, dtype="float32")
    assert np.argmax(outlier_counts(matrix, 13)) == 130
    kept = codec.encode(matrix, cell_of(matrix.shape))["kept_index"]
    assert (np.bincount(kept)[[2, 130]] > [0, 10]).all()
    assert np.bincount(kept)[130] > 2 * np.bincount(kept)[2]


def test_equal_counts_go_to_the_lower_column() -> None:
    assert bits_of_columns(np.array([0, 5, 5, 5, 0]), 2.8, 4).tolist() == [2, 4, 4, 2, 2]
    assert bits_of_columns(np.array([1, 1]), 3, 4).tolist() == [3, 3]
    assert bits_of_columns(np.zeros(100, int), 4.25, 5).tolist() == [5] * 25 + [4] * 75


def test_the_papers_reservation_is_one_per_cent() -> None:
    tails = tails_of_columns(np.arange(1000), 0.01, 0.1, 3.5)
    assert sorted(set(tails.round(9).tolist())) == [0.004, 0.014]
    assert np.isclose(2 * tails.mean(), 0.01)


def test_tails_are_counted_not_compared() -> None:
    """A column of zeros but two values keeps those two and some zeros, not every zero."""
    column = np.zeros(1000, np.float32)
    column[[7, 9]] = [5, -5]
    mask = kept_in(column, 0.004)
    assert mask.sum() == 6
    assert mask[[7, 9]].all()
    assert not kept_in(column[:100], 0.004).any()
    stored = Claq(reserve=0.01).encode(column[:, None], cell_of((1000, 1)))
    assert stored["kept_value"].size == 0  # the centroids meet all of them


def test_inputs_without_examples_are_coded_as_they_are() -> None:
    random = np.random.default_rng(3)
    x = random.standard_normal((64, 10))
    x[:, 4] = 0
    matrix = drawn((40, 10))
    again = through(Claq(dtype="float32"), matrix, (x.T @ x).astype(np.float32))
    assert np.isclose(
        np.square(again[:, 4].astype(np.float64) - matrix[:, 4]).sum(),
        inertia(matrix[:, 4], centroids(matrix[:, 4], 4)),
        rtol=1e-6,
    )


def test_feedback_never_leaves_the_bound() -> None:
    """A faint input that follows a strong one would have to make up for its error a hundredfold."""
    matrix, gram = drawn((40, 2), 5), np.float32([[1e4, 1e2], [1e2, 1.01]])
    codec = Claq(bits=1, damping=1e-7)
    counts = np.ones(2, np.uint8)
    coder = MatrixCoder(matrix, counts, None, "bfloat16")
    code_with_feedback(coder, feedback(gram, 1e-7), np.arange(2))
    assert coder.squared_error > 10 * coder.squared_norm
    assert (through(codec, matrix, gram) == through(codec, matrix)).all()


def test_experts_are_matrices_of_their_own() -> None:
    stack = drawn((3, 40, 8))
    stack[1] *= 100
    name = "model.layers.0.mlp.experts.up_proj"
    random = np.random.default_rng(6)
    grams = np.stack([(x.T @ x) for x in random.standard_normal((3, 50, 8))]).astype(np.float32)
    for gram in (None, grams):
        codec, cell = Claq(bits=2.5, reserve=0.02), cell_of(stack.shape, gram, name)
        again = codec.decode(codec.encode(stack, cell), cell)
        for e in range(3):
            alone = through(codec, stack[e], None if gram is None else gram[e])
            assert (again[e] == alone).all()


def test_experts_with_rows_of_unequal_length_are_refused() -> None:
    """Bits swapped so that neither codes nor codebook change in size, but rows would begin elsewhere."""
    cell, codec = cell_of((2, 8, 24), name="model.layers.0.mlp.experts.up_proj"), Claq(bits=2 + 2 / 3)
    arrays = codec.encode(drawn((2, 8, 24)), cell)
    assert sorted(arrays["bits"][1]) == [2] * 16 + [4] * 8
    spoiled = np.stack([arrays["bits"][0], np.full(24, 3, np.uint8)])
    with pytest.raises(ValueError, match="rows differ in length"):
        codec.decode({**arrays, "bits": spoiled}, cell)


def test_kernels_of_convolutions_are_matrices() -> None:
    kernel = drawn((16, 3, 5, 5))
    assert (through(Claq(), kernel) == through(Claq(), kernel.reshape(16, 75)).reshape(kernel.shape)).all()


def test_stored_size_is_what_the_docstring_says() -> None:
    codec = Claq(bits=2.12, reserve=0.01)
    arrays = codec.encode(drawn((2000, 100)), cell_of((2000, 100)))
    widths = arrays["bits"][0]
    assert (widths == 4).sum() == 6
    assert arrays["codes"].shape == (2000, -(-(94 * 2 + 6 * 4) // 8))
    assert arrays["codebook"].size == 94 * 4 + 6 * 16
    assert 0.009 < arrays["kept_value"].size / 200_000 < 0.0115


def test_decoding_reads_no_more_rows_than_asked() -> None:
    codec, cell, values = Claq(), cell_of((512, 64)), drawn((512, 64))
    arrays = codec.encode(values, cell)
    asked: list[tuple[int, int]] = []

    class Watched(Held):
        def read(self, name: str, start: int, stop: int) -> Any:
            asked.append((start, stop))
            return super().read(name, start, stop)

    codec.decoder(cell, Watched(arrays)).read(10 * 64 + 3, np.empty(64, np.float32))
    assert asked == [(160, 192)]


def test_precision_pays() -> None:
    values = np.random.default_rng(7).standard_normal((4000, 5)).astype(np.float32)
    norm = np.linalg.norm(values)
    errors = [np.linalg.norm(through(Claq(bits=b), values) - values) / norm for b in (1, 2, 3, 4, 8)]
    # Lloyd-Max quantisers of a Gaussian: 0.6028, 0.3428, 0.1858, 0.0975 (Max 1960, table I).
    np.testing.assert_allclose(errors[:4], [0.6028, 0.3428, 0.1858, 0.0975], rtol=0.03)
    assert errors[4] < 0.01


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="high = 2 must exceed bits"):
        Claq(bits=3.5, high=2)
    assert codec_from("claq:bits=3.5,high=6") == Claq(bits=3.5, high=6)
    assert Claq().refusal(cell_of((5,))) == "it is not a matrix"
    with pytest.raises(RefusedError, match=r"a Gram matrix of shape \(3, 3\) in .*q_proj"):
        through(Claq(), drawn((4, 5)), np.eye(3, dtype=np.float32))
    with pytest.raises(RefusedError, match="not positive definite"):
        through(Claq(), drawn((4, 2)), np.float32([[1, 9], [9, 1]]))
