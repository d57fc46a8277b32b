"""Where the kit keeps things: ``data/`` of the checkout, or the copy that an installed wheel carries.

What it makes itself, pretrained optimizers and recorded results, is in $L2L_HOME if that is set: an empty folder there
is a kit that has everything still to make (`l2l_kit.build`).
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent / "data"


def user_path(path: str | Path) -> Path:
    """A path as a user writes it: ``~`` is the home folder. A shell leaves it alone in ``--data=~/l2l``."""
    return Path(os.path.expanduser(path))


def import_file(name: str) -> None:
    """Import a Python file by its name, so that what is defined there can be sent to worker processes.

    Raises:
        ValueError: if there is no such file, it fails, or its name is no module's, or another module's.
    """
    path = user_path(name).absolute()
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file. Paths count from the folder in which a command is given.")
    if not path.stem.isidentifier():
        raise ValueError(f"{path}: Python cannot import a file of that name. Use letters, digits and underscores.")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        module = importlib.import_module(path.stem)
    except Exception as error:  # whatever its code does
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else "?"
        raise ValueError(f"{path}, line {line}: {type(error).__name__}: {error}") from error
    if not path.samefile(getattr(module, "__file__", None) or sys.executable):
        raise ValueError(f"{path}: another module is called {path.stem!r}. Rename the file.")


DATA = _CHECKOUT if (_CHECKOUT / "pretrained").is_dir() else _PACKAGE / "_data"
HOME = user_path(os.environ.get("L2L_HOME") or DATA).absolute()
PRETRAINED = HOME / "pretrained"
RESULTS = HOME / "results"
RECIPES = DATA / "recipes"
SWEEPS = DATA / "sweeps"
NOTEBOOKS = _PACKAGE.parent / "notebooks" if DATA == _CHECKOUT else DATA / "notebooks"
