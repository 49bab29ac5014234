"""Where activations are taken: the input or the output of one module of a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from deltasmith.errors import RecipeError, printable
from deltasmith.recipe.problems import suggestion

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Side", "Site", "module_at"]

Side = Literal["in", "out"]


@dataclass(frozen=True)
class Site:
    """Name one place of a network: a module by its dotted name, and its input or its output."""

    module: str
    side: Side

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read MODULE:in or MODULE:out; RecipeError for anything else.

        >>> Site.parse("model.layers.0.mlp.down_proj:in")
        Site(module='model.layers.0.mlp.down_proj', side='in')
        """
        module, _, side = text.strip().rpartition(":")
        if side == "in" and module:
            return cls(module, "in")
        if side == "out" and module:
            return cls(module, "out")
        shown = printable(text.strip())
        if ":" in text or not shown:
            raise RecipeError(
                f"{shown!r} is no site",
                fix="write MODULE:in or MODULE:out, as in model.layers.0.mlp.down_proj:in",
            )
        raise RecipeError(
            f"{shown!r} does not say which side of the module",
            fix=f"write {shown}:in for its input, or {shown}:out for its output",
        )

    def __str__(self) -> str:
        return f"{self.module}:{self.side}"


def module_at(network: nn.Module, site: Site) -> nn.Module:
    """Return the site's module; RecipeError, with the nearest name or what lies there, where there is none."""
    modules = dict(network.named_modules())
    if site.module and site.module in modules:
        module: nn.Module = modules[site.module]
        return module
    known = [name for name in modules if name]
    raise RecipeError(
        f"the network has no module {printable(site.module)!r}", fix=_hint(site.module, known), where="site"
    )


def _hint(wanted: str, known: list[str]) -> str:
    """Say what comes nearest: a similar name, or what lies below the longest part of the name that exists."""
    parts = wanted.split(".")
    length = next(n for n in range(len(parts) - 1, -1, -1) if not n or ".".join(parts[:n]) in known)
    # A layer too many resembles every layer there is; the last number of them says more.
    near = "" if parts[length].isdigit() else suggestion(wanted, known)
    if near:
        return near
    above = "".join(f"{part}." for part in parts[:length])
    below = list(dict.fromkeys(name[len(above) :].split(".")[0] for name in known if name.startswith(above)))
    if not below:
        return f"{printable(above[:-1])} has no modules below it"
    shown = ", ".join(below if len(below) <= 8 else [*below[:6], "…", below[-1]])
    return f"{'below ' + printable(above[:-1]) if above else 'at the top'} there are {printable(shown)}"
