"""Scale distillation of 1-bit deltas: a few numbers a matrix learn what the fine-tuned model computes.

`documents` reads and cuts the data, `scales` takes packed tensors apart, `modules` and `training` are torch,
`run` is the whole job. Importing this package loads nothing heavy.
"""

from __future__ import annotations

__all__: list[str] = []
