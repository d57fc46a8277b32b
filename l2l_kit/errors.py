"""Errors that say what was wrong and what to do, and checks that raise them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches


class UnknownNameError(ValueError):
    """An unknown name; the message offers the nearest known one and lists them all."""

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        names = sorted(known)
        spelt = {known_name.lower(): known_name for known_name in names}
        near = get_close_matches(str(name).lower(), spelt, n=1)
        hint = f" Did you mean {spelt[near[0]]!r}?" if near else ""
        listed = ", ".join(map(repr, names)) or "none"
        super().__init__(f"unknown {kind} {name!r}.{hint} Known: {listed}.")


class WeightsFileError(ValueError):
    """A weights or checkpoint file that cannot be used: damaged, or of another format, shape or version."""


class MetaTrainingDivergedError(ArithmeticError):
    """Meta-training met a loss or meta-gradient that is NaN or infinite; the message says at which step."""


class DataError(ValueError):
    """A data set is not available from any of its sources; the message says why and what to do."""


def check_counts(owner: str, **counts: object) -> None:
    """Refuse counts that are not whole numbers of at least 1, by a ValueError naming owner and first wrong one."""
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{owner}: {name} must be a whole number of at least 1, got {value!r}.")


def check_positive(owner: str, **numbers: object) -> None:
    """Refuse numbers that are not positive and finite, by a ValueError naming owner and first wrong one."""
    for name, value in numbers.items():
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{owner}: {name} must be a positive number, got {value!r}.")
