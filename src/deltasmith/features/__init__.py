"""Features through fine-tuning and merging: sparse autoencoders, their matching over a graph of models, a report.

from deltasmith import features
study = features.train(["base=./base", "lua=./lua", "merged=./merged"], site="model.layers.0.mlp.down_proj:in",
                       corpora=["python=./py", "lua=./lua-code"], out="study")
outcome = features.match("study")
features.report("study", "report.html")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["match", "report", "sweep", "train"]

if TYPE_CHECKING:
    from deltasmith.features.following import match
    from deltasmith.features.page.writing import report
    from deltasmith.features.sweeping import sweep
    from deltasmith.features.training import train

_ELSEWHERE = {"match": "following", "report": "page.writing", "sweep": "sweeping", "train": "training"}


def __getattr__(name: str) -> Any:
    """Import what is asked for on first use."""
    if name in _ELSEWHERE:
        return getattr(import_module(f"deltasmith.features.{_ELSEWHERE[name]}"), name)
    raise AttributeError(f"module 'deltasmith.features' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List what is imported on first use as well."""
    return sorted({*globals(), *__all__})
