"""Numbers that may differ from tensor to tensor: constants, curves over layer depth, lists of globs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, PlainSerializer, WrapValidator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from deltasmith.table.names import matches

__all__ = [
    "Curve",
    "Density",
    "Factor",
    "Fraction",
    "Number",
    "PerTensor",
    "Positive",
    "Rate",
    "Schedulable",
    "is_schedule",
    "resolve",
]


class Curve(BaseModel):
    """A number given at equally spaced depths, first layer to last, and interpolated linearly between them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    layers: tuple[float, ...] = Field(min_length=1)

    def at(self, depth: float) -> float:
        """Return the value at `depth` in [0, 1]."""
        return float(np.interp(depth, np.linspace(0.0, 1.0, len(self.layers)), self.layers))


class Choice(BaseModel):
    """One line of a list of globs: tensors whose whole name matches `where` take `value`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    where: str
    value: float | Curve


class PerTensor(BaseModel):
    """A number chosen by the first glob that matches; a tensor that none matches is an error at load time."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    choices: tuple[Choice, ...] = Field(min_length=1)

    def pick(self, name: str, depth: float) -> float:
        """Return the value for the tensor `name` lying at `depth`; KeyError if no glob matches."""
        for choice in self.choices:
            if matches(choice.where, name):
                return choice.value.at(depth) if isinstance(choice.value, Curve) else choice.value
        raise KeyError(name)


class Schedulable:
    """A marker for a float field: the recipe may give a `Curve` or a list of globs instead of a constant.

    Every leaf is checked against the field's own range, so `{layers: [0.5, 7]}` is refused for a density.
    """

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Describe the three ways to write the number."""
        number = handler(core)
        curve = {
            "type": "object",
            "properties": {"layers": {"type": "array", "items": number, "minItems": 1}},
            "required": ["layers"],
            "additionalProperties": False,
        }
        choice = {
            "type": "object",
            "properties": {"where": {"type": "string"}, "value": {"anyOf": [number, curve]}},
            "required": ["where", "value"],
            "additionalProperties": False,
        }
        return {"anyOf": [number, curve, {"type": "array", "items": choice, "minItems": 1}]}


def _validate(value: Any, check: Callable[[Any], float]) -> Any:
    """Let schedules through once each of their leaves has passed the constant's own check."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "Input should be a number, not true or false")
    if isinstance(value, dict) and "choices" in value:
        value = value["choices"]  # what a PerTensor dumps to
    if isinstance(value, (dict, Curve)):
        curve = Curve.model_validate(value)
        return Curve(layers=tuple(check(x) for x in curve.layers))
    if isinstance(value, (list, PerTensor)):
        spec = value if isinstance(value, PerTensor) else PerTensor(choices=tuple(value))
        for choice in spec.choices:
            _validate(choice.value, check)
        return spec
    return check(value)


def _dump(value: Any) -> Any:
    """Dump a schedule as a recipe writes it."""
    if isinstance(value, Curve):
        return {"layers": list(value.layers)}
    if isinstance(value, PerTensor):
        return [{"where": choice.where, "value": _dump(choice.value)} for choice in value.choices]
    return value


_schedulable = (WrapValidator(_validate), PlainSerializer(_dump), Schedulable())

# To a type checker these are floats: an operation sees only resolved records (see `resolve`).
Number = Annotated[float, Field(allow_inf_nan=False), *_schedulable]
Density = Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False), *_schedulable]
Fraction = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False), *_schedulable]
Factor = Annotated[float, Field(ge=0.0, allow_inf_nan=False), *_schedulable]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False), *_schedulable]
Rate = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False), *_schedulable]


def is_schedule(value: Any) -> bool:
    """Tell whether a field holds a schedule, by itself or among the items of a tuple."""
    if isinstance(value, tuple):
        return any(is_schedule(item) for item in value)
    return isinstance(value, (Curve, PerTensor))


def resolve(value: Any, name: str, depth: float) -> float:
    """Return the constant that `value` (a number or a schedule) stands for at one tensor."""
    if isinstance(value, Curve):
        return value.at(depth)
    if isinstance(value, PerTensor):
        return value.pick(name, depth)
    return float(value)
