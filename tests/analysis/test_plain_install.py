"""The calls of the analysis where torch is not installed: one error that names the extra, before anything is read."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from deltasmith.analysis.lines import follow
from deltasmith.analysis.run import loss
from deltasmith.analysis.statistics_files import save
from deltasmith.analysis.sweep import sweep
from deltasmith.errors import MissingExtraError
from deltasmith.lab import family_folder

FAMILY = family_folder()
EDIT = {"drop": {"density": 0.5}}
RECIPE = {
    "base": str(FAMILY / "base"),
    "models": [{"model": str(FAMILY / "small" / "math"), "edits": [EDIT]}],
}
CALLS: dict[str, Callable[..., Any]] = {
    "loss": loss,
    "sweep": lambda recipe, **how: sweep(recipe, "density=0.2|0.8", **how),
    "follow": follow,
    "save": lambda recipe, **how: save("gram", recipe, out="none.safetensors", **how),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("lacking", ["torch", "transformers"])
def test_it_names_the_extra(monkeypatch: pytest.MonkeyPatch, name: str, lacking: str) -> None:
    for module in [m for m in sys.modules if m.startswith("deltasmith.analysis.")]:
        if {"torch", "transformers"} & set(vars(sys.modules[module])):
            monkeypatch.delitem(sys.modules, module)  # what was imported while it was there
    monkeypatch.setitem(sys.modules, lacking, None)
    with pytest.raises(MissingExtraError, match=r"deltasmith\[analysis\]"):
        CALLS[name](RECIPE, data="none.jsonl")
