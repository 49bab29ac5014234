"""The boundary: one line for every error, a report in a file for our own, a traceback only when asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltasmith import api
from deltasmith.errors import (
    DamagedInputError,
    InterruptedRunError,
    MissingExtraError,
    RecipeError,
    RefusedError,
    ResourceError,
    VerificationError,
)
from models import Family, check_refusal, family, run, spawn


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Family:
    return family(tmp_path_factory.mktemp("errors") / "models")


CODES = [
    (RefusedError, 1),
    (RecipeError, 2),
    (MissingExtraError, 2),
    (DamagedInputError, 3),
    (ResourceError, 4),
    (InterruptedRunError, 5),
    (VerificationError, 6),
]


@pytest.mark.parametrize(("kind", "code"), CODES)
def test_exit_codes(models, monkeypatch, kind, code):
    def fail(*arguments, **options):
        raise kind("it is wrong", where="the\nfile\x1b[2J", fix="mend it")

    monkeypatch.setattr(api, "plan", fail)
    result = run("plan", models.recipe())
    check_refusal(result, code)
    assert result.err == "error: it is wrong in the\\nfile\\x1b[2J; mend it\n"


def test_our_own_bug_is_one_line_and_a_file(models, monkeypatch, tmp_path):
    def fail(*arguments, **options):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(api, "plan", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = run("plan", models.recipe())
    check_refusal(result, 70, "ZeroDivisionError", "by zero")
    report = next(tmp_path.glob("deltasmith-bug-*.txt"))
    assert str(report) in result.err
    assert "Traceback" in report.read_text()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_debug_shows_the_traceback_wherever_it_stands(models, place):
    arguments = ["plan", str(models.root / "none.yaml")]
    arguments.insert(place, "--debug")
    result = run(*arguments)
    assert result.code == 2
    assert "Traceback" in result.err
    assert len(result.errors) == 1


def test_warnings_never_change_the_exit_code(models, tmp_path):
    for label in ("base", *models.labels):
        (models.root / label / "config.json").unlink()
    result = run("merge", models.recipe(), tmp_path / "out")
    assert result.code == 0
    assert "warning: " in result.err


def test_errors_go_to_standard_error_and_results_to_standard_output(models):
    result = spawn("plan", models.root / "none.yaml", "--json")
    check_refusal(result, 2, "none.yaml")


def test_the_api_raises_what_the_command_line_says(models, tmp_path):
    path = models.recipe(base="./none")
    said = run("merge", path, tmp_path / "out", "--quiet")
    with pytest.raises(DamagedInputError) as caught:
        api.merge(path, tmp_path / "out")
    assert said.err == f"error: {caught.value}\n"
    assert caught.value.exit_code == said.code == 3
    assert Path(tmp_path).exists()


def test_the_api_takes_mappings_and_recipes(models, tmp_path):
    mapping = {"base": str(models.root / "base"), "models": [{"model": str(models.root / "m0")}]}
    planned = api.plan(mapping)
    assert planned.as_json()["bytes_written"] == planned.bytes_written
    assert api.plan(planned.built.recipe).hash == planned.hash
    assert api.merge(mapping, tmp_path / "out").tensors == len(models.base)
    with pytest.raises(RecipeError):
        api.plan({**mapping, "scal": 1})
