"""Random draws as a function of integers alone, so that nothing has to be remembered to repeat them."""

from __future__ import annotations

import hashlib

import torch


def generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on the integers of `key` alone, far from those of neighbouring keys."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)
