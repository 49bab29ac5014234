"""Small dictionaries and activations for tests: numbers of a few planted directions."""

from __future__ import annotations

import torch

from deltasmith.features.dictionaries.dictionary import Dictionary, fresh, scale_of
from deltasmith.features.dictionaries.settings import BatchTopK, Kind, ReluL1, TopK

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
KINDS = [TopK(k=4), BatchTopK(k=4), ReluL1(coefficient=1.0)]


DIRECTIONS = torch.randn(48, 32, generator=torch.Generator().manual_seed(77))
DIRECTIONS /= DIRECTIONS.norm(dim=1, keepdim=True)


def planted(tokens: int, seed: int) -> torch.Tensor:
    """Draw activations (tokens, 32) in which each of 48 directions is present on a sixteenth of the tokens."""
    draws = torch.Generator().manual_seed(seed)
    present = torch.rand(tokens, 48, generator=draws) < 1 / 16
    strength = 1 + torch.rand(tokens, 48, generator=draws)
    return 3 * ((present * strength) @ DIRECTIONS + 0.5 + 0.02 * torch.randn(tokens, 32, generator=draws))


def begun(kind: Kind, latents: int = 64, seed: int = 0, device: str = "cpu") -> Dictionary:
    """Begin a dictionary on planted activations."""
    sample = planted(512, 1).to(device)
    return fresh(kind, latents, sample, scale_of(sample), seed)
