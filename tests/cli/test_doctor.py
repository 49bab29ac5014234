"""`deltasmith doctor`, `--help`, `--version`: what a first-time user tries."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

from models import environment, run, spawn

COMMANDS = ("demo", "plan", "merge", "verify", "diff", "methods", "explain", "schema", "doctor", "convert")


def test_doctor_looks_at_the_installation():
    told = run("doctor", "--json").document
    assert told["deltasmith"] == version("deltasmith")
    assert told["packages"]["numpy"] == version("numpy")
    assert told["kernels"].startswith("work")
    text = run("doctor")
    assert text.code == 0
    assert "processors" in text.out


def test_version_and_help():
    assert version("deltasmith") in run("--version").out
    shown = run("--help")
    assert shown.code == 0
    assert all(command in shown.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    shown = run(command, "--help")
    assert (shown.code, shown.err) == (0, "")
    assert "Usage: deltasmith" in shown.out


def test_nothing_heavy_is_imported_for_help():
    code = (
        "import sys; from deltasmith.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('numba', 'numpy', 'pydantic', 'torch', 'yaml') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stderr.strip() == "[]"


def test_doctor_runs_without_a_home():
    assert spawn("doctor", "--json", HOME="/nonexistent").document["kernels"].startswith("work")
