"""The GPU kernel, run by triton's interpreter on the CPU: no GPU is needed, and none is proved to work by it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_without_torch_one_line_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from deltasmith.errors import MissingExtraError\n"
        "try:\n    import deltasmith.runtime\n"
        "except MissingExtraError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == 'the runtime needs torch; pip install "deltasmith[torch]"\n'


@pytest.mark.parametrize(
    ("program", "said"), [("triton_interpreted.py", "right"), ("triton_compiled.py", "compiled")]
)
def test_the_kernel_equals_the_definition_and_compiles(program: str, said: str) -> None:
    """In processes of their own: whether the interpreter is used is settled when triton is imported."""
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, HERE / program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == [said]
