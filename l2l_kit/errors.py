"""Errors that say what was wrong and what to do, and the search for a near match that they share."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UnknownNameError(ValueError):
    """A name that is not among the known ones; the message offers the nearest and lists them all."""

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        names = sorted(known)
        spelt = {known_name.lower(): known_name for known_name in names}
        near = get_close_matches(str(name).lower(), spelt, n=1)
        hint = f" Did you mean {spelt[near[0]]!r}?" if near else ""
        listed = ", ".join(map(repr, names)) or "none"
        super().__init__(f"unknown {kind} {name!r}.{hint} Known: {listed}.")


class WeightsFileError(ValueError):
    """A weights or checkpoint file that cannot be used: missing parts, wrong format, shape or version."""


class MetaTrainingDivergedError(ArithmeticError):
    """Meta-training met a loss or meta-gradient that is NaN or infinite; the message says at which step."""


class DataError(ValueError):
    """A data set cannot be had from any of its sources; the message says why and what to do."""
