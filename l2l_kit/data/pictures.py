"""Pictures by name: contents and styles of the kit and people's own ones, which are read or refused in a sentence."""

from __future__ import annotations

import io
from collections import Counter
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from l2l_kit.data.sources import Array, cache_folder
from l2l_kit.errors import DataError, UnknownNameError
from l2l_kit.paths import DATA

if TYPE_CHECKING:
    from PIL import Image, ImageFile

SMALLEST = 16  # pixels that a picture's shorter side must have
LARGEST = 1024  # pixels that its longer side is reduced to: more than anything here looks at
_MOST = 100_000_000  # pixels in all above which a file is not even decoded
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""What may be decoded. Of others Pillow would start a program of its own, such as Ghostscript."""
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

# Files of installed packages. The packages' functions are not used: some ask the network, some take seconds to import.
PHOTOGRAPHS = {
    "astronaut": ("scikit-image", "skimage/data/astronaut.png"),
    "cat": ("scikit-image", "skimage/data/chelsea.png"),
    "coffee": ("scikit-image", "skimage/data/coffee.png"),
    "rocket": ("scikit-image", "skimage/data/rocket.jpg"),
    "galaxies": ("scikit-image", "skimage/data/hubble_deep_field.jpg"),
    "tissue": ("scikit-image", "skimage/data/ihc.png"),
    "retina": ("scikit-image", "skimage/data/retina.jpg"),
    "motorcycle": ("scikit-image", "skimage/data/motorcycle_left.png"),
    "palace": ("scikit-learn", "sklearn/datasets/images/china.jpg"),
    "flower": ("scikit-learn", "sklearn/datasets/images/flower.jpg"),
}
CONTENTS = ("astronaut", "cat", "coffee", "rocket", "motorcycle", "palace", "flower")
"""The photographs that are painted."""
_STYLES = {
    "bricks": ("scikit-image", "skimage/data/brick.png"),
    "gravel": ("scikit-image", "skimage/data/gravel.png"),
    "tissue": PHOTOGRAPHS["tissue"],
}
_DRAWN = {path.stem: path for path in (DATA / "styles").glob("*.png")}
"""Styles of the kit's own: no painting comes by pip."""
_EMBEDDED = {"content": CONTENTS, "style": (*_DRAWN, *_STYLES)}


def content_names() -> list[str]:
    """Names of the contents: files in the cache's folder "contents", and photographs of installed packages."""
    return _names("content")


def content(name: str | Path) -> Tensor:
    """A picture to paint, by one of `content_names` or a path: bytes, shape ``(3, height, width)``.

    Raises:
        UnknownNameError: if there is no content of that name; the message offers the nearest.
        DataError: if its file is not a picture.
    """
    return _named("content", name)


def style_names() -> list[str]:
    """Names of the styles: files in the cache's folder "styles", and the kit's own."""
    return _names("style")


def style(name: str | Path) -> Tensor:
    """A picture to paint in the style of, by one of `style_names` or a path; otherwise as `content`."""
    return _named("style", name)


def _names(kind: str) -> list[str]:
    return sorted({*_own(kind), *_EMBEDDED[kind]})


def _named(kind: str, name: str | Path) -> Tensor:
    if path := _own(kind).get(str(name)):
        return _read_once(path, path.stat().st_mtime_ns)
    if name in _EMBEDDED[kind]:
        return _embedded(kind, str(name))
    if Path(name).suffix:
        return load_picture(name)
    raise UnknownNameError(kind, name, _names(kind))


def _own(kind: str) -> dict[str, Path]:
    """People's own pictures by name: the file's without its suffix, or with it where two would have the same name."""
    # Hidden files are left out, such as the "._one.jpg" that macOS puts beside "one.jpg".
    files = sorted((cache_folder() / f"{kind}s").glob("[!.]*"))
    found = [path for path in files if path.suffix.lower() in _SUFFIXES and path.is_file()]
    taken = Counter([path.stem for path in found] + [path.name for path in found])
    return {path.stem if taken[path.stem] == 1 else path.name: path for path in found}


@cache
def _read_once(path: Path, modified: int) -> Tensor:
    return load_picture(path)


@cache
def _embedded(kind: str, name: str) -> Tensor:
    if kind == "content":
        return torch.from_numpy(photograph(name, (256, 256)).copy()).permute(2, 0, 1)
    return load_picture(_DRAWN.get(name) or _packaged(*_STYLES[name]))


def _packaged(package: str, file: str) -> Path:
    return Path(str(distribution(package).locate_file(file)))


def photograph(name: str, size: tuple[int, int]) -> Array:
    """One of `PHOTOGRAPHS`, scaled and cropped to a width and height; bytes, shape ``(height, width, 3)``."""
    from PIL import Image, ImageOps

    with Image.open(_packaged(*PHOTOGRAPHS[name])) as picture:
        return np.asarray(ImageOps.fit(picture.convert("RGB"), size))


def load_picture(source: str | Path | bytes, name: str = "") -> Tensor:
    """A picture from a file, or from a file's bytes, as bytes of shape ``(3, height, width)``.

    It is turned as its EXIF data say, put on white where it is transparent, converted to RGB whatever it was and
    reduced to at most 1,024 pixels a side. Of an animation it is the first picture. The brightest pixel of a 32-bit or
    floating-point file is white, since such files do not say which value is. Messages call it `name`.

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
        with Image.open(io.BytesIO(content), formats=_FORMATS) as file:
            width, height = file.size
            fits = min(width, height) >= SMALLEST and width * height <= _MOST
            pixels = np.array(_plain(file)) if fits else None
    except Exception as error:  # what is no picture, or a damaged one, can fail in any way
        raise DataError(
            f"{name}: not a picture that can be read. It may be damaged, or of a format other than JPEG, PNG, WebP, "
            "GIF, TIFF and BMP."
        ) from error
    if pixels is None:
        problem = "too many; make the picture smaller first" if width * height > _MOST else "too few"
        raise DataError(f"{name}: {width} by {height} pixels are {problem}. A picture needs {SMALLEST} a side.")
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _plain(file: ImageFile.ImageFile) -> Image.Image:
    """An upright RGB picture without transparency, at most `LARGEST` pixels a side."""
    from PIL import Image, ImageOps

    file.draft("RGB", (LARGEST, LARGEST))  # a large JPEG is decoded at a fraction of its size
    picture = ImageOps.exif_transpose(file)
    if file.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(picture, dtype=np.float64))
        # Some versions of Pillow read PNGs of 16 bits as "I". Other formats do not say which value is white.
        white = 65535 if file.mode.startswith("I;") or file.format == "PNG" else max(values.max(), 1e-9)
        picture = Image.fromarray((values * (255 / white)).round().clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")
    picture.thumbnail((LARGEST, LARGEST))
    return picture


def fitted(pictures: Tensor, size: int) -> Tensor:
    """The middle squares of pictures ``(n, 3, height, width)``, as floats 0 … 255 of shape ``(n, 3, size, size)``."""
    height, width = pictures.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pictures[..., top : top + side, left : left + side].float()
    if side == size:
        return square
    return functional.interpolate(square, (size, size), mode="bilinear", antialias=True, align_corners=False)
