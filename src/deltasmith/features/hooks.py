"""Reach into a forward pass: take the tensor that flows through a site, or put another in its place. Needs torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from deltasmith.errors import RefusedError
from deltasmith.features.site import Site, module_at

__all__ = ["at_site"]

Visit = Callable[[Tensor], Tensor | None]


@contextmanager
def at_site(network: nn.Module, site: Site, visit: Visit) -> Iterator[None]:
    """Call `visit` with the site's tensor whenever it is computed; what it returns, unless None, takes its place.

    The tensor is the first floating-point one among a module's arguments (named ones after the others), or of its
    output. RefusedError, out of the forward pass, where there is none.
    """
    module = module_at(network, site)

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        for at, value in enumerate(args):
            if _is_float(value):
                new = visit(value)
                return None if new is None else ((*args[:at], new, *args[at + 1 :]), kwargs)
        for name, value in kwargs.items():
            if _is_float(value):
                new = visit(value)
                return None if new is None else (args, {**kwargs, name: new})
        raise _nothing(site)

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        if _is_float(output):
            return visit(output)
        if isinstance(output, Mapping):
            for name, value in output.items():
                if _is_float(value) and (new := visit(value)) is not None:
                    output[name] = new  # type: ignore[index]  # a ModelOutput, made for this pass alone
                if _is_float(value):
                    return output
        for at, value in enumerate(output if isinstance(output, tuple | list) else ()):
            if _is_float(value):
                new = visit(value)
                return None if new is None else type(output)((*output[:at], new, *output[at + 1 :]))
        raise _nothing(site)

    handle = (
        module.register_forward_pre_hook(before, with_kwargs=True)
        if site.side == "in"
        else module.register_forward_hook(after)
    )
    try:
        yield
    finally:
        handle.remove()


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _nothing(site: Site) -> RefusedError:
    return RefusedError(
        "no floating-point tensor flows there",
        where=str(site),
        fix="choose another module, or its other side",
    )
