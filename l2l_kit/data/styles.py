"""Styles to paint in: paintings and own pictures in the cache, and those that come with the kit."""

from __future__ import annotations

from functools import cache
from importlib.metadata import distribution
from pathlib import Path

from torch import Tensor

from l2l_kit.data import procedural
from l2l_kit.data.pictures import load_picture, pictures_in
from l2l_kit.errors import UnknownNameError

FOLDER = "styles"
TEXTURES = {
    "bricks": "skimage/data/brick.png",
    "gravel": "skimage/data/gravel.png",
    "tissue": "skimage/data/ihc.png",
}
"""Photographs of textures that scikit-image has."""
EMBEDDED = sorted([*procedural.STYLES, *TEXTURES])


def style_names() -> list[str]:
    """Names of the styles that are there: files in the cache's folder "styles", and those that come with the kit."""
    return sorted({*pictures_in(FOLDER), *EMBEDDED})


def style(name: str | Path) -> Tensor:
    """The picture of a style: bytes, shape ``(3, height, width)``.

    Args:
        name: one of `style_names`, or the path of a picture.

    Raises:
        UnknownNameError: if there is no style of that name; the message offers the nearest.
        DataError: if its file is not a picture.
    """
    paths = pictures_in(FOLDER)
    if name in paths:
        return _picture(paths[str(name)])
    if name in TEXTURES:
        return _picture(Path(str(distribution("scikit-image").locate_file(TEXTURES[str(name)]))))
    if name in procedural.STYLES:
        return _drawn(str(name))
    if Path(name).suffix:
        return load_picture(name)
    raise UnknownNameError("style", name, style_names())


@cache
def _picture(path: Path) -> Tensor:
    return load_picture(path)


@cache
def _drawn(name: str) -> Tensor:
    return procedural.STYLES[name]()
