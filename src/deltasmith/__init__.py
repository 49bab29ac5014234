"""deltasmith: edit, merge, pack and explain delta parameters, what fine-tuning changed in a model.

`deltasmith.merge("recipe.yaml", "out")` is the whole of the main job; `plan`, `verify` and `diff` stand beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "compute", "diff", "merge", "open_model", "plan", "verify"]

if TYPE_CHECKING:
    from deltasmith.api import compute, diff, merge, open_model, plan, verify


def __getattr__(name: str) -> Any:
    """Import the API on first use: importing the package itself costs nothing."""
    if name in __all__:
        from deltasmith import api

        return getattr(api, name)
    raise AttributeError(f"module 'deltasmith' has no attribute {name!r}")
