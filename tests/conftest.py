"""Settings that must hold before numpy is imported, and before hypothesis times anything."""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # spinning BLAS threads are slow on busy machines

from hypothesis import settings

settings.register_profile("default", deadline=None)  # the first call of a kernel compiles it
settings.load_profile("default")
