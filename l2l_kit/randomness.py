"""Every random draw of the kit comes from a generator made here, from a seed and the purpose of the draw.

A generator is a function of *what* is drawn (``generator(seed, "meta-train", episode)``) and not of what was drawn
before. That gives paired comparisons (every optimizer meets the same tasks), lets an interrupted run continue
bit for bit with no generator state to save, and keeps training, tuning and test draws apart by their names.
"""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose.

    Draws are made on the CPU and moved afterwards, so a seed names the same tasks on every device.

    Args:
        seed: the user's seed.
        purpose: what the draws are for, such as ``("meta-train", 17)``; different purposes give independent streams.
    """
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
