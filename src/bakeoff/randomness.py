"""Every random draw is a function of (seed, stream, step), so that a resumed run has no generator to restore."""

from __future__ import annotations

import hashlib
from random import Random

import torch


def derive(seed: int, stream: str, step: int = 0) -> int:
    """A 63-bit seed for one stream at one step."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stream}/{step}".encode()).digest()[:8], "big") >> 1


def generator(device: torch.device, seed: int, stream: str, step: int = 0) -> torch.Generator:
    """A torch generator on `device` for one stream at one step."""
    return torch.Generator(device=device).manual_seed(derive(seed, stream, step))


def stdlib_random(seed: int, stream: str, step: int = 0) -> Random:
    """Python's own random generator for one stream at one step."""
    return Random(derive(seed, stream, step))
