"""Data sets, pictures and weights: where they come from, how they are checked, and what stands in for them."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast, get_args

from l2l_kit.data.contents import content, content_names
from l2l_kit.data.labelled import CIFAR10, MNIST, Images, Split
from l2l_kit.data.photos import PHOTOS, Photographs
from l2l_kit.data.pictures import fitted, load_picture, pictures_in
from l2l_kit.data.sources import DataSet, Source, Status, cache_folder, download, packed, read, request, unwritable
from l2l_kit.data.styles import style, style_names
from l2l_kit.data.vgg import VGG16, FeatureWeights
from l2l_kit.errors import DataError, UnknownNameError
from l2l_kit.storage import write_atomically

__all__ = [
    "FeatureWeights",
    "Images",
    "Photographs",
    "Source",
    "Split",
    "Status",
    "cache_folder",
    "content",
    "content_names",
    "feature_weights",
    "fetch",
    "fitted",
    "load",
    "load_picture",
    "names",
    "photographs",
    "pictures_in",
    "status",
    "style",
    "style_names",
]

_DATA_SETS: dict[str, DataSet] = {"mnist": MNIST, "cifar10": CIFAR10, "photos": PHOTOS, "vgg16": VGG16}


def names() -> list[str]:
    """Names of what can be fetched."""
    return sorted(_DATA_SETS)


def load(name: str, source: Source = "auto") -> Images:
    """A labelled data set from the first of its sources that has it.

    It is looked for once per process, and so is the network; `fetch` looks again.

    Args:
        name: such as "mnist".
        source: "full" insists on the whole data set, "embedded" on its stand-in; "auto" takes the whole one where it
            is cached or can be downloaded, else the stand-in.

    Raises:
        UnknownNameError: for an unknown data set or source.
        DataError: if "full" is asked for and can be had from nowhere; the message says why and what to do.
    """
    return cast(Images, _found(name, source))


def photographs(source: Source = "auto") -> Photographs:
    """Photographs without labels from the first of their sources that has them; otherwise as `load`."""
    return cast(Photographs, _found("photos", source))


def feature_weights(source: Source = "auto") -> FeatureWeights:
    """Weights of a network for features: VGG-16 ("full"), or the kit's own small one; otherwise as `load`."""
    return cast(FeatureWeights, _found("vgg16", source))


def fetch(name: str) -> Path:
    """Put a data set into the cache, unless a whole copy of it is there already.

    Raises:
        UnknownNameError: for an unknown data set.
        DataError: if it cannot be downloaded or the cache cannot be written.
    """
    data_set, path = _known(name), _path(name)
    if read(path, data_set)[0] is None:
        arrays = request(data_set, path)
        try:
            write_atomically(path, packed(arrays, data_set))
        except OSError as error:
            raise DataError(unwritable(path, error)) from error
    _full.cache_clear()  # `load` may remember that it was not there
    return path


def status(name: str) -> Status:
    """Whether a data set is in the cache and its checksum holds. Asks no network.

    Raises:
        UnknownNameError: for an unknown data set.
    """
    data_set, path = _known(name), _path(name)
    arrays, remark = read(path, data_set)
    if arrays is not None:
        return Status(name, data_set.title, path, "verified", "", remark, data_set.official, data_set.stand_in)
    state: Literal["damaged", "missing"] = "damaged" if remark else "missing"
    return Status(name, data_set.title, path, state, remark, "", data_set.official, data_set.stand_in)


def _known(name: str) -> DataSet:
    if name not in _DATA_SETS:
        raise UnknownNameError("data set", name, _DATA_SETS)
    return _DATA_SETS[name]


def _path(name: str) -> Path:
    return cache_folder() / f"{name}{_DATA_SETS[name].suffix}"


def _found(name: str, source: Source) -> Any:
    _known(name)
    if source not in get_args(Source):
        raise UnknownNameError("source", source, get_args(Source))
    if source == "embedded":
        return _embedded(name)
    full = _full(name, _path(name))
    if not isinstance(full, str):
        return full
    if source == "full":
        raise DataError(full)
    return _embedded(name)


@cache
def _embedded(name: str) -> Any:
    data_set = _DATA_SETS[name]
    about = data_set.stand_in, data_set.embedded_in, data_set.embedded_classes
    return data_set.make(data_set.embedded(), "embedded", *about)


@cache
def _full(name: str, path: Path) -> Any:
    """The whole data set, or in words why it cannot be had. Either is kept: a process that is offline asks once."""
    data_set = _DATA_SETS[name]
    arrays, remark = read(path, data_set)
    if arrays is not None:
        origin = f"cache, {path.name}" + (f" ({remark})" if remark else "")
        return data_set.make(arrays, "full", data_set.title, origin, data_set.classes)
    if remark:
        # 4 frames up is the caller of `load`.
        warnings.warn(f"{remark} It is not used, and fetched anew.", stacklevel=4)
    try:
        arrays = download(data_set, path)
    except DataError as error:
        return str(error)
    try:
        write_atomically(path, packed(arrays, data_set))
    except OSError as error:
        warnings.warn(f"{unwritable(path, error)} The download is used, but not kept.", stacklevel=4)
    return data_set.make(arrays, "full", data_set.title, data_set.official, data_set.classes)
