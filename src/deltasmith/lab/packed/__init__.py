"""The lab of packed deltas: what every codec keeps of an expert, against the bytes it takes.

`points` lists what is measured, `coding` packs in memory, `curves`, `merges` and `distilled` are the experiments,
`run` carries them out, `page` writes them down. Importing this package loads nothing heavy.
"""

from __future__ import annotations

__all__: list[str] = []
