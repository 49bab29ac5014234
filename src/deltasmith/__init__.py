"""deltasmith: edit, merge, pack and explain delta parameters, what fine-tuning changed in a model.

`deltasmith.merge("recipe.yaml", "out")` is the whole of the main job; `plan`, `verify` and `diff` stand beside it,
`evaluate_model`, `compare` and `tune` tell whether the result is any good, `loss` why; `pack`, `unpack` and `inspect`
keep a fine-tune in a tenth of the space. `from deltasmith import features` follows features through all of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "advise",
    "compare",
    "compute",
    "diff",
    "evaluate_model",
    "inspect",
    "loss",
    "merge",
    "open_model",
    "pack",
    "plan",
    "tune",
    "unpack",
    "verify",
]

if TYPE_CHECKING:
    from deltasmith.advice.run import advise
    from deltasmith.analysis.run import loss
    from deltasmith.api import compute, diff, merge, open_model, plan, verify
    from deltasmith.evaluate.compare import compare
    from deltasmith.evaluate.run import evaluate_model
    from deltasmith.packing import inspect, pack, unpack
    from deltasmith.search import tune

_ELSEWHERE = {
    "advise": "advice.run",
    "compare": "evaluate.compare",
    "evaluate_model": "evaluate.run",
    "inspect": "packing",
    "loss": "analysis.run",
    "pack": "packing",
    "tune": "search",
    "unpack": "packing",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for on first use: importing the package itself costs nothing."""
    if name in __all__:
        return getattr(import_module(f"deltasmith.{_ELSEWHERE.get(name, 'api')}"), name)
    raise AttributeError(f"module 'deltasmith' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List what is imported on first use as well."""
    return sorted({*globals(), *__all__})
