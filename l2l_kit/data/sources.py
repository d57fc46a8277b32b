"""Where data come from: a file in the cache, else the official files, else a stand-in made of installed packages.

The cache has one file for each data set, which is checked by a SHA-256 over its arrays. The kit writes that checksum,
the seal, into the files that it makes from verified downloads; of other known copies the checksums are listed.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save

from l2l_kit.errors import DataError
from l2l_kit.extras import needs
from l2l_kit.paths import DATA, user_path
from l2l_kit.storage import write_atomically

Source = Literal["auto", "full", "embedded"]
Array = npt.NDArray[np.uint8]
Arrays = Mapping[str, npt.NDArray[Any]]

_ANSWER_SECONDS = 3.0
_SEAL = "sha256"
_MOST = 2**29  # bytes above which an .npz file is not even unpacked: a few kB of it can say that they are gigabytes


@dataclass(frozen=True)
class Loaded:
    """What all loaded data say of themselves.

    Attributes:
        source: "full" for the whole data set, "embedded" for its stand-in.
        title: what figures and tables call it.
        origin: the file, address or package that it came from.
    """

    source: Source
    title: str
    origin: str


@dataclass(frozen=True)
class DataSet:
    """How to get a data set.

    Attributes:
        file: its name in the cache, which ends in ".npz" or ".safetensors".
        copies: checksums of known copies, and what they are; the description of an exact one is empty.
        url: folder of the official files.
        files: their names and checksums as pooch writes them; None where `read` checks.
        read: gives the arrays in a folder that has the official files; images have their channels last.
        stand_in: title of the stand-in.
        embedded: gives the stand-in's arrays.
        make: gives what `load` returns, from arrays, source, title and origin.
    """

    title: str
    file: str
    copies: Mapping[str, str]
    url: str
    files: Mapping[str, str | None]
    read: Callable[[Path], Arrays]
    stand_in: str
    embedded: Callable[[], Arrays]
    make: Callable[[Arrays, Source, str, str], Any]

    @property
    def path(self) -> Path:
        """Its file in the cache."""
        return cache_folder() / self.file


def cache_folder() -> Path:
    """Where data sets are kept: ``$L2L_DATA_DIR``, else ``data/cache``."""
    return user_path(os.environ.get("L2L_DATA_DIR") or DATA / "cache")


def checksum(arrays: Arrays) -> str:
    """SHA-256 over names, types, shapes and bytes of the arrays."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        digest.update(f"{key}{array.dtype.str}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def read_cached(data_set: DataSet) -> tuple[Arrays | None, str]:
    """The arrays in the cache and which copy they are, "" for an exact one; or None and what is wrong, if anything."""
    path = data_set.path
    try:
        arrays, seal = _unpacked(path)
        known = {seal: "", **data_set.copies}
        if (found := checksum(arrays)) in known:
            return arrays, known[found]
        return None, f"{path}: its content is not known to be {data_set.title} (the checksum differs)."
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    except Exception as error:  # a damaged file can fail in any way: zlib.error, TypeError, MemoryError, ...
        return None, f"{path}: truncated, damaged or not readable ({error})."


def _unpacked(path: Path) -> tuple[Arrays, str]:
    """The arrays in a file, and its seal."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="np") as tensors:
            seal = (tensors.metadata() or {}).get(_SEAL, "")
            return {name: tensors.get_tensor(name) for name in tensors.keys()}, seal  # noqa: SIM118  (not a dict)
    # Opened here, because numpy leaves a truncated file open.
    with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
        if (size := sum(member.file_size for member in file.zip.infolist())) > _MOST:
            raise ValueError(f"it would take {size / 1e9:.1f} GB")
        arrays = dict(file)
    return arrays, str(arrays.pop(_SEAL, ""))


def write_cached(data_set: DataSet, arrays: Arrays) -> None:
    """Put a data set into the cache, sealed, all of it or nothing.

    Raises:
        DataError: if the cache cannot be written.
    """
    path, seal = data_set.path, checksum(arrays)
    if path.suffix == ".safetensors":
        content = save(dict(arrays), {_SEAL: seal})
    else:
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays, **{_SEAL: np.array(seal)})
        content = buffer.getvalue()
    try:
        write_atomically(path, content)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error}). Set L2L_DATA_DIR to a folder that can.") from error


def download(data_set: DataSet) -> Arrays:
    """The arrays from the official files.

    Raises:
        DataError: if there is no network, or the files that come have other checksums.
    """
    with needs("lessons"):
        import pooch

    if problem := _unreachable(data_set.url + next(iter(data_set.files))):
        path = data_set.path
        raise DataError(
            f"{data_set.title} is not in {path.parent}, and {data_set.url} cannot be reached ({problem}). "
            f"Run `l2l fetch {path.stem}` where there is a network and copy {path.name} there, or set L2L_DATA_DIR to "
            "the folder that has it."
        )
    try:
        with tempfile.TemporaryDirectory(prefix="l2l-") as folder:
            files = pooch.create(folder, data_set.url, registry=dict(data_set.files), retry_if_failed=2)
            for name in data_set.files:
                files.fetch(name, progressbar=True)
            return data_set.read(Path(folder))
    except (OSError, ValueError) as error:  # the network's errors are OSErrors; a wrong checksum is a ValueError
        raise DataError(f"{data_set.title} could not be downloaded from {data_set.url}: {error}") from error


def _unreachable(url: str) -> str:
    """Why a server does not answer within a few seconds; empty if it does, whatever the answer."""
    import pooch

    outcome = f"no answer in {2 * _ANSWER_SECONDS:.0f} s"

    def ask() -> None:
        nonlocal outcome
        try:
            pooch.HTTPDownloader(timeout=_ANSWER_SECONDS)(url, None, None, check_only=True)
            outcome = ""
        except Exception as error:  # a broken proxy or certificate setting can fail in any way
            outcome = type(error).__name__

    # The time-out does not bound the look-up of the server's name, where a daemon may hang without keeping anyone.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2 * _ANSWER_SECONDS)
    return outcome
