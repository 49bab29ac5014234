"""The eight-task vision table in miniature: pictures, a tiny ViT, its experts, and what merging them keeps.

Importing this package loads nothing heavy; torch, scikit-learn and Pillow come with `deltasmith[vision]`.
"""

from __future__ import annotations

__all__ = ["TASKS"]

TASKS = (
    "mnist",
    "mnist_rotated",
    "mnist_inverted",
    "digits",
    "greek",
    "latin",
    "korean",
    "katakana",
)
"""Each has its own classes, pictures and head; the order is that of every table."""
