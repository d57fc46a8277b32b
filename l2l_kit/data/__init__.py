"""Data sets, pictures and weights: where they come from, how they are checked, and what stands in for them."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any, cast, get_args

from l2l_kit.data.images import CIFAR10, MNIST, PHOTOS, Images, Photographs, Split
from l2l_kit.data.pictures import content, content_names, fitted, load_picture, style, style_names
from l2l_kit.data.sources import DataSet, Source, cache_folder, download, read_cached, write_cached
from l2l_kit.data.vgg import VGG16, FeatureWeights
from l2l_kit.errors import DataError, check_names, look_up

__all__ = [
    "CIFAR10",
    "DATA_SETS",
    "MNIST",
    "PHOTOS",
    "VGG16",
    "DataSet",
    "FeatureWeights",
    "Images",
    "Photographs",
    "Source",
    "Split",
    "cache_folder",
    "content",
    "content_names",
    "download",
    "feature_weights",
    "fetch",
    "fitted",
    "load",
    "load_picture",
    "photographs",
    "read_cached",
    "status",
    "style",
    "style_names",
    "write_cached",
]

DATA_SETS: dict[str, DataSet] = {"cifar10": CIFAR10, "mnist": MNIST, "photos": PHOTOS, "vgg16": VGG16}
"""What can be fetched, by name."""


def load(name: str, source: Source = "auto") -> Images:
    """Labelled images. A process looks for them once; `fetch` makes it look again.

    Args:
        name: "mnist" or "cifar10".
        source: "full" for the whole data set, "embedded" for its stand-in; "auto" for the whole one if it is cached or
            can be downloaded, else the stand-in.

    Raises:
        UnknownNameError: for an unknown data set or source.
        DataError: if "full" is asked for and is not available; the message says why and what to do.
    """
    return cast(Images, _load(name, source))


def photographs(source: Source = "auto") -> Photographs:
    """Photographs without labels, otherwise as `load`."""
    return cast(Photographs, _load("photos", source))


def feature_weights(source: Source = "auto") -> FeatureWeights:
    """Weights of VGG-16 ("full") or of the kit's own small network ("embedded"), otherwise as `load`."""
    return cast(FeatureWeights, _load("vgg16", source))


def fetch(name: str) -> Path:
    """Download a data set into the cache, unless a whole copy of it is there, and return its path.

    Raises:
        UnknownNameError: for an unknown data set.
        DataError: if it cannot be downloaded or the cache cannot be written.
    """
    data_set = look_up("data set", name, DATA_SETS)
    if not status(name)[0]:
        write_cached(data_set, download(data_set))
    _full.cache_clear()  # it may remember that there was no network
    return data_set.path


def status(name: str) -> tuple[bool, str]:
    """Whether the cache has a data set, and which copy it is or what is wrong with it. Asks no network.

    Raises:
        UnknownNameError: for an unknown data set.
    """
    arrays, remark = read_cached(look_up("data set", name, DATA_SETS))
    return arrays is not None, remark


def _load(name: str, source: Source) -> Any:
    path = look_up("data set", name, DATA_SETS).path
    check_names("source", [source], get_args(Source))
    if source != "embedded":
        found = _full(name, path)
        if not isinstance(found, str):
            return found
        if source == "full":
            raise DataError(found)
    return _embedded(name)


@cache
def _embedded(name: str) -> Any:
    data_set = DATA_SETS[name]
    return data_set.make(data_set.embedded(), "embedded", data_set.stand_in, "what pip installed")


@cache
def _full(name: str, path: Path) -> Any:
    """The whole data set, or why it is not available: an offline process asks once for each path in the cache."""
    data_set = DATA_SETS[name]
    arrays, remark = read_cached(data_set)
    if arrays is not None:
        origin = f"cache, {path.name}" + (f" ({remark})" if remark else "")
        return data_set.make(arrays, "full", data_set.title, origin)
    if remark:
        # 4 frames up is the caller of `load`.
        warnings.warn(f"{remark} It is not used, and fetched anew.", stacklevel=4)
    try:
        arrays = download(data_set)
    except DataError as error:
        return str(error)
    try:
        write_cached(data_set, arrays)
    except DataError as error:
        warnings.warn(f"{error} The download is used, but not kept.", stacklevel=4)
    return data_set.make(arrays, "full", data_set.title, data_set.url)
