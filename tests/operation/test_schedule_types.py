"""The types of numbers that may be schedules: what each takes, and that the JSON schema says so in editors' words."""

from __future__ import annotations

import json

import pytest
from pydantic import TypeAdapter, ValidationError

from deltasmith.operation import schedule

TYPES = {
    "Density": ((1e-9, 1.0), (0.0, 1.1)),
    "Factor": ((0.0, 9.0), (-0.1,)),
    "Fraction": ((0.0, 1.0), (-0.1, 1.1)),
    "Number": ((-9.0, 0.0), (float("inf"), float("nan"))),
    "Positive": ((1e-9, 9.0), (0.0, -1.0, float("inf"))),
    "Rate": ((0.0, 0.99), (-0.1, 1.0)),
}


@pytest.mark.parametrize("name", TYPES)
def test_what_each_type_takes(name):
    adapter, (good, bad) = TypeAdapter(getattr(schedule, name)), TYPES[name]
    for value in good:
        assert adapter.validate_python(value) == value
        adapter.validate_python({"layers": [good[0], value]})
        adapter.validate_python([{"where": "*", "value": value}])
    for value in bad:
        for written in (value, {"layers": [good[0], value]}, [{"where": "*", "value": {"layers": [value]}}]):
            with pytest.raises(ValidationError):
                adapter.validate_python(written)


@pytest.mark.parametrize("name", TYPES)
def test_the_schema_has_no_keyword_of_pydantics_own(name):
    text = json.dumps(TypeAdapter(getattr(schedule, name)).json_schema())
    assert not [word for word in ("gt", "ge", "lt", "le") if f'"{word}"' in text], text
    limits = {"Density": "exclusiveMinimum", "Positive": "exclusiveMinimum", "Rate": "exclusiveMaximum"}
    assert limits.get(name, "anyOf") in text


def test_the_readme_lists_them(pytestconfig):
    readme = (pytestconfig.rootpath / "README.md").read_text()
    section = readme.split("An edit is one file")[1].split("A codec is one file")[0]
    assert all(f"`{name}`" in section for name in TYPES)
