"""The 1-bit product on a GPU, one launch for all rows of a batch and all their deltas. Needs triton.

Not in here: when it is used (bank.py), and the definition it must equal (lookup.defined_products).
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

__all__ = ["add_signs"]


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _kernel(  # type: ignore[no-untyped-def]  # noqa: ANN202
    x,  # noqa: ANN001
    y,  # noqa: ANN001
    words,  # noqa: ANN001
    scales,  # noqa: ANN001
    order,  # noqa: ANN001
    starts,  # noqa: ANN001
    firsts,  # noqa: ANN001
    counts,  # noqa: ANN001
    n_tokens,  # noqa: ANN001
    n_in,  # noqa: ANN001
    n_out,  # noqa: ANN001
    n_words,  # noqa: ANN001
    ORDERED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Add to a block of y, (BLOCK_M tokens of one group, BLOCK_N rows), that group's planes of signs."""
    group = tl.program_id(2)
    begin, end = 0, n_tokens
    if ORDERED:
        begin = tl.load(starts + group)
        end = tl.load(starts + group + 1)
    place = begin + tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    has_token = place < end
    token = place
    if ORDERED:
        token = tl.load(order + place, mask=has_token, other=0)
    token = token.to(tl.int64)  # tokens × width may exceed 2³¹
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    has_row = n < n_out

    first = tl.load(firsts + group)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for i in range(tl.load(counts + group)):
        plane = (first + i).to(tl.int64)
        plane_words = words + plane * n_words * n_out
        sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for at in range(0, n_in, BLOCK_K):
            k = at + tl.arange(0, BLOCK_K)
            # Columns beyond the last are 0 in x, so the bits that pad the last word count for nothing.
            mask = has_token[:, None] & (k < n_in)[None, :]
            part = tl.load(x + token[:, None] * n_in + k[None, :], mask=mask, other=0.0)
            mask = (k < n_in)[:, None] & has_row[None, :]
            word = tl.load(plane_words + (k // 32)[:, None] * n_out + n[None, :], mask=mask, other=0)
            # The shift is arithmetic for int32: the mask by 1 makes that harmless.
            signs = tl.where(((word >> (k % 32)[:, None]) & 1) == 1, 1.0, -1.0).to(part.dtype)
            sums += tl.dot(part, signs, input_precision="ieee")
        scale = tl.load(scales + plane * n_out + n, mask=has_row, other=0.0)
        total += sums * scale[None, :]

    mask = has_token[:, None] & has_row[None, :]
    at_y = y + token[:, None] * n_out + n[None, :]
    # One rounding, to the type of y; the sum itself never leaves float32, so nothing can overflow before it.
    tl.store(
        at_y, (tl.load(at_y, mask=mask, other=0.0).to(tl.float32) + total).to(y.dtype.element_ty), mask=mask
    )


def add_signs(
    y: Any,
    x: Any,
    words: Any,
    scales: Any,
    firsts: Any,
    counts: Any,
    order: Any | None = None,
    starts: Any | None = None,
    most: int = 0,
) -> None:
    """Add to each token of y, in place, the products with the planes of signs of its group.

    y (n, out) and x (n, in) contiguous, of one type; words (planes, ⌈in / 32⌉, out) int32, scales (planes, out)
    float32; firsts and counts (groups,) int32: the planes of each group. `order` (int32) lists the tokens group by
    group, group g at [starts[g], starts[g + 1]), `most` being the size of the largest; without it all tokens are
    one group. Tokens in no group are left as they are.
    """
    n_tokens = x.shape[0] if order is None else most
    if not n_tokens or not y.numel():
        return
    block_m = 16 if n_tokens <= 16 else 64
    block_n, block_k = 64, 64
    grid = (triton.cdiv(y.shape[1], block_n), triton.cdiv(n_tokens, block_m), firsts.numel())
    _kernel[grid](
        x,
        y,
        words,
        scales,
        firsts if order is None else order,
        firsts if starts is None else starts,
        firsts,
        counts,
        x.shape[0],
        x.shape[1],
        y.shape[1],
        words.shape[1],
        ORDERED=order is not None,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
    )
