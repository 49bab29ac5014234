"""`deltasmith doctor`."""

from __future__ import annotations

from typing import Any

import click

from deltasmith.cli.options import human, json_option, print_json

_EXTRAS = ("torch", "transformers", "lm_eval", "optuna", "cmaes", "matplotlib", "tokenizers")


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Look at this machine and installation: versions, processors, memory, disk, compiled kernels, extras."""
    facts = _facts()
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            click.echo(f"{name}:")
            for key, item in value.items():
                click.echo(f"  {key:<16} {item}")
        else:
            click.echo(f"{name:<18} {value}")


def _facts() -> dict[str, Any]:
    import platform
    import shutil
    import tempfile

    from deltasmith import __version__
    from deltasmith.api import available_threads

    return {
        "deltasmith": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processors": available_threads(),
        "memory": human(_memory()),
        "free disk here": human(shutil.disk_usage(".").free),
        "free disk for temporary files": human(shutil.disk_usage(tempfile.gettempdir()).free),
        "packages": _versions(("numpy", "numba", "pydantic", "safetensors", "huggingface_hub")),
        "extras": _versions(_EXTRAS),
        "kernels": _kernels(),
        "sandbox": _sandbox(),
    }


def _memory() -> int:
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _kernels() -> str:
    """Compile and run one kernel, so that a broken compiler shows here and not in a merge."""
    import time

    import numpy as np

    from deltasmith.kernels.decode import count_nonfinite

    began = time.perf_counter()
    right = count_nonfinite(np.array([1.0, np.inf, np.nan], np.float32)) == 2
    return f"{'work' if right else 'give wrong results'} ({time.perf_counter() - began:.2f} s for the first call)"


def _sandbox() -> str:
    """Name the best way to run generated code that passes a test run here."""
    from deltasmith.errors import RefusedError
    from deltasmith.evaluate.sandbox import choose_tier

    try:
        return choose_tier().describe()
    except RefusedError as why:
        return f"none: {why.what}"
