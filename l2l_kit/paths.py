"""Where the kit keeps things: ``data/`` of the checkout, or the copy that an installed wheel carries.

What it makes itself, pretrained optimizers and recorded results, is in $L2L_HOME if that is set: an empty folder there
is a kit that has everything still to make (`l2l_kit.build`).
"""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent / "data"


def user_path(path: str | Path) -> Path:
    """A path as a user writes it: ``~`` is the home folder. A shell leaves it alone in ``--data=~/l2l``."""
    return Path(os.path.expanduser(path))


DATA = _CHECKOUT if (_CHECKOUT / "pretrained").is_dir() else _PACKAGE / "_data"
HOME = user_path(os.environ.get("L2L_HOME") or DATA).absolute()
PRETRAINED = HOME / "pretrained"
RESULTS = HOME / "results"
RECIPES = DATA / "recipes"
SWEEPS = DATA / "sweeps"
NOTEBOOKS = _PACKAGE.parent / "notebooks" if DATA == _CHECKOUT else DATA / "notebooks"
