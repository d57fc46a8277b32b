"""Where the kit keeps things: ``data/`` of the checkout, or the copy that an installed wheel carries.

What it makes itself, pretrained optimizers and recorded results, is in $L2L_HOME if that is set: an empty folder there
is a kit that has everything still to make (`l2l_kit.build`).
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent / "data"


def user_path(path: str | Path) -> Path:
    """A path as a user writes it: ``~`` is the home folder. A shell leaves it alone in ``--data=~/l2l``."""
    return Path(os.path.expanduser(path))


def import_file(name: str) -> None:
    """Import a Python file by its name, so that what is defined there can be sent to worker processes.

    Raises:
        ValueError: if there is no such file, or another module has its name.
    """
    path = user_path(name).absolute()
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file.")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = importlib.import_module(path.stem)
    if not path.samefile(getattr(module, "__file__", None) or sys.executable):
        raise ValueError(f"{path}: another module is called {path.stem!r}. Rename the file.")


DATA = _CHECKOUT if (_CHECKOUT / "pretrained").is_dir() else _PACKAGE / "_data"
HOME = user_path(os.environ.get("L2L_HOME") or DATA).absolute()
PRETRAINED = HOME / "pretrained"
RESULTS = HOME / "results"
RECIPES = DATA / "recipes"
SWEEPS = DATA / "sweeps"
NOTEBOOKS = _PACKAGE.parent / "notebooks" if DATA == _CHECKOUT else DATA / "notebooks"
