"""Where the kit keeps things: ``data/`` of the checkout, or the copy that an installed wheel carries."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent / "data"

DATA = _CHECKOUT if (_CHECKOUT / "pretrained").is_dir() else _PACKAGE / "_data"
PRETRAINED = DATA / "pretrained"
RESULTS = DATA / "results"
RECIPES = DATA / "recipes"
SWEEPS = DATA / "sweeps"
NOTEBOOKS = _PACKAGE.parent / "notebooks"
