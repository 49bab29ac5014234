"""Child process: one PyTorch pickle in, one safetensors file out. Only tensors survive; code never runs.

`torch.load(weights_only=True)` refuses every global that is not a tensor's; sparse, quantised and nested tensors are
refused here, because their inner indices are not checked by anyone.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["main"]

_WRAPPERS = ("state_dict", "model_state_dict", "model")


def main(source: str, target: str) -> int:
    """Write the tensors of `source` to `target`; return 0, or 1 after one line on standard error."""
    import torch
    from safetensors.torch import save_file

    try:
        loaded = torch.load(source, map_location="cpu", weights_only=True)
        tensors = {name: _plain(name, value, torch) for name, value in _mapping(loaded, torch).items()}
        save_file(tensors, target)
    except Exception as error:  # whatever the file provokes becomes one line for the parent
        print(str(error).splitlines()[0] if str(error) else type(error).__name__, file=sys.stderr)
        return 1
    return 0


def _mapping(loaded: Any, torch: Any) -> dict[str, Any]:
    """Find the mapping of tensors: the object itself, or under one of the usual names."""
    for name in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
            loaded = loaded[name]
    if not isinstance(loaded, dict) or not loaded:
        raise ValueError("the file holds no mapping of tensors")
    strangers = [str(k) for k, v in loaded.items() if not isinstance(v, torch.Tensor)]
    if strangers:
        raise ValueError(f"not a tensor: {', '.join(strangers[:5])}")
    return loaded


def _plain(name: str, tensor: Any, torch: Any) -> Any:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        raise ValueError(f"{name} is a sparse, quantised or nested tensor")
    return tensor.detach().clone().contiguous()  # a copy: tied tensors share memory, files do not


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
