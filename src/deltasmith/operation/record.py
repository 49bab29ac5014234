"""The base of every operation: a frozen record whose fields are its YAML keys, its help and its documentation."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from deltasmith.operation.schedule import Curve, PerTensor, resolve

__all__ = ["Record"]


class Record(BaseModel):
    """A frozen record; unknown fields are errors, equality is equality of fields, `eval(repr(x)) == x`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    def resolved(self, name: str, depth: float) -> Self:
        """Return the record with every schedule replaced by its value at one tensor."""
        changes: dict[str, Any] = {
            field: resolve(value, name, depth)
            for field, value in self
            if isinstance(value, (Curve, PerTensor))
        }
        return self.model_copy(update=changes) if changes else self
