"""What recipes and sweeps share: TOML files that are found by name, whose mistakes are named, and that have a grid."""

from __future__ import annotations

import inspect
import itertools
import math
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from l2l_kit.errors import UnknownNameError, check_names
from l2l_kit.paths import user_path

Plan = TypeVar("Plan")
Made = TypeVar("Made")
MOST_COMBINATIONS = 1000  # in a grid: more would not be run in a lifetime


def read_plan(kind: str, name_or_path: str | Path, folder: Path, make: Callable[[str, dict[str, Any]], Plan]) -> Plan:
    """What `make` makes of the name and the content of a TOML file, one of the folder by name or any by its path.

    Raises:
        UnknownNameError: if the folder has none of that name; the message offers the nearest one.
        ValueError: if there is no such file, it has the name of one of the folder, or `make` fails, for any reason;
            the message names the file and what is wrong.
    """
    path = user_path(name_or_path)
    if path.suffix != ".toml":
        path = folder / f"{name_or_path}.toml"
        if not path.is_file():
            raise UnknownNameError(kind, str(name_or_path), (known.stem for known in folder.glob("*.toml")))
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file.")
    if folder.resolve() not in path.resolve().parents and (folder / path.name).is_file():
        raise ValueError(f"{path}: {folder} has a {kind} of this name, whose result it would replace. Rename the file.")
    try:
        return make(path.stem, tomllib.loads(path.read_text(encoding="utf-8")))
    except KeyError as error:
        raise ValueError(f"{path}: not a valid {kind}: {error} is missing.") from error
    except Exception as error:  # a file can be wrong in any way
        raise ValueError(f"{path}: not a valid {kind}: {error}") from error


def make_from(kind: str, make: Callable[..., Made], content: Mapping[str, Any]) -> Made:
    """What `make` makes of a table; a ValueError for a name that is none of its parameters, or one that is missing."""
    parameters = inspect.signature(make).parameters
    check_names(f"{kind} setting", content, parameters)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in content:
            raise ValueError(f"{kind}: {name!r} is missing")
    return make(**content)


def combinations(grid: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Every choice of one value for each name of a grid, of which there may be `MOST_COMBINATIONS`."""
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"grid.{name} must be a list with something in it, got {values!r}")
    if (number := math.prod(map(len, grid.values()))) > MOST_COMBINATIONS:
        raise ValueError(f"its grid has {number} combinations; at most {MOST_COMBINATIONS} are possible")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
