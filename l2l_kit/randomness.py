"""Where random draws come from: generators, each made from a seed and the purpose of the draw.

A generator depends on *what* is drawn (``generator(seed, "meta-train", episode)``), not on earlier draws. So every
optimizer in a comparison meets the same tasks, an interrupted run continues bit for bit without a saved generator
state, and training, tuning and test draws are independent.
"""

from __future__ import annotations

import hashlib
import operator

import torch


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose.

    Draws are made on the CPU and then moved, so that a seed gives the same tasks on every device.

    Args:
        seed: the user's seed.
        purpose: of the draws, such as ``("meta-train", 17)``; different purposes give independent streams.

    Raises:
        TypeError: for a seed that is not a whole number.
    """
    try:
        seed = int(operator.index(seed))  # numpy's 1 is 1, too
    except TypeError as error:
        raise TypeError(f"the seed must be a whole number, got {seed!r}.") from error
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
