"""The base of every operation: a frozen record whose fields are its YAML keys, its help and its documentation."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from deltasmith.operation.schedule import is_schedule, resolve

__all__ = ["Record"]


class Record(BaseModel):
    """A frozen record; unknown fields are errors, equality is equality of fields, `eval(repr(x)) == x`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    def resolved(self, name: str, depth: float) -> Self:
        """Return the record with every schedule replaced by its value at one tensor, and checked again.

        Raises KeyError if a list of globs does not cover the tensor, ValueError if the values do not go together.
        """
        scheduled = {field: value for field, value in self if is_schedule(value)}
        if not scheduled:
            return self
        constants = {field: _constant(value, name, depth) for field, value in scheduled.items()}
        return type(self).model_validate({**dict(self), **constants})

    def __hash__(self) -> int:
        """Hash the fields; a mapping counts by its items."""
        values = (frozenset(value.items()) if isinstance(value, dict) else value for _, value in self)
        return hash((type(self), *values))


def _constant(value: Any, name: str, depth: float) -> Any:
    if isinstance(value, tuple):
        return tuple(resolve(item, name, depth) for item in value)
    return resolve(value, name, depth)
