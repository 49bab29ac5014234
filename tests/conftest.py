"""Settings that must hold before numpy is imported, and before hypothesis times anything."""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # spinning BLAS threads are slow on busy machines

from hypothesis import settings

# The first call of a kernel compiles it, and a test that passed yesterday should pass today.
settings.register_profile("default", deadline=None, derandomize=True)
settings.load_profile("default")
