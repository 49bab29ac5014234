"""Calculation on packed deltas: products and angles, multiples and sums, votes, without unpacking a model.

Everything goes tensor by tensor and stays in packed form where the codecs allow it; every function says where. The
results of `scaled`, `summed` and `vote` are containers over the same base, which open as models like any other.
"""

from __future__ import annotations

from deltasmith.packing.inner import Product, Products, cosine, inner, norm, products
from deltasmith.packing.summing import scaled, summed
from deltasmith.packing.voting import vote

__all__ = ["Product", "Products", "cosine", "inner", "norm", "products", "scaled", "summed", "vote"]
