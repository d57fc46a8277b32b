"""Pictures that people bring: read whatever the format, or refused in a sentence."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from l2l_kit.data.sources import cache_folder
from l2l_kit.errors import DataError

if TYPE_CHECKING:
    from PIL import Image, ImageFile

SMALLEST = 16
"""Pixels that a picture's shorter side must have."""
LARGEST = 1024
"""Pixels that its longer side is reduced to: more than anything here looks at."""
_MOST = 100_000_000
"""Pixels in all above which a file is not even decoded."""
_PILLOWS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""What may be decoded. Of others Pillow would start a program of its own, such as Ghostscript."""
_FORMATS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def load_picture(source: str | Path | bytes, name: str = "") -> Tensor:
    """A picture from a file, or from a file's bytes.

    It is turned as its EXIF data say, put on white where it is transparent, converted to RGB whatever it was (palette,
    grey, 16 bits, floating point, CMYK) and reduced to at most 1,024 pixels a side. Of an animation it is the first
    picture. 32-bit and floating-point files don't say which value is white: it is the smallest of 1 (for floats), 255
    and 65,535 that no pixel exceeds, or else their maximum.

    Args:
        source: path of a file, or its content.
        name: what messages call it; the file's name if not given.

    Returns:
        Bytes, shape ``(3, height, width)``.

    Raises:
        DataError: if there is no such file, it is no picture, damaged, too small, or too large to decode.
    """
    from PIL import Image

    name = name or ("the picture" if isinstance(source, bytes) else Path(source).name)
    try:
        content = source if isinstance(source, bytes) else Path(source).expanduser().read_bytes()
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror}).") from error
    try:
        with Image.open(io.BytesIO(content), formats=_PILLOWS) as file:
            width, height = file.size
            if min(width, height) >= SMALLEST and width * height <= _MOST:
                pixels = np.array(_plain(file))
    except Exception as error:  # what is no picture, or a damaged one, can fail in any way
        raise DataError(
            f"{name}: not a picture that can be read. It may be damaged, or of a format other than JPEG, PNG, WebP, "
            "GIF, TIFF and BMP."
        ) from error
    if min(width, height) < SMALLEST:
        raise DataError(f"{name}: {width} by {height} pixels are too few; a picture needs {SMALLEST} a side.")
    if width * height > _MOST:
        raise DataError(f"{name}: {width} by {height} pixels are too many; make the picture smaller first.")
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _plain(file: ImageFile.ImageFile) -> Image.Image:
    """An upright RGB picture without transparency, at most `LARGEST` pixels a side."""
    from PIL import Image, ImageOps

    file.draft("RGB", (LARGEST, LARGEST))  # a large JPEG is decoded at a fraction of its size
    upright = ImageOps.exif_transpose(file)
    picture = _eight_bits(upright, file.format) if file.mode.startswith(("I", "F")) else upright
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")
    picture.thumbnail((LARGEST, LARGEST))
    return picture


def _eight_bits(picture: Image.Image, file_format: str | None) -> Image.Image:
    """A grey picture of more than 8 bits with 8."""
    from PIL import Image

    values = np.nan_to_num(np.asarray(picture, dtype=np.float64))
    if picture.mode.startswith("I;") or file_format == "PNG":  # as "I", some versions of Pillow read PNGs of 16 bits
        white = 65535.0
    else:
        whites = (1.0, 255.0, 65535.0) if picture.mode == "F" else (255.0, 65535.0)
        white = next((white for white in whites if values.max() <= white), float(values.max()))
    return Image.fromarray((values * (255 / white)).round().clip(0, 255).astype(np.uint8))


def pictures_in(folder: str) -> dict[str, Path]:
    """Files of pictures in a folder of the cache, such as "styles", by name.

    The name is the file's without its suffix, or with it where two files would have the same name. Hidden files, such
    as the ``._one.jpg`` that macOS puts beside ``one.jpg``, are left out.
    """
    found = [
        path
        for path in sorted((cache_folder() / folder).glob("[!.]*"))
        if path.suffix.lower() in _FORMATS and path.is_file()
    ]
    taken = Counter([path.stem for path in found] + [path.name for path in found])
    return {path.stem if taken[path.stem] == 1 else path.name: path for path in found}


def fitted(pictures: Tensor, size: int) -> Tensor:
    """The middle square of pictures, with ``size`` pixels a side.

    Args:
        pictures: values 0 … 255, shape ``(n, 3, height, width)``.
        size: of the square.

    Returns:
        Floats 0 … 255, shape ``(n, 3, size, size)``.
    """
    height, width = pictures.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pictures[..., top : top + side, left : left + side].float()
    if side == size:
        return square
    return functional.interpolate(square, (size, size), mode="bilinear", antialias=True, align_corners=False)
