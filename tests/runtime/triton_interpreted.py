"""Runs the kernel of triton_bits under TRITON_INTERPRET=1, or on a GPU with the argument `cuda`; prints `right`."""

from __future__ import annotations

import itertools
import os
import sys

if "cuda" not in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch

from deltasmith.runtime.bank import SignBank
from deltasmith.runtime.lookup import defined_products, words_of
from deltasmith.runtime.terms import SignTerm
from deltasmith.runtime.triton_bits import add_signs

DEVICE = "cuda" if "cuda" in sys.argv else "cpu"
SHAPES = [(3, 5), (70, 33), (16, 100), (130, 64)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def check(rows: int, columns: int, dtype: torch.dtype, tokens: list[list[int]], n_tokens: int) -> None:
    random = np.random.default_rng(rows)
    planes = 4
    words = np.stack(
        [words_of(random.integers(0, 256, rows * columns, np.uint8), rows, columns) for _ in range(planes)]
    )
    scales = (random.random((planes, rows)) * 0.01).astype(np.float32)
    x = torch.from_numpy(random.standard_normal((n_tokens, columns)).astype(np.float32)).to(dtype)
    y = torch.from_numpy(random.standard_normal((n_tokens, rows)).astype(np.float32)).to(dtype)
    spans = [(0, 1), (1, 3), (3, 1)][: len(tokens)] if tokens else [(1, 2)]
    expected = y.double().numpy().copy()
    padded = np.zeros((n_tokens, words.shape[1] * 32))
    padded[:, :columns] = x.double().numpy()
    for own, (first, count) in zip(tokens or [list(range(n_tokens))], spans, strict=True):
        planes_of = slice(first, first + count)
        expected[own] += defined_products(words[planes_of], scales[planes_of], padded[own])
    order = starts = None
    if tokens:
        order = torch.tensor(list(itertools.chain(*tokens)), dtype=torch.int32, device=DEVICE)
        starts = torch.tensor([0, *itertools.accumulate(map(len, tokens))], dtype=torch.int32, device=DEVICE)
    out = y.to(DEVICE)
    add_signs(
        out,
        x.to(DEVICE),
        torch.from_numpy(words.view(np.int32)).to(DEVICE),
        torch.from_numpy(scales).to(DEVICE),
        torch.tensor([first for first, _ in spans], dtype=torch.int32, device=DEVICE),
        torch.tensor([count for _, count in spans], dtype=torch.int32, device=DEVICE),
        order,
        starts,
        max(map(len, tokens), default=0),
    )
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(out.double().cpu().numpy(), expected, atol=tolerance, rtol=tolerance)


def check_bank() -> None:
    """A batch of several deltas through the bank equals the terms one by one, other rows and labels left alone."""
    random = np.random.default_rng(1)

    def term(planes: int) -> SignTerm:
        packed = [random.integers(0, 256, 24 * 50, np.uint8) for _ in range(planes)]
        words = np.stack([words_of(bits, 24, 50) for bits in packed]).view(np.int32)
        scales = random.random((planes, 24)).astype(np.float32)
        return SignTerm(torch.from_numpy(words).to(DEVICE), torch.from_numpy(scales).to(DEVICE), 50)

    terms = {"a": term(1), "b": term(3), "c": term(2)}
    x = torch.from_numpy(random.standard_normal((5, 3, 50)).astype(np.float32)).to(DEVICE)
    groups = [(k, torch.tensor(v, device=DEVICE)) for k, v in {"c": [1], "other": [0], "a": [2, 4]}.items()]
    right = torch.ones(5, 3, 24, device=DEVICE)
    for label, index in groups:
        if label in terms:
            right[index] += terms[label].product(x[index].reshape(-1, 50)).reshape(-1, 3, 24)
    bank, y = SignBank(terms), torch.ones(5, 3, 24, device=DEVICE)
    assert bank.add(y, x, groups) == [groups[1]]
    torch.testing.assert_close(y, right, atol=1e-4, rtol=1e-4)
    alone = torch.zeros(5, 3, 24, device=DEVICE)
    assert bank.add(alone, x, [("b", None)]) == []
    torch.testing.assert_close(
        alone.reshape(-1, 24), terms["b"].product(x.reshape(-1, 50)), atol=1e-4, rtol=1e-4
    )


def main() -> None:
    check_bank()
    for rows, columns in SHAPES:
        check(rows, columns, torch.float32, [], 3)
        check(rows, columns, torch.float32, [[4, 0], [2], [5, 1, 6]], 7)  # token 3 belongs to no group
    if DEVICE == "cuda":  # the interpreter multiplies the raw words of bfloat16
        check(40, 64, torch.bfloat16, [[0], [1, 2]], 3)
    check(40, 64, torch.float16, [], 20)
    # Sums beyond the range of float16 (300 × 256 = 76,800) that the scale brings back.
    y, x = torch.zeros(1, 16, dtype=torch.float16), torch.full((1, 300), 256.0, dtype=torch.float16)
    ones = torch.full((1, 10, 16), -1, dtype=torch.int32)
    plane = torch.zeros(1, dtype=torch.int32)
    out = y.to(DEVICE)
    scales = torch.full((1, 16), 2.0**-10)
    parts = (x, ones, scales, plane, plane + 1)
    add_signs(out, *(part.to(DEVICE) for part in parts))
    assert torch.equal(out.cpu(), torch.full((1, 16), 75.0, dtype=torch.float16)), out
    print("right")


main()
