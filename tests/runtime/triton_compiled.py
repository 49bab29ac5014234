"""Compiles the kernel of triton_bits to machine code for a GPU that need not be there; prints `compiled`."""

from __future__ import annotations

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from deltasmith.runtime.triton_bits import _kernel

COMPUTE_CAPABILITY, LANES = 80, 32
tensors = {"x": "*bf16", "y": "*bf16", "words": "*i32", "scales": "*fp32"}
indices = dict.fromkeys(("order", "starts", "firsts", "counts"), "*i32")
numbers = dict.fromkeys(("n_tokens", "n_in", "n_out", "n_words"), "i32")
constants = {"ORDERED": True, "BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 64}
types = tensors | indices | numbers | dict.fromkeys(constants, "constexpr")
found = triton.compile(
    ASTSource(_kernel, types, constexprs=constants), target=GPUTarget("cuda", COMPUTE_CAPABILITY, LANES)
)
assert found.asm["cubin"]
assert "mma." in found.asm["ptx"]  # the tensor cores are used
print("compiled")
