"""Things to paint: photographs that come by pip, and people's own pictures."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from l2l_kit.data.labelled import photograph
from l2l_kit.data.photos import EMBEDDED
from l2l_kit.data.pictures import load_picture, pictures_in
from l2l_kit.errors import UnknownNameError

FOLDER = "contents"
SIDE = 256


def content_names() -> list[str]:
    """Names of the contents that are there: files in the cache's folder "contents", and photographs of pip's."""
    return sorted({*pictures_in(FOLDER), *EMBEDDED})


def content(name: str | Path) -> Tensor:
    """The picture of a content: bytes, shape ``(3, height, width)``.

    Args:
        name: one of `content_names`, or the path of a picture.

    Raises:
        UnknownNameError: if there is no content of that name; the message offers the nearest.
        DataError: if its file is not a picture.
    """
    paths = pictures_in(FOLDER)
    if name in paths:
        return load_picture(paths[str(name)])
    if name in EMBEDDED:
        return _photograph(str(name))
    if Path(name).suffix:
        return load_picture(name)
    raise UnknownNameError("content", name, content_names())


@cache
def _photograph(name: str) -> Tensor:
    return torch.from_numpy(photograph(name, (SIDE, SIDE)).copy()).permute(2, 0, 1)
