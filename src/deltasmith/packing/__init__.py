"""Packed deltas: a fine-tune in a tenth of the space, written, read back, looked into, and calculated with."""

from __future__ import annotations

from deltasmith.packing.inspection import Inspection, inspect
from deltasmith.packing.single import PackResult, pack
from deltasmith.packing.unpacking import unpack

__all__ = ["Inspection", "PackResult", "inspect", "pack", "unpack"]
