"""The architecture, enforced: layers import downwards only, and the package costs nothing to import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "deltasmith"

# Lowest first. A module may import from its own layer and from those before it.
LAYERS = [
    ["errors"],
    ["table"],
    ["kernels"],
    ["operation"],
    ["codecs"],
    ["formats"],
    ["surveys"],
    ["edits", "merges"],
    ["planning"],
    ["engine"],
    ["recipe"],
    ["api"],
    ["conversion", "unpickle"],
    ["packing"],
    ["runtime", "upscaling"],
    ["evaluate"],
    ["distillation"],
    ["search"],
    ["analysis"],
    ["advice"],
    ["features"],
    ["lab"],
    ["cli"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
WINGS = {
    "runtime",
    "evaluate",
    "upscaling",
    "distillation",
    "search",
    "analysis",
    "advice",
    "features",
    "lab",
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("deltasmith.")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down_only(path: Path) -> None:
    layer = layer_of(path)
    if layer == "__init__":
        return
    assert layer in RANK, f"{layer} has no place among the layers"
    above = {name for name in imports(path) if name in RANK and RANK[name] > RANK[layer]}
    assert not above, f"{path.relative_to(PACKAGE)} imports from layers above it: {sorted(above)}"
    if layer not in WINGS | {"cli"}:
        assert not imports(path) & WINGS, "the core never imports a wing"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from deltasmith.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted(m for m in ('numpy', 'numba', 'pydantic', 'rich', 'yaml', 'torch') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, deltasmith; print('numpy' in sys.modules or 'numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_no_module_takes_the_name_of_a_call() -> None:
    """A subpackage `plan` would replace `deltasmith.plan()` as soon as anything imported it."""
    import deltasmith

    for path in MODULES:
        relative = path.relative_to(PACKAGE).parts
        assert relative[0].removesuffix(".py") not in deltasmith.__all__
    for name in deltasmith.__all__[1:]:
        assert callable(getattr(deltasmith, name))
