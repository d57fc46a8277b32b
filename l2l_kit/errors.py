"""Errors that say what was wrong and what to do, and checks that raise them: a field's type says what it may be."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

T = TypeVar("T")


class UnknownNameError(ValueError):
    """An unknown name; the message offers the nearest known one and lists them, or the nearest of many."""

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        names = sorted(known)
        spelt = {known_name.lower(): known_name for known_name in names}
        near = get_close_matches(str(name).lower(), spelt, n=1)
        hint = f" Did you mean {spelt[near[0]]!r}?" if near else ""
        shown = names if len(names) <= 20 else get_close_matches(str(name).lower(), names, n=8, cutoff=0)
        listed = ", ".join(map(repr, shown)) or "none"
        listed += f" and {len(names) - len(shown)} others" if len(shown) < len(names) else ""
        super().__init__(f"unknown {kind} {name!r}.{hint} Known: {listed}.")
        self._arguments = kind, name, names

    def __reduce__(self) -> tuple[type[UnknownNameError], tuple[object, ...]]:
        """How a worker process sends it: by its arguments, not by its message."""
        return type(self), self._arguments


class WeightsFileError(ValueError):
    """A weights or checkpoint file that cannot be used: damaged, or of another format, shape or version."""


class MetaTrainingDivergedError(ArithmeticError):
    """Meta-training met a loss or meta-gradient that is NaN or infinite; the message says at which step."""


class DataError(ValueError):
    """A data set is not available from any of its sources; the message says why and what to do."""


def look_up(kind: str, name: object, known: Mapping[str, T]) -> T:
    """What is known by a name, or an `UnknownNameError`."""
    if not isinstance(name, str) or name not in known:
        raise UnknownNameError(kind, name, known)
    return known[name]


def check_names(kind: str, names: Iterable[object], known: Iterable[str]) -> None:
    """Refuse a name that is not known by an `UnknownNameError`."""
    known = list(known)
    for name in names:
        if name not in known:
            raise UnknownNameError(kind, name, known)


class AtLeast(NamedTuple):
    """The bound of a number: ``Annotated[int, AtLeast(1)]``."""

    low: float
    itself: bool = True  # whether the bound itself is allowed


Count = Annotated[int, AtLeast(1)]
Positive = Annotated[float, AtLeast(0, itself=False)]
NotNegative = Annotated[float, AtLeast(0)]
_PLAIN: dict[object, tuple[type, str]] = {
    bool: (bool, "True or False"),
    int: (int, "a whole number"),
    str: (str, "a text"),
    list: (list, "a list"),
    Mapping: (Mapping, "a table of names and values"),
}
"""What a field of that type may hold, and what a message calls it."""
_hints = cache(get_type_hints)  # an explorer makes the same problem many times while a slider is moved


def check_fields(owner: object, called: str | None = None) -> None:
    """Check an object's attributes against the annotations of its class: words of a `Literal`, numbers, plain types.

    A number of numpy's is replaced by Python's own.

    Raises:
        UnknownNameError: for another word.
        ValueError: for a number beyond its bound, no finite number, or another type of value; the message begins with
            what `owner` is called.
    """
    for name, hint in _hints(type(owner), include_extras=True).items():  # type: ignore[arg-type]  # mypy: classes have no hash
        options = get_args(hint) if type(None) in get_args(hint) else (hint,)
        value, owned_by = getattr(owner, name, None), called or type(owner).__name__
        if isinstance(value, np.generic):
            value = value.item()  # JSON does not know numpy's
            object.__setattr__(owner, name, value)
        for option in options if hasattr(owner, name) and (value is not None or len(options) == 1) else ():
            kind, words = _PLAIN.get(get_origin(option) or option, (object, ""))
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
                raise ValueError(f"{owned_by}: {name} must be {words}, got {value!r}.")
            if get_origin(option) is Literal and value not in get_args(option):
                raise UnknownNameError(name, value, get_args(option))
            if get_origin(option) is Annotated:
                check_number(owned_by, name, value, option)


def check_number(owner: str, name: str, value: object, wanted: object = Count) -> None:
    """Refuse what is no number of a type such as `Count`, or numpy's, by a ValueError naming owner, name and value."""
    value = value.item() if isinstance(value, np.generic) else value
    kind, bound = get_args(wanted)
    in_range = isinstance(value, kind | int) and (bound.low < value < math.inf or (bound.itself and value == bound.low))
    if in_range and not isinstance(value, bool):
        return
    number = "a whole number" if kind is int else "a number" if bound.itself else "a positive number"
    limit = f" of at least {bound.low}" if bound.itself else ""
    raise ValueError(f"{owner}: {name} must be {number}{limit}, got {value!r}.")


def names_files(name: object) -> bool:
    """Whether files can have that name, in a folder of ours: letters, digits, "-", "_" and "."."""
    return isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name) is not None
