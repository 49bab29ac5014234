"""Quantised weights: a view that multiplies fp8 weights by their scales; packed kinds are refused by name.

Knows block scales (DeepSeek's `weight_scale_inv`), one scale per tensor and one per row (`weight_scale`). A
scale is always multiplied with, whatever its name says.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deltasmith.errors import DamagedInputError, RefusedError, printable
from deltasmith.table.checkpoint import Checkpoint, Floats, SourceFile, Spec
from deltasmith.table.dtypes import DTYPES

__all__ = ["Dequantised", "dequantised", "refuse_packed_config", "refuse_packed_tensors", "without_fp8"]

Shape = tuple[int, ...]

_READ_FP8 = ("fp8", "compressed-tensors", "fbgemm_fp8", "modelopt", "finegrained_fp8")
_PACKED = re.compile(
    r"\.(qweight|qzeros|weight_packed|weight_zero_point|SCB)$"  # GPTQ, AWQ, compressed, bitsandbytes
    r"|\.weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.\w+)$"  # bitsandbytes 4-bit
)
_PACKED_FORMATS = (
    "pack-quantized",
    "int-quantized",
    "marlin-24",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
)
_SUFFIXES = ("_scale_inv", "_scale")
_OF_ACTIVATIONS = ("input_scale", "activation_scale", "input_activation_scale", "output_scale")
_KEPT_SCALES = 64


@dataclass(frozen=True, slots=True)
class _Scaled:
    """Which scale tensor belongs to a weight, and how many rows and columns of it one scale covers."""

    scale: str
    rows: int
    columns: int


def dequantised(checkpoint: Checkpoint, where: str, block: tuple[int, int] = (128, 128)) -> Checkpoint:
    """Multiply every fp8 weight by its scales; return the checkpoint itself when it has no fp8 weights.

    `block` is (rows, columns) of one block scale, `weight_block_size` of the configuration. Scales of
    activations that stand beside an fp8 weight go too: they mean nothing to a bfloat16 model.

    Raises:
        RefusedError: fp8 weights without scales, all of them named.
        DamagedInputError: a scale whose shape fits neither the tensor, nor its rows, nor its blocks.
    """
    specs = checkpoint.specs
    weights = [spec for spec in specs.values() if spec.dtype.name.startswith("float8")]
    if not weights:
        return checkpoint
    pairs: dict[str, _Scaled] = {}
    bare = []
    for weight in weights:
        scale = next((specs[weight.name + s] for s in _SUFFIXES if weight.name + s in specs), None)
        if scale is None or not scale.dtype.floating:
            bare.append(weight.name)
        else:
            pairs[weight.name] = _Scaled(scale.name, *_coverage(weight, scale, block, where))
    if bare:
        raise RefusedError(
            f"{len(bare)} fp8 tensors have no scale, first {printable(', '.join(bare[:5]))}",
            where=where,
            fix="use the model in bfloat16, or one with weight_scale_inv or weight_scale tensors",
        )
    return Dequantised(checkpoint, pairs, _spare(specs, pairs))


class Dequantised:
    """A checkpoint whose fp8 weights read as bfloat16 values; everything else passes through."""

    def __init__(self, checkpoint: Checkpoint, pairs: Mapping[str, _Scaled], spare: frozenset[str]) -> None:
        """Take the pairing as `dequantised` made it; `spare` are the tensors that disappear."""
        self._inner = checkpoint
        self._pairs = pairs
        self._lock = threading.Lock()
        self._scales: OrderedDict[str, Floats] = OrderedDict()
        bfloat16 = DTYPES["bfloat16"]
        self.specs: Mapping[str, Spec] = {
            name: Spec(name, spec.shape, bfloat16) if name in pairs else spec
            for name, spec in checkpoint.specs.items()
            if name not in spare
        }
        self.dropped = tuple(sorted(spare))

    @property
    def sources(self) -> tuple[SourceFile, ...]:
        """List the files of the checkpoint underneath."""
        return self._inner.sources

    def read(self, name: str, start: int, out: Floats) -> None:
        """Decode and multiply elements [start, start + out.size) in float32, without rounding to bfloat16."""
        self.specs[name]  # a scale is not to be had through this view
        self._inner.read(name, start, out)
        if name in self._pairs and out.size:
            self._multiply(name, start, out)

    def raw(self, name: str, start: int, stop: int) -> bytes | bytearray | memoryview:
        """Return the bytes of elements [start, stop) in the type of the specs; fp8 is rounded to bfloat16."""
        self.specs[name]
        if name not in self._pairs:
            return self._inner.raw(name, start, stop)
        import ml_dtypes

        values = np.empty(stop - start, dtype=np.float32)
        self.read(name, start, values)
        return values.astype(ml_dtypes.bfloat16).tobytes()

    def _multiply(self, name: str, start: int, out: Floats) -> None:
        """Multiply by the scales: one stretch of equally scaled rows after the other."""
        pair = self._pairs[name]
        scale = self._scale(pair.scale)
        if scale.size == 1:
            out *= scale.reshape(-1)[0]
            return
        height, width = _matrix(self.specs[name].shape)
        grid = scale.reshape(-1, -(-height // pair.rows), -(-width // pair.columns))
        done = 0
        while done < out.size:
            row, column = divmod(start + done, width)
            slab, row = divmod(row, height)
            factors = np.repeat(grid[slab, row // pair.rows], pair.columns)[:width]
            if column or out.size - done < width:
                count = min(width - column, out.size - done)
                out[done : done + count] *= factors[column : column + count]
            else:
                alike = min(pair.rows - row % pair.rows, height - row, (out.size - done) // width)
                count = alike * width
                out[done : done + count].reshape(alike, width)[:] *= factors
            done += count

    def _scale(self, name: str) -> Floats:
        """Read a whole scale tensor, keeping the last few."""
        with self._lock:
            if name in self._scales:
                self._scales.move_to_end(name)
                return self._scales[name]
        values: npt.NDArray[np.float32] = np.empty(self._inner.specs[name].size, dtype=np.float32)
        self._inner.read(name, 0, values)
        with self._lock:
            self._scales[name] = values
            if len(self._scales) > _KEPT_SCALES:
                self._scales.popitem(last=False)
        return values


def refuse_packed_config(config: Mapping[str, Any] | None, where: str) -> None:
    """Refuse a configuration that tells of weights in a packed form."""
    quantization = _quantization(config)
    bits = any(quantization.get(key) for key in ("load_in_4bit", "load_in_8bit"))
    method = str(quantization.get("quant_method", "bitsandbytes" if bits else "")).lower()
    packed = str(quantization.get("format")) in _PACKED_FORMATS
    if (method and method not in _READ_FP8) or packed:
        raise RefusedError(
            f"the weights are quantised by {printable(method, 60)}, which cannot be merged,",
            where=where,
            fix="use the unquantised model",
        )


def refuse_packed_tensors(specs: Mapping[str, Spec], where: str) -> None:
    """Refuse tensors whose names show a packed form, whatever the configuration says."""

    def is_packed(name: str) -> bool:
        scaled = f"{name}_scale" in specs or f"{name}_scale_inv" in specs
        blocks = name.endswith("_blocks") and f"{name.removesuffix('_blocks')}_scales" in specs  # MXFP4
        return bool(_PACKED.search(name)) or blocks or (scaled and not specs[name].dtype.floating)

    packed = [name for name in specs if is_packed(name)]
    if packed:
        raise RefusedError(
            f"{len(packed)} tensors are packed quantised weights, first {printable(', '.join(packed[:3]))},",
            where=where,
            fix="use the unquantised model",
        )


def without_fp8(
    checkpoint: Checkpoint, where: str, config: Mapping[str, Any] | None
) -> tuple[Checkpoint, tuple[str, ...]]:
    """Put the fp8 view over a checkpoint that needs it, with a warning that says so."""
    view = dequantised(checkpoint, where, _block_size(config))
    if not isinstance(view, Dequantised):
        return checkpoint, ()
    return view, (f"fp8 weights are read as bfloat16; {len(view.dropped)} scale tensors go away",)


def _quantization(config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the quantisation part of a configuration, empty if there is none."""
    for key in ("quantization_config", "compression_config"):
        found = (config or {}).get(key)
        if isinstance(found, dict):
            return found
    return {}


