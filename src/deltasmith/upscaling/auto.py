"""`import deltasmith.upscaling.auto` makes transformers' Auto classes load mixtures. It has no other use."""

from __future__ import annotations

from deltasmith.upscaling.modelling import register

__all__ = ["register"]

register()