def _block_size(config: Mapping[str, Any] | None) -> tuple[int, int]:
    """Return the rows and columns of one block scale, 128 × 128 if the configuration does not tell."""
    size = _quantization(config).get("weight_block_size")
    if isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size):
        return size[0], size[1]
    return 128, 128


def _matrix(shape: Shape) -> tuple[int, int]:
    """Return (rows, columns) of the last two dimensions, 1 for those missing."""
    return (1, 1, *shape)[-2], (1, 1, *shape)[-1]


def _coverage(weight: Spec, scale: Spec, block: tuple[int, int], where: str) -> tuple[int, int]:
    """Return how many rows and columns one scale covers: the whole tensor, one block, or one row."""
    height, width = _matrix(weight.shape)
    lead = weight.shape[:-2]
    if scale.size == 1:
        return max(1, height), max(1, width)
    if scale.shape == (*lead, -(-height // block[0]), -(-width // block[1])):
        return min(block[0], max(1, height)), min(block[1], max(1, width))
    if len(weight.shape) >= 2 and scale.shape in ((*lead, height, 1), (*lead, height)):
        return 1, max(1, width)
    if lead and scale.shape in (lead, (*lead, 1), (*lead, 1, 1)):
        return max(1, height), max(1, width)
    raise DamagedInputError(
        f'the scale "{printable(scale.name)}" of shape {list(scale.shape)} fits neither '
        f'"{printable(weight.name)}" of shape {list(weight.shape)}, nor its rows, nor its blocks of '
        f"{block[0]} × {block[1]}",
        where=where,
        fix="check weight_block_size in config.json",
    )


def _spare(specs: Mapping[str, Spec], pairs: Mapping[str, _Scaled]) -> frozenset[str]:
    """Collect the scales of the weights, and the scales of activations beside them."""
    modules = {name.removesuffix("weight") for name in pairs if name.endswith("weight")}
    beside = {m + suffix for m in modules for suffix in _OF_ACTIVATIONS if m + suffix in specs}
    return frozenset({pair.scale for pair in pairs.values()} | beside)
